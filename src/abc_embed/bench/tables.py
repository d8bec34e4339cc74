"""Records as tables: for a terminal, as Markdown, as CSV.

Does: put the composition gap first, the controls beside every score, and say what is missing. Does
not: read records (report.py) or draw (pictures.py).
"""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Record = Mapping[str, Any]

WAYS = {
    "joint": "image + instruction",
    "image": "image alone",
    "generic": "generic instruction",
    "text": "instruction alone",
    "shuffled": "another instruction of the image",
    "other": "another image",
    "late": "both vectors added",
    "random": "random",
}
"""Ways of asking, in words."""
OF_JOINT = {
    "image_accuracy": "right image",
    "aspect_accuracy": "right among the image's own",
    "group_accuracy": "all of an image right",
    "flip_rate": "first choice changes with the instruction",
    "mirror_accuracy": "mirrored pairs, both right",
}
"""What is said of image + instruction alone, in words."""
BRIEF = ("joint", "image", "text", "late", "random")
TITLES = {
    "ctrlbench-B": "B, binding",
    "ctrlbench-G": "G, grid",
    "ctrlbench-S": "S, scenes",
}
NOT_TAKEN = "–"
NOTHING = "Nothing yet: `scripts/readme.py` writes this table from the records in `results/`.\n"


def is_ctrlbench(record: Record) -> bool:
    """Whether a record is one of CtrlBench; others have other scores."""
    return "composition_gap" in record and "bounds" in record


# -- for a terminal --------------------------------------------------------------------------------


def summary(record: Record) -> list[tuple[str, str, str]]:
    """(what, value with its interval, target and whether it is reached), line by line."""
    checks = {check["name"]: check for check in record["checks"]}
    rows = [("composition gap", _cell(record["composition_gap"]), "")]
    for way, title in WAYS.items():
        if way in record["scores"]:
            score = record["scores"][way]
            partly = "" if score["of"] == record["sizes"]["queries"] else f" of {score['of']:,}"
            rows.append((f"R@1, {title}", _cell(_r1(score)) + partly, _verdict(checks.get(way))))
    if joint := record["scores"].get("joint"):
        rows.append(("R@5, R@10, MRR", _more(joint), ""))
    for key, title in OF_JOINT.items():
        if record["joint"]:
            rows.append((title, _cell(record["joint"][key]), _verdict(checks.get(key))))
    bounds = record["bounds"]
    rows.append(("bound of the image alone", f"{bounds['image']:.3f}", ""))
    rows.append(("bound of the instruction alone", f"{bounds['text']:.3f}", ""))
    return rows


def standing(record: Record) -> str:
    """One line: on how many queries the scores stand, and what is left out."""
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
    chosen = [r for r in records if _is_whole(r) and r["model"].get("kind") == "abc-embed"]
    if not chosen:
        return NOTHING
    return "\n".join([*_gap_table(chosen), "", *map(_small_print, chosen)]) + "\n"


def markdown(records: Sequence[Record]) -> str:
    """Every record: CtrlBench by benchmark, with all controls; others as they come."""
    lines: list[str] = []
    ours = [r for r in records if is_ctrlbench(r)]
    if ours:
        lines += [*_gap_table(ours), ""]
    for benchmark in dict.fromkeys(r["benchmark"] for r in ours):
        its = [r for r in ours if r["benchmark"] == benchmark]
        lines += [f"### {TITLES.get(benchmark, benchmark)}", "", *_full_table(its), ""]
        lines += [*map(_small_print, its), ""]
    others = [r for r in records if not is_ctrlbench(r)]
    if others:
        lines += ["### Others", "", _row(["benchmark", "model", "score", "value (95 %)", "of"])]
        lines.append(_row(["---"] * 5))
    for record in others:
        for name, _, figure in _figures(record):
            cells = (record["benchmark"], record["model"]["name"], name, _cell(figure))
            lines.append(_row([*cells, f"{figure.get('of', '')}"]))
    return "\n".join(lines).rstrip() + "\n" if lines else NOTHING


def _is_whole(record: Record) -> bool:
    return is_ctrlbench(record) and record["settings"]["limit"] is None and not record["missing"]


def _gap_table(records: Sequence[Record]) -> list[str]:
    """The gap, what it is made of, and the mirrored pairs."""
    head = ["tier", "model", "composition gap", *(WAYS[way] for way in BRIEF)]
    head.append(OF_JOINT["mirror_accuracy"])
    lines = [
        "R@1 with 95 % intervals by image. Composition gap: image + instruction over the best of "
        "image alone, instruction alone, and both vectors added.",
        "",
        _row(head),
        _row(["---"] * len(head)),
    ]
    for record in records:
        cells = [_title(record), record["model"]["name"], _cell(record["composition_gap"])]
        cells += [_cell(_r1(record["scores"].get(way))) for way in BRIEF]
        cells.append(_cell((record["joint"] or {}).get("mirror_accuracy")))
        lines.append(_row(cells))
    return lines


