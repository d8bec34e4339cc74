"""What a run would do, without doing it: `abc-embed train … --dry-run`.

Builds the model without its weights, loads one batch, counts what trains, and estimates memory;
nothing is fetched or written. A folder with a model's `config.json` and its tokenizer is enough, so
a run of a large model can be planned on a small machine.

Memory is that of one process, in bytes. What stays through a step: the weights, their gradients,
AdamW's two means. On top comes the largest chunk: what its forward pass keeps for the backward
pass, and what one layer needs while it computes. docs/recipes.md has the formula in words, how far
it is from what was counted, and what could not be counted.

Shapes: `N` padded tokens of a chunk (rows x longest), `P` patches, `D` width, `F` width inside the
MLP, `Q` width of all query heads, `C` values of a patch, `r` rank; b bytes of a number.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from huggingface_hub import snapshot_download

from abc_embed import hub
from abc_embed.backbone import EncoderShape, build_backbone, parse_config
from abc_embed.errors import OfflineError, UsageError
from abc_embed.head import HIDDEN_WIDTH
from abc_embed.model import AbcModel
from abc_embed.pixels import ImageBudget
from abc_embed.processor import Features, Processor
from abc_embed.runtime import hardware
from abc_embed.storage.json_files import read_json
from abc_embed.train.batches import (
    GroupSampler,
    TrainBatch,
    make_batch,
    split_queries,
    split_texts,
)
from abc_embed.train.config import TrainConfig
from abc_embed.train.sampler import RecordSampler
from abc_embed.train.stages import attach_adapter

GIB = 1024**3
RESERVE_BYTES = GIB
"""A guess, not measured: CUDA's own memory and the workspace of its kernels."""
RESERVE_SHARE = 0.1
"""A guess, not measured: what an allocator loses of activations, whose sizes change."""
_FLOAT32 = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainedPart:
    """Tensors that train, of one part of the model."""

    name: str
    tensors: int
    parameters: int


@dataclass(frozen=True, kw_only=True, slots=True)
class StepLoad:
    """What one step puts through the model."""

    images: int
    queries: int
    candidates: int
    tokens: int
    """Of all queries and candidates."""
    padded: int
    """The same with the padding of their chunks."""
    patches: int
    chunks: int


@dataclass(frozen=True, kw_only=True, slots=True)
class RunShape:
    """What of a model and its configuration decides memory."""

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
    """Whether `train.chunk_size` or `train.chunk_tokens` is set: one chunk at a time (GradCache),
    else all of a step."""


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

    @property
    def total(self) -> int:
        """All of it."""
        weights = self.frozen + self.trained + self.gradients + self.optimizer
        return weights + self.activations + self.vectors + self.reserve


@dataclass(frozen=True, kw_only=True, slots=True)
class DryRunReport:
    """What a dry run counted."""

    stage: str
    groups: tuple[TrainedPart, ...]
    frozen: int
    """Parameters that do not train."""
    load: StepLoad
    memory: MemoryEstimate
    number_format: str
    gpu: str
    """Name or size of the GPU that was asked for; empty if there is none."""
    gpu_bytes: int
    fitting_chunk: int
    """The largest `train.chunk_size` (a power of two, or the one given) that fits the GPU; 0 when
    none does or no GPU is known."""

    @property
    def fits(self) -> bool:
        """Whether the run as it is configured fits the GPU."""
        return 0 < self.memory.total <= self.gpu_bytes


