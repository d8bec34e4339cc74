"""An audit for people: rows of a table, Markdown, and a picture.

Does: lay out what `audit.run` found. Does not: compute. The picture needs matplotlib.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from abc_embed.errors import MissingExtraError
from abc_embed.storage.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLUMNS = {
    "image": "image alone",
    "words": "words alone",
    "sum": "their sum",
    "any": "any of these",
    "both": "image + instruction",
    "only together": "only together",
}
COLOURS = {
    "image": "#9ab8dc",
    "words": "#e0b98a",
    "sum": "#a9c9a4",
    "any": "#5b6470",
    "both": "#266ec8",
}
NOT_TAKEN = "–"

Findings = Mapping[str, Any]


def head() -> tuple[str, ...]:
    """The heads of `rows`."""
    return ("model", *COLUMNS.values())


def rows(findings: Findings) -> list[tuple[str, ...]]:
    """One row for each model, `–` where it does not take such inputs; below, the whole panel."""
    lines = [
        (
            row["model"]["name"],
            *(_cell(row["shares"].get(column)) for column in COLUMNS),
        )
        for row in findings["models"]
    ]
    if len(lines) > 1:
        cells = [_cell(findings["panel"]) if column == "any" else "" for column in COLUMNS]
        lines.append(("any model of the panel", *cells))
    return lines


def summary(findings: Findings) -> str:
    """What the shares are of, in one or two sentences."""
    sizes = findings["sizes"]
    said = (
        f"{findings['audit']}: {sizes['questions']:,} questions about {sizes['images']:,} pictures,"
        f" {sizes['texts']:,} texts; guessing solves {findings['chance']:.3f}."
    )
    if sizes["left_out"]:
        said += (
            f" Questions left out for want of their pictures: {sizes['left_out']:,}; pictures"
            f" missing: {len(findings['missing']):,}, {findings['missing'][0]} the first."
        )
    return said


def markdown(findings: Findings) -> str:
    """The table with its sentence, for a document."""
    lines = [
        f"Share of questions solved, with 95 % intervals by picture. {summary(findings)}",
        "",
        _line(head()),
        _line(["---"] * len(head())),
        *map(_line, rows(findings)),
    ]
    return "\n".join(lines) + "\n"


def write_plot(findings: Findings, path: Path) -> None:
    """Bars with intervals, model by model; the dashed line is what guessing solves.

    Raises:
        MissingExtraError: matplotlib is not installed.
        OutputError: the file cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtraError.of("bench", "the picture of an audit") from None
    models = findings["models"]
    figure = Figure(figsize=(7.5, 1.6 + 1.25 * len(models)), layout="constrained")
    axes = figure.subplots()
    for place, row in enumerate(models):
        _bars(axes, place, row["shares"])
    axes.axvline(findings["chance"], color="#444444", linestyle="--", linewidth=1, label="guessing")
    axes.set_yticks(range(len(models)), [row["model"]["name"] for row in models])
    axes.set_ylim(len(models) - 0.5, -0.5)
    axes.set_xlim(0, 1)
    axes.set_xlabel("share of questions solved (95 % intervals by picture)")
    axes.set_title(f"What does it take to solve {findings['audit']}?", loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    handles, labels = axes.get_legend_handles_labels()
    shown = dict(zip(labels, handles, strict=True))  # a way that several models have stands once
    figure.legend(shown.values(), shown, loc="outside lower center", ncols=3, frameon=False)
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=150)


def _bars(axes: "Axes", place: int, shares: Mapping[str, Any]) -> None:
    height = 0.8 / len(COLOURS)
    for number, (way, colour) in enumerate(COLOURS.items()):
        share = shares.get(way)
        where = place - 0.4 + (number + 0.5) * height
        if share is None:
            axes.text(0.005, where, f"{COLUMNS[way]}: not taken", va="center", fontsize=7)
            continue
        low, high = share["interval"]
        value = share["value"]
        error = [[max(0.0, value - low)], [max(0.0, high - value)]]
        axes.barh(where, value, height * 0.92, color=colour, label=COLUMNS[way])
        axes.errorbar(value, where, xerr=error, color="#202226", linewidth=1, capsize=2)
        axes.text(high + 0.01, where, f"{value:.2f}", va="center", fontsize=8)


def _cell(share: Mapping[str, Any] | None) -> str:
    if share is None:
        return NOT_TAKEN
    low, high = share["interval"]
    return f"{share['value']:.3f} ({low:.3f}–{high:.3f})"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