def _full_table(records: Sequence[Record]) -> list[str]:
    """A column for each model: every way of asking, and what is said of joint."""
    names = [record["model"]["name"] for record in records]
    lines = [_row(["", *names]), _row(["---"] * (1 + len(names)))]
    lines.append(_row(["**composition gap**", *(_cell(r["composition_gap"]) for r in records)]))
    for way, title in WAYS.items():
        lines.append(_row([f"R@1, {title}", *(_cell(_r1(r["scores"].get(way))) for r in records)]))
    more = [_more(r["scores"].get("joint")) for r in records]
    lines.append(_row([f"R@5, R@10, MRR, {WAYS['joint']}", *more]))
    for key, title in OF_JOINT.items():
        lines.append(_row([title, *(_cell((r["joint"] or {}).get(key)) for r in records)]))
    for split in ("by_aspect", "by_group"):
        for name in dict.fromkeys(name for r in records for name in r[split] if name):
            lines.append(_row([f"R@1, {name}", *(_cell(r[split].get(name)) for r in records)]))
    bounds = records[0]["bounds"]
    low = f"image alone ≤ {bounds['image']:.3f}, instruction alone ≤ {bounds['text']:.3f}"
    return [*lines, "", f"From the files alone: {low}, chance {bounds['random']:.4f}."]


def _small_print(record: Record) -> str:
    """How it was measured, by aspect, and what was missed."""
    model = record["model"]
    parts = [f"* **{_title(record)}, {model['name']}**: {standing(record)}."]
    aspects = [f"{name} {its['value']:.2f}" for name, its in record["by_aspect"].items()]
    if aspects:
        parts.append(f"By aspect: {', '.join(aspects)}.")
    if record["checks"]:
        missed = [_names()[check["name"]] for check in record["checks"] if not check["reached"]]
        targets = (f"{_names()[c['name']]} {_verdict(c)}" for c in record["checks"])
        parts.append(f"Targets: {'; '.join(targets)}. Missed: {'; '.join(missed) or 'none'}.")
    parts.append(
        f"Weights `{model['fingerprint'][:8]}` in {model['dtype']} on {model['device']}, benchmark "
        f"`{record['benchmark_hash'][:8]}`, {record['time'][:10]}."
    )
    return " ".join(parts)


def _names() -> dict[str, str]:
    return {**WAYS, **OF_JOINT}


def _title(record: Record) -> str:
    title = TITLES.get(record["benchmark"], str(record["benchmark"]))
    limit = record["settings"].get("limit")
    return title if limit is None else f"{title}, first {limit} images"


def _r1(score: Record | None) -> Record | None:
    return None if score is None else {"value": score["r1"], "interval": score["r1_interval"]}


def _more(score: Record | None) -> str:
    if score is None or score["r5"] is None:
        return NOT_TAKEN
    return f"{score['r5']:.3f}, {score['r10']:.3f}, {score['mrr']:.3f}"


def _cell(figure: Record | None) -> str:
    if figure is None or figure["value"] is None:
        return NOT_TAKEN
    if figure.get("interval") is None:
        return f"{figure['value']:.3f}"
    low, high = figure["interval"]
    return f"{figure['value']:.3f} ({low:.3f}–{high:.3f})"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


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
        for name, metric, figure in _figures(record):
            low, high = figure.get("interval") or ("", "")
            value = "" if figure["value"] is None else figure["value"]
            of = figure.get("of", "")
            where = (settings.get("max_pixels"), settings.get("limit"))
            writer.writerow((*by, *where, name, metric, value, low, high, of))
    return text.getvalue()


def _figures(record: Record) -> Iterator[tuple[str, str, Record]]:
    """(score, metric, figure) of every number."""
    if record.get("composition_gap"):
        yield "composition gap", "r1", record["composition_gap"]
    for name, score in record["scores"].items():
        if "r1" not in score:
            yield name, "value", score
            continue
        yield name, "r1", {**score, "value": score["r1"], "interval": score["r1_interval"]}
        for metric in ("r5", "r10", "mrr"):
            yield name, metric, {"value": score[metric], "of": score["of"]}
    for name, figure in (record.get("joint") or {}).items():
        yield "joint", name, figure
    for split in ("by_aspect", "by_group"):
        for name, figure in record.get(split, {}).items():
            yield f"joint, {name}", "r1", figure
