"""Records as tables: for a terminal, as Markdown, as CSV.

The composition gap comes first, the controls stand beside every score, and what is missing is said.
"""

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from abc_embed.bench.ctrlbench.scene_benchmark import NOVEL
from abc_embed.bench.metrics import RANK_METRICS, at_chance

Record = Mapping[str, Any]

CONDITIONS = {
    "joint": "image + instruction",
    "image": "image alone",
    "generic": "generic instruction",
    "text": "instruction alone",
    "shuffled": "another instruction of the image",
    "other": "another image",
    "late": "both vectors added",
    "random": "random",
}
"""The benchmark's conditions, in words."""
JOINT_FIGURES = {
    "image_accuracy": "right image",
    "aspect_accuracy": "right among the image's own",
    "group_accuracy": "all of an image right",
    "flip_rate": "first choice changes with the instruction",
    "mirror_accuracy": "mirrored pairs, both right",
    "answerable_auc": "answerable above unanswerable (AUC)",
}
"""What is reported of image + instruction alone, in words."""
GROUPS = {NOVEL: "pairs never seen together"}
BRIEF = ("joint", "image", "text", "late", "random")
JOINT_BRIEF = ("mirror_accuracy", NOVEL, "answerable_auc")
TITLES = {
    "ctrlbench-B": "B, binding",
    "ctrlbench-G": "G, grid",
    "ctrlbench-S": "S, scenes",
}
NOT_TAKEN = "–"
FURTHER_TITLES = ", ".join(title for title, _ in RANK_METRICS.values())
NOTHING = "Nothing yet: `scripts/readme.py` writes this table from the records in `results/`.\n"


def is_ctrlbench(record: Record) -> bool:
    """Whether a record is one of CtrlBench; others have other scores."""
    return "composition_gap" in record and "bounds" in record


# -- for a terminal --------------------------------------------------------------------------------


def summary(record: Record) -> list[tuple[str, str, str]]:
    """(what, value with its interval, target and whether it is reached), line by line."""
    checks = {check["name"]: check for check in record["checks"]}
    rows = [("composition gap", score_cell(record["composition_gap"]), "")]
    for condition, title in CONDITIONS.items():
        if condition in record["scores"]:
            score = record["scores"][condition]
            partly = "" if score["of"] == record["sizes"]["queries"] else f" of {score['of']:,}"
            value = score_cell(first_recall(score)) + partly
            rows.append((f"R@1, {title}", value, _verdict(checks.get(condition))))
    if joint := record["scores"].get("joint"):
        rows.append((FURTHER_TITLES, _further_scores(joint), ""))
    for key, title in JOINT_FIGURES.items():
        if record["joint"]:
            figure = record["joint"].get(key)  # an older record may lack it
            rows.append((title, score_cell(figure), _verdict(checks.get(key))))
    for name, figure in record["by_group"].items():
        if name:
            rows.append((f"R@1, {name}", score_cell(figure), _verdict(checks.get(name))))
    for name, figure in record["by_aspect"].items():
        verdict = f"at chance ({figure['chance']:.2f})" if at_chance(figure) else ""
        rows.append((f"R@1, asked for {name}", score_cell(figure), verdict))
    bounds = record["bounds"]
    rows.append(("bound of the image alone", f"{bounds['image']:.3f}", ""))
    rows.append(("bound of the instruction alone", f"{bounds['text']:.3f}", ""))
    return rows


def chance_warnings(by_kind: Mapping[str, Record]) -> list[str]:
    """A sentence for each kind of question that the model may only guess at."""
    return [
        f"{name!r} is at chance: R@1 {score_cell(figure)} of {figure['of']:,} questions, and "
        f"always giving its most common answer has {figure['chance']:.3f}"
        for name, figure in by_kind.items()
        if at_chance(figure)
    ]


def sizes_line(record: Record) -> str:
    """On how many queries the scores stand, and what is left out."""
    sizes = record["sizes"]
    line = (
        f"{sizes['queries']:,} queries, {sizes['images']:,} images, {sizes['candidates']:,} "
        f"candidates, {sizes['mirrored_pairs']:,} mirrored pairs"
    )
    if sizes["queries_left_out"]:
        missing = record["missing"]
        line += (
            f"; {sizes['queries_left_out']:,} queries are left out, since {len(missing):,} images "
            f"are missing, {missing[0]} the first"
        )
    return line


