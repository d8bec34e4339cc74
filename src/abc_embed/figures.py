"""Figures for people, drawn by matplotlib without a window: panels, bars with intervals, one file.

What is drawn in them, each room says itself.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from abc_embed.errors import MissingExtraError
from abc_embed.storage.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, RED, GREY = "#266ec8", "#c96a14", "#b42318", "#6e727a"
INK, BOUND = "#202226", "#444444"
"""Error bars, and lines that mark a bound."""


def new_figure(width: float, height: float) -> "Figure":
    """An empty figure, in inches.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        # No pyplot: it would choose a window system for the whole process.
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtraError.of("bench", "drawing a figure") from None
    return Figure(figsize=(width, height), layout="constrained")


def save_figure(figure: "Figure", path: Path, *, dpi: int, kind: str = "png") -> None:
    """Write the figure whole or not at all; `kind` is png, svg or pdf.

    Raises:
        OutputError: the file cannot be written.
    """
    metadata = {"Software": None} if kind == "png" else None  # equal figures make equal bytes
    with atomic_write(path) as file:
        figure.savefig(file, format=kind, dpi=dpi, metadata=metadata)


def score_axes(axes: "Axes", names: Sequence[str]) -> None:
    """Scores from 0 to 1 to the right, one row for each name, the first on top."""
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlim(0, 1)
    axes.spines[["top", "right"]].set_visible(False)


def score_bars(
    axes: "Axes",
    row: int,
    shares: Mapping[str, Mapping[str, Any] | None],
    colours: Mapping[str, str],
    *,
    fontsize: int,
) -> None:
    """One bar for each colour, by label, with the interval of its share; None: not taken."""
    height = 0.84 / len(colours)
    for number, (label, colour) in enumerate(colours.items()):
        share = shares.get(label)
        y = row - 0.42 + (number + 0.5) * height
        if share is None or share["value"] is None:
            axes.text(0.005, y, f"{label}: not taken", va="center", fontsize=fontsize - 1)
            continue
        value, (low, high) = share["value"], share["interval"]
        error = [[max(0.0, value - low)], [max(0.0, high - value)]]
        axes.barh(y, value, height * 0.92, color=colour, label=label)
        axes.errorbar(value, y, xerr=error, color=INK, linewidth=1, capsize=2)
        axes.text(high + 0.01, y, f"{value:.2f}", va="center", fontsize=fontsize)


def legend_below(figure: "Figure", *, columns: int, fontsize: int) -> None:
    """The labels of the first panel, each once, under the figure."""
    handles, labels = figure.axes[0].get_legend_handles_labels()
    first = dict(zip(labels, handles, strict=True))
    figure.legend(
        list(first.values()),
        list(first),
        loc="outside lower center",
        ncols=min(columns, len(first)),
        frameon=False,
        fontsize=fontsize,
    )
