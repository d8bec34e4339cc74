"""What a recipe would do, without doing it: `abc-embed train … --dry-run`.

Does: build the model without its weights, load one batch, count what trains, estimate memory. Does
not: fetch, load weights, train, or write anything. A folder with a model's `config.json` and its
tokenizer is enough, so a recipe for a large model can be planned on a small machine.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from huggingface_hub import snapshot_download

from abc_embed import hub
from abc_embed.adapters import attach_stage1, attach_stage2, set_trainable
from abc_embed.backbone import build_backbone, parse_config
from abc_embed.errors import OfflineError, UsageError
from abc_embed.head import HIDDEN_WIDTH
from abc_embed.model import AbcModel
from abc_embed.pixels import ImageBudget
from abc_embed.processor import Features, Processor
from abc_embed.runtime import hardware
from abc_embed.storage.json_files import read_json
from abc_embed.train import memory
from abc_embed.train.batches import Source, TrainBatch, make_batch, split_queries, split_texts
from abc_embed.train.config import TrainConfig
from abc_embed.train.recipe import is_embedder
from abc_embed.train.sources import RecordSource


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """Tensors that train, of one part of the model."""

    name: str
    tensors: int
    parameters: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Load:
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
class Plan:
    """What a dry run found."""

    stage: str
    groups: tuple[Group, ...]
    frozen: int
    """Parameters that do not train."""
    load: Load
    memory: memory.Estimate
    number_format: str
    gpu: str
    """Name or size of the GPU that was asked for; empty if there is none."""
    gpu_bytes: int
    fitting_chunk: int
    """The largest `train.chunk_size` (a power of two, or the one given) that fits the GPU; 0 when
    none does or no GPU is known."""

    @property
    def fits(self) -> bool:
        """Whether the recipe as it stands fits the GPU."""
        return 0 < self.memory.total <= self.gpu_bytes


def dry_run(config: TrainConfig, gpu: str = "", source: Source | None = None) -> Plan:
    """Try a recipe out.

    `gpu` is a size ("24GB"; a card's GB are counted as GiB, as its makers do) or empty for the one
    that is present. `source` stands in for `data.records`.

    Raises what training would raise for its records, `OfflineError` when `model.base` is not on
    this machine, `UsageError` for a `gpu` that is no size.
    """
    name, size = _gpu(gpu) if gpu or config.model.device != "cpu" else ("", 0)
    model, processor = skeleton(config)
    on_gpu = size > 0
    half = config.model.precision == "bfloat16" or (config.model.precision == "auto" and on_gpu)
    setting = _setting(config, model, processor, 2 if half else 4, on_gpu)
    if source is None:
        source = RecordSource(config.data.records, config.stage, config.data)
    groups = source.groups(0, config.train.batch_size, config.train.seed)
    batch = make_batch(groups, processor, config.data.max_pixels)
    found = _estimate(config, setting, batch, config.train.chunk_size, on_gpu)
    return Plan(
        stage=config.stage,
        groups=_groups(model),
        frozen=sum(p.numel() for p in model.parameters() if not p.requires_grad),
        load=_load(config, batch),
        memory=found,
        number_format="bfloat16" if half else "float32",
        gpu=name,
        gpu_bytes=size,
        fitting_chunk=_fitting(config, setting, batch, size) if on_gpu else 0,
    )


def skeleton(config: TrainConfig) -> tuple[AbcModel, Processor]:
    """The model of a run, set up for its stage, without weights (on the meta device).

    Raises `OfflineError` when `model.base` is a name whose files are not on this machine.
    """
    base, head_width = config.model.base, config.model.head_width
    low: int | None = config.model.pixels[0] or None
    high: int | None = config.model.pixels[1] or None
    if is_embedder(base):
        found = hub.resolve(base)
        folder = found if isinstance(found, Path) else _local(found.base)
        if isinstance(found, Path):
            head_width = int(read_json(folder / "abc.json").get("head_width", HIDDEN_WIDTH))
        else:
            published = ImageBudget()
            low, high, head_width = published.min_pixels, published.max_pixels, HIDDEN_WIDTH
    else:
        folder = _local(base)
    processor = Processor.from_folder(folder, min_pixels=low, max_pixels=high)
    with torch.device("meta"):
        values = read_json(folder / "config.json")
        # Which attention computes it changes nothing that is counted here.
        model = AbcModel(build_backbone(parse_config(values)), head_width=head_width)
        adapter = config.adapter
        attach = attach_stage1 if config.stage == "pretrain" else attach_stage2
        attach(model, adapter.rank, adapter.alpha, adapter.dropout)
    set_trainable(model, config.stage)
    if config.stage == "pretrain":
        model.temperature.requires_grad_(config.temperature.learn)
    return model, processor


def _local(name: str) -> Path:
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


def _gpu(given: str) -> tuple[str, int]:
    """Name and bytes of the GPU to plan for; ("", 0) if there is none."""
    if not given:
        cards = hardware()["cuda"]
        return (cards[0]["name"], cards[0]["memory_bytes"]) if cards else ("", 0)
    size = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(?:Gi?B?)?\s*", given, re.IGNORECASE)
    if not size or float(size[1]) <= 0:
        raise UsageError(f"--gpu is {given!r}; give a size like 24GB")
    return f"{float(size[1]):g} GB", int(float(size[1]) * memory.GIB)


def _setting(
    config: TrainConfig, model: AbcModel, processor: Processor, number_bytes: int, on_gpu: bool
) -> memory.Setting:
    image = processor.image
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    head = sum(p.numel() for p in model.head.parameters() if not p.requires_grad)  # is float32
    frozen = sum(p.numel() for p in model.parameters()) - trained
    return memory.Setting(
        language=model.backbone.language_shape(),
        vision=model.backbone.vision_shape(),
        frozen_bytes=(frozen - head) * number_bytes + head * 4,
        trained=trained,
        vision_trains=config.stage == "pretrain",
        patch_values=3 * image.temporal_patch_size * image.patch_size**2,
        rank=config.adapter.rank,
        dropout=config.adapter.dropout > 0,
        number_bytes=number_bytes,
        mask_bytes=1 if on_gpu else 4,
        checkpointing=config.train.gradient_checkpointing,
        chunked=config.train.chunk_size > 0,
    )


def _chunks(
    config: TrainConfig, batch: TrainBatch, size: int
) -> tuple[list[Sequence[Features]], int]:
    """All chunks of a step, those of the queries first, and how many these are."""
    queries = split_queries(batch, size)
    return [*queries, *split_texts(batch.candidates, size)], len(queries)


def _estimate(
    config: TrainConfig, setting: memory.Setting, batch: TrainBatch, size: int, on_gpu: bool
) -> memory.Estimate:
    chunks, queries = _chunks(config, batch, size)
    passes = [
        memory.Chunk(
            tokens=_padded(chunk),
            patches=_patches(chunk),
            gradient=number < queries or config.stage == "pretrain",
        )
        for number, chunk in enumerate(chunks)
    ]
    return memory.estimate(
        setting,
        passes,
        queries=len(batch.queries),
        candidates=len(batch.candidates),
        on_gpu=on_gpu,
    )


def _fitting(config: TrainConfig, setting: memory.Setting, batch: TrainBatch, size: int) -> int:
    """The largest chunk size that fits, of those given and the powers of two."""
    chunked = replace(setting, chunked=True)
    most = len(batch.queries) + len(batch.candidates)
    sizes = {2**n for n in range(most.bit_length())} | {config.train.chunk_size}
    fitting = [
        one for one in sizes if one and _estimate(config, chunked, batch, one, True).total <= size
    ]
    return max(fitting, default=0)


def _padded(chunk: Sequence[Features]) -> int:
    return len(chunk) * max((features.tokens for features in chunk), default=0)


def _patches(chunk: Sequence[Features]) -> int:
    """Of the distinct pictures of a chunk: each is encoded once."""
    values = {f.image_key: len(f.pixel_values) for f in chunk if f.pixel_values is not None}
    return sum(values.values())


def _load(config: TrainConfig, batch: TrainBatch) -> Load:
    chunks, _ = _chunks(config, batch, config.train.chunk_size)
    return Load(
        images=len(batch.group_sizes),
        queries=len(batch.queries),
        candidates=len(batch.candidates),
        tokens=sum(f.tokens for f in (*batch.queries, *batch.candidates)),
        padded=sum(_padded(chunk) for chunk in chunks),
        patches=sum(_patches([f]) for f in {f.image_key: f for f in batch.queries}.values()),
        chunks=len(chunks),
    )


def _groups(model: AbcModel) -> tuple[Group, ...]:
    """What trains, by part."""
    found: dict[str, list[int]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if ".lora_" in name:
            part = "language model" if ".language_model." in name else "vision encoder"
            part = f"LoRA, {part}"
        else:
            part = "temperature" if name.startswith("temperature.") else name.partition(".")[0]
        found.setdefault(part, []).append(parameter.numel())
    return tuple(
        Group(name=part, tensors=len(sizes), parameters=sum(sizes)) for part, sizes in found.items()
    )
