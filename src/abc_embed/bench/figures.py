"""Records as pictures: bars with their intervals, and what was retrieved for one image's questions.

Does: draw PNGs. Does not: embed anything; what came first is in the record. Images shown are evenly
spaced over the benchmark, so nobody has chosen them.
"""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from abc_embed.bench.ctrlbench.schema import Benchmark, Query, questions_by_image
from abc_embed.bench.packed import unpack
from abc_embed.bench.tables import TITLES, WAYS
from abc_embed.errors import DataError, MissingExtraError
from abc_embed.inputs import open_image
from abc_embed.storage.files import atomic_write

Record = Mapping[str, Any]

COLOURS = {
    "joint": "#266ec8",
    "image": "#8a8f98",
    "text": "#b9bec7",
    "late": "#e0a030",
    "random": "#d8dbe0",
}
INK, FAINT, RIGHT, WRONG = (32, 34, 38), (120, 124, 132), (22, 128, 60), (196, 40, 40)
CELL, PHOTO, LINE, MARGIN = 196, 168, 19, 18  # pixels
WRAP = 26  # characters of a line in a cell
MOST = 6  # questions of an image that are drawn


def draw_bars(records: Sequence[Record], path: Path) -> None:
    """One panel for each benchmark, one group of bars for each model.

    Raises:
        MissingExtraError: matplotlib is not installed.
        OutputError: the file cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtraError.of("bench", "drawing a report") from None
    names = list(dict.fromkeys(r["benchmark"] for r in records))
    panels = [[r for r in records if r["benchmark"] == name] for name in names]
    heights = [len(panel) for panel in panels]
    size = (7.5, 1.0 + sum(0.55 + 0.85 * rows for rows in heights))
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights, sharex=True)
    for axes, panel, name in zip(grid[:, 0], panels, names, strict=True):
        for place, record in enumerate(panel):
            _bars(axes, place, record)
        axes.axvline(panel[0]["bounds"]["image"], color="#444444", linestyle="--", linewidth=1)
        axes.set_yticks(range(len(panel)), [r["model"]["name"] for r in panel])
        axes.set_ylim(len(panel) - 0.5, -0.5)
        axes.set_xlim(0, 1)
        axes.set_title(f"Tier {TITLES.get(name, name)}", loc="left", fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
    grid[-1, 0].set_xlabel("R@1, with 95 % intervals by image; dashed: most for the image alone")
    handles, labels = grid[0, 0].get_legend_handles_labels()
    once = dict(zip(labels, handles, strict=True))
    figure.legend(
        once.values(), once, loc="outside lower center", ncols=5, frameon=False, fontsize=8
    )
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=130)


def _bars(axes: Any, place: int, record: Record) -> None:
    height = 0.84 / len(COLOURS)
    for number, (way, colour) in enumerate(COLOURS.items()):
        score = record["scores"].get(way)
        where = place - 0.42 + (number + 0.5) * height
        if score is None or score["r1"] is None:
            axes.text(0.005, where, f"{WAYS[way]}: not taken", va="center", fontsize=6)
            continue
        value, (low, high) = score["r1"], score["r1_interval"]
        error = [[max(0.0, value - low)], [max(0.0, high - value)]]
        axes.barh(where, value, height * 0.92, color=colour, label=WAYS[way])
        axes.errorbar(value, where, xerr=error, color="#202226", linewidth=1, capsize=2)
        axes.text(high + 0.01, where, f"{value:.2f}", va="center", fontsize=7)


def draw_examples(record: Record, benchmark: Benchmark, path: Path, count: int = 4) -> None:
    """`count` images, beside each its questions, and below each what came first for it.

    Green: right. Red: wrong, and it came first. Grey: wrong, behind. Needs nothing but Pillow.

    Raises:
        DataError: the record is of other questions, or has no first choices.
        OutputError: the file cannot be written.
    """
    if record["benchmark_hash"] != benchmark.content_hash():
        raise DataError(
            f"the record is of benchmark {record['benchmark_hash'][:8]}, not of "
            f"{benchmark.folder}; give the folder that was measured"
        )
    if not record.get("top"):
        raise DataError(f"the record of {record['model']['name']} has no first choices to draw")
    from abc_embed.bench.ctrlbench.measure import plan

    asked = plan(benchmark, record["settings"]["tier"], record["settings"]["limit"]).kept
    first = unpack(record["top"])
    if len(first) != len(asked):
        raise DataError("the record's questions are not those of the folder; measure again")
    choices = dict(zip((q.query_id for q in asked), first.tolist(), strict=True))
    groups = list(questions_by_image(asked))
    step = max(1, len(groups) // count)
    shown = groups[step // 2 :: step][:count]
    canvas = _sheet(shown, choices, benchmark)
    with atomic_write(path) as file:
        canvas.save(file, "PNG", optimize=True)


def _sheet(
    shown: Sequence[tuple[str, list[Query]]],
    choices: Mapping[str, list[int]],
    benchmark: Benchmark,
) -> Image.Image:
    columns = min(MOST, max(len(its) for _, its in shown))
    width = 3 * MARGIN + PHOTO + columns * CELL
    rows = PHOTO + MARGIN
    canvas = Image.new("RGB", (width, MARGIN + len(shown) * rows), "white")
    files = {p.image_id: benchmark.folder / p.file for p in benchmark.images}
    for number, (image, its) in enumerate(shown):
        top = MARGIN + number * rows
        photo = open_image(files[image])
        photo.thumbnail((PHOTO, PHOTO))
        scale = PHOTO / max(photo.size)
        size = [max(1, round(side * scale)) for side in photo.size]
        canvas.paste(photo.resize((size[0], size[1]), Image.Resampling.BICUBIC), (MARGIN, top))
        for column, query in enumerate(its[:MOST]):
            left = 2 * MARGIN + PHOTO + column * CELL
            _cell(ImageDraw.Draw(canvas), left, top, query, choices[query.query_id], benchmark)
    return canvas


def _cell(
    pen: ImageDraw.ImageDraw,
    left: int,
    top: int,
    query: Query,
    first: Sequence[int],
    benchmark: Benchmark,
) -> None:
    """A question, and the candidates that came first."""
    y = top
    for line in textwrap.wrap(query.instruction, WRAP)[:3]:
        pen.text((left, y), line, INK, ImageFont.load_default(14))
        y += LINE
    y = top + 3 * LINE + 6
    for rank, number in enumerate(first, 1):
        caption = benchmark.corpus[number]
        good = caption.cap_id in query.positives
        colour = RIGHT if good else WRONG if rank == 1 else FAINT
        text = textwrap.shorten(caption.text, WRAP - 3, placeholder=" …")
        pen.text((left, y), f"{rank}  {text}", colour, ImageFont.load_default(14))
        y += LINE
