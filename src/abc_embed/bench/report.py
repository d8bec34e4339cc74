"""What was measured, on disk and as a table: a record names everything that its numbers hang on.

Does: add to a benchmark's findings which weights, versions and machine gave them; write and read
records; draw the Markdown table that README.md shows. Does not: measure, or name a host or a path.

    python -m abc_embed.bench.report README.md results      writes the table between its marks
"""

import json
import re
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from abc_embed import runtime
from abc_embed.data.files import make_folder, written_aside
from abc_embed.errors import AbcError, DataError, OutputError, UsageError

if TYPE_CHECKING:
    from os import PathLike

    from abc_embed.embedder import Embedder

BEGIN, END = "<!-- results:begin -->\n", "<!-- results:end -->"
NOTHING = "Nothing yet: `scripts/readme.py` writes this table from the records in `results/`.\n"
NEEDED = ("benchmark", "benchmark_hash", "model", "time", "settings", "sizes", "scores")

_WAYS = {
    "both": "image + instruction",
    "image": "image alone",
    "instruction": "instruction alone",
    "added": "both vectors added",
    "random": "random",
    "mirrored": "mirrored pairs, both right",
    "novel": "pairs unseen in training",
}

Record = Mapping[str, Any]


def make_record(model: "Embedder", findings: Record, name: str) -> dict[str, Any]:
    """The findings of a benchmark with all that they depend on; `name` is what to call the model.

    JSON values only. A name that is a path is cut to its last part.
    """
    config = model.config
    config["source"] = {key: _no_path(value) for key, value in config.get("source", {}).items()}
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "model": {
            "name": _no_path(name),
            "fingerprint": model.fingerprint,
            "dtype": str(model.model.dtype).removeprefix("torch."),
            "device": model.model.device.type,
            "config": config,
        },
        **findings,
        "versions": runtime.versions(),
        "hardware": runtime.hardware(),
    }


def _no_path(name: str) -> str:
    """The last part of a path; "owner/name" of a hub stays."""
    return Path(name).name if Path(name).is_absolute() or name.startswith((".", "~")) else name


def write_record(record: Record, folder: "str | PathLike[str]") -> Path:
    """Write a record as `<benchmark>-<model>-<weights>-<questions>.json`, and return its path.

    The same weights measured by the same questions replace their older record.

    Raises:
        OutputError: it cannot be written.
    """
    model = record["model"]
    hashes = (model["fingerprint"][:8], record["benchmark_hash"][:8])
    parts = (record["benchmark"], model["name"], *hashes)
    stem = "-".join(re.sub(r"[^\w.]+", "_", part) for part in parts)
    path = make_folder(folder) / f"{stem}.json"
    with written_aside(path) as file:
        file.write((json.dumps(record, indent=1, allow_nan=False) + "\n").encode())
    return path


def read_records(folder: "str | PathLike[str]") -> list[dict[str, Any]]:
    """All records of a folder, by benchmark and model, older ones first; none if it is not there.

    Raises:
        DataError: a file is no record.
    """
    records = []
    for path in sorted(Path(folder).glob("*.json")):
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as problem:
            raise DataError(f"{path} is no record: {problem}; measure again") from problem
        missing = [key for key in NEEDED if not isinstance(record, dict) or key not in record]
        if missing:
            raise DataError(f"{path} is no record: {missing[0]} is missing; measure again")
        records.append(record)
    return sorted(records, key=lambda r: (r["benchmark"], r["model"]["name"], r["time"]))


# -- tables ----------------------------------------------------------------------------------------


def summary(record: Record) -> list[tuple[str, str, str]]:
    """(what, value with its interval, target and whether it is reached), line by line."""
    checks = {check["name"]: check for check in record.get("checks", ())}
    rows = []
    for key, title in _WAYS.items():
        check = checks.get(key)
        verdict = f"{_target(check)} {'reached' if check['reached'] else 'missed'}" if check else ""
        rows.append((title, _cell(_figure(record, key)), verdict))
    gap = record["composition_gap"]
    return [*rows, ("composition gap", _cell(gap), "")]


