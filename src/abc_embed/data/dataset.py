"""What every data set gives, whatever its form: rows by number, each a record and its image."""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from abc_embed.data.fields import parse_object
from abc_embed.data.records import FIELDS, Record, format_line
from abc_embed.errors import DataError, InputError
from abc_embed.inputs import read_header
from abc_embed.storage.files import read_file

SAMPLE_KEY = "__key__"
"""What webdataset calls the common beginning of a sample's files."""
ALIASES = {
    "id": ("id", "key", SAMPLE_KEY),
    "image": ("image", "jpg", "jpeg", "png", "webp", "file_name"),
    "caption": ("caption", "text", "txt"),
}
"""Our field -> what others call it, in the order in which it is looked for."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a data set."""

    place: str
    """Where it stands, for messages: file and line, row or member."""
    record: Record
    image: Path | bytes
    """The image file: where it is, or its bytes."""

    def read_image(self) -> bytes:
        """The bytes of the image file; `OSError` when it cannot be read."""
        return self.image if isinstance(self.image, bytes) else read_file(self.image)


@dataclass(frozen=True, slots=True)
class Rejected:
    """A row that cannot be used, and why."""

    place: str
    why: str


@dataclass(frozen=True, slots=True, eq=False)
class Scan:
    """What one reading of all rows found."""

    numbers: NDArray[np.int64]
    """The rows that have the field, ascending."""
    fingerprint: str
    """Of what the rows say, and of the images that lie in the same file, in their order."""
    captions: str
    """Of ids and captions alone, as `CaptionHash` has it; empty where they were not read."""


class CaptionHash:
    """The name of a data set's ids and captions in their order: two sets that have the same can
    share what was mined by row number."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def add(self, number: int, record: Record) -> None:
        """The next row that is a record; rows that are none are passed over."""
        line = json.dumps([number, record.id, record.caption])
        self._hash.update(line.encode(errors="surrogatepass") + b"\n")

    def hexdigest(self) -> str:
        """SHA-256 in hex."""
        return self._hash.hexdigest()


class Dataset(ABC):
    """A data set whose rows are read when they are asked for, by number, from 0.

    It can be pickled and forked: files are opened when used.
    """

    form: ClassVar[str]
    """"jsonl", "parquet", "webdataset", "folder" or "published"."""
    path: Path
    """The file or folder that was opened; of a folder with `records.jsonl`, that file."""

    @property
    def folder(self) -> Path:
        """Where it lies."""
        return self.path if self.path.is_dir() else self.path.parent

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def place(self, number: int) -> str:
        """Where a row stands, for messages."""

    @abstractmethod
    def row(self, number: int) -> Row:
        """One row.

        Raises:
            DataError: the row cannot be used. The message leaves out the place, which
                `dataset[number]` adds and `rows` gives beside it.
        """

    def __getitem__(self, number: int) -> Row:
        """One row; the `DataError` of one that cannot be used says where it stands."""
        if not -len(self) <= number < len(self):
            raise IndexError(number)
        number %= len(self)
        try:
            return self.row(number)
        except DataError as wrong:
            raise DataError(f"{self.place(number)}: {wrong}") from None

    def __iter__(self) -> Iterator[Row]:
        return (self[number] for number in range(len(self)))

    def rows(self, start: int = 0, stop: int | None = None) -> Iterator[Row | Rejected]:
        """Rows `start` to `stop - 1`; what cannot be used comes as `Rejected` and stops nothing."""
        for number in range(start, len(self) if stop is None else min(stop, len(self))):
            try:
                yield self.row(number)
            except DataError as wrong:
                yield Rejected(self.place(number), str(wrong))

    def caption(self, number: int) -> str | None:
        """The caption of a row."""
        return self[number].record.caption

    def scan(
        self,
        field: Literal["caption", "instructions"],
        on_rejected: Callable[[Rejected], None] | None = None,
        on_row: Callable[[int, Row], None] = lambda number, row: None,
    ) -> Scan:
        """Which rows have a field, and fingerprints of them all.

        Reads every row once, so that a wrong one is found now and not hours later; with
        `on_rejected` it is reported there, and the others go on. `on_row` is called with
        number and row of each that can be used.

        Raises:
            DataError: a row cannot be used.
        """
        found, content, captions = [], hashlib.sha256(), CaptionHash()
        for number in range(len(self)):
            try:
                row = self.row(number)
            except DataError as wrong:
                rejected = Rejected(self.place(number), str(wrong))
                if on_rejected is None:
                    raise DataError(f"{rejected.place}: {wrong}") from None
                on_rejected(rejected)
                content.update(f"{number} {wrong}\n".encode(errors="replace"))
                continue
            if getattr(row.record, field):
                found.append(number)
            on_row(number, row)
            captions.add(number, row.record)
            content.update(format_line(row.record))
            if isinstance(row.image, bytes):
                content.update(hashlib.sha256(row.image).digest())
        numbers = np.array(found, dtype=np.int64)
        return Scan(numbers, content.hexdigest(), captions.hexdigest())


def record_from_columns(
    values: Mapping[str, Any],
    image: Path | bytes,
    name: str,
    number: int,
    columns: Mapping[str, str],
) -> Record:
    """A record of the columns of a row that others wrote.

    `columns` (our field -> their column) comes first, then our names, then `ALIASES`. Width and
    height are the image's own where no column says them, the id is the row's number. What has no
    field goes into `meta`, if JSON can hold it.

    Raises:
        DataError: a value cannot be, or the image's size cannot be read.
    """
    fields: dict[str, Any] = {}
    used = {"meta", SAMPLE_KEY, columns.get("image", ""), *ALIASES["image"]}
    for field in set(FIELDS) - {"image", "meta"}:
        wanted = (columns[field],) if field in columns else ALIASES.get(field, (field,))
        column = next((name for name in wanted if values.get(name) is not None), None)
        if column is not None:
            fields[field] = values[column]
            used.add(column)
    fields["image"] = name
    fields["id"] = str(fields.get("id", number))
    if "width" not in fields or "height" not in fields:
        _, fields["width"], fields["height"] = read_head(image)
    meta = values.get("meta")
    if isinstance(meta, str):  # as our own Parquet has it: JSON, whose fields may differ by row
        meta = json.loads(meta)
    rest = {k: v for k, v in values.items() if k not in used and _fits_json(v)}
    return parse_object(Record, {**fields, "meta": {**(meta or {}), **rest}})


def read_head(image: Path | bytes) -> tuple[str, int, int]:
    """Format, width and height as the image is seen, turned as its EXIF data say.

    Raises:
        DataError: it is no image, or is not there.
    """
    try:
        header = read_header(image)
    except InputError as problem:
        if isinstance(image, Path) and not image.exists():
            mend = "put it there, or leave the row out"
            raise DataError(f"there is no image {image!s}; {mend}") from None
        raise DataError(f"the image cannot be read: {problem}") from None
    return header.format, header.width, header.height


def _fits_json(value: Any) -> bool:
    if isinstance(value, dict):
        return all(isinstance(k, str) and _fits_json(v) for k, v in value.items())
    if isinstance(value, list | tuple):
        return all(map(_fits_json, value))
    if isinstance(value, float):
        return value == value and abs(value) != float("inf")
    return isinstance(value, str | int | bool)
