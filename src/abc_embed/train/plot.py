"""Curves of one or several runs in one picture: loss, accuracy, τ, gradient norm, and what
validation found where there was any (dashed: the image alone), each kind of question by itself.

Faint: every line as it was logged. Strong: a running mean, so that curves can be told apart.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from abc_embed.bench.metrics import at_chance
from abc_embed.errors import DataError, UsageError
from abc_embed.figures import legend_below, new_figure, save_figure
from abc_embed.train.metrics_logger import read_metrics
from abc_embed.train.validation import VALIDATION_FILE

METRICS_FILE = "metrics.jsonl"
FORMATS = (".png", ".svg", ".pdf")
PANELS = (
    ("loss", "loss", False),
    ("accuracy", "accuracy (right one first)", False),
    ("tau", "temperature τ", False),
    ("grad_norm", "gradient norm (log)", True),
)
"""Name in the file, title, whether the axis is logarithmic."""
VALIDATION_PANELS = (("loss", "validation: loss"), ("r1", "validation: R@1 (dashed: image alone)"))
KIND = "kind "
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
    paths = [Path(run) for run in runs]
    for path in paths:
        if not path.exists():
            raise DataError(f"there is no run {path}; give its folder, or its {METRICS_FILE}")
    if out.suffix.lower() not in FORMATS:
        raise UsageError(f"--out is {str(out)!r}; give a name that ends in {', '.join(FORMATS)}")
    files = _names(paths)
    curves = {name: _rows(path) for name, path in files.items()}
    checks = {name: _validation(path.with_name(VALIDATION_FILE)) for name, path in files.items()}
    figure = _figure(curves, {name: rows for name, rows in checks.items() if rows})
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


def _validation(path: Path) -> dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Steps and values of each column of a run's validation; none where it had none.

    A kind of question is a column too, `kind ` and its name, with ` (at chance)` where it ends so.
    """
    rows = read_metrics(path) if path.is_file() else []
    columns = ("loss", "r1", "image_loss", "image_r1")
    given = {key: [(r["step"], r[key]) for r in rows if r.get(key) is not None] for key in columns}
    for kind, last in (rows[-1].get("kinds") or {} if rows else {}).items():
        name = f"{KIND}{kind}{' (at chance)' if at_chance(last) else ''}"
        given[name] = [(r["step"], r["kinds"][kind]["value"]) for r in rows if kind in r["kinds"]]
    return {
        key: (np.array([step for step, _ in some]), np.array([value for _, value in some]))
        for key, some in given.items()
        if some
    }


def _draw_validation(
    figure: Any, checks: Mapping[str, Any], colours: Mapping[str, str], rows: int
) -> None:
    for place, (key, title) in enumerate(VALIDATION_PANELS, len(PANELS) + 1):
        axes = figure.add_subplot(rows, 2, place)
        for name, columns in checks.items():
            for column, style in ((key, "o-"), (f"image_{key}", "o--")):
                if column in columns:
                    axes.plot(*columns[column], style, color=colours[name], markersize=3)
        _keep_in_range(axes, is_share=key == "r1")
        _style(axes, title, last=True)


def _draw_kinds(figure: Any, checks: Mapping[str, Any], rows: int) -> None:
    """Colours are kinds here, the style of a line says the run."""
    axes = figure.add_subplot(rows, 2, (2 * rows - 1, 2 * rows))  # of the grid of the others
    kinds = list(dict.fromkeys(key for columns in checks.values() for key in columns))
    kinds = [key for key in kinds if key.startswith(KIND)]
    for number, (name, columns) in enumerate(checks.items()):
        style = ("o-", "o--", "o:", "o-.")[number % 4]
        for place, kind in enumerate(kinds):
            if kind in columns:
                label = kind.removeprefix(KIND) + (f", {name}" if len(checks) > 1 else "")
                colour = COLOURS[place % len(COLOURS)]
                axes.plot(*columns[kind], style, color=colour, markersize=3, label=label)
    axes.set_ylim(0.0, 1.02)
    _style(axes, "validation: R@1 by kind of question", last=True)
    axes.legend(fontsize=7, ncols=4, frameon=False)


def _keep_in_range(axes: Any, *, is_share: bool) -> None:
    """No value can be below 0, nor a share above 1: no room for them."""
    low, high = axes.get_ylim()
    axes.set_ylim(max(low, 0.0), min(high, 1.0) if is_share else high)


def _style(axes: Any, title: str, *, last: bool) -> None:
    axes.set_title(title, fontsize=10, loc="left")
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.tick_params(which="both", labelsize=8)
    axes.xaxis.get_major_locator().set_params(integer=True)  # no half steps
    axes.spines[["top", "right"]].set_visible(False)
    if last:
        axes.set_xlabel("step", fontsize=9)


def _figure(curves: dict[str, dict[str, NDArray[np.float64]]], checks: Mapping[str, Any]) -> Any:
    has_kinds = any(key.startswith(KIND) for columns in checks.values() for key in columns)
    rows = 2 + bool(checks) + has_kinds
    figure = new_figure(10, 3.2 * rows)
    colours = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(curves)}
    for place, (key, title, logarithmic) in enumerate(PANELS, 1):
        axes = figure.add_subplot(rows, 2, place)
        for number, (name, columns) in enumerate(curves.items()):
            colour = colours[name]
            style = ("-", "--", ":")[number // len(COLOURS) % 3]
            steps, values = columns["step"], columns[key]
            mean = smoothed(values)
            marker = "o" if len(steps) < 3 else ""  # a line of one point cannot be seen
            axes.plot(steps, values, color=colour, alpha=0.22, linewidth=0.8)
            axes.plot(steps, mean, style, color=colour, linewidth=1.6, label=name, marker=marker)
        if logarithmic:
            axes.set_yscale("log")
        else:
            _keep_in_range(axes, is_share=key == "accuracy")
        _style(axes, title, last=place > 2 and not checks)
    if checks:
        _draw_validation(figure, checks, colours, rows)
    if has_kinds:
        _draw_kinds(figure, checks, rows)
    legend_below(figure, columns=4, fontsize=8)
    return figure


def smoothed(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """A centred running mean; at the ends over what there is."""
    window = np.ones(2 * int(len(values) * SMOOTH_SHARE / 2) + 1)
    counts = np.convolve(np.ones(len(values)), window, "same")
    mean: NDArray[np.float64] = np.convolve(values, window, "same") / counts
    return mean