def markdown_table(records: Sequence[Record]) -> str:
    """One line per record, targets below, and under the table what each was measured with."""
    lines = [
        "R@1 on unseen scenes of the generated world, among all their answers as candidates; "
        "in brackets 95 % intervals by image.",
        "",
        _row(["model", *_WAYS.values()]),
        _row(["---"] * (1 + len(_WAYS))),
    ]
    for record in records:
        cells = [_cell(_figure(record, key)) for key in _WAYS]
        lines.append(_row([record["model"]["name"], *cells]))
    checks = {check["name"]: check for record in records for check in record.get("checks", ())}
    targets = [_target(checks[key]) if key in checks else "" for key in _WAYS]
    lines += [_row(["*target*", *targets]), ""]
    return "\n".join([*lines, *map(_small_print, records)]) + "\n"


def results_block(folder: "str | PathLike[str]") -> str:
    """What stands between the marks of README.md: the table, or that there is nothing yet."""
    records = [r for r in read_records(folder) if r["benchmark"] == "scenes"]
    return markdown_table(records) if records else NOTHING


def with_results(text: str, block: str) -> str:
    """The text with the block between its marks, and nothing else changed.

    Raises:
        DataError: the marks are not there, each once.
    """
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise DataError(f"put one line {BEGIN.strip()} and below it one line {END}")
    before, _, rest = text.partition(BEGIN)
    return before + BEGIN + block + END + rest.partition(END)[2]


def _figure(record: Record, key: str) -> Record:
    """Value and interval of one column."""
    if key == "mirrored":
        share: Record = record["mirrored"]
        return share
    if key == "novel":
        of_novel: Record = record["by_pairing"].get("novel", {"value": None})
        return of_novel
    score = record["scores"][key]
    return {"value": score["r1"], "interval": score["r1_interval"]}


def _cell(figure: Record) -> str:
    if figure["value"] is None:
        return "–"
    low, high = figure["interval"]
    return f"{figure['value']:.3f} ({low:.3f}–{high:.3f})"


def _target(check: Record) -> str:
    return f"{'≥' if check['bound'] == 'at least' else '≤'} {check['target']:.2f}"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _small_print(record: Record) -> str:
    """How it was measured, by kind of question, and what was missed."""
    model, sizes, settings = record["model"], record["sizes"], record["settings"]
    kinds = ", ".join(f"{kind} {its['value']:.2f}" for kind, its in record["by_kind"].items())
    missed = [_WAYS[check["name"]] for check in record["checks"] if not check["reached"]]
    return (
        f"* **{model['name']}**: {sizes['queries']:,} queries, {sizes['images']:,} images of "
        f"{settings['side']} px, {sizes['candidates']:,} candidates, {sizes['mirrored_pairs']:,} "
        f"mirrored pairs, seed {settings['seed']}. Composition gap "
        f"{_cell(record['composition_gap'])}. By kind: {kinds}. "
        f"Targets missed: {'; '.join(missed) or 'none'}. "
        f"Weights `{model['fingerprint'][:8]}` in {model['dtype']} on {model['device']}, "
        f"benchmark `{record['benchmark_hash'][:8]}`, {record['seconds']:.0f} s, "
        f"{record['time'][:10]}."
    )


def main(arguments: Sequence[str]) -> int:
    """`README.md results`: write the results block into a Markdown file; returns the exit code."""
    try:
        if len(arguments) != 2:
            raise UsageError("give a Markdown file and the folder of the records")
        path = Path(arguments[0])
        try:
            old = path.read_text(encoding="utf-8")
        except OSError as problem:
            raise OutputError(f"{path} cannot be read: {problem.strerror}") from problem
        new = with_results(old, results_block(arguments[1]))
        if new != old:
            with written_aside(path) as file:
                file.write(new.encode())
    except AbcError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
