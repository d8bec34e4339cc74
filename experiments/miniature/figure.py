"""docs/images/miniature.png: a panel for each finding, a dot for each run, the paper's in words.

Does: draw with matplotlib, which is imported when it is needed. Does not: judge.
"""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from abc_embed.figures import BLUE, GREY, ORANGE, new_figure, save_figure
from experiments.miniature.findings import Line, values

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Bars = tuple[tuple[str, str, str, str], ...]
"""(condition, score, label under the bar, colour)."""

_MINED: Bars = (
    ("mined-0", "image_to_text", "0", BLUE),
    ("mined-3", "image_to_text", "3", BLUE),
    ("mined-6", "image_to_text", "6", BLUE),
    ("mined-0", "text_to_image", "0 ", ORANGE),
    ("mined-3", "text_to_image", "3 ", ORANGE),
    ("mined-6", "text_to_image", "6 ", ORANGE),
)
_TAU: Bars = (
    ("mined-6", "image_to_text", "learnt,\nfrom 0.07", BLUE),
    ("tau-fixed", "image_to_text", "fixed,\n0.07", BLUE),
    ("tau-from-0.01", "image_to_text", "learnt,\nfrom 0.01", BLUE),
)
_BATCH: Bars = (
    ("mined-6", "image_to_text", "8 images", BLUE),
    ("batch-x4", "image_to_text", "32 images", BLUE),
    ("mined-6", "text_to_image", "8 images ", ORANGE),
    ("batch-x4", "text_to_image", "32 images ", ORANGE),
)
_STAGE2: Bars = (
    ("stage2-whole", "image_only", "image\nalone", GREY),
    ("mined-6", "instructed", "stage 2\noff", BLUE),
    ("stage2-whole", "instructed", "stage 2\non", BLUE),
)
_GROUPS: Bars = (
    ("stage2-shuffled", "instructed", "shuffled", BLUE),
    ("stage2-whole", "instructed", "whole", BLUE),
    ("stage2-shuffled", "within_image", "shuffled ", ORANGE),
    ("stage2-whole", "within_image", "whole ", ORANGE),
)
_CURVES = (
    ("long-mined-6", "6 mined", BLUE, "-"),
    ("long-mined-6-sharp", "6 mined, no label smoothing", BLUE, "--"),
    ("long-mined-0", "in-batch only", ORANGE, "-"),
    ("long-mined-0-sharp", "in-batch only, no label smoothing", ORANGE, "--"),
    ("tau-from-0.01", "6 mined, started at 0.01", GREY, "-"),
)
"""(condition, label, colour, line)."""


def draw(lines: Sequence[Line], out: Path) -> None:
    """One PNG of six panels.

    Raises:
        MissingExtraError: matplotlib is not installed.
        OutputError: the file cannot be written.
    """
    figure = new_figure(14, 8)
    panels = figure.subplots(2, 3).flat
    ways = (("image → caption", BLUE), ("caption → image", ORANGE))
    among = (("among all answers", BLUE), ("among the image's own", ORANGE))
    _bars(
        next(panels),
        lines,
        "Mined negatives",
        "50.4 → 58.4 → 59.9, 35.7 → 44.0 → 44.8",
        _MINED,
        ways,
    )
    _curves(next(panels), lines)
    _bars(next(panels), lines, "τ: image → caption", "learnt, from 0.07; no other figure", _TAU)
    _bars(next(panels), lines, "Batch × 4", "COCO-like 73.8 → 84.0", _BATCH, ways)
    _bars(
        next(panels),
        lines,
        "Stage 2: image + instruction → answer",
        "CtrlBench 11.7 alone, 50.9 with instruction",
        _STAGE2,
    )
    _bars(
        next(panels),
        lines,
        "Image groups in a batch",
        "whole; no figure of shuffled",
        _GROUPS,
        among,
    )
    save_figure(figure, out, dpi=100)


def _bars(
    axes: "Axes",
    lines: Sequence[Line],
    title: str,
    paper: str,
    bars: Bars,
    legend: Sequence[tuple[str, str]] = (),
) -> None:
    """Means as bars, every run as a dot."""
    for place, (condition, score, _, colour) in enumerate(bars):
        found = values(lines, condition, score)
        if found:
            axes.bar(place, statistics.mean(found), color=colour, alpha=0.35, width=0.7)
            axes.plot([place] * len(found), found, "o", color=colour, markersize=5)
    axes.set_xticks(range(len(bars)), [label for _, _, label, _ in bars])
    axes.set_ylabel("R@1")
    axes.set_ylim(0, axes.get_ylim()[1] * (1.2 if legend else 1.0))  # room for the legend
    _titled(axes, title, paper)
    for name, colour in legend:
        axes.bar(0, 0, color=colour, alpha=0.35, label=name)
    if legend:
        axes.legend(loc="upper left", ncols=2, fontsize=8)


def _curves(axes: "Axes", lines: Sequence[Line]) -> None:
    """τ over the steps, a line for each run."""
    for condition, label, colour, dash in _CURVES:
        for line in lines:
            if line["condition"] == condition:
                steps = [point["step"] for point in line["curve"]]
                taus = [point["tau"] for point in line["curve"]]
                axes.plot(steps, taus, dash, color=colour, label=label, linewidth=1.2)
                label = "_" + label  # one entry in the legend for all seeds
    axes.axhline(0.03, color="black", linestyle=":", linewidth=1, label="where the paper ends")
    axes.set_xlabel("step")
    axes.set_ylabel("τ")
    axes.set_ylim(0, axes.get_ylim()[1] * 1.35)  # room for the legend
    axes.legend(loc="upper left", fontsize=7.5, ncols=2, columnspacing=1.0, handlelength=1.7)
    _titled(axes, "τ, learnt", "near 0.03 with mined, to 0 with random")


def _titled(axes: "Axes", title: str, paper: str) -> None:
    axes.set_title(f"{title}\n", fontsize=11)
    axes.text(
        0.5,
        1.02,
        f"paper: {paper}",
        transform=axes.transAxes,
        ha="center",
        fontsize=8.5,
        color=GREY,
    )
    axes.grid(axis="y", alpha=0.3)
