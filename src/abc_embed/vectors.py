"""Vectors: to unit length, and one by one to a file: .npy and names, .jsonl, .parquet, or stdout.

A file is written aside and renamed when all is written, so that a broken-off one never looks
finished, and no more than a handful of vectors is in memory. The end of its name is its format.

Shapes: `N` vectors, `D` width.
"""

import json
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, Self

from abc_embed.errors import AbcError, MissingExtraError, UsageError
from abc_embed.storage.files import check_writable, flush_to_disk, partial_path, unwritable

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike, NDArray

    Vector = NDArray[np.float32]

PARQUET_ROWS = 1024
"""Vectors per row group."""


def l2_normalize(vectors: "ArrayLike", error: AbcError) -> "NDArray[np.float64]":
    """`(..., D)` at unit length, computed in float64; the same of tensors is in head.py.

    Raises:
        error: a vector is zero or not finite, so it has no direction.
    """
    import numpy as np

    array = np.asarray(vectors, dtype=np.float64)
    norms = np.linalg.norm(array, axis=-1, keepdims=True)
    if not (np.isfinite(norms) & (norms > 0)).all():
        raise error
    normalized: NDArray[np.float64] = array / norms
    return normalized


class Writer(ABC):
    """Context manager: `add` vectors, then `finish`; without `finish` nothing is left behind.

    Raises:
        OutputError: a file cannot be written.
    """

    files: tuple[Path, ...] = ()
    """What is there at the end; the last one is the one that was asked for."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._close()
        for file in self.files:
            with suppress(OSError):
                partial_path(file).unlink(missing_ok=True)

    def add(self, name: str, vector: "Vector") -> None:
        """One vector `(D,)` and what it is called."""
        self._guarded(lambda: self._add(name, vector))

    def finish(self) -> None:
        """Everything is written: give the files their names."""
        self._guarded(self._end)
        self._guarded(self._rename)

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except OSError as error:
            raise unwritable(self.files[-1], error) from error

    def _rename(self) -> None:
        self._close()
        for file in self.files:
            flush_to_disk(partial_path(file))
        if len(self.files) > 1:  # never an old file of vectors next to the names of new ones
            self.files[-1].unlink(missing_ok=True)
        for file in self.files:
            os.replace(partial_path(file), file)

    @abstractmethod
    def _add(self, name: str, vector: "Vector") -> None: ...

    @abstractmethod
    def _end(self) -> None:
        """Write what comes after the last vector."""

    @abstractmethod
    def _close(self) -> None:
        """Let go of the files, finished or not."""


class StdoutWriter(Writer):
    """`{"id": ..., "vector": [...]}` per line, on stdout."""

    def _guarded(self, work: Callable[[], None]) -> None:
        work()

    def _add(self, name: str, vector: "Vector") -> None:
        sys.stdout.write(_line(name, vector))

    def _end(self) -> None:
        sys.stdout.flush()

    def _rename(self) -> None:
        """There is no file."""

    def _close(self) -> None:
        """stdout is not ours to close."""


class JsonlWriter(Writer):
    """`{"id": ..., "vector": [...]}` per line."""

    def __init__(self, path: Path) -> None:
        self.files = (path,)
        self._file = _open(path, "w")

    def _add(self, name: str, vector: "Vector") -> None:
        self._file.write(_line(name, vector))

    def _end(self) -> None:
        self._file.flush()

    def _close(self) -> None:
        _quietly_close(self._file)


class NpyWriter(Writer):
    """`(N, D)` float32, and the names of the rows as a JSON list in `NAME.ids.json`."""

    def __init__(self, path: Path) -> None:
        self.files = (path.with_suffix(".ids.json"), path)
        check_writable(self.files[0])
        self._names = _open(self.files[0], "w")
        self._vectors = _open(path, "wb")
        self._count = 0
        self._width = 0

    def _add(self, name: str, vector: "Vector") -> None:
        if not self._count:
            self._width = len(vector)
            self._vectors.write(self._header())
        self._names.write(("[\n" if not self._count else ",\n") + json.dumps(name))
        self._vectors.write(vector.astype("<f4").tobytes())
        self._count += 1

    def _end(self) -> None:
        self._names.write("[]\n" if not self._count else "\n]\n")
        self._vectors.seek(0)
        self._vectors.write(self._header())
        self._names.flush()
        self._vectors.flush()

    def _header(self) -> bytes:
        """The head of the file for the present count: NumPy's format leaves it room to grow."""
        shape = (self._count, self._width)
        text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}"
        return b"\x93NUMPY\x01\x00" + (118).to_bytes(2, "little") + f"{text:<117}\n".encode()

    def _close(self) -> None:
        _quietly_close(self._names)
        _quietly_close(self._vectors)


class ParquetWriter(Writer):
    """Columns `id` (text) and `vector` (a list of `D` float32)."""

    def __init__(self, path: Path) -> None:
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError:
            raise MissingExtraError.of("mine", "writing Parquet") from None
        self.files = (path,)
        self._arrow: Any = pyarrow
        self._writer: Any = None
        self._rows: list[tuple[str, Vector]] = []

    def _add(self, name: str, vector: "Vector") -> None:
        self._rows.append((name, vector))
        if len(self._rows) == PARQUET_ROWS:
            self._write_rows()

    def _write_rows(self) -> None:
        arrow = self._arrow
        width = len(self._rows[0][1]) if self._rows else 0
        vectors = arrow.list_(arrow.float32(), width)
        schema = arrow.schema([("id", arrow.string()), ("vector", vectors)])
        if self._writer is None:
            self._writer = arrow.parquet.ParquetWriter(partial_path(self.files[0]), schema)
        names, values = zip(*self._rows, strict=True) if self._rows else ((), ())
        columns = [arrow.array(names, arrow.string()), arrow.array(values, vectors)]
        self._writer.write_table(arrow.table(columns, schema=schema))
        self._rows = []

    def _end(self) -> None:
        if self._rows or self._writer is None:
            self._write_rows()
        self._writer.close()

    def _close(self) -> None:
        if self._writer is not None:
            with suppress(OSError):
                self._writer.close()


FORMATS: dict[str, Callable[[Path], Writer]] = {
    ".npy": NpyWriter,
    ".jsonl": JsonlWriter,
    ".parquet": ParquetWriter,
}


def open_writer(out: Path | None) -> Writer:
    """The writer for a file by the end of its name; for None, stdout.

    Raises:
        UsageError: no such format.
        OutputError: the file cannot be written there.
        MissingExtraError: an optional package is absent.
    """
    if out is None:
        return StdoutWriter()
    if out.suffix.lower() not in FORMATS:
        raise UsageError(
            f"{str(out)!r} does not end in {', '.join(FORMATS)}, which says in what format to write"
        )
    check_writable(out)
    return FORMATS[out.suffix.lower()](out)


def _line(name: str, vector: "Vector") -> str:
    # Nine digits give back every float32 exactly.
    values = ", ".join(f"{value:.9g}" for value in vector.tolist())
    return f'{{"id": {json.dumps(name)}, "vector": [{values}]}}\n'


def _open(path: Path, mode: str) -> IO[Any]:
    try:
        return partial_path(path).open(mode, encoding=None if "b" in mode else "utf-8")
    except OSError as error:
        raise unwritable(path, error) from error


def _quietly_close(file: IO[Any]) -> None:
    """Closing writes what is left in the buffer; if it cannot, `_end` has said so already."""
    with suppress(OSError):
        file.close()
