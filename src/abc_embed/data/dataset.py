"""What every data set gives, whatever its form: rows by number, each a record and its image."""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from abc_embed.data.records import Record, format_line
from abc_embed.errors import DataError, InputError
from abc_embed.inputs import read_header
from abc_embed.storage.files import read_file
from abc_embed.storage.hashing import sample_hash


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a data set."""

    place: str
    """Where it stands, for messages: file and line, row or member."""
    record: Record
    image: Path | bytes
    """The image file: where it is, or its bytes."""
    unused: tuple[str, ...] = ()
    """Columns or members of the row that no field holds, as others wrote them."""

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
        line = json.dumps([number, record.id, record.caption, *record.captions[1:]])
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
    notes: Sequence[Rejected] = ()
    """What lies there and is no row, and is not read: where, and why."""
    faults: Mapping[int, Rejected] = MappingProxyType({})
    """The rows that stand for what is damaged or lost, by number."""

    @property
    def folder(self) -> Path:
        """Where it lies."""
        return self.path if self.path.is_dir() else self.path.parent

    @abstractmethod
    def __len__(self) -> int: ...

    def place(self, number: int) -> str:
        """Where a row stands, for messages."""
        fault = self.faults.get(number)
        return self._place(number) if fault is None else fault.place

    def row(self, number: int) -> Row:
        """One row.

        Raises:
            DataError: the row cannot be used. The message leaves out the place, which
                `dataset[number]` adds and `rows` gives beside it.
        """
        if number in self.faults:
            raise DataError(self.faults[number].why)
        return self._row(number)

    @abstractmethod
    def _place(self, number: int) -> str:
        """`place` of a row that is none of `faults`."""

    @abstractmethod
    def _row(self, number: int) -> Row:
        """`row` of a row that is none of `faults`."""

    def __getitem__(self, number: int) -> Row:
        """One row; the `DataError` of one that cannot be used says where it stands."""
        if not -len(self) <= number < len(self):
            raise IndexError(number)
        row = next(self.rows(number % len(self)))
        if isinstance(row, Rejected):
            raise DataError(f"{row.place}: {row.why}")
        return row

    def __iter__(self) -> Iterator[Row]:
        return (self[number] for number in range(len(self)))

    def rows(self, start: int = 0, stop: int | None = None) -> Iterator[Row | Rejected]:
        """Rows `start` to `stop - 1`; what cannot be used comes as `Rejected` and stops nothing."""
        for number in range(start, len(self) if stop is None else min(stop, len(self))):
            try:
                yield self.row(number)
            except DataError as wrong:
                yield Rejected(self.place(number), str(wrong))

    def captions(self, number: int) -> tuple[str, ...]:
        """The captions of a row."""
        return self[number].record.captions

    def caption(self, number: int) -> str | None:
        """The first caption of a row."""
        return next(iter(self.captions(number)), None)

    @abstractmethod
    def files(self) -> Sequence[Path]:
        """The files that rows are read from, but for images that are files of their own."""

    def fingerprint(self) -> str:
        """A hash of what is read: it changes when a file does, and not when all of them move.

        Large files are sampled (`sample_hash`); images that are files of their own do not count.
        """
        digest = hashlib.sha256(f"{self.form} {len(self)}".encode())
        for path in self.files():
            digest.update(f"\n{path.name} {sample_hash(path)}".encode(errors="replace"))
        return digest.hexdigest()

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
        for number, row in enumerate(self.rows()):
            if isinstance(row, Rejected):
                if on_rejected is None:
                    raise DataError(f"{row.place}: {row.why}")
                on_rejected(row)
                content.update(f"{number} {row.why}\n".encode(errors="replace"))
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


def read_head(image: Path | bytes) -> tuple[str, int, int]:
    """Format, width and height as the image is seen, upright; `DataError` for what is none."""
    try:
        header = read_header(image)
    except InputError as problem:
        if isinstance(image, Path) and not image.exists():
            mend = "put it there, or leave the row out"
            raise DataError(f"there is no image {image!s}; {mend}") from None
        raise DataError(f"the image cannot be read: {problem}") from None
    return header.format, header.width, header.height
