"""Records as pictures: bars with their intervals, and what was retrieved for an image's questions.

What came first is in the record. Images shown are evenly spaced over the benchmark, so nobody has
chosen them.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from abc_embed import figures
from abc_embed.bench.ctrlbench.schema import Benchmark, Query, questions_by_image, select_queries
from abc_embed.bench.records import unpack
from abc_embed.bench.tables import CONDITIONS, TITLES, first_recall
from abc_embed.data.contact_sheet import (
    FAINT,
    GREEN,
    INK,
    RED,
    Line,
    draw_cell,
    write_sheet,
)
from abc_embed.errors import DataError
from abc_embed.inputs import open_image

Record = Mapping[str, Any]

COLOURS = {
    CONDITIONS["joint"]: figures.BLUE,
    CONDITIONS["image"]: "#8a8f98",
    CONDITIONS["text"]: "#b9bec7",
    CONDITIONS["late"]: "#e0a030",
    CONDITIONS["random"]: "#d8dbe0",
}
MAX_QUESTIONS = 6  # of an image that are drawn


def draw_bars(records: Sequence[Record], path: Path) -> None:
    """One panel for each benchmark, one group of bars for each model.

    Raises:
        MissingExtraError: matplotlib is not installed.
        OutputError: the file cannot be written.
    """
    names = list(dict.fromkeys(r["benchmark"] for r in records))
    panels = [[r for r in records if r["benchmark"] == name] for name in names]
    heights = [len(panel) for panel in panels]
    figure = figures.new_figure(7.5, 1.0 + sum(0.55 + 0.85 * rows for rows in heights))
    grid = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights, sharex=True)
    for axes, panel, name in zip(grid[:, 0], panels, names, strict=True):
        figures.score_axes(axes, [record["model"]["name"] for record in panel])
        for row, record in enumerate(panel):
            scores = {CONDITIONS[key]: first_recall(s) for key, s in record["scores"].items()}
            figures.score_bars(axes, row, scores, COLOURS, fontsize=7)
        axes.axvline(panel[0]["bounds"]["image"], color=figures.BOUND, linestyle="--", linewidth=1)
        axes.set_title(f"Tier {TITLES.get(name, name)}", loc="left", fontsize=10)
    grid[-1, 0].set_xlabel("R@1, with 95 % intervals by image; dashed: most for the image alone")
    figures.legend_below(figure, columns=5, fontsize=8)
    figures.save_figure(figure, path, dpi=130)


def draw_formats(records: Sequence[Record], path: Path) -> None:
    """R@1 of image + instruction against the bytes of a stored vector, a line a number format.

    One panel a benchmark; `records` are of `encoders.wrapped.FormattedEncoder`.

    Raises:
        MissingExtraError: matplotlib is not installed.
        OutputError: the file cannot be written.
    """
    names = list(dict.fromkeys(r["benchmark"] for r in records))
    figure = figures.new_figure(4.2 * len(names) + 1, 4)
    panels = figure.subplots(1, len(names), squeeze=False, sharey=True)[0]
    for axes, name in zip(panels, names, strict=True):
        lines: dict[str, list[tuple[int, float, int]]] = {}
        for record in (r for r in records if r["benchmark"] == name):
            form = record["model"]["config"]["vectors"]
            point = (form["bytes"], record["scores"]["joint"]["r1"], form["dim"])
            lines.setdefault(form["output"], []).append(point)
        for number, (output, points) in enumerate(lines.items()):
            sizes, recalls, dims = zip(*sorted(points), strict=True)
            (line,) = axes.plot(sizes, recalls, marker="o", markersize=4, label=output)
            beside = {"textcoords": "offset points", "ha": "center", "fontsize": 7}
            for size, recall, dim in zip(sizes, recalls, dims, strict=True):
                height = 7 if number == 0 else -6 - 8 * number  # lines may lie on each other
                axes.annotate(
                    str(dim), (size, recall), (0, height), color=line.get_color(), **beside
                )
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:.0f}")
        axes.set_ylim(0, 1.05)
        axes.grid(alpha=0.3)
        axes.set_title(f"Tier {TITLES.get(name, name)}", loc="left", fontsize=10)
        axes.set_xlabel("bytes of a vector; beside each point its width")
    panels[0].set_ylabel("R@1, image + instruction")
    panels[0].legend(loc="lower right", fontsize=8)
    figures.save_figure(figure, path, dpi=130)


def draw_examples(record: Record, benchmark: Benchmark, path: Path, count: int = 4) -> None:
    """`count` images, beside each its questions, and below each question what came first for it.

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
    settings = record["settings"]
    queries = select_queries(benchmark, settings["tier"], settings["limit"]).scored
    top = unpack(record["top"])
    if len(top) != len(queries):
        raise DataError("the record's questions are not those of the folder; measure again")
    choices = dict(zip((q.query_id for q in queries), top.tolist(), strict=True))
    groups = list(questions_by_image(queries).items())
    step = max(1, len(groups) // count)
    files = {p.image_id: benchmark.folder / p.file for p in benchmark.images}
    cells = [
        draw_cell(open_image(files[image_id]), image_id, _answers(asked, choices, benchmark))
        for image_id, asked in groups[step // 2 :: step][:count]
    ]
    write_sheet(cells, path)


def _answers(
    queries: Sequence[Query], choices: Mapping[str, list[int]], benchmark: Benchmark
) -> list[Line]:
    """An image's questions, and below each the candidates that came first."""
    lines = []
    for query in queries[:MAX_QUESTIONS]:
        lines.append((query.instruction, INK))
        for rank, number in enumerate(choices[query.query_id], 1):
            caption = benchmark.corpus[number]
            right = caption.cap_id in query.positives
            colour = GREEN if right else RED if rank == 1 else FAINT
            lines.append((f"{rank}  {caption.text}", colour))
    return lines
