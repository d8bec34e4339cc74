"""docs/images/miniature.png: a panel for each finding, a dot for each run, the paper's in words."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from abc_embed.figures import BLUE, GREY, ORANGE, new_figure, save_figure
from experiments.miniature.findings import Result, values

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_DIRECTIONS = (("image → caption", BLUE), ("caption → image", ORANGE))
_AMONG = (("among all answers", BLUE), ("among the image's own", ORANGE))


@dataclass(frozen=True, slots=True)
class Panel:
    """Bars of some conditions, beside what the paper says."""

    title: str
    paper: str
    bars: tuple[tuple[str, str, str, str], ...]
    """(condition, score, label under the bar, colour)."""
    legend: tuple[tuple[str, str], ...] = ()


_MINED = Panel(
    "Mined negatives",
    "50.4 → 58.4 → 59.9, 35.7 → 44.0 → 44.8",
    (
        *((f"mined-{count}", "image_to_text", str(count), BLUE) for count in (0, 3, 6)),
        *((f"mined-{count}", "text_to_image", f"{count} ", ORANGE) for count in (0, 3, 6)),
    ),
    _DIRECTIONS,
)
_PANELS = (
    Panel(
        "τ: image → caption",
        "learnt, from 0.07; no other figure",
        (
            ("mined-6", "image_to_text", "learnt,\nfrom 0.07", BLUE),
            ("tau-fixed", "image_to_text", "fixed,\n0.07", BLUE),
            ("tau-from-0.01", "image_to_text", "learnt,\nfrom 0.01", BLUE),
        ),
    ),
    Panel(
        "Batch × 4",
        "COCO-like 73.8 → 84.0",
        (
            ("mined-6", "image_to_text", "8 images", BLUE),
            ("batch-x4", "image_to_text", "32 images", BLUE),
            ("mined-6", "text_to_image", "8 images ", ORANGE),
            ("batch-x4", "text_to_image", "32 images ", ORANGE),
        ),
        _DIRECTIONS,
    ),
    Panel(
        "Stage 2: image + instruction → answer",
        "CtrlBench 11.7 alone, 50.9 with instruction",
        (
            ("stage2-whole", "image_only", "image\nalone", GREY),
            ("mined-6", "instructed", "stage 2\noff", BLUE),
            ("stage2-whole", "instructed", "stage 2\non", BLUE),
        ),
    ),
    Panel(
        "Image groups in a batch",
        "whole; no figure of shuffled",
        (
            ("stage2-shuffled", "instructed", "shuffled", BLUE),
            ("stage2-whole", "instructed", "whole", BLUE),
            ("stage2-shuffled", "within_image", "shuffled ", ORANGE),
            ("stage2-whole", "within_image", "whole ", ORANGE),
        ),
        _AMONG,
    ),
)
_CURVES = (
    ("long-mined-6", "6 mined", BLUE, "-"),
    ("long-mined-6-sharp", "6 mined, no label smoothing", BLUE, "--"),
    ("long-mined-0", "in-batch only", ORANGE, "-"),
    ("long-mined-0-sharp", "in-batch only, no label smoothing", ORANGE, "--"),
    ("tau-from-0.01", "6 mined, started at 0.01", GREY, "-"),
)
"""(condition, label, colour, line)."""


def draw(results: Sequence[Result], out: Path) -> None:
    """One PNG of six panels.

    Raises:
        MissingExtraError: matplotlib is not installed.
        OutputError: the file cannot be written.
    """
    figure = new_figure(14, 8)
    bars, curves, *axes = figure.subplots(2, 3).flat
    _draw_bars(bars, results, _MINED)
    _draw_curves(curves, results)
    for panel_axes, panel in zip(axes, _PANELS, strict=True):
        _draw_bars(panel_axes, results, panel)
    save_figure(figure, out, dpi=100)


def _draw_bars(axes: "Axes", results: Sequence[Result], panel: Panel) -> None:
    """Means as bars, every run as a dot."""
    for x, (condition, score, _, colour) in enumerate(panel.bars):
        scores = values(results, condition, score)
        if scores:
            axes.bar(x, statistics.mean(scores), color=colour, alpha=0.35, width=0.7)
            axes.plot([x] * len(scores), scores, "o", color=colour, markersize=5)
    axes.set_xticks(range(len(panel.bars)), [label for _, _, label, _ in panel.bars])
    axes.set_ylabel("R@1")
    axes.set_ylim(0, axes.get_ylim()[1] * (1.2 if panel.legend else 1.0))  # room for the legend
    _add_titles(axes, panel.title, panel.paper)
    for name, colour in panel.legend:
        axes.bar(0, 0, color=colour, alpha=0.35, label=name)
    if panel.legend:
        axes.legend(loc="upper left", ncols=2, fontsize=8)


def _draw_curves(axes: "Axes", results: Sequence[Result]) -> None:
    """τ over the steps, a line for each run."""
    for condition, label, colour, dash in _CURVES:
        for run in results:
            if run["condition"] == condition:
                steps = [point["step"] for point in run["curve"]]
                taus = [point["tau"] for point in run["curve"]]
                axes.plot(steps, taus, dash, color=colour, label=label, linewidth=1.2)
                label = "_" + label  # one entry in the legend for all seeds
    axes.axhline(0.03, color="black", linestyle=":", linewidth=1, label="where the paper ends")
    axes.set_xlabel("step")
    axes.set_ylabel("τ")
    axes.set_ylim(0, axes.get_ylim()[1] * 1.35)  # room for the legend
    axes.legend(loc="upper left", fontsize=7.5, ncols=2, columnspacing=1.0, handlelength=1.7)
    _add_titles(axes, "τ, learnt", "near 0.03 with mined, to 0 with random")


def _add_titles(axes: "Axes", title: str, paper: str) -> None:
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
