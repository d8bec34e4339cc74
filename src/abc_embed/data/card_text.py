"""The card of a data set as Markdown, from its facts (card.py). Does not look at any file."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

_SCENES = "scenes.json"


def card_text(facts: Mapping[str, Any]) -> str:
    """`DATASET_CARD.md`; `facts` is what `card.describe` returns."""
    lines = [f"# Data set: {facts['name']}", ""]
    lines += _published(facts["published"]) if facts["published"] else []
    for records in facts["records"]:
        lines += _records(records)
    for mined in facts["mined"]:
        lines += [f"## Mined negatives: `{mined['file']}`", ""]
        lines += [f"{mined['negatives']:,} negatives for {mined['rows']:,} rows.", ""]
        lines += _table([(k, v) for k, v in _flat(mined["notes"])])
    lines += _made(facts)
    if facts["files"]:
        lines += ["## Files", "", "| file | bytes | SHA-256 |", "| --- | ---: | --- |"]
        lines += [f"| {f['name']} | {f['bytes']:,} | `{f['sha256']}` |" for f in facts["files"]]
        lines.append("")
    lines.append(f"Written by `{facts['card_of']}` (`abc-embed data card`).")
    return "\n".join(lines) + "\n"


def _records(facts: Mapping[str, Any]) -> list[str]:
    rows = [
        (name.replace("_", " "), facts[name])
        for name in (
            *("rows", "images", "with_caption", "different_captions", "regions"),
            *("instructions", "different_instructions", "negatives"),
        )
    ]
    rows.append(("sides of an image", f"{facts['sides']['least']} to {facts['sides']['most']} px"))
    rows.append(("SHA-256 of all images", f"`{facts['images_sha256']}`"))
    lines = [f"## Records: `{facts['file']}`", "", *_table(rows)]
    for title in ("licenses", "sources", "kinds_of_instruction"):
        if facts[title]:
            counts = ", ".join(f"{_cell(name)} ({n:,})" for name, n in facts[title].items())
            lines += [f"{title.replace('_', ' ').capitalize()}: {counts}.", ""]
    return lines


def _published(facts: Mapping[str, Any]) -> list[str]:
    shown = ("name", "about", "repository", "commit", "rows", "images", "image_bytes")
    rows = [(name.replace("_", " "), facts[name]) for name in shown if name in facts]
    rows.append(("complete", _complete(facts)))
    rows.append(("license", facts["license"]))
    lines = ["## Published data set", "", *_table(rows)]
    if files := facts.get("files"):
        lines += ["| file | bytes | SHA-256 | compared |", "| --- | ---: | --- | --- |"]
        for file in files:
            digest = f"`{file['sha256']}`" if file["sha256"] else "git only"
            compared = "yes" if file["compared"] else "no"
            lines.append(f"| {file['name']} | {file['bytes']:,} | {digest} | {compared} |")
        lines.append("")
    return lines


def _complete(facts: Mapping[str, Any]) -> str:
    if "complete" not in facts:
        return "not checked (`abc-embed data complete` does)"
    if facts["complete"]:
        return "yes, checked row by row"
    return f"no: {facts['rows_without_image']:,} images missing, {facts['bad_rows']:,} bad rows"


def _made(facts: Mapping[str, Any]) -> list[str]:
    """How it was made: the command where it is known, and what the tools noted."""
    notes = facts["notes"]
    if not notes:
        return []
    lines = ["## How it was made", ""]
    if _is_plan(scenes := notes.get(_SCENES)):
        held_out = " --held-out" if scenes.get("held_out") else ""
        lines += [
            f"Drawn by `abc-embed scenes --count {scenes['count']} --seed {scenes['seed']} "
            f"--side {scenes['side']}{held_out} --out FOLDER`; equal arguments make equal bytes.",
            "",
        ]
    for name, note in notes.items():
        lines += [f"`{name}`:", "", *_table(list(_flat(note)))]
    if facts["seeds"]:
        seeds = ", ".join(
            f"{_cell(place)} = {_cell(seed)}" for place, seed in facts["seeds"].items()
        )
        lines += [f"Seeds: {seeds}.", ""]
    return lines


def _is_plan(note: object) -> bool:
    return isinstance(note, dict) and {"count", "seed", "side"} <= set(note)


def _flat(value: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for name, inner in value.items():
        if isinstance(inner, dict):
            yield from _flat(inner, f"{before}{name}.")
        else:
            yield f"{before}{name}", inner


def _table(rows: Sequence[tuple[str, Any]]) -> list[str]:
    if not rows:
        return []
    return ["| | |", "| --- | --- |", *(f"| {_cell(n)} | {_cell(v)} |" for n, v in rows), ""]


def _cell(value: Any) -> str:
    """In one cell of a table, whatever it holds."""
    text = f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
    text = text if len(text) <= 200 else f"{text[:199]}…"
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