def dry_run(
    config: TrainConfig, gpu: str = "", sampler: GroupSampler | None = None
) -> DryRunReport:
    """Try a run out.

    Args:
        gpu: A size ("24GB"; a card's GB are counted as GiB, as its makers do), or empty for the
            one that is present.
        sampler: Stands in for `data.records`.

    Raises:
        DataError: as training would for its records.
        OfflineError: `model.base` is not on this machine.
        UsageError: `gpu` is no size.
    """
    name, size = _gpu_memory(gpu) if gpu or config.model.device != "cpu" else ("", 0)
    model, processor = meta_model(config)
    on_gpu = size > 0
    half = config.model.precision == "bfloat16" or (config.model.precision == "auto" and on_gpu)
    shape = _run_shape(config, model, processor, 2 if half else 4, on_gpu)
    if sampler is None:
        sampler = RecordSampler(config.data.records, config.stage, config.data)
    groups = sampler.groups(0, config.train.batch_size, config.train.seed)
    batch = make_batch(groups, processor, config.data.max_pixels)
    return DryRunReport(
        stage=config.stage,
        groups=_trained_parts(model),
        frozen=sum(p.numel() for p in model.parameters() if not p.requires_grad),
        load=_step_load(config, batch),
        memory=_estimate(config, shape, batch, config.train.chunk_size, on_gpu),
        number_format="bfloat16" if half else "float32",
        gpu=name,
        gpu_bytes=size,
        fitting_chunk=_fitting_chunk(config, shape, batch, size) if on_gpu else 0,
    )


def meta_model(config: TrainConfig) -> tuple[AbcModel, Processor]:
    """The model of a run, set up for its stage, without weights (on the meta device).

    Raises:
        OfflineError: `model.base` is a name whose files are not on this machine.
    """
    base, head_width = config.model.base, config.model.head_width
    low: int | None = config.model.pixels[0] or None
    high: int | None = config.model.pixels[1] or None
    if hub.is_embedder(base):
        source = hub.resolve(base)
        folder = source if isinstance(source, Path) else _local_folder(source.base)
        if isinstance(source, Path):
            head_width = int(read_json(folder / "abc.json").get("head_width", HIDDEN_WIDTH))
        else:
            published = ImageBudget()
            low, high, head_width = published.min_pixels, published.max_pixels, HIDDEN_WIDTH
    else:
        folder = _local_folder(base)
    processor = Processor.from_folder(folder, min_pixels=low, max_pixels=high)
    with torch.device("meta"):
        values = read_json(folder / "config.json")
        # Which attention computes it changes nothing that is counted here.
        model = AbcModel(build_backbone(parse_config(values)), head_width=head_width)
        attach_adapter(model, config)
    return model, processor


def _local_folder(name: str) -> Path:
    """The folder of a model that is on this machine already."""
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    repository, _, revision = name.partition("@")
    try:
        return Path(snapshot_download(repository, revision=revision or None, local_files_only=True))
    except (OSError, ValueError) as problem:
        raise OfflineError(
            f"model.base {name!r} is not on this machine, and a dry run fetches nothing; give a "
            "folder with its config.json and tokenizer files (no weights are needed)"
        ) from problem


def _gpu_memory(gpu: str) -> tuple[str, int]:
    """Name and bytes of the GPU to plan for; ("", 0) if there is none."""
    if not gpu:
        cards = hardware()["cuda"]
        return (cards[0]["name"], cards[0]["memory_bytes"]) if cards else ("", 0)
    size = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(?:Gi?B?)?\s*", gpu, re.IGNORECASE)
    if not size or float(size[1]) <= 0:
        raise UsageError(f"--gpu is {gpu!r}; give a size like 24GB")
    return f"{float(size[1]):g} GB", int(float(size[1]) * GIB)


def _run_shape(
    config: TrainConfig, model: AbcModel, processor: Processor, number_bytes: int, on_gpu: bool
) -> RunShape:
    image = processor.image
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    head = sum(p.numel() for p in model.head.parameters() if not p.requires_grad)  # is float32
    frozen = sum(p.numel() for p in model.parameters()) - trained
    return RunShape(
        language=model.backbone.language_shape(),
        vision=model.backbone.vision_shape(),
        frozen_bytes=(frozen - head) * number_bytes + head * 4,
        trained=trained,
        vision_trains=config.stage == "pretrain",
        patch_values=3 * image.patch_size**2,  # of a still picture one frame
        rank=config.adapter.rank,
        dropout=config.adapter.dropout > 0,
        number_bytes=number_bytes,
        mask_bytes=1 if on_gpu else 4,
        checkpointing=config.train.gradient_checkpointing,
        chunked=config.train.chunk_size > 0 or config.train.chunk_tokens > 0,
    )


