"""From one form of data set to another, in parts, so that a broken run goes on.

Images keep their bytes. What `check` finds unusable is kept in `rejects.jsonl`, with place and
reason. `convert.json` says of what the folder was made, and that it is whole.
"""

import csv
import io
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

from abc_embed.data.dataset import Dataset, Rejected
from abc_embed.data.formats.check import Fault, UsableRow, inspect_rows
from abc_embed.data.formats.parquet import write_parquet
from abc_embed.data.formats.webdataset import write_tar
from abc_embed.data.records import RECORDS_FILE, Record, format_line
from abc_embed.errors import DataError, OutputError
from abc_embed.storage.files import atomic_write, make_folder
from abc_embed.storage.hashing import short_hash
from abc_embed.storage.json_files import atomic_write_json, read_json

Form = Literal["jsonl", "parquet", "webdataset", "folder"]

REJECTS_FILE = "rejects.jsonl"
DONE_FILE = "convert.json"
"""Written last: the folder is whole."""
_PARTS, _PLAN = ".parts", "plan.json"
_read_json = partial(read_json, error=OutputError, mend="delete the folder and convert again")

_SUFFIXES = {"JPEG": ".jpg", "MPO": ".jpg", "TIFF": ".tif", "JPEG2000": ".jp2"}


@dataclass(frozen=True, slots=True)
class ConvertReport:
    """What was done."""

    written: int
    rejected: int
    parts: int
    """Parts of the work that were done in this run; the others were done before."""


def convert(
    dataset: Dataset,
    out: Path,
    form: Form,
    *,
    part_size: int = 1000,
    on_progress: Callable[[int, int], None] = lambda done, of: None,
) -> ConvertReport:
    """Write every row that can be used to `out`; given again, goes on where it was stopped.

    Images get the names `images/00000000.png` and so on. Rows keep their order; Parquet and tars
    hold `part_size` rows each. Two rows with one id cannot both be kept: the later is rejected.

    Raises:
        DataError: `out` holds parts of another data set.
        OutputError: the folder cannot be written, or holds other things.
    """
    plan = {
        "source": dataset.folder.resolve().name,
        "fingerprint": dataset.fingerprint(),
        "rows": len(dataset),
        "form": form,
        "part_size": part_size,
    }
    parts = out / _PARTS
    if before := _finished(out, plan):
        return before
    _open_parts(parts, plan)
    total, done = len(dataset), 0
    ids: set[bytes] = set()
    for number, start in enumerate(range(0, total, part_size)):
        part = parts / f"{number:05d}.json"
        if part.is_file():
            ids |= {_short(name) for name in _read_json(part)["ids"]}
        else:
            _write_part(dataset, range(start, min(start + part_size, total)), ids, form, part)
            done += 1
        on_progress(min(start + part_size, total), total)
    return _join_parts(out, form, done)


def _finished(out: Path, plan: dict[str, object]) -> ConvertReport | None:
    """What the same conversion wrote, if it is whole; what a kill left of its parts is removed."""
    if not (out / DONE_FILE).is_file():
        return None
    done = _read_json(out / DONE_FILE)
    if done.get("plan") != plan:
        raise OutputError(f"{out} is not empty; choose another folder")
    shutil.rmtree(out / _PARTS, ignore_errors=True)
    return ConvertReport(int(done["written"]), int(done["rejected"]), 0)


def _open_parts(parts: Path, plan: dict[str, object]) -> None:
    """The folder of parts: a new one, or that of the same conversion."""
    out = parts.parent
    if (parts / _PLAN).is_file():
        if _read_json(parts / _PLAN) != plan:
            raise DataError(
                f"{out} holds parts of another conversion, or of a source that was changed since; "
                "delete it or choose another folder"
            )
        return
    if out.exists() and (not out.is_dir() or any(path != parts for path in out.iterdir())):
        raise OutputError(f"{out} is not empty; choose another folder")
    make_folder(parts)
    if plan["form"] in ("jsonl", "folder"):
        make_folder(out / "images")
    atomic_write_json(parts / _PLAN, plan)


def _write_part(dataset: Dataset, numbers: range, ids: set[bytes], form: Form, part: Path) -> None:
    """Rows of a span; `part`, written last, says that they are whole."""
    out = part.parent.parent
    rows: list[tuple[Record, bytes]] = []
    rejected: list[Rejected] = []
    found = inspect_rows(dataset, numbers.start, numbers.stop)
    for number, row in zip(numbers, found, strict=True):
        if isinstance(row, Fault):
            rejected.append(Rejected(row.place, row.why))
        elif (short := _short(row.row.record.id)) in ids:
            why = f"the id {row.row.record.id!r} comes twice; give each row its own"
            rejected.append(Rejected(row.row.place, why))
        else:
            ids.add(short)
            rows.append((_renamed(row, number), row.content))
    if form == "parquet":
        with atomic_write(out / f"part-{part.stem}.parquet") as file:
            write_parquet(file, rows)
    elif form == "webdataset":
        with atomic_write(out / f"part-{part.stem}.tar") as file:
            write_tar(file, rows, numbers.start)
    else:
        for record, content in rows:
            with atomic_write(out / record.image) as file:
                file.write(content)
        line = format_line if form == "jsonl" else _csv_lines
        with atomic_write(part.with_suffix(".rows")) as file:
            file.writelines(line(record) for record, _ in rows)
    with atomic_write(part.with_suffix(".rejects")) as file:
        file.writelines(json.dumps(asdict(row)).encode() + b"\n" for row in rejected)
    facts = {"written": len(rows), "rejected": len(rejected), "ids": [r.id for r, _ in rows]}
    atomic_write_json(part, facts)


def _renamed(found: UsableRow, number: int) -> Record:
    """The record with its image's new name."""
    suffix = _SUFFIXES.get(found.format, f".{found.format.lower()}")
    negatives = tuple(found.row.record.negatives)  # those of a published set are looked up here
    return replace(found.row.record, image=f"images/{number:08d}{suffix}", negatives=negatives)


def _short(name: str) -> bytes:
    return short_hash(name.encode(), 12)


def _csv_lines(record: Record) -> bytes:
    lines = io.StringIO()
    csv.writer(lines).writerows((record.image, text) for text in record.captions or ("",))
    return lines.getvalue().encode()


def _join_parts(out: Path, form: Form, done: int) -> ConvertReport:
    """Join what the parts left, count, and take the parts away."""
    parts = out / _PARTS
    paths = sorted(path for path in parts.glob("*.json") if path.name != _PLAN)
    facts = [_read_json(path) for path in paths]
    joined = {"jsonl": (RECORDS_FILE, b""), "folder": ("metadata.csv", b"file_name,text\r\n")}
    if form in joined:
        name, head = joined[form]
        _join([path.with_suffix(".rows") for path in paths], out / name, head)
    rejected = sum(part["rejected"] for part in facts)
    if rejected:
        _join([path.with_suffix(".rejects") for path in paths], out / REJECTS_FILE, b"")
    written = sum(part["written"] for part in facts)
    plan = _read_json(parts / _PLAN)
    atomic_write_json(out / DONE_FILE, {"plan": plan, "written": written, "rejected": rejected})
    shutil.rmtree(parts)
    return ConvertReport(written, rejected, done)


def _join(paths: Sequence[Path], out: Path, head: bytes) -> None:
    with atomic_write(out) as file:
        file.write(head)
        for path in paths:
            file.write(path.read_bytes())
