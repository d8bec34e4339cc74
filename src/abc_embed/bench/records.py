"""What was measured, on disk: a record names everything that its numbers depend on.

Makes records of a benchmark's findings, writes and reads them, compares two query by query, and
puts tables between the marks of a Markdown page. No record names a host or a path.
"""

import base64
import binascii
import re
import zlib
from collections.abc import Mapping
from datetime import UTC, datetime
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from abc_embed import runtime
from abc_embed.bench import metrics
from abc_embed.errors import DataError, UsageError
from abc_embed.storage.files import make_folder
from abc_embed.storage.hashing import sha256_json
from abc_embed.storage.json_files import atomic_write_json, read_json

if TYPE_CHECKING:
    from abc_embed.bench.encoders.base import Encoder

BEGIN, END = "<!-- results:begin -->\n", "<!-- results:end -->"
REQUIRED = ("benchmark", "benchmark_hash", "model", "time", "settings", "sizes", "scores")

Record = Mapping[str, Any]


def make_record(encoder: "Encoder", findings: Record) -> dict[str, Any]:
    """The findings of a benchmark with all that they depend on, as JSON values."""
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "model": {
            "name": encoder.name,
            "fingerprint": encoder.fingerprint,
            "dim": encoder.dim,
            **encoder.describe(),
        },
        **findings,
        "versions": runtime.versions(),
        "hardware": runtime.hardware(),
    }


def record_key(record: Record) -> dict[str, Any]:
    """What the numbers depend on: weights, questions, number format, prompts, settings."""
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


def write_record(record: Record, folder: str | PathLike[str]) -> Path:
    """Write a record as `<benchmark>-<model>-<weights>-<questions>-<settings>.json`; its path.

    One with the same key replaces its older record.

    Raises:
        OutputError: it cannot be written.
    """
    model = record["model"]
    hashes = (model["fingerprint"], record["benchmark_hash"], sha256_json(record_key(record)))
    parts = (record["benchmark"], model["name"], *(digits[:8] for digits in hashes))
    stem = "-".join(re.sub(r"[^\w.]+", "_", part) for part in parts)
    path = make_folder(folder) / f"{stem}.json"
    atomic_write_json(path, record)
    return path


def read_record(path: str | PathLike[str]) -> dict[str, Any]:
    """One record.

    Raises:
        DataError: the file is no record.
    """
    record = read_json(Path(path), error=DataError, mend="give a record, or measure again")
    for name in REQUIRED:
        if name not in record:
            raise DataError(f"{path} is no record: {name} is missing; measure again")
    return record


def read_records(folder: str | PathLike[str]) -> list[dict[str, Any]]:
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


# -- two records, query by query -------------------------------------------------------------------


def compare_records(a: Record, b: Record) -> list[dict[str, Any]]:
    """Which model is better, and could it be chance?

    For each condition that both records have: R@1 of each, `a` − `b`, its 95 % interval, and the p
    of a paired permutation test, both by picture.

    Raises:
        UsageError: they have no condition in common.
        DataError: a record has no ranks by query, or the questions are not the same.
    """
    for name, record in (("first", a), ("second", b)):
        if "ranks" not in record or "clusters" not in record:
            raise DataError(
                f"the {name} record has no ranks by query, which are what is compared; bench "
                "ctrlbench keeps them"
            )
    if any(a.get(key) != b.get(key) for key in ("benchmark_hash", "sizes", "missing")):
        raise DataError(
            f"the records are of different questions ({a['benchmark']} {a['benchmark_hash'][:8]} "
            f"and {b['benchmark']} {b['benchmark_hash'][:8]}); measure both models with the same "
            "benchmark and the same --limit"
        )
    conditions = [name for name in a["ranks"] if name in b["ranks"] and name != "random"]
    if not conditions:
        raise UsageError("the two models have no way of asking in common; nothing can be compared")
    return [_compare(condition, a, b) for condition in conditions]


def _compare(condition: str, a: Record, b: Record) -> dict[str, Any]:
    ranks = [unpack(record["ranks"][condition]) for record in (a, b)]
    clusters = unpack(a["clusters"])
    if not len(ranks[0]) == len(ranks[1]) == len(clusters):
        raise DataError("the records' ranks are not of one length; measure again")
    asked = (ranks[0] > 0) & (ranks[1] > 0)
    if not asked.any():
        raise DataError(f"no question was asked as {condition!r} in both records; measure again")
    hits = [(of[asked] == 1).astype(np.float64) for of in ranks]
    difference = metrics.share(hits[1] - hits[0], clusters[asked])
    return {
        "way": condition,
        "of": difference["of"],
        "a": float(hits[0].mean()),
        "b": float(hits[1].mean()),
        "difference": difference["value"],  # the second minus the first: a gain is above 0
        "interval": difference["interval"],
        "p": metrics.sign_flip_test(hits[0] - hits[1], clusters[asked]),
    }


# -- whole numbers, thousands of them, in a line of a record ---------------------------------------


def pack(values: ArrayLike) -> dict[str, Any]:
    """Whole numbers from 0, of any shape, as JSON values: the smallest type, zlib, base64.

    Raises:
        ValueError: a number is below 0.
    """
    array = np.asarray(values, dtype=np.int64)
    if array.size and array.min() < 0:
        raise ValueError("only numbers from 0 can be packed")
    kind = np.min_scalar_type(int(array.max(initial=0))).newbyteorder("<")
    data = zlib.compress(array.astype(kind).tobytes(), 9)
    return {
        "shape": list(array.shape),
        "dtype": kind.str,
        "zlib_base64": base64.b64encode(data).decode(),
    }


def unpack(packed: Any) -> NDArray[np.int64]:
    """What was packed.

    Raises:
        DataError: it is not what `pack` gives.
    """
    try:
        data = zlib.decompress(base64.b64decode(packed["zlib_base64"], validate=True))
        kind = np.dtype(packed["dtype"])
        if kind.kind != "u":
            raise ValueError
        return np.frombuffer(data, kind).reshape(packed["shape"]).astype(np.int64)
    except (KeyError, TypeError, ValueError, binascii.Error, zlib.error):
        raise DataError("packed numbers of the record are damaged; measure again") from None
