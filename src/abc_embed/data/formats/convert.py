"""From one form of data set to another, in parts, so that a broken run goes on.

Does: write rows with their images as records, Parquet, webdataset or a folder; keep what cannot be
used in `rejects.jsonl`, with place and reason. Does not: encode images anew: their bytes stay.
"""

import csv
import hashlib
import io
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from PIL import Image

from abc_embed.data.dataset import Dataset, Rejected, Row
from abc_embed.data.formats.parquet import write_parquet
from abc_embed.data.formats.webdataset import write_tar
from abc_embed.data.records import RECORDS_FILE, Record, format_line
from abc_embed.errors import DataError, OutputError
from abc_embed.storage.files import atomic_write, make_folder

Form = Literal["jsonl", "parquet", "webdataset", "folder"]

REJECTS_FILE = "rejects.jsonl"
_PARTS, _PLAN = ".parts", "plan.json"

_ENDINGS = {"JPEG": ".jpg", "MPO": ".jpg", "TIFF": ".tif", "JPEG2000": ".jp2"}


@dataclass(frozen=True, slots=True)
class Converted:
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
    counted: Callable[[int, int], None] = lambda done, of: None,
) -> Converted:
    """Write every row that can be used to `out`; given again, goes on where it was stopped.

    Images get the names `images/00000000.png` and so on. Rows keep their order; Parquet and tars
    hold `part_size` rows each. Two rows with one id cannot both be kept: the later is rejected.

    Raises:
        DataError: `out` holds parts of another data set.
        OutputError: the folder cannot be written, or holds other things.
    """
    parts = _begin(dataset, out, form, part_size)
    total, done = len(dataset), 0
    ids: set[bytes] = set()
    for number, start in enumerate(range(0, total, part_size)):
        name = f"{number:05d}"
        if not (parts / f"{name}.json").is_file():
            span = (start, min(start + part_size, total))
            kept, rejected = _usable(dataset, span, ids)
            _write_part(kept, rejected, out, form, name, start)
            done += 1
        else:
            ids |= {_short(i) for i in json.loads((parts / f"{name}.json").read_text())["ids"]}
        counted(min(start + part_size, total), total)
    return _finish(out, form, done)


def _begin(dataset: Dataset, out: Path, form: Form, part_size: int) -> Path:
    parts = out / _PARTS
    plan = {
        "source": str(dataset.folder.resolve()),
        "first": dataset.place(0) if len(dataset) else "",
        "rows": len(dataset),
        "form": form,
        "part_size": part_size,
    }
    if (parts / _PLAN).is_file():
        if json.loads((parts / _PLAN).read_text()) != plan:
            raise DataError(
                f"{out} holds parts of another conversion; delete it or choose another folder"
            )
        return parts
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise OutputError(f"{out} is not empty; choose another folder")
    make_folder(parts)
    if form in ("jsonl", "folder"):
        make_folder(out / "images")
    with atomic_write(parts / _PLAN) as file:
        file.write(json.dumps(plan).encode())
    return parts


def _usable(
    dataset: Dataset, span: tuple[int, int], ids: set[bytes]
) -> tuple[list[tuple[Record, bytes]], list[Rejected]]:
    """Rows of a span with their images, renamed by their number; and those that cannot be used."""
    kept: list[tuple[Record, bytes]] = []
    rejected: list[Rejected] = []
    for number, row in enumerate(dataset.rows(*span), start=span[0]):
        if isinstance(row, Rejected):
            rejected.append(row)
            continue
        try:
            kept.append(_named(row, number, ids))
        except DataError as wrong:
            rejected.append(Rejected(row.place, str(wrong)))
    return kept, rejected


def _named(row: Row, number: int, ids: set[bytes]) -> tuple[Record, bytes]:
    """The record with its image's new name, and the image."""
    try:
        image = row.image if isinstance(row.image, bytes) else row.image.read_bytes()
        with Image.open(io.BytesIO(image)) as picture:
            kind = str(picture.format)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as problem:
        raise DataError(f"the image cannot be read ({problem}); replace it") from None
    short = _short(row.record.id)
    if short in ids:
        raise DataError(f"the id {row.record.id!r} comes twice; give each row its own")
    ids.add(short)
    ending = _ENDINGS.get(kind, f".{kind.lower()}")
    return replace(row.record, image=f"images/{number:08d}{ending}"), image


def _short(name: str) -> bytes:
    return hashlib.blake2b(name.encode(), digest_size=12).digest()


def _write_part(
    kept: list[tuple[Record, bytes]],
    rejected: list[Rejected],
    out: Path,
    form: Form,
    name: str,
    first: int,
) -> None:
    """One part; its `.json`, written last, says that it is whole."""
    parts = out / _PARTS
    if form == "parquet":
        with atomic_write(out / f"part-{name}.parquet") as file:
            write_parquet(file, kept)
    elif form == "webdataset":
        with atomic_write(out / f"part-{name}.tar") as file:
            write_tar(file, kept, first)
    else:
        for record, image in kept:
            with atomic_write(out / record.image) as file:
                file.write(image)
        with atomic_write(parts / f"{name}.rows") as file:
            line = format_line if form == "jsonl" else _csv_line
            file.writelines(line(record) for record, _ in kept)
    with atomic_write(parts / f"{name}.rejects") as file:
        for row in rejected:
            file.write(json.dumps({"place": row.place, "why": row.why}).encode() + b"\n")
    facts = {"written": len(kept), "rejected": len(rejected), "ids": [r.id for r, _ in kept]}
    with atomic_write(parts / f"{name}.json") as file:
        file.write(json.dumps(facts).encode())


def _csv_line(record: Record) -> bytes:
    line = io.StringIO()
    csv.writer(line).writerow((record.image, record.caption or ""))
    return line.getvalue().encode()


def _finish(out: Path, form: Form, done: int) -> Converted:
    """Join what the parts left, count, and take the parts away."""
    parts = out / _PARTS
    whole = sorted(path for path in parts.glob("*.json") if path.name != _PLAN)
    facts = [json.loads(path.read_text()) for path in whole]
    joined = {"jsonl": (RECORDS_FILE, b""), "folder": ("metadata.csv", b"file_name,text\r\n")}
    if form in joined:
        name, head = joined[form]
        _join([path.with_suffix(".rows") for path in whole], out / name, head)
    rejected = sum(part["rejected"] for part in facts)
    if rejected:
        _join([path.with_suffix(".rejects") for path in whole], out / REJECTS_FILE, b"")
    shutil.rmtree(parts)
    return Converted(sum(part["written"] for part in facts), rejected, done)


def _join(paths: list[Path], out: Path, head: bytes) -> None:
    with atomic_write(out) as file:
        file.write(head)
        for path in paths:
            file.write(path.read_bytes())
