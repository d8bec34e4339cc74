"""`plan`: memory and time of a job before it starts, and afterwards how far off that was.

A sample of the job's items is really prepared, and a model of the job's shape with random weights
really computes some of its batches, for about two seconds. A model that is too large for that is
cut down to a layer or two of each encoder, and the others are added up. Memory is the training's
own estimate (`train.memory`), of which inference takes the part without gradients.

Shapes: `D` width.
"""

import copy
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from abc_embed import hub, runtime
from abc_embed.adapters import attach_stage2
from abc_embed.decoding import unpack_bytes
from abc_embed.embedder import Embedder
from abc_embed.errors import DataError, UsageError
from abc_embed.inputs import Item, Kind, read_header
from abc_embed.model import MERGE_SHARE, AbcModel
from abc_embed.pipeline import CPU_BATCH_TOKENS, WINDOW_VISUAL_TOKENS, EmbeddingPipeline
from abc_embed.processor import Features, Processor
from abc_embed.speed.costs import (
    Arithmetic,
    Seconds,
    Stopwatch,
    peak_flops,
    seconds_of,
    sum_seconds,
)
from abc_embed.speed.shapes import fill_weights, keep_layers, language_layers, vision_layers
from abc_embed.storage.json_files import read_json
from abc_embed.train.batches import GroupSampler, TrainBatch, make_batch
from abc_embed.train.config import TrainConfig
from abc_embed.train.dry_run import Rehearsal, base_model, patch_count, rehearse
from abc_embed.train.loop import autocast_dtype, make_accelerator
from abc_embed.train.memory import ChunkShape, RunShape, pass_bytes, reserve_bytes
from abc_embed.train.processes import GlobalBatch, ProcessGroup
from abc_embed.train.stages import STAGES

PROBE_S = 1.5
"""Time on the clock of the device that computing the sample takes, about."""
WHOLE_S = 0.5
"""A model that takes less than this for a batch is tried with all its layers."""
SAMPLE = 24
"""Items of a job that are prepared to plan it."""
TILES = 512
"""Items that are put into batches, the sample again and again."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What a job is going to take; JSON values throughout."""

    job: Literal["embed", "train"]
    model: str
    device: str
    dtype: str
    units: int
    """Items, or steps."""
    devices: int
    start_s: float
    """Until the first item: libraries, the model."""
    prepare_s: float
    """Processor time of all pictures and words, on one thread."""
    compute_s: float
    """Of the model, on one device, by the clock."""
    processor_s: float
    """Of the whole job on a CPU, start included; on a GPU of what the processors do."""
    wall_s: float
    """Of the whole job, on `devices`."""
    memory: dict[str, int]
    """Bytes by purpose; of one process, or of one GPU."""
    layers_tried: str
    """"all" or "some"."""

    @property
    def total_bytes(self) -> int:
        """All of the memory."""
        return sum(self.memory.values())

    @classmethod
    def read(cls, path: Path) -> "Plan":
        """A plan that was written down.

        Raises:
            DataError: the file is none.
        """
        values = read_json(path, error=DataError, mend="make a plan with: abc-embed plan")
        try:
            return cls(**{key: values[key] for key in cls.__dataclass_fields__})
        except (KeyError, TypeError) as problem:
            raise DataError(f"{path} is no plan; make one with: abc-embed plan") from problem

    def as_json(self) -> dict[str, Any]:
        """For a file, or for programs."""
        return asdict(self) | {"total_bytes": self.total_bytes}


def check_job(plan: Plan, job: str, model: str) -> None:
    """Whether a plan is of this job.

    Raises:
        UsageError: it is of another.
    """
    if (plan.job, plan.model) != (job, model):
        raise UsageError(
            f"the plan is of the job {plan.job!r} with {plan.model}, not of {job!r} with {model}; "
            "make one for this job"
        )


def comparison(plan: Plan, device: str, units: int) -> str:
    """How far off a plan was, at the end of the process that did the job: time and peak memory.

    Time is the processor's on a CPU, which other work does not change, else that on the clock.
    """
    where = runtime.resolve_device(device)
    share = units / plan.units if plan.units else 1.0
    whole, took, kind = plan.processor_s, time.process_time(), " of processor time"
    if where.type != "cpu":
        whole, took, kind = plan.wall_s, time.monotonic() - _process_start(), ""
    planned = plan.start_s + (whole - plan.start_s) * share
    words = f"planned {planned:,.1f} s{kind}, took {took:,.1f} ({took / planned - 1:+.0%})"
    peak, total = runtime.peak_bytes(where), plan.total_bytes
    if not (peak and total):
        return words
    memory = f"planned {total / 2**20:,.0f} MiB, took {peak / 2**20:,.0f} ({peak / total - 1:+.0%})"
    return f"{words}; {memory}"


