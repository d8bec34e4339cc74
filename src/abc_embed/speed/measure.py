"""`bench speed`: items a second, share of the device's peak, and where the time goes.

Every way of computing a workload takes its turn in each round, so that other work on the machine
hits all alike; of the rounds the median counts. Preparing, computing and both together are measured
apart: `forward` has its batches ready on the device, `embed` begins with the bytes of a file.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from abc_embed import runtime
from abc_embed.embedder import Embedder
from abc_embed.figures import BLUE, GREY, ORANGE, RED, new_figure, save_figure
from abc_embed.inputs import Item, as_item, image_key, open_image
from abc_embed.model import AbcModel
from abc_embed.pipeline import evaluating
from abc_embed.pixels import Pixels, to_pixels
from abc_embed.processor import Batch, Features
from abc_embed.progress import ProgressCallback
from abc_embed.speed import workloads
from abc_embed.speed.costs import (
    Arithmetic,
    Seconds,
    Stopwatch,
    exact_float32,
    median,
    peak_flops,
    seconds_of,
    sum_seconds,
)
from abc_embed.speed.workloads import Workload
from abc_embed.storage.hashing import sha256_json

STAGES = ("decode", "resize", "tokenise", "collate", "copy", "vision", "language", "head")
FORWARD, EMBED, OTHER = "forward", "embed", "sentence-transformers"
ADAPTER_OFF = ", adapter off"
HEAD = ("items", "way", "a second", "a processor second", "of the peak", "peak MiB")
_COLOURS = {FORWARD: GREY, EMBED: BLUE, EMBED + ADAPTER_OFF: RED, OTHER: ORANGE}
_PALETTE = (
    *("#1b3a5c", "#266ec8", "#7fb0e6", "#c9cdd4", "#8a8f98"),
    *("#2f7d4f", "#c96a14", "#b42318"),
)

Ways = dict[str, Callable[[], object]]


def measure(
    embedder: Embedder,
    *,
    images: int = 32,
    instructions: int = 4,
    size: tuple[int, int] = (784, 512),
    rounds: int = 3,
    max_pixels: int | None = None,
    against: bool = False,
    on_progress: ProgressCallback = lambda done, total=None: None,
) -> dict[str, Any]:
    """Findings of a speed record; see `bench.records.make_record`.

    Args:
        images: Pictures of the workload of images; the others follow from it.
        instructions: Asked of each picture in the last workload.
        size: Width and height of a picture in its file.
        rounds: How often everything is measured, after one round that warms up.
        max_pixels: As in `Embedder.embed`.
        against: Also through `encode` of sentence-transformers, with the same weights.
    """
    photos = workloads.draw_photos(images, *size)
    work = [
        workloads.texts(4 * images),
        workloads.images(photos),
        workloads.mixed(photos),
        workloads.instructed(photos[: max(1, images // 4)], instructions),
    ]
    device = embedder.device
    peaks: list[float] = []
    scores = {}
    with exact_float32():
        for number, workload in enumerate(work):
            on_progress(number, len(work))
            peaks.append(peak_flops(device, embedder.model.dtype))
            scores[workload.name] = _score(embedder, workload, rounds, max_pixels, against)
        peaks.append(peak_flops(device, embedder.model.dtype))
        on_progress(len(work), len(work))
    peak = float(np.median(peaks))
    clock = "processor" if device.type == "cpu" else "wall"
    for row in scores.values():
        _add_shares(row, peak, "processor_seconds" if device.type == "cpu" else "seconds")
    hardware = runtime.hardware()
    names = [gpu["name"] for gpu in hardware["cuda"]] if device.type == "cuda" else []
    settings = {
        "images": images,
        "instructions": instructions,
        "size": list(size),
        "rounds": rounds,
        "max_pixels": max_pixels,
        "compiled": embedder.model.backbone.is_compiled,
        "weights": embedder.model.backbone.weights,
        "hardware": names[0] if names else hardware["processor"] or hardware["system"],
        "threads": hardware["torch_threads"],
        "against": OTHER if against else None,
    }
    return {
        "benchmark": "speed",
        "benchmark_hash": sha256_json([workload.name for workload in work]),
        "settings": settings,
        "clock": clock,
        "peak_flops": peak,
        "peaks": peaks,
        "parameters": sum(p.numel() for p in embedder.model.parameters()),
        "sizes": {workload.name: len(workload.items) for workload in work},
        "scores": scores,
    }


def _score(
    embedder: Embedder, workload: Workload, rounds: int, max_pixels: int | None, against: bool
) -> dict[str, Any]:
    model, device, items = embedder.model, embedder.device, workload.items
    pipeline = embedder.pipeline(max_pixels)
    features = [pipeline.prepare(item) for item in items]
    batches = [
        embedder.processor.collate([features[row] for row in rows]).to(device, model.dtype)
        for rows in pipeline.plan(features)
    ]
    ways = _ways(embedder, workload, batches, max_pixels, against)
    runtime.reset_peak(device)
    taken: dict[str, list[Seconds]] = {name: [] for name in ways}
    stages: list[dict[str, Seconds]] = []
    for number in range(rounds + 1):
        turn = list(ways) if number % 2 else list(ways)[::-1]
        for name in turn:
            seconds = seconds_of(ways[name], device)
            if number:
                taken[name].append(seconds)
        if number:
            stages.append(stage_seconds(embedder, items, max_pixels))
    vision, language = Arithmetic.of(model).flops(features)
    row: dict[str, Any] = {
        "items": len(items),
        "tokens": sum(f.tokens for f in features),
        "flops": {"vision": vision, "language": language},
        "ways": {name: _rates(median(found), len(items)) for name, found in taken.items()},
        "stages": {
            name: median([stage[name] for stage in stages]).on(device) / len(items)
            for name in STAGES
        },
        "peak_memory_bytes": runtime.peak_bytes(device),
    }
    if against:
        apart = np.abs(np.asarray(ways[EMBED]()) - np.asarray(ways[OTHER]())).max()
        row["largest_difference_of_a_vector"] = float(f"{apart:.1e}")
    return row


def _rates(seconds: Seconds, items: int) -> dict[str, float]:
    return {
        "items_per_s": items / seconds.wall,
        "items_per_processor_s": items / max(seconds.processor, 1e-9),
        "seconds": seconds.wall,
        "processor_seconds": seconds.processor,
    }


def _ways(
    embedder: Embedder,
    workload: Workload,
    batches: Sequence[Batch],
    max_pixels: int | None,
    against: bool,
) -> Ways:
    """Every way to compute the workload, by name."""
    model = embedder.model

    def forward() -> None:
        with torch.no_grad(), evaluating(model):
            for batch in batches:
                model(batch)

    def embed() -> object:
        return embedder.embed(workload.items, max_pixels=max_pixels)

    ways: Ways = {FORWARD: forward, EMBED: embed}
    asks = any(isinstance(item, Item) and item.instruction for item in workload.items)
    if asks and model.has_instruct_adapter:
        ways[FORWARD + ADAPTER_OFF] = model.adapter_off()(forward)
        ways[EMBED + ADAPTER_OFF] = model.adapter_off()(embed)
    if against:
        ways[OTHER] = _other_library(embedder, workload, max_pixels)
    return ways


def _other_library(
    embedder: Embedder, workload: Workload, max_pixels: int | None
) -> Callable[[], object]:
    """The export's `encode`: that library's loop, batches of 32, and this package's arithmetic."""
    from abc_embed.interop.sentence_transformers import as_sentence_transformer

    other = as_sentence_transformer(embedder)
    options: dict[str, Any] = {} if max_pixels is None else {"max_pixels": max_pixels}

    def encode() -> object:
        inputs: list[Any] = []
        for item in map(as_item, workload.items):
            words = item.text if item.image is None else item.instruction
            # It takes no bytes: opening them is a part of its time.
            image = None if item.image is None else open_image(item.image)
            parts = {"text": words, "image": image}
            inputs.append({key: value for key, value in parts.items() if value is not None})
        return other.encode(inputs, show_progress_bar=False, **options)

    return encode


