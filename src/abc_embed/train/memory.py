"""How much memory a step takes, from shapes alone.

Does: the arithmetic, in bytes, for one process. Does not: look at a model (``dry_run`` reads the
shapes off it) or at the machine. docs/recipes.md has the same formula in words, how far it is from
what was counted, and what could not be counted.

What stays through a step: the weights, their gradients, AdamW's two means. On top comes the
largest chunk: what its forward pass keeps for the backward pass, and what one layer needs while it
computes.

Shapes: `N` padded tokens of a chunk (rows x longest), `P` patches, `D` width, `F` width inside the
MLP, `Q` width of all query heads, `C` values of a patch, `r` rank; b bytes of a number.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from abc_embed.backbone import EncoderShape

GIB = 1024**3
_FLOAT = 4
RESERVE_BYTES = GIB
"""A guess, not measured: CUDA's own memory and the workspace of its kernels."""
RESERVE_SHARE = 0.1
"""A guess, not measured: what an allocator loses of activations, whose sizes change."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """What of a configuration decides memory."""

    language: EncoderShape
    vision: EncoderShape
    frozen_bytes: int
    """Weights that do not train."""
    trained: int
    """Parameters that do; float32."""
    vision_trains: bool
    """Stage 1 sends gradients through the vision encoder, stage 2 does not."""
    patch_values: int
    """C."""
    rank: int
    dropout: bool
    number_bytes: int
    """b: 2 in bfloat16, 4 in float32."""
    mask_bytes: int
    """Of a dropout mask, per number: 1 on a GPU, 4 on a CPU, whose masks are float32."""
    checkpointing: bool
    chunked: bool
    """Whether `train.chunk_size` is set: one chunk at a time (GradCache), else all of a step."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Chunk:
    """What goes through the model in one pass."""

    tokens: int
    """N."""
    patches: int = 0
    """P; 0 for texts."""
    gradient: bool = True
    """False for the candidates of stage 2."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
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

    @property
    def total(self) -> int:
        """All of it."""
        kept = self.frozen + self.trained + self.gradients + self.optimizer
        return kept + self.activations + self.vectors + self.reserve


def estimate(
    setting: Setting, chunks: Sequence[Chunk], *, queries: int, candidates: int, on_gpu: bool
) -> Estimate:
    """Peak memory of one process, in bytes, for the chunks of one step."""
    each = [_pass(setting, chunk) for chunk in chunks]
    if setting.chunked:
        largest = max((one.kept + one.working for one in each), default=0)
    else:
        largest = sum(one.kept for one in each) + max((one.working for one in each), default=0)
    largest = max([largest, *(one.opening for one in each)])
    vectors = (queries + candidates) * setting.language.width * _FLOAT * 3  # and two of gradients
    vectors += queries * candidates * _FLOAT * 4  # cosines, scores, their softmax, its gradient
    if not setting.vision_trains:
        patches = sum(chunk.patches for chunk in chunks)
        vectors += patches // 4 * setting.language.width * setting.number_bytes
    return Estimate(
        frozen=setting.frozen_bytes,
        trained=setting.trained * _FLOAT,
        gradients=setting.trained * _FLOAT,
        optimizer=2 * setting.trained * _FLOAT,
        activations=largest,
        vectors=vectors,
        reserve=int(RESERVE_BYTES + RESERVE_SHARE * largest) if on_gpu else 0,
    )


@dataclass(frozen=True, slots=True)
class _Pass:
    """What one chunk needs, in bytes."""

    kept: int
    """Until its backward pass."""
    working: int
    """Besides, while one layer computes."""
    opening: int
    """While the pixels go into the vision encoder, before anything else is kept."""


def _pass(setting: Setting, chunk: Chunk) -> _Pass:
    b, tokens, patches = setting.number_bytes, chunk.tokens, chunk.patches
    language, vision = setting.language, setting.vision
    pixels = patches * setting.patch_values
    reading, looking = tokens * _work(setting, language), patches * _work(setting, vision)
    # As they came, in the vision encoder's order, and in b.
    opening = pixels * _FLOAT + max(pixels * (_FLOAT + b), looking)
    if not chunk.gradient:
        return _Pass(0, reading, opening)
    layer = tokens * _language_layer(setting)
    block = patches * _vision_layer(setting) if setting.vision_trains else 0
    # Around the layers: the states that go in, and the last norm, in float32.
    kept = tokens * language.width * (b + 2 * _FLOAT)
    # In stage 2 the pixels are gone by now; the visual tokens count as vectors.
    kept += pixels * _FLOAT if setting.vision_trains else 0
    looking = looking if setting.vision_trains else 0
    if setting.checkpointing:
        kept += language.layers * tokens * language.width * b
        kept += vision.layers * patches * vision.width * b if setting.vision_trains else 0
        return _Pass(kept, max(layer + reading, block + looking), opening)
    kept += language.layers * layer + vision.layers * block
    return _Pass(kept, max(reading, looking), opening)


def _language_layer(setting: Setting) -> int:
    """Bytes that one layer keeps per token."""
    b, e = setting.number_bytes, setting.language
    inputs = 5 * e.width + e.heads + e.inner  # of q k v gate up, of o, of down: each has LoRA
    # Without dropout in float32 q k v share one input, gate and up another, and o has attention's.
    shared = 2 * e.width + e.inner if b == _FLOAT and not setting.dropout else inputs
    attention = 2 * e.heads + 2 * e.heads  # query, output; key and value repeated to as many
    low = 7 * setting.rank
    masks = inputs * setting.mask_bytes if setting.dropout else 0
    norms = 2 * e.width * _FLOAT  # in float32 whatever the weights are
    return b * (shared + attention + 3 * e.inner + low) + norms + masks


def _vision_layer(setting: Setting) -> int:
    """Bytes that one block keeps per patch."""
    b, e = setting.number_bytes, setting.vision
    inputs = 3 * e.width + e.inner  # of qkv, proj and fc1, of fc2: each has LoRA
    masks = inputs * setting.mask_bytes if setting.dropout else 0
    # 3: what qkv gave, whole; 3: query, key, output; 3: inputs of LoRA; F: before, in, after the
    # activation; and two norms in float32.
    more = inputs if setting.dropout and b == _FLOAT else 0
    kept = b * (9 * e.width + 3 * e.inner + 4 * setting.rank + more)
    return kept + 2 * e.width * _FLOAT + masks


def _work(setting: Setting, encoder: EncoderShape) -> int:
    """Bytes per token that come and go while one layer computes, at its widest place: attention,
    whose rotation is in float32, or the end of the MLP, where LoRA holds its input in float32, and
    with dropout what is left of it too."""
    b = setting.number_bytes
    attention = 5 * b * encoder.heads + 6 * _FLOAT * encoder.heads
    dropped = _FLOAT if setting.dropout and b < _FLOAT else 0
    mlp = (3 * b + _FLOAT + dropped) * encoder.inner
    return max(attention, mlp) + 2 * b * encoder.width
