"""Peak memory of a model at work, from shapes alone: formulas, in bytes.

What stays through a step: the weights, their gradients, AdamW's two means. On top comes the largest
chunk: what its forward pass keeps for the backward pass, and what one layer needs while it
computes. docs/recipes.md has the formula in words, how far it is from what was counted, and what
could not be counted.

Shapes: `N` padded tokens of a chunk (rows x longest), `P` patches, `D` width, `F` width inside the
MLP, `Q` width of all query heads, `C` values of a patch, `r` rank; b bytes of a number.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from abc_embed.backbone import EncoderShape

if TYPE_CHECKING:
    from abc_embed.model import AbcModel

GIB = 1024**3
RESERVE_BYTES = GIB
"""A guess, not measured: CUDA's own memory and the workspace of its kernels."""
RESERVE_SHARE = 0.1
"""A guess, not measured: what an allocator loses of activations, whose sizes change."""
CPU_RESERVE_BYTES = 120 * 2**20
"""Measured on one machine: kernels, and the heaps of the threads that compute."""
CPU_RESERVE_SHARE = 0.2
"""Measured likewise: what the C library's allocator loses of activations."""
_FLOAT32 = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class RunShape:
    """What of a model, its configuration and its device decides memory; nothing trains unless it
    is said."""

    language: EncoderShape
    vision: EncoderShape
    frozen_bytes: int
    """Weights that do not train."""
    patch_values: int
    """C."""
    number_bytes: int
    """b: 2 in bfloat16, 4 in float32."""
    on_gpu: bool
    trained: int = 0
    """Parameters that do; float32."""
    vision_trains: bool = False
    """Stage 1 sends gradients through the vision encoder, stage 2 does not."""
    rank: int = 0
    dropout: bool = False
    checkpointing: bool = False
    chunked: bool = True
    """Whether `train.chunk_size` or `train.chunk_tokens` is set: one chunk at a time (GradCache),
    else all of a step."""

    @classmethod
    def of(
        cls,
        model: "AbcModel",
        patch_size: int,
        number_bytes: int,
        *,
        on_gpu: bool,
        **training: Any,
    ) -> "RunShape":
        """Of a model whose trained parameters are those that require gradients; `training` are
        the fields that come from a configuration."""
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        frozen = sum(p.numel() for p in model.parameters()) - trained
        head = sum(p.numel() for p in model.head.parameters() if not p.requires_grad)  # is float32
        return cls(
            language=model.backbone.language_shape(),
            vision=model.backbone.vision_shape(),
            frozen_bytes=(frozen - head) * number_bytes + head * _FLOAT32,
            patch_values=3 * patch_size**2,  # of a still picture one frame
            number_bytes=number_bytes,
            on_gpu=on_gpu,
            trained=trained,
            **training,
        )

    @property
    def mask_bytes(self) -> int:
        """Of a dropout mask, per number: those of a CPU are float32."""
        return 1 if self.on_gpu else _FLOAT32


