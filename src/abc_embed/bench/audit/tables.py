"""An audit for people: rows of a table, Markdown, and a figure."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from abc_embed import figures
from abc_embed.bench.metrics import at_chance
from abc_embed.bench.tables import chance_warnings, markdown_head, markdown_row, score_cell

COLUMNS = {
    "image": "image alone",
    "words": "words alone",
    "sum": "their sum",
    "any": "any of these",
    "both": "image + instruction",
    "only together": "only together",
}
HEAD = ("model", *COLUMNS.values())
KINDS_HEAD = ("model", "asked for", "image + instruction", "at chance")
COLOURS = {
    COLUMNS["image"]: "#9ab8dc",
    COLUMNS["words"]: "#e0b98a",
    COLUMNS["sum"]: "#a9c9a4",
    COLUMNS["any"]: "#5b6470",
    COLUMNS["both"]: figures.BLUE,
}

Findings = Mapping[str, Any]


def rows(findings: Findings) -> list[tuple[str, ...]]:
    """One row for each model, `–` where it does not take such inputs; below, the whole panel."""
    lines = [
        (row["model"]["name"], *(score_cell(row["shares"].get(column)) for column in COLUMNS))
        for row in findings["models"]
    ]
    if len(lines) > 1:
        cells = [score_cell(findings["panel"]) if column == "any" else "" for column in COLUMNS]
        lines.append(("any model of the panel", *cells))
    return lines


def kind_rows(findings: Findings) -> list[tuple[str, ...]]:
    """Image + instruction, a row for each model and kind of question; none if kinds have no name.

    The last cell is chance where a model does not get beyond it.
    """
    return [
        (row["model"]["name"], kind, score_cell(figure),
         f"{figure['chance']:.3f}" if at_chance(figure) else "")
        for row in findings["models"]
        for kind, figure in row["kinds"].items()
    ]  # fmt: skip


def warnings(findings: Findings) -> list[str]:
    """A sentence for each kind of question that a model may only guess at."""
    return [
        f"{row['model']['name']}: {sentence}"
        for row in findings["models"]
        for sentence in chance_warnings(row["kinds"])
    ]


def summary(findings: Findings) -> str:
    """What the shares are of, in one or two sentences."""
    sizes = findings["sizes"]
    text = (
        f"{findings['audit']}: {sizes['questions']:,} questions about {sizes['images']:,} pictures,"
        f" {sizes['texts']:,} texts; guessing solves {findings['chance']:.3f}."
    )
    if sizes["left_out"]:
        text += (
            f" Questions left out for want of their pictures: {sizes['left_out']:,}; pictures"
            f" missing: {len(findings['missing']):,}, {findings['missing'][0]} the first."
        )
    return text


def markdown(findings: Findings) -> str:
    """The table with its sentence, for a document."""
    lines = [
        f"Share of questions solved, with 95 % intervals by picture. {summary(findings)}",
        "",
        *markdown_head(HEAD),
        *map(markdown_row, rows(findings)),
    ]
    if by_kind := kind_rows(findings):
        lines += ["", *markdown_head(KINDS_HEAD), *map(markdown_row, by_kind)]
        lines += [line for sentence in warnings(findings) for line in ("", f"Warning: {sentence}.")]
    return "\n".join(lines) + "\n"


def draw_bars(findings: Findings, path: Path) -> None:
    """Bars with intervals, model by model; the dashed line is what guessing solves.

    Raises:
        MissingExtraError: matplotlib is not installed.
        OutputError: the file cannot be written.
    """
    models = findings["models"]
    figure = figures.new_figure(7.5, 1.6 + 1.25 * len(models))
    axes = figure.subplots()
    figures.score_axes(axes, [row["model"]["name"] for row in models])
    for row, model in enumerate(models):
        shares = {COLUMNS[key]: share for key, share in model["shares"].items()}
        figures.score_bars(axes, row, shares, COLOURS, fontsize=8)
    chance = findings["chance"]
    axes.axvline(chance, color=figures.BOUND, linestyle="--", linewidth=1, label="guessing")
    axes.set_xlabel("share of questions solved (95 % intervals by picture)")
    axes.set_title(f"What does it take to solve {findings['audit']}?", loc="left")
    figures.legend_below(figure, columns=3, fontsize=10)
    figures.save_figure(figure, path, dpi=150)