def stage_seconds(
    embedder: Embedder, items: Sequence[str | Item], max_pixels: int | None = None
) -> dict[str, Seconds]:
    """One stage after the other, in one thread, for all items: seconds of each of `STAGES`."""
    model, processor, device = embedder.model, embedder.processor, embedder.device
    values = [as_item(item) for item in items]
    shown = {image_key(item): item.image for item in values if item.image is not None}
    watch, found = Stopwatch(device), {}
    opened = {key: open_image(image) for key, image in shown.items()}
    found["decode"] = watch.lap()
    budget = processor.image.limited(max_pixels)
    pixels: dict[Any, Pixels] = {key: to_pixels(p, budget) for key, p in opened.items()}
    found["resize"] = watch.lap()
    features = [processor.features(item, pixels=pixels.get(image_key(item))) for item in values]
    found["tokenise"] = watch.lap()
    plan = embedder.pipeline(max_pixels).plan(features)
    parts: list[list[Features]] = [[features[row] for row in rows] for rows in plan]
    batches = [processor.collate(part) for part in parts]
    found["collate"] = watch.lap()
    batches = [batch.to(device, model.dtype) for batch in batches]
    found["copy"] = watch.lap()
    with torch.no_grad(), evaluating(model):
        visual = [model.encode_images(batch) for batch in batches]
        found["vision"] = watch.lap()
        found["head"], found["language"] = _head_and_rest(model, batches, visual, watch)
    return found