def _verdict(check: Record | None) -> str:
    if check is None:
        return ""
    sign = "≥" if check["bound"] == "at least" else "≤"
    return f"{sign} {check['target']:.2f} {'reached' if check['reached'] else 'missed'}"


# -- Markdown --------------------------------------------------------------------------------------


def brief(records: Sequence[Record]) -> str:
    """A line for each benchmark and model of ours, and below it what each was measured with."""
    complete = [
        record
        for record in records
        if is_ctrlbench(record)
        and record["settings"]["limit"] is None
        and not record["missing"]
        and record["model"].get("kind") == "abc-embed"
    ]
    if not complete:
        return NOTHING
    return "\n".join([*_gap_table(complete), "", *map(_small_print, complete)]) + "\n"


def markdown(records: Sequence[Record]) -> str:
    """Every record: CtrlBench by benchmark, with all controls; others as they come."""
    lines: list[str] = []
    ctrlbench = [record for record in records if is_ctrlbench(record)]
    others = [record for record in records if not is_ctrlbench(record)]
    if ctrlbench:
        lines += [*_gap_table(ctrlbench), ""]
    for benchmark in dict.fromkeys(record["benchmark"] for record in ctrlbench):
        group = [record for record in ctrlbench if record["benchmark"] == benchmark]
        lines += [f"### {TITLES.get(benchmark, benchmark)}", "", *_full_table(group), ""]
        lines += [*map(_small_print, group), ""]
    if others:
        lines += ["### Others", ""]
        lines += markdown_head(["benchmark", "model", "score", "value (95 %)", "of"])
    for record in others:
        for name, _, figure in _all_figures(record):
            cells = (record["benchmark"], record["model"]["name"], name, score_cell(figure))
            lines.append(markdown_row([*cells, f"{figure.get('of', '')}"]))
    return "\n".join(lines).rstrip() + "\n" if lines else NOTHING


def _gap_table(records: Sequence[Record]) -> list[str]:
    """The gap, what it is made of, and the mirrored pairs."""
    head = ["tier", "model", "composition gap", *(CONDITIONS[name] for name in BRIEF)]
    lines = [
        "R@1 with 95 % intervals by image. Composition gap: image + instruction over the best of "
        "image alone, instruction alone, and both vectors added.",
        "",
        *markdown_head([*head, *((GROUPS | JOINT_FIGURES)[key] for key in JOINT_BRIEF)]),
    ]
    for record in records:
        cells = [_title(record), record["model"]["name"], score_cell(record["composition_gap"])]
        cells += [score_cell(first_recall(record["scores"].get(name))) for name in BRIEF]
        joint = record["by_group"] | (record["joint"] or {})
        cells += [score_cell(joint.get(key)) for key in JOINT_BRIEF]
        lines.append(markdown_row(cells))
    return lines


def _full_table(records: Sequence[Record]) -> list[str]:
    """A column for each model: every condition, and what is reported of joint."""

    def row(title: str, figures: Iterable[Record | None]) -> str:
        return markdown_row([title, *map(score_cell, figures)])

    lines = markdown_head(["", *(record["model"]["name"] for record in records)])
    lines.append(row("**composition gap**", (r["composition_gap"] for r in records)))
    for key, title in CONDITIONS.items():
        lines.append(row(f"R@1, {title}", (first_recall(r["scores"].get(key)) for r in records)))
    further = [_further_scores(r["scores"].get("joint")) for r in records]
    lines.append(markdown_row([f"{FURTHER_TITLES}, {CONDITIONS['joint']}", *further]))
    for key, title in JOINT_FIGURES.items():
        lines.append(row(title, ((r["joint"] or {}).get(key) for r in records)))
    for split in ("by_aspect", "by_group"):
        for name in dict.fromkeys(name for r in records for name in r[split] if name):
            lines.append(row(f"R@1, {name}", (r[split].get(name) for r in records)))
    bounds = records[0]["bounds"]
    low = f"image alone ≤ {bounds['image']:.3f}, instruction alone ≤ {bounds['text']:.3f}"
    return [*lines, "", f"From the files alone: {low}, chance {bounds['random']:.4f}."]


