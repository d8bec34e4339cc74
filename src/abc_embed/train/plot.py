"""Curves of one or several runs in one picture: loss, accuracy, τ, gradient norm.

Faint: every line as it was logged. Strong: a running mean, so that curves can be told apart.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from abc_embed.errors import DataError, UsageError
from abc_embed.figures import legend_below, new_figure, save_figure
from abc_embed.train.metrics_logger import read_metrics

METRICS_FILE = "metrics.jsonl"
FORMATS = (".png", ".svg", ".pdf")
PANELS = (
    ("loss", "loss", False),
    ("accuracy", "accuracy (right one first)", False),
    ("tau", "temperature τ", False),
    ("grad_norm", "gradient norm (log)", True),
)
"""Name in the file, title, whether the axis is logarithmic."""
COLOURS = ("#1f5fb0", "#c9571c", "#2e8b57", "#8a4fa3", "#b8860b", "#c0397a", "#3a8fa0", "#6b6b6b")
SMOOTH_SHARE = 1 / 25
"""The running mean spans this share of a run."""


def draw_runs(runs: Sequence[str | Path], out: str | Path) -> Path:
    """Draw the runs, folders or `metrics.jsonl` files, into `out`; the picture's path.

    Raises:
        UsageError: `out` does not end in a known format, or a run is named twice.
        DataError: a run without lines.
        MissingExtraError: matplotlib is not installed.
        OutputError: the picture cannot be written.
    """
    out = Path(out)
    if out.suffix.lower() not in FORMATS:
        raise UsageError(f"--out is {str(out)!r}; give a name that ends in {', '.join(FORMATS)}")
    curves = {name: _rows(path) for name, path in _names([Path(run) for run in runs]).items()}
    figure = _figure(curves)
    save_figure(figure, out, dpi=150, kind=out.suffix.lower()[1:])
    return out


def _names(runs: Sequence[Path]) -> dict[str, Path]:
    """What each run is called in the legend: the shortest ends of their paths that differ."""
    files = [run / METRICS_FILE if run.is_dir() else run for run in runs]
    folders = [file.absolute().parent for file in files]
    longest = max((len(folder.parts) for folder in folders), default=1)
    for parts in range(1, longest + 1):
        names = ["/".join(folder.parts[-parts:]) for folder in folders]
        if len(set(names)) == len(names):
            return dict(zip(names, files, strict=True))
    raise UsageError("a run is named twice; name each one once")


def _rows(path: Path) -> dict[str, NDArray[np.float64]]:
    """The columns of a run's log."""
    rows = read_metrics(path)
    if not rows:
        raise DataError(f"{path} has no lines yet; train for a step first")
    try:
        wanted = ("step", *(name for name, *_ in PANELS))
        return {name: np.array([float(row[name]) for row in rows]) for name in wanted}
    except (KeyError, TypeError, ValueError) as problem:
        raise DataError(f"{path} is no log of a training run ({problem!r} is missing)") from None


def _figure(curves: dict[str, dict[str, NDArray[np.float64]]]) -> Any:
    figure = new_figure(10, 6.4)
    for place, (key, title, logarithmic) in enumerate(PANELS, 1):
        axes = figure.add_subplot(2, 2, place)
        for number, (name, columns) in enumerate(curves.items()):
            colour = COLOURS[number % len(COLOURS)]
            style = ("-", "--", ":")[number // len(COLOURS) % 3]
            steps, values = columns["step"], columns[key]
            mean = smoothed(values)
            marker = "o" if len(steps) < 3 else ""  # a line of one point cannot be seen
            axes.plot(steps, values, color=colour, alpha=0.22, linewidth=0.8)
            axes.plot(steps, mean, style, color=colour, linewidth=1.6, label=name, marker=marker)
        if logarithmic:
            axes.set_yscale("log")
        axes.set_title(title, fontsize=10, loc="left")
        axes.grid(alpha=0.25, linewidth=0.6)
        axes.tick_params(which="both", labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
        if place > 2:
            axes.set_xlabel("step", fontsize=9)
    legend_below(figure, columns=4, fontsize=8)
    return figure


def smoothed(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """A centred running mean; at the ends over what there is."""
    window = np.ones(2 * int(len(values) * SMOOTH_SHARE / 2) + 1)
    counts = np.convolve(np.ones(len(values)), window, "same")
    mean: NDArray[np.float64] = np.convolve(values, window, "same") / counts
    return mean