def _process_start() -> float:
    """When this process began, on the clock of `time.monotonic`."""
    try:
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return time.monotonic() - time.process_time()
    return ticks / os.sysconf("SC_CLK_TCK")


# -- embedding -------------------------------------------------------------------------------------


def plan_embedding(
    model_name: str,
    items: Sequence[Item],
    count: int,
    *,
    device: torch.device,
    dtype: torch.dtype,
    max_pixels: int | None = None,
    batch_size: int | None = None,
    devices: int = 1,
    shape: Callable[[], tuple[AbcModel, Processor]] | None = None,
) -> Plan:
    """Plan an embedding job.

    Args:
        items: Some of the job's, or like them: at most `SAMPLE` are opened.
        count: How many the job has.
        shape: Makes the model on the meta device, in place of the one named.

    Raises:
        InputError: an item of the sample cannot be embedded.
        OfflineError: the model's configuration is not on this machine.
    """
    model, processor = shape() if shape else base_model(model_name)
    if shape or has_instruct_adapter(model_name):
        with torch.device("meta"):
            attach_stage2(model)
    model.requires_grad_(False)
    sample = spread(items, SAMPLE)
    prepared = Embedder(model, processor).pipeline(max_pixels, batch_size)
    for item in sample[:1]:
        prepared.prepare(item)  # what is imported and built at the first belongs to the start
    start_s = time.process_time()
    watch = Stopwatch(device)
    features = [prepared.prepare(item) for item in sample]
    prepare = watch.lap()
    process = runtime.resident_bytes()
    tiles = tile(features, min(count, TILES))
    pipelines: list[EmbeddingPipeline] = []  # of models on the device, which decides their bounds

    def batches(made: AbcModel) -> list[Task]:
        embedder = Embedder(made.requires_grad_(False).eval(), processor)
        pipelines.append(embedder.pipeline(max_pixels, batch_size))
        return _batches(made, pipelines[-1], tiles)

    compute, tried = _try_layers(model, device, dtype, batches)
    pipeline = pipelines[0]
    memory = _embedding_memory(model, pipeline, tiles, _largest(sample), device, dtype)
    if device.type == "cpu":
        memory["the process itself, with its libraries"] = process
    return _plan(
        job="embed",
        model=model_name,
        device=device,
        dtype=dtype,
        units=count,
        devices=devices,
        start_s=start_s,
        prepare=prepare.processor * count / len(sample),
        compute=sum_seconds([compute], count / len(tiles)),
        threads=pipeline.threads,
        memory=memory,
        tried=tried,
    )


def _plan(
    *,
    device: torch.device,
    dtype: torch.dtype,
    devices: int,
    start_s: float,
    prepare: float,
    compute: Seconds,
    threads: int,
    tried: str,
    **facts: Any,
) -> Plan:
    """The times of a job from those of its parts.

    A CPU has both parts to do, and its cores share them; beside a GPU they overlap, and the slower
    one counts. Without threads or workers that prepare, one comes after the other.
    """
    cores = os.cpu_count() or 1
    processor_s = start_s + prepare + compute.processor
    if not threads:
        wall = compute.wall + prepare
    elif device.type == "cpu":
        wall = max(compute.wall, (compute.processor + prepare) / cores)
    else:
        wall = max(compute.wall, prepare / min(threads, cores))
    return Plan(
        device=str(device),
        dtype=str(dtype).removeprefix("torch."),
        devices=devices,
        start_s=start_s,
        prepare_s=prepare,
        compute_s=compute.wall,
        processor_s=processor_s,
        wall_s=start_s + wall / devices,
        layers_tried=tried,
        **facts,
    )


def has_instruct_adapter(model_name: str) -> bool:
    """Whether the model of a name has passed stage 2, as its files or its recipe say."""
    if not hub.is_embedder(model_name):
        return False
    source = hub.resolve(model_name)
    if isinstance(source, Path):
        return bool(read_json(source / "abc.json").get("instruct_adapter"))
    return source.instruct is not None


def spread(items: Sequence[Any], most: int) -> list[Any]:
    """At most so many, from all over the list."""
    step = max(1.0, len(items) / most)
    return [items[int(number * step)] for number in range(min(most, len(items)))]