def _small_print(record: Record) -> str:
    """How it was measured, by aspect, and what was missed."""
    model, checks = record["model"], record["checks"]
    parts = [f"* **{_title(record)}, {model['name']}**: {sizes_line(record)}."]
    aspects = [f"{name} {share['value']:.2f}" for name, share in record["by_aspect"].items()]
    if aspects:
        parts.append(f"By aspect: {', '.join(aspects)}.")
    parts += [f"Warning: {sentence}." for sentence in chance_warnings(record["by_aspect"])]
    if checks:
        titles = CONDITIONS | JOINT_FIGURES | GROUPS
        targets = "; ".join(f"{titles[check['name']]} {_verdict(check)}" for check in checks)
        missed = "; ".join(titles[check["name"]] for check in checks if not check["reached"])
        parts.append(f"Targets: {targets}. Missed: {missed or 'none'}.")
    parts.append(
        f"Weights `{model['fingerprint'][:8]}` in {model['dtype']} on {model['device']}, benchmark "
        f"`{record['benchmark_hash'][:8]}`, {record['time'][:10]}."
    )
    return " ".join(parts)


def _title(record: Record) -> str:
    title = TITLES.get(record["benchmark"], str(record["benchmark"]))
    limit = record["settings"].get("limit")
    return title if limit is None else f"{title}, first {limit} images"


def first_recall(score: Record | None) -> Record | None:
    """R@1 of a score with its interval."""
    return None if score is None else {"value": score["r1"], "interval": score["r1_interval"]}


def _further_scores(score: Record | None) -> str:
    values = [None if score is None else score.get(name) for name in RANK_METRICS]
    if all(value is None for value in values):
        return NOT_TAKEN
    return ", ".join(NOT_TAKEN if value is None else f"{value:.3f}" for value in values)


def score_cell(figure: Record | None) -> str:
    """A value with its interval; a dash where nothing was asked."""
    if figure is None or figure["value"] is None:
        return NOT_TAKEN
    if figure.get("interval") is None:
        return f"{figure['value']:.3f}"
    low, high = figure["interval"]
    return f"{figure['value']:.3f} ({low:.3f}–{high:.3f})"


def markdown_row(cells: Iterable[str]) -> str:
    """One line of a table."""
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def markdown_head(titles: Sequence[str]) -> list[str]:
    """The first two lines of a table."""
    return [markdown_row(titles), markdown_row(["---"] * len(titles))]


# -- CSV -------------------------------------------------------------------------------------------


def as_csv(records: Sequence[Record]) -> str:
    """One line for each number of each record."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    head = ("benchmark", "benchmark_hash", "model", "weights", "max_pixels", "limit")
    writer.writerow((*head, "score", "metric", "value", "low", "high", "of"))
    for record in records:
        settings, model = record["settings"], record["model"]
        by = (record["benchmark"], record["benchmark_hash"], model["name"], model["fingerprint"])
        where = (settings.get("max_pixels"), settings.get("limit"))
        for name, metric, figure in _all_figures(record):
            low, high = figure.get("interval") or ("", "")
            value = "" if figure["value"] is None else figure["value"]
            writer.writerow((*by, *where, name, metric, value, low, high, figure.get("of", "")))
    return text.getvalue()


def _all_figures(record: Record) -> Iterator[tuple[str, str, Record]]:
    """(score, metric, figure) of every number."""
    if record.get("composition_gap"):
        yield "composition gap", "r1", record["composition_gap"]
    for name, score in record["scores"].items():
        if "r1" not in score:
            yield name, "value", score
            continue
        yield name, "r1", {**score, "value": score["r1"], "interval": score["r1_interval"]}
        for metric in RANK_METRICS:
            yield name, metric, {"value": score.get(metric), "of": score["of"]}
    for name, figure in (record.get("joint") or {}).items():
        yield "joint", name, figure
    for split in ("by_aspect", "by_group"):
        for name, figure in record.get(split, {}).items():
            yield f"joint, {name}", "r1", figure
