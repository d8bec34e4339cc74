"""What every form of data set gives: rows by number, each a record and its image.

Does: say what a `RecordSet` is, walk over one without stopping at bad rows, and make a record of
the columns of someone else's data. Does not: read files; the forms do.
"""

import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from dataclasses import fields as fields_of
from pathlib import Path
from typing import Any, Protocol

from PIL import Image, UnidentifiedImageError

from abc_embed.data.records import Record, parse_record
from abc_embed.errors import DataError

FIELDS = frozenset(field.name for field in fields_of(Record))
SAMPLE_KEY = "__key__"
"""What webdataset calls the common beginning of a sample's files."""
ALIASES = {
    "id": ("id", "key", SAMPLE_KEY),
    "image": ("image", "jpg", "jpeg", "png", "webp", "file_name"),
    "caption": ("caption", "text", "txt"),
}
"""Our field -> what others call it, in the order in which it is looked for."""

_TURNED = (5, 6, 7, 8)  # EXIF orientations whose sides change places
_ORIENTATION = 0x0112


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a data set."""

    place: str
    """Where it stands, for messages: file and line, row or member."""
    record: Record
    image: Path | bytes
    """The image as a file, or what a file of it holds."""


@dataclass(frozen=True, slots=True)
class Rejected:
    """A row that cannot be used, and why."""

    place: str
    why: str


class RecordSet(Protocol):
    """A data set whose rows are read by number. It can be pickled: files are opened when used."""

    form: str
    """"jsonl", "parquet", "webdataset" or "folder"."""
    folder: Path
    """Where it lies."""

    def __len__(self) -> int: ...

    def place(self, number: int) -> str:
        """Where a row stands, for messages."""

    def row(self, number: int) -> Row:
        """One row.

        Raises:
            DataError: the row cannot be used; without the place, which `each_row` adds.
        """


def each_row(
    records: RecordSet, start: int = 0, stop: int | None = None
) -> Iterator[Row | Rejected]:
    """Rows `start` to `stop - 1`; what cannot be used comes as `Rejected` and stops nothing."""
    for number in range(start, len(records) if stop is None else min(stop, len(records))):
        try:
            yield records.row(number)
        except DataError as wrong:
            yield Rejected(records.place(number), str(wrong))


def record_of(
    values: Mapping[str, Any],
    image: Path | bytes,
    name: str,
    number: int,
    columns: Mapping[str, str],
) -> Record:
    """A record of the columns of a foreign row.

    `columns` (our field -> their column) comes first, then our names, then `ALIASES`. Width and
    height are the image's own where no column says them, the id is the row's number. What has no
    field goes into `meta`, if JSON can hold it.

    Raises:
        DataError: a value cannot be, or the image's size cannot be read.
    """
    given: dict[str, Any] = {}
    used = set()
    for field in FIELDS - {"image", "meta"}:
        wanted = (columns[field],) if field in columns else ALIASES.get(field, (field,))
        column = next((name for name in wanted if values.get(name) is not None), None)
        if column is not None:
            given[field] = values[column]
            used.add(column)
    given["image"] = name
    given["id"] = str(given.get("id", number))
    if "width" not in given or "height" not in given:
        given["width"], given["height"] = size_of(image)
    meta = values.get("meta")
    if isinstance(meta, str):  # as our own Parquet has it: JSON, whose fields may differ by row
        meta = json.loads(meta)
    image_columns = {columns.get("image", ""), *ALIASES["image"]}
    dropped = used | image_columns | {"meta", SAMPLE_KEY}
    rest = {k: v for k, v in values.items() if k not in dropped}
    given["meta"] = dict(meta or {}) | {k: v for k, v in rest.items() if _is_plain(v)}
    return parse_record(given)


def size_of(image: Path | bytes) -> tuple[int, int]:
    """Width and height as the image is seen, turned as its EXIF data say; reads its head alone.

    Raises:
        DataError: it is no image, or is not there.
    """
    try:
        with Image.open(io.BytesIO(image) if isinstance(image, bytes) else image) as picture:
            width, height = picture.size
            turned = picture.getexif().get(_ORIENTATION) in _TURNED
    except FileNotFoundError:
        raise DataError(
            f"there is no image {image!s}; put it there, or leave the row out"
        ) from None
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as problem:
        raise DataError(f"the image cannot be read ({problem}); replace it") from None
    except Image.DecompressionBombError as problem:
        raise DataError(f"the image is too large ({problem}); make it smaller") from None
    return (height, width) if turned else (width, height)


def _is_plain(value: Any) -> bool:
    """Whether JSON can hold it."""
    if isinstance(value, dict):
        return all(isinstance(k, str) and _is_plain(v) for k, v in value.items())
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    if isinstance(value, float):
        return value == value and abs(value) != float("inf")
    return isinstance(value, str | int | bool)