@dataclass(frozen=True, slots=True)
class ChunkShape:
    """What goes through the model in one pass."""

    tokens: int
    """N."""
    patches: int = 0
    """P; 0 for texts."""
    gradient: bool = True
    """False for the candidates of stage 2."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryEstimate:
    """Bytes by purpose."""

    frozen: int
    trained: int
    gradients: int
    optimizer: int
    activations: int
    """Of the largest chunk; with `chunk_size` 0 of the whole step."""
    vectors: int
    """Embeddings of the step, scores, and in stage 2 the visual tokens of all its images."""
    reserve: int
    process: int = 0
    """Main memory of the process before it has a model: Python, libraries, one batch. On a GPU 0,
    since nothing of that is there."""

    @property
    def total(self) -> int:
        """All of it."""
        weights = self.frozen + self.trained + self.gradients + self.optimizer
        return weights + self.activations + self.vectors + self.reserve + self.process


def estimate_memory(
    shape: RunShape, chunks: Sequence[ChunkShape], *, queries: int, candidates: int
) -> MemoryEstimate:
    """Peak memory of one process, in bytes, for the chunks of one step; `process` is left 0."""
    passes = [pass_bytes(shape, chunk) for chunk in chunks]
    if shape.chunked:
        largest = max((kept + working for kept, working, _ in passes), default=0)
    else:
        largest = sum(kept for kept, *_ in passes) + max((p[1] for p in passes), default=0)
    largest = max([largest, *(opening for *_, opening in passes)])
    vectors = (queries + candidates) * shape.language.width * _FLOAT32 * 3  # and two of gradients
    vectors += queries * candidates * _FLOAT32 * 4  # cosines, scores, their softmax, its gradient
    if not shape.vision_trains:
        patches = sum(chunk.patches for chunk in chunks)
        vectors += patches // 4 * shape.language.width * shape.number_bytes
    return MemoryEstimate(
        frozen=shape.frozen_bytes,
        trained=shape.trained * _FLOAT32,
        gradients=shape.trained * _FLOAT32,
        optimizer=2 * shape.trained * _FLOAT32,
        activations=largest,
        vectors=vectors,
        reserve=reserve_bytes(largest, on_gpu=shape.on_gpu),
    )


def reserve_bytes(activations: int, *, on_gpu: bool) -> int:
    """What a device takes besides what is asked of it."""
    if on_gpu:
        return int(RESERVE_BYTES + RESERVE_SHARE * activations)
    return int(CPU_RESERVE_BYTES + CPU_RESERVE_SHARE * activations)


def pass_bytes(shape: RunShape, chunk: ChunkShape) -> tuple[int, int, int]:
    """Bytes that one chunk keeps until its backward pass, that it needs besides while one layer
    computes, and while its pixels go into the vision encoder, before anything else is kept."""
    b, tokens, patches = shape.number_bytes, chunk.tokens, chunk.patches
    language, vision = shape.language, shape.vision
    pixels = patches * shape.patch_values
    language_working = tokens * _working(shape, language)
    vision_working = patches * _working(shape, vision)
    # As they came, a byte each; cut and normalised, and in b.
    opening = pixels + max(pixels * (_FLOAT32 + b), pixels * b + vision_working)
    if not chunk.gradient:
        return 0, language_working, opening
    layer = tokens * _language_layer(shape)
    block = patches * _vision_layer(shape) if shape.vision_trains else 0
    # Around the layers: the states that go in, and the last norm, in float32.
    kept = tokens * language.width * (b + 2 * _FLOAT32)
    # In stage 2 the pixels are gone by now; the visual tokens count as vectors.
    kept += pixels * _FLOAT32 if shape.vision_trains else 0
    vision_working = vision_working if shape.vision_trains else 0
    if shape.checkpointing:
        kept += language.layers * tokens * language.width * b
        kept += vision.layers * patches * vision.width * b if shape.vision_trains else 0
        return kept, max(layer + language_working, block + vision_working), opening
    kept += language.layers * layer + vision.layers * block
    return kept, max(language_working, vision_working), opening


def _language_layer(shape: RunShape) -> int:
    """Bytes that one layer keeps per token."""
    b, e = shape.number_bytes, shape.language
    inputs = 5 * e.width + e.heads + e.inner  # of q k v gate up, of o, of down: each has LoRA
    # Without dropout in float32 q k v share one input, gate and up another, and o has attention's.
    shared = 2 * e.width + e.inner if b == _FLOAT32 and not shape.dropout else inputs
    attention = 2 * e.heads + 2 * e.heads  # query, output; key and value repeated to as many
    low_rank = 7 * shape.rank
    masks = inputs * shape.mask_bytes if shape.dropout else 0
    norms = 2 * e.width * _FLOAT32  # in float32 whatever the weights are
    return b * (shared + attention + 3 * e.inner + low_rank) + norms + masks


def _vision_layer(shape: RunShape) -> int:
    """Bytes that one block keeps per patch."""
    b, e = shape.number_bytes, shape.vision
    inputs = 3 * e.width + e.inner  # of qkv, proj and fc1, of fc2: each has LoRA
    masks = inputs * shape.mask_bytes if shape.dropout else 0
    # 3: what qkv gave; 3: query, key, output; 3: inputs of LoRA; F: before, in, after the
    # activation; and two norms in float32.
    dropped = inputs if shape.dropout and b == _FLOAT32 else 0
    kept = b * (9 * e.width + 3 * e.inner + 4 * shape.rank + dropped)
    return kept + 2 * e.width * _FLOAT32 + masks


def _working(shape: RunShape, encoder: EncoderShape) -> int:
    """Bytes per token that come and go while one layer computes, at its widest place: attention,
    whose rotation is in float32, or the end of the MLP, where LoRA holds its input, and with
    dropout what is left of it too."""
    b = shape.number_bytes
    attention = 5 * b * encoder.heads + 6 * _FLOAT32 * encoder.heads
    dropped = b if shape.dropout and b < _FLOAT32 else 0
    mlp = (4 * b + dropped) * encoder.inner
    return max(attention, mlp) + 2 * b * encoder.width
