"""What was measured, on disk: a record names everything that its numbers hang on.

Does: add to a benchmark's findings which weights, versions and machine gave them; write and read
records; put tables between the marks of a Markdown page. Does not: measure, make tables
(tables.py) or draw (pictures.py), or name a host or a path.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from abc_embed import runtime
from abc_embed.errors import DataError
from abc_embed.storage.files import atomic_write, make_folder

if TYPE_CHECKING:
    from os import PathLike

    from abc_embed.bench.encoders.registry import Encoder

BEGIN, END = "<!-- results:begin -->\n", "<!-- results:end -->"
NEEDED = ("benchmark", "benchmark_hash", "model", "time", "settings", "sizes", "scores")

Record = Mapping[str, Any]


def make_record(encoder: "Encoder", findings: Record, name: str) -> dict[str, Any]:
    """The findings of a benchmark with all that they depend on; `name` is what to call the model.

    JSON values only. A name that is a path is cut to its last part.
    """
    from abc_embed.bench.encoders.base import strip_path

    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "model": {
            "name": strip_path(name),
            "fingerprint": encoder.fingerprint,
            "dim": encoder.dim,
            **encoder.describe(),
        },
        **findings,
        "versions": runtime.versions(),
        "hardware": runtime.hardware(),
    }


def key_of(record: Record) -> dict[str, Any]:
    """What the numbers hang on: weights, questions, number format, prompts, settings."""
    model = record["model"]
    return {
        "fingerprint": model["fingerprint"],
        "dtype": model.get("dtype"),
        "prompt_hash": model.get("prompt_hash"),
        "benchmark": record["benchmark"],
        "benchmark_hash": record["benchmark_hash"],
        "missing": list(record.get("missing", ())),
        "settings": record["settings"],
    }


def write_record(record: Record, folder: "str | PathLike[str]") -> Path:
    """Write a record as `<benchmark>-<model>-<weights>-<questions>-<settings>.json`; its path.

    One with the same key replaces its older record.

    Raises:
        OutputError: it cannot be written.
    """
    model = record["model"]
    key = json.dumps(key_of(record), sort_keys=True)
    hashes = (model["fingerprint"], record["benchmark_hash"], hashlib.sha256(key.encode()))
    digits = [h if isinstance(h, str) else h.hexdigest() for h in hashes]
    parts = (record["benchmark"], model["name"], *(digest[:8] for digest in digits))
    stem = "-".join(re.sub(r"[^\w.]+", "_", part) for part in parts)
    path = make_folder(folder) / f"{stem}.json"
    with atomic_write(path) as file:
        file.write((json.dumps(record, indent=1, allow_nan=False) + "\n").encode())
    return path


def read_record(path: "str | PathLike[str]") -> dict[str, Any]:
    """One record.

    Raises:
        DataError: the file is no record.
    """
    try:
        record = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as problem:
        why = getattr(problem, "strerror", None) or problem
        raise DataError(f"{path} is no record: {why}; measure again") from problem
    missing = [key for key in NEEDED if not isinstance(record, dict) or key not in record]
    if missing:
        raise DataError(f"{path} is no record: {missing[0]} is missing; measure again")
    found: dict[str, Any] = record
    return found


def read_records(folder: "str | PathLike[str]") -> list[dict[str, Any]]:
    """All records of a folder, by benchmark and model, older ones first; none if it is not there.

    Raises:
        DataError: a file is no record.
    """
    records = [read_record(path) for path in sorted(Path(folder).glob("*.json"))]
    return sorted(records, key=lambda r: (r["benchmark"], r["model"]["name"], r["time"]))


def with_results(text: str, block: str) -> str:
    """The text with the block between its marks, and nothing else changed.

    Raises:
        DataError: the marks are not there, each once.
    """
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise DataError(f"put one line {BEGIN.strip()} and below it one line {END}")
    before, _, rest = text.partition(BEGIN)
    return before + BEGIN + block + END + rest.partition(END)[2]