def tile(features: Sequence[Features], count: int) -> list[Features]:
    """The items again and again until there are `count`, each time with other pictures."""
    found: list[Features] = []
    for round_ in range(math.ceil(count / len(features))):
        for item in features:
            key = None if item.image_key is None else f"{item.image_key} {round_}"
            found.append(replace(item, image_key=key))
    return found[:count]


def _largest(items: Sequence[Item]) -> int:
    """Pixels of the largest picture, as their headers say."""
    headers = [read_header(item.image) for item in items if item.image is not None]
    return max((header.width * header.height for header in headers), default=0)


Task = tuple[Callable[[], object], float]
"""Work, and how much of it there is in it, in any unit."""


def _batches(
    model: AbcModel, pipeline: EmbeddingPipeline, features: Sequence[Features]
) -> list[Task]:
    """The batches of these items, in a mixed order; their unit is arithmetic."""
    arithmetic = Arithmetic.of(model)
    batches = [[features[row] for row in rows] for rows in pipeline.plan(features)]
    order = sorted(range(len(batches)), key=lambda n: (n * 7919) % 1009)  # long and short ones
    pipeline.compute(batches[order[0]][:1])  # merges the adapter, finds kernels
    return [
        (partial(pipeline.compute, batches[n]), sum(arithmetic.flops(batches[n]))) for n in order
    ]


def _try_layers(
    meta: AbcModel,
    device: torch.device,
    dtype: torch.dtype,
    work: Callable[[AbcModel], list[Task]],
) -> tuple[Seconds, str]:
    """Time of all that `work` gives for a model, from some of it, and what layers were tried.

    `meta` stays as it is.
    """
    deep = len(language_layers(meta)), len(vision_layers(meta))
    needed = sum(p.numel() for p in meta.parameters()) * dtype.itemsize
    batch_s = 2 * Arithmetic.of(meta).token * CPU_BATCH_TOKENS / peak_flops(device, dtype, times=2)
    if batch_s < WHOLE_S and 2 * needed < runtime.free_memory_bytes(device):
        return _seconds_of_all(work(_made(meta, deep, device, dtype)), device), "all"
    one, language, vision = (
        _seconds_of_all(work(_made(meta, depth, device, dtype)), device)
        for depth in ((1, 1), (min(2, deep[0]), 1), (1, min(2, deep[1])))
    )

    more = np.maximum(0, np.subtract(language, one)) * (deep[0] - 1) + np.maximum(
        0, np.subtract(vision, one)
    ) * (deep[1] - 1)
    return Seconds(*np.add(one, more).tolist()), "some"


class _OneWord(nn.Embedding):
    """Stands for a table of all words, which takes gigabytes and no time."""

    def forward(self, ids: Tensor) -> Tensor:
        """`(B, T)` -> `(B, T, D)`, all alike."""
        return super().forward(torch.zeros_like(ids))


def _made(
    meta: AbcModel, depth: tuple[int, int], device: torch.device, dtype: torch.dtype
) -> AbcModel:
    """A copy of a model with so many layers and random weights."""
    model = copy.deepcopy(meta)
    keep_layers(model, *depth)
    vlm = model.backbone.vlm
    with torch.device("meta"):
        vlm.set_input_embeddings(_OneWord(1, vlm.get_input_embeddings().embedding_dim))
    fill_weights(model, device, dtype)
    return model


def _seconds_of_all(tasks: Sequence[Task], device: torch.device) -> Seconds:
    """The time of all tasks, from as many as fit `PROBE_S`."""
    taken: list[Seconds] = []
    for work, _ in tasks:
        taken.append(seconds_of(work, device))
        if sum(seconds.on(device) for seconds in taken) > PROBE_S:
            break
    done = sum(amount for _, amount in tasks[: len(taken)])
    return sum_seconds(taken, sum(amount for _, amount in tasks) / done)


def _embedding_memory(
    model: AbcModel,
    pipeline: EmbeddingPipeline,
    features: Sequence[Features],
    largest_picture: int,
    device: torch.device,
    dtype: torch.dtype,
) -> dict[str, int]:
    """Bytes by purpose; `largest_picture` is in pixels of the file."""
    budget, width = pipeline.budget, model.dim
    on_gpu = device.type != "cpu"
    shape = RunShape.of(model, budget.patch_size, dtype.itemsize, on_gpu=on_gpu)
    activations = 0
    for rows in pipeline.plan(features):
        batch = [features[row] for row in rows]
        patches = min(patch_count(batch), pipeline.batch_tokens)
        chunk = ChunkShape(len(batch) * max(f.tokens for f in batch), patches, gradient=False)
        activations = max(activations, *pass_bytes(shape, chunk))
    patches = patch_count(features)
    visual = patches // budget.merge_size**2
    memory = {
        "weights": shape.frozen_bytes,
        "weights with the adapter merged in": _merged_bytes(model, features, device, dtype),
        "activations of the largest batch": activations,
        "visual tokens that are kept": min(visual, 2 * WINDOW_VISUAL_TOKENS)
        * width
        * dtype.itemsize,
        "reserve": reserve_bytes(activations, on_gpu=on_gpu),
    }
    if not on_gpu:
        held = min(visual, 3 * WINDOW_VISUAL_TOKENS) * 3 * budget.factor**2
        memory["pixels that wait or are kept"] = held
        memory["pictures that are unpacked"] = unpack_bytes(largest_picture) * pipeline.threads
    return memory


