"""What a run would do, without doing it: `abc-embed train … --dry-run`.

Builds the model without its weights, loads one batch, counts what trains, and estimates memory;
nothing is fetched or written. A folder with a model's `config.json` and its tokenizer is enough, so
a run of a large model can be planned on a small machine.

Memory is that of one process, on a GPU its own, on a CPU the main memory that the process takes in
all. What a dry run's process has itself, libraries and one batch, the training's will have too.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from huggingface_hub import snapshot_download

from abc_embed import hub
from abc_embed.backbone import build_backbone, parse_config
from abc_embed.data import Rejected
from abc_embed.errors import OfflineError, UsageError
from abc_embed.head import HIDDEN_WIDTH
from abc_embed.model import AbcModel
from abc_embed.pixels import ImageBudget
from abc_embed.processor import Features, Processor
from abc_embed.runtime import hardware, resident_bytes
from abc_embed.storage.json_files import read_json
from abc_embed.train.batches import (
    Group,
    GroupSampler,
    TrainBatch,
    make_batch,
    split_chunks,
    split_queries,
)
from abc_embed.train.config import TrainConfig
from abc_embed.train.memory import GIB, ChunkShape, MemoryEstimate, RunShape, estimate_memory
from abc_embed.train.sampler import RecordSampler
from abc_embed.train.stages import attach_adapter


@dataclass(frozen=True, slots=True)
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


@dataclass(frozen=True, kw_only=True, slots=True)
class Rehearsal:
    """A dry run with what it was counted from."""

    report: DryRunReport
    processor: Processor
    groups: Sequence[Group | Rejected]
    """Of the first step."""
    batch: TrainBatch


def dry_run(
    config: TrainConfig, gpu: str = "", sampler: GroupSampler | None = None
) -> DryRunReport:
    """Try a run out; a `sampler` stands in for `data.records`.

    `gpu` is a size ("24GB"; a card's GB are counted as GiB, as its makers do), or empty for the one
    that is present.

    Raises:
        OfflineError: `model.base` is not on this machine.
    """
    return rehearse(config, gpu, sampler).report


def rehearse(config: TrainConfig, gpu: str = "", sampler: GroupSampler | None = None) -> Rehearsal:
    """As `dry_run`, for who goes on from its batch."""
    name, size = _gpu_memory(gpu) if gpu or config.model.device != "cpu" else ("", 0)
    base = config.model
    model, processor = base_model(base.base, base.pixels, base.head_width)
    with torch.device("meta"):
        attach_adapter(model, config)
    on_gpu = size > 0
    half = base.precision == "bfloat16" or (base.precision == "auto" and on_gpu)
    shape = _run_shape(config, model, processor, 2 if half else 4, on_gpu)
    if sampler is None:
        sampler = RecordSampler(config.data.records, config.stage, config.data)
    groups = list(sampler.groups(0, config.train.batch_size, config.train.seed))
    batch = make_batch(groups, processor, config.data.max_pixels)
    chunks = _chunk_shapes(config, batch)
    memory = _estimate(config, shape, batch)
    if not on_gpu:
        memory = replace(memory, process=resident_bytes())
    report = DryRunReport(
        stage=config.stage,
        groups=_trained_parts(model),
        frozen=sum(p.numel() for p in model.parameters() if not p.requires_grad),
        load=StepLoad(
            images=len(batch.groups),
            queries=len(batch.queries),
            candidates=len(batch.texts),
            tokens=sum(features.tokens for features in batch.features),
            padded=sum(chunk.tokens for chunk in chunks),
            patches=patch_count(batch.features),
            chunks=len(chunks),
        ),
        memory=memory,
        number_format="bfloat16" if half else "float32",
        gpu=name,
        gpu_bytes=size,
        fitting_chunk=_fitting_chunk(config, shape, batch, size) if on_gpu else 0,
    )
    return Rehearsal(report=report, processor=processor, groups=groups, batch=batch)


def base_model(
    base: str, pixels: tuple[int, int] = (0, 0), head_width: int = HIDDEN_WIDTH
) -> tuple[AbcModel, Processor]:
    """A model by name, without weights and without adapters (on the meta device).

    `pixels` and `head_width` are for one that is no embedder yet.

    Raises:
        OfflineError: a name whose files are not on this machine.
    """
    low: int | None = pixels[0] or None
    high: int | None = pixels[1] or None
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
            f"the base model {name!r} is not on this machine, and a dry run fetches nothing; give "
            "a folder with its config.json and tokenizer files (no weights are needed)"
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
    return RunShape.of(
        model,
        processor.image.patch_size,
        number_bytes,
        on_gpu=on_gpu,
        vision_trains=config.stage == "pretrain",
        rank=config.adapter.rank,
        dropout=config.adapter.dropout > 0,
        checkpointing=config.train.gradient_checkpointing,
        chunked=config.train.is_chunked,
    )


def _chunk_shapes(config: TrainConfig, batch: TrainBatch) -> list[ChunkShape]:
    """All chunks of a step, those of the queries first."""

    def shape(chunk: Sequence[Features], *, gradient: bool) -> ChunkShape:
        longest = max((features.tokens for features in chunk), default=0)
        return ChunkShape(len(chunk) * longest, patch_count(chunk), gradient)

    train, texts = config.train, list(batch.texts.values())
    queries = [shape(chunk, gradient=True) for chunk in split_queries(batch, train)]
    chunks = split_chunks(texts, train, lambda features: features.tokens)
    return queries + [shape(chunk, gradient=config.stage == "pretrain") for chunk in chunks]


def _estimate(config: TrainConfig, shape: RunShape, batch: TrainBatch) -> MemoryEstimate:
    queries, candidates = len(batch.queries), len(batch.texts)
    chunks = _chunk_shapes(config, batch)
    return estimate_memory(shape, chunks, queries=queries, candidates=candidates)


def _fitting_chunk(config: TrainConfig, shape: RunShape, batch: TrainBatch, gpu_bytes: int) -> int:
    """The largest chunk size that fits, of those given and the powers of two."""
    chunked = replace(shape, chunked=True)
    rows = len(batch.features)
    sizes = {2**n for n in range(rows.bit_length())} | {config.train.chunk_size}

    def fits(size: int) -> bool:
        tried = replace(config, train=replace(config.train, chunk_size=size))
        return _estimate(tried, chunked, batch).total <= gpu_bytes

    return max((size for size in sizes if size and fits(size)), default=0)


def patch_count(chunk: Sequence[Features]) -> int:
    """Of the distinct pictures of a chunk: each is encoded once."""
    grids = {f.image_key: f.grid_thw for f in chunk if f.grid_thw is not None}
    return sum(map(math.prod, grids.values()))


def _trained_parts(model: AbcModel) -> tuple[TrainedPart, ...]:
    sizes: dict[str, list[int]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        part = name.partition(".")[0]
        if ".lora_" in name:
            encoder = "language model" if ".language_model." in name else "vision encoder"
            part = f"LoRA, {encoder}"
        sizes.setdefault(part, []).append(parameter.numel())
    return tuple(TrainedPart(part, len(counts), sum(counts)) for part, counts in sizes.items())