def _head_and_rest(
    model: AbcModel,
    batches: Sequence[Batch],
    visual: Sequence[Tensor | None],
    watch: Stopwatch,
) -> tuple[Seconds, Seconds]:
    head: list[Seconds] = []
    rest: list[Seconds] = []
    hooks = [
        model.head.register_forward_pre_hook(lambda *_: rest.append(watch.lap())),
        model.head.register_forward_hook(lambda *_: head.append(watch.lap())),
    ]
    try:
        for batch, tokens in zip(batches, visual, strict=True):
            model.embed(batch, tokens)
    finally:
        for hook in hooks:
            hook.remove()
    head.append(watch.lap())  # the vectors' length
    return sum_seconds(head), sum_seconds(rest)


def _add_shares(row: dict[str, Any], peak: float, clock: str) -> None:
    """How much of the peak each way reaches, by the clock that the peak was measured with."""
    flops = sum(row["flops"].values())
    for way in row["ways"].values():
        way["share_of_peak"] = flops / way[clock] / peak
    row["embed_to_forward"] = row["ways"][FORWARD][clock] / row["ways"][EMBED][clock]


# -- for people ------------------------------------------------------------------------------------


def rows(record: dict[str, Any]) -> list[tuple[object, ...]]:
    """A line for each workload and way: items a second, of processor time, share of the peak."""
    return [
        (
            f"{name} ({row['items']})",
            way,
            f"{rates['items_per_s']:.1f}",
            f"{rates['items_per_processor_s']:.1f}",
            f"{rates['share_of_peak']:.0%}",
            f"{row['peak_memory_bytes'] / 2**20:,.0f}",
        )
        for name, row in record["scores"].items()
        for way, rates in row["ways"].items()
    ]


def stage_rows(record: dict[str, Any]) -> list[tuple[object, ...]]:
    """Milliseconds an item of each stage, a line for each workload."""
    return [
        (name, *(f"{1000 * row['stages'][stage]:.2f}" for stage in STAGES))
        for name, row in record["scores"].items()
    ]


def draw(record: dict[str, Any], path: Path) -> None:
    """Rates on the left, where the time goes on the right.

    Raises:
        OutputError: the file cannot be written.
        MissingExtraError: matplotlib is not installed.
    """
    scores, on_cpu = record["scores"], record["clock"] == "processor"
    rate = "items_per_processor_s" if on_cpu else "items_per_s"
    figure = new_figure(12, 1.1 * len(scores) + 1.6)
    left, right = figure.subplots(1, 2)
    names = list(scores)
    for axes in (left, right):
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.spines[["top", "right"]].set_visible(False)
    height = 0.8 / max(len(row["ways"].keys() & _COLOURS) for row in scores.values())
    for number, row in enumerate(scores.values()):
        ways = [way for way in _COLOURS if way in row["ways"]]
        for place, way in enumerate(ways):
            value = row["ways"][way][rate]
            y = number + (place + 0.5 - len(ways) / 2) * height
            left.barh(y, value, height * 0.9, color=_COLOURS[way], label=way)
            share = row["ways"][way]["share_of_peak"]
            left.text(value, y, f" {value:,.1f} ({share:.0%})", va="center", fontsize=7)
    left.set_xlabel(f"items a {'processor second' if on_cpu else 'second'} (share of the peak)")
    left.margins(x=0.25)
    handles, labels = left.get_legend_handles_labels()
    first = dict(zip(labels, handles, strict=True))
    left.legend(list(first.values()), list(first), fontsize=7, frameon=False, loc="lower right")
    starts = np.zeros(len(names))
    for stage, colour in zip(STAGES, _PALETTE, strict=True):
        widths = np.array([1000 * row["stages"][stage] for row in scores.values()])
        right.barh(range(len(names)), widths, 0.6, left=starts, color=colour, label=stage)
        starts += widths
    clock = " of processor time" if on_cpu else ""
    right.set_xlabel(f"milliseconds{clock} an item, stage after stage")
    above: dict[str, Any] = {
        "loc": "lower center",
        "bbox_to_anchor": (0.5, 1.0),
        "ncols": len(STAGES) // 2,
    }
    right.legend(fontsize=7, frameon=False, **above)
    model, settings = record["model"], record["settings"]
    figure.suptitle(f"{model['name']}, {model['dtype']} on {settings['hardware']}", fontsize=10)
    save_figure(figure, path, dpi=130)