def _chunk_shapes(config: TrainConfig, batch: TrainBatch, chunk_size: int) -> list[ChunkShape]:
    """All chunks of a step, those of the queries first."""

    def shape(chunk: Sequence[Features], *, gradient: bool) -> ChunkShape:
        longest = max((features.tokens for features in chunk), default=0)
        return ChunkShape(len(chunk) * longest, _patch_count(chunk), gradient)

    tokens = config.train.chunk_tokens
    queries = [shape(chunk, gradient=True) for chunk in split_queries(batch, chunk_size, tokens)]
    texts = split_texts(batch.candidates, chunk_size, tokens, lambda features: features.tokens)
    return queries + [shape(chunk, gradient=config.stage == "pretrain") for chunk in texts]


def _estimate(
    config: TrainConfig, shape: RunShape, batch: TrainBatch, chunk_size: int, on_gpu: bool
) -> MemoryEstimate:
    chunks = _chunk_shapes(config, batch, chunk_size)
    queries, candidates = len(batch.queries), len(batch.candidates)
    return estimate_memory(shape, chunks, queries=queries, candidates=candidates, on_gpu=on_gpu)


def _fitting_chunk(config: TrainConfig, shape: RunShape, batch: TrainBatch, gpu_bytes: int) -> int:
    """The largest chunk size that fits, of those given and the powers of two."""
    chunked = replace(shape, chunked=True)
    rows = len(batch.queries) + len(batch.candidates)
    sizes = {2**n for n in range(rows.bit_length())} | {config.train.chunk_size}

    def fits(size: int) -> bool:
        return _estimate(config, chunked, batch, size, True).total <= gpu_bytes

    return max((size for size in sizes if size and fits(size)), default=0)


def _patch_count(chunk: Sequence[Features]) -> int:
    """Of the distinct pictures of a chunk: each is encoded once."""
    grids = {f.image_key: f.grid_thw for f in chunk if f.grid_thw is not None}
    return sum(map(math.prod, grids.values()))


def _step_load(config: TrainConfig, batch: TrainBatch) -> StepLoad:
    chunks = _chunk_shapes(config, batch, config.train.chunk_size)
    return StepLoad(
        images=len(batch.group_sizes),
        queries=len(batch.queries),
        candidates=len(batch.candidates),
        tokens=sum(f.tokens for f in (*batch.queries, *batch.candidates)),
        padded=sum(chunk.tokens for chunk in chunks),
        patches=_patch_count(batch.queries),
        chunks=len(chunks),
    )


def _trained_parts(model: AbcModel) -> tuple[TrainedPart, ...]:
    """What trains, by part."""
    sizes: dict[str, list[int]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if ".lora_" in name:
            part = "language model" if ".language_model." in name else "vision encoder"
            part = f"LoRA, {part}"
        else:
            part = "temperature" if name.startswith("temperature.") else name.partition(".")[0]
        sizes.setdefault(part, []).append(parameter.numel())
    return tuple(
        TrainedPart(name=part, tensors=len(counts), parameters=sum(counts))
        for part, counts in sizes.items()
    )


# -- memory, from shapes alone --------------------------------------------------------------------


def estimate_memory(
    shape: RunShape, chunks: Sequence[ChunkShape], *, queries: int, candidates: int, on_gpu: bool
) -> MemoryEstimate:
    """Peak memory of one process, in bytes, for the chunks of one step."""
    passes = [_pass(shape, chunk) for chunk in chunks]
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
        reserve=int(RESERVE_BYTES + RESERVE_SHARE * largest) if on_gpu else 0,
    )


def _pass(shape: RunShape, chunk: ChunkShape) -> tuple[int, int, int]:
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