def _merged_bytes(
    model: AbcModel, features: Sequence[Features], device: torch.device, dtype: torch.dtype
) -> int:
    layers: list[Any] = list(model.instruct_layers())
    if not any(f.kind is Kind.INSTRUCTED for f in features):
        return 0
    needed = sum(layer.get_base_layer().weight.numel() for layer in layers) * dtype.itemsize
    return needed if needed < runtime.free_memory_bytes(device) * MERGE_SHARE else 0


# -- training --------------------------------------------------------------------------------------


def plan_training(
    config: TrainConfig, *, devices: int = 1, sampler: GroupSampler | None = None
) -> Plan:
    """Plan a run on the device that it would train on; memory is that of its dry run.

    Args:
        devices: That share each step; what they exchange is not counted.
        sampler: Stands in for `data.records`.

    Raises:
        AbcError: as `dry_run`.
    """
    device = runtime.resolve_device(config.model.device)
    dtype = autocast_dtype(config.model) or torch.float32
    began = time.process_time()
    rehearsal = rehearse(config, sampler=sampler)
    start_s = time.process_time()
    watch = Stopwatch(device)
    make_batch(rehearsal.groups, rehearsal.processor, config.data.max_pixels)
    prepare = watch.lap().processor
    start_s = max(began, start_s - prepare)
    meta, processor = base_model(config.model.base, config.model.pixels, config.model.head_width)
    batch, share = _part_of_step(config, rehearsal, meta, peak_flops(device, dtype, times=2))
    step, tried = _try_layers(
        meta, device, dtype, lambda model: _steps(config, model, processor, batch)
    )
    steps = config.train.steps
    parts = asdict(rehearsal.report.memory)
    return _plan(
        job="train",
        model=config.model.base,
        device=device,
        dtype=dtype,
        units=steps,
        devices=devices,
        start_s=start_s,
        prepare=prepare * steps,
        compute=sum_seconds([step], steps * share / STEPS),
        threads=config.data.workers,
        memory={name: size for name, size in parts.items() if size},
        tried=tried,
    )


STEPS = 2
"""Steps that are tried, after one that warms up."""


def _part_of_step(
    config: TrainConfig, rehearsal: Rehearsal, meta: AbcModel, peak: float
) -> tuple[TrainBatch, float]:
    """As many of a step's groups as take about `WHOLE_S` at the peak, and how many times that is
    a step."""
    batch = rehearsal.batch
    arithmetic = Arithmetic.of(meta)
    whole = sum(arithmetic.flops(batch.features))
    groups = rehearsal.groups
    count = max(1, min(len(groups), int(len(groups) * WHOLE_S * peak / (4 * whole))))
    if count == len(groups):
        return batch, 1.0
    part = make_batch(groups[:count], rehearsal.processor, config.data.max_pixels)
    return part, whole / sum(arithmetic.flops(part.features))


def _steps(
    config: TrainConfig, model: AbcModel, processor: Processor, batch: TrainBatch
) -> list[Task]:
    """A step of the optimizer, some times; in stage 2 the answers are new each time."""
    train = config.train
    if train.chunk_size:  # chunked still, where only a part of a step is tried
        rows = len(batch.features)
        train = replace(train, chunk_size=max(1, min(train.chunk_size, rows // 2)))
    process_group = ProcessGroup(make_accelerator(config.model))
    settings = replace(config, train=train)
    stage = STAGES[config.stage](settings, model, processor, process_group)
    step_batch, optimizer = GlobalBatch.single(batch), stage.optimizer

    def step() -> None:
        stage.text_cache.clear()
        stage.backward(step_batch)
        optimizer.clip_grad_norm(config.optim.clip_norm)
        optimizer.step()
        stage.after_update()

    step()
    return [(step, 1.0)] * STEPS
