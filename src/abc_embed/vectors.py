"""Vectors: to unit length, and one by one into a file: `.npy` with names, `.jsonl`, `.parquet`.

The file is there when all is written and not before, so that a broken-off one never looks finished;
no more than a handful of vectors is held in memory.

    with open_writer("photos.npy") as writer:
        for path, vector in zip(paths, model.stream(items)):
            writer.add(path, vector)
        writer.finish()

Shapes: `N` vectors, `D` width.
"""

import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from abc_embed.errors import AbcError, OutputError, UsageError
from abc_embed.storage.files import atomic_write, check_writable, unwritable
from abc_embed.storage.parquet import import_pyarrow

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike, NDArray

    from abc_embed.novelty import KnownPictures

    Vector = NDArray[np.float32]

logger = logging.getLogger(__name__)

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


def unit_rows(vectors: "ArrayLike", which: str) -> "NDArray[np.float64]":
    """One vector `(D,)` or several `(N, D)` at unit length, for cosines.

    Raises:
        UsageError: another shape, or a vector without a direction; `which` names them.
    """
    import numpy as np

    try:
        array = np.asarray(vectors, dtype=np.float64)
    except (TypeError, ValueError):
        raise UsageError(f"the {which} vectors are no numbers; embed them first") from None
    if array.ndim not in (1, 2):
        raise UsageError(f"the {which} vectors have {array.ndim} axes; give (D,) or (N, D)")
    message = f"one of the {which} vectors is zero or not finite, so it has no cosine"
    return l2_normalize(array, UsageError(message))


OUTPUTS = ("float32", "float16", "int8", "uint8", "binary", "ubinary")
"""Number formats of vectors: the last two hold a bit a dimension, eight of them in a byte."""


def truncate(vectors: "ArrayLike", dim: int | None) -> "NDArray[np.float32]":
    """`(..., D)` -> the first `dim` numbers of each, at unit length again; None leaves all.

    Raises:
        UsageError: the vectors are not so wide, or nothing is left of one.
    """
    import numpy as np

    array = np.asarray(vectors, dtype=np.float32)
    check_dim(dim, array.shape[-1])
    if dim is None or dim == array.shape[-1]:
        return array
    error = UsageError(f"a vector is zero in its first {dim} numbers; give a larger dim")
    return l2_normalize(array[..., :dim], error).astype(np.float32)


def check_dim(dim: int | None, width: int, name: str = "dim") -> None:
    """Whether vectors of `width` numbers can be cut to `dim`; for before they are there.

    `name` is what the error calls it.

    Raises:
        UsageError: they cannot.
    """
    if dim is None:
        return
    given: object = dim
    if isinstance(given, bool) or not isinstance(given, Integral):
        raise UsageError(f"{name} is {dim!r}; give a whole number")
    if not 1 <= dim <= width:
        raise UsageError(f"{name} is {dim} and the vectors have {width} numbers; give 1 to {width}")


def check_output(output: str) -> None:
    """Whether it is one of `OUTPUTS`.

    Raises:
        UsageError: it is not.
    """
    if output not in OUTPUTS:
        raise UsageError(f"output is {output!r}; use one of: {', '.join(OUTPUTS)}")


def quantize(
    vectors: "ArrayLike", output: str, ranges: "NDArray[np.float32] | None" = None
) -> "NDArray[Any]":
    """`(N, D)` float32 -> one of `OUTPUTS`, by the arithmetic of sentence-transformers.

    Args:
        vectors: at the width at which they are stored.
        output: int8 and uint8 cut the range of each dimension into 256 equal steps; binary and
            ubinary keep signs, `(N, D / 8)`.
        ranges: `(2, D)`, least and largest value of each dimension, for int8 and uint8.

    Raises:
        UsageError: no such output, or no ranges of that width.
    """
    import numpy as np

    array = np.asarray(vectors, dtype=np.float32)
    if output in ("float32", "float16"):
        return array.astype(output)
    if output in ("binary", "ubinary"):
        bits = np.packbits(array > 0, axis=-1)
        if output == "binary":
            bits = (bits.astype(np.int16) - 128).astype(np.int8)
        packed: NDArray[Any] = bits
        return packed
    check_output(output)
    ranges = _check_ranges(ranges, array.shape[-1], output)
    steps = (ranges[1] - ranges[0]) / np.float32(255)
    steps = np.where(steps == 0, np.float32(1), steps)
    levels: NDArray[np.float32] = np.clip(np.floor((array - ranges[0]) / steps), 0, 255)
    return levels.astype(np.uint8) if output == "uint8" else (levels - 128).astype(np.int8)


def dequantize(
    vectors: "NDArray[Any]", output: str, ranges: "NDArray[np.float32] | None" = None
) -> "NDArray[np.float32]":
    """What `quantize` made -> `(N, D)` float32 to compare by: the middle of each step, or signs.

    Raises:
        UsageError: no such output, or no ranges of that width.
    """
    import numpy as np

    if output in ("float32", "float16"):
        return vectors.astype(np.float32)
    if output in ("binary", "ubinary"):
        octets = vectors if output == "ubinary" else (vectors.astype(np.int16) + 128)
        return np.unpackbits(octets.astype(np.uint8), axis=-1) * np.float32(2) - np.float32(1)
    check_output(output)
    ranges = _check_ranges(ranges, vectors.shape[-1], output)
    levels = vectors.astype(np.float32) + np.float32(128.5 if output == "int8" else 0.5)
    restored: NDArray[np.float32] = ranges[0] + (ranges[1] - ranges[0]) / 255 * levels
    return restored


@dataclass(frozen=True, slots=True)
class VectorFacts:
    """What a model's folder says of its vectors, for those who store them small."""

    matryoshka: tuple[int, ...] = ()
    """Narrower widths that it was trained at (arXiv 2205.13147)."""
    ranges: "Mapping[int, NDArray[np.float32]]" = field(default_factory=dict)
    """Width -> `(2, width)`, the least and largest value of each dimension; for int8 and uint8."""
    known: "KnownPictures | None" = None
    """What pictures that the model learnt from have in common, if that was measured."""


class VectorFormat:
    """Turns vectors `(..., D)` as a model gives them into those that are stored."""

    def __init__(self, width: int, facts: VectorFacts, dim: int | None, output: str) -> None:
        """`dim` as in `truncate`, `output` one of `OUTPUTS`; both are checked here.

        Raises:
            UsageError: no such width or output, or no ranges for it.
        """
        check_dim(dim, width)
        self.dim = width if dim is None else dim
        self.output = output
        self.ranges = facts.ranges.get(self.dim)
        check_output(output)
        if output in ("int8", "uint8"):
            _check_ranges(self.ranges, self.dim, output)
        if facts.matryoshka and self.dim not in (width, *facts.matryoshka):
            trained = ", ".join(map(str, facts.matryoshka))
            logger.warning(
                "this model was not trained at width %d; it was at %s", self.dim, trained
            )

    def __call__(self, vectors: "ArrayLike") -> "NDArray[Any]":
        return quantize(truncate(vectors, self.dim), self.output, self.ranges)

    @property
    def stored(self) -> tuple[int, str]:
        """How many numbers a stored vector has, and their NumPy format."""
        bits = self.output in ("binary", "ubinary")
        dtype = {"binary": "int8", "ubinary": "uint8"}.get(self.output, self.output)
        return (-(-self.dim // 8) if bits else self.dim), dtype


def ranges_at(
    vectors: "NDArray[np.float32]", widths: Iterable[int]
) -> "dict[int, NDArray[np.float32]]":
    """`VectorFacts.ranges` of vectors `(N, D)` like those that will be stored.

    Raises:
        UsageError: the vectors are not so wide.
    """
    import numpy as np

    cut = {width: truncate(vectors, width) for width in widths}
    return {width: np.stack([rows.min(0), rows.max(0)]) for width, rows in cut.items()}


def _check_ranges(
    ranges: "NDArray[np.float32] | None", width: int, output: str
) -> "NDArray[np.float32]":
    if ranges is None or ranges.shape != (2, width):
        raise UsageError(
            f"{output} needs the range of each of {width} dimensions, and this model has none; "
            "use float32, float16, binary or ubinary, or measure them: abc-embed calibrate MODEL "
            "ITEMS (in Python: Embedder.calibrate)"
        )
    return ranges


class Writer:
    """Context manager: `add` vectors, then `finish`; without `finish` nothing is left behind."""

    files: tuple[Path, ...]
    """What is there at the end; the last one is the one that was asked for."""

    def __init__(self, *files: Path) -> None:
        self.files = files
        for file in files:
            check_writable(file)
        with ExitStack() as stack:  # closed last to first: the file that was asked for comes last
            streams = [stack.enter_context(atomic_write(file)) for file in reversed(files)]
            self._streams = streams[::-1]
            self._open_files = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._abandon()
        # When finished, nothing is open any more; else the files break off, and are deleted.
        with suppress(OutputError):
            self._open_files.__exit__(GeneratorExit, GeneratorExit(), None)

    def add(self, name: str, vector: "Vector") -> None:
        """One vector `(D,)` and what it is called.

        Raises:
            OutputError: the file cannot be written.
        """
        with self._guarded():
            self._add(name, vector)

    def finish(self) -> None:
        """Everything is written: give the files their names.

        Raises:
            OutputError: a file cannot be written.
        """
        with self._guarded():
            self._end()
            for stream in self._streams:
                stream.flush()
                os.fsync(stream.fileno())
            if len(self.files) > 1:  # never an old file of vectors next to the names of new ones
                self.files[-1].unlink(missing_ok=True)
        self._open_files.close()

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise unwritable(self.files[-1], error) from error

    def _add(self, name: str, vector: "Vector") -> None:
        raise NotImplementedError

    def _end(self) -> None:
        """Write what comes after the last vector."""

    def _abandon(self) -> None:
        """Let go of what else is open."""


class JsonlWriter(Writer):
    """`{"id": ..., "vector": [...]}` per line."""

    def _add(self, name: str, vector: "Vector") -> None:
        self._streams[0].write(jsonl_line(name, vector).encode())


class NpyWriter(Writer):
    """`(N, D)` in the vectors' own format, and their names as a JSON list in `NAME.ids.json`."""

    def __init__(self, path: Path) -> None:
        super().__init__(path.with_suffix(".ids.json"), path)
        self._names, self._vectors = self._streams
        self._count = 0
        self._width, self._dtype = 0, "<f4"

    def _add(self, name: str, vector: "Vector") -> None:
        view = isinstance(vector, memoryview)  # of float32, so that nobody has to import NumPy
        if not self._count:
            self._width = len(vector)
            self._dtype = "<f4" if view else vector.dtype.newbyteorder("<").str
            self._vectors.write(self._header())
        self._names.write((("[\n" if not self._count else ",\n") + json.dumps(name)).encode())
        self._vectors.write(vector.tobytes() if view else vector.astype(self._dtype).tobytes())
        self._count += 1

    def _end(self) -> None:
        self._names.write(b"[]\n" if not self._count else b"\n]\n")
        self._vectors.seek(0)
        self._vectors.write(self._header())

    def _header(self) -> bytes:
        """The head of the file for the present count: NumPy's format leaves it room to grow."""
        shape = (self._count, self._width)
        text = f"{{'descr': '{self._dtype}', 'fortran_order': False, 'shape': {shape}, }}"
        return b"\x93NUMPY\x01\x00" + (118).to_bytes(2, "little") + f"{text:<117}\n".encode()


class ParquetWriter(Writer):
    """Columns `id` (text) and `vector` (a list of `D` numbers in the vectors' own format)."""

    def __init__(self, path: Path) -> None:
        self._arrow = import_pyarrow("writing Parquet", "mine")
        super().__init__(path)
        self._writer: Any = None
        self._rows: list[tuple[str, Vector | list[float]]] = []

    def _add(self, name: str, vector: "Vector") -> None:
        is_view = isinstance(vector, memoryview)  # of float32
        self._rows.append((name, vector.tolist() if is_view else vector))
        if len(self._rows) == PARQUET_ROWS:
            self._write_rows()

    def _write_rows(self) -> None:
        arrow = self._arrow
        width = len(self._rows[0][1]) if self._rows else 0
        dtype = str(getattr(self._rows[0][1], "dtype", "float32")) if self._rows else "float32"
        vectors = arrow.list_(getattr(arrow, dtype)(), width)
        schema = arrow.schema([("id", arrow.string()), ("vector", vectors)])
        if self._writer is None:
            self._writer = arrow.parquet.ParquetWriter(self._streams[0], schema)
        names, values = zip(*self._rows, strict=True) if self._rows else ((), ())
        columns = [arrow.array(names, arrow.string()), arrow.array(values, vectors)]
        self._writer.write_table(arrow.table(columns, schema=schema))
        self._rows = []

    def _end(self) -> None:
        if self._rows or self._writer is None:
            self._write_rows()
        self._writer.close()

    def _abandon(self) -> None:
        if self._writer is not None:
            with suppress(OSError):
                self._writer.close()


FORMATS: dict[str, Callable[[Path], Writer]] = {
    ".npy": NpyWriter,
    ".jsonl": JsonlWriter,
    ".parquet": ParquetWriter,
}


def open_writer(path: str | Path) -> Writer:
    """The writer for a file by the end of its name.

    Raises:
        UsageError: no such format.
        OutputError: the file cannot be written there.
        MissingExtraError: an optional package is absent.
    """
    path = Path(path)
    if path.suffix.lower() not in FORMATS:
        raise UsageError(
            f"{str(path)!r} does not end in {', '.join(FORMATS)}, which says in what format to "
            "write"
        )
    return FORMATS[path.suffix.lower()](path)


def jsonl_line(name: str, vector: "Vector") -> str:
    """A vector `(D,)` as a line of JSON: nine digits give back every float32 exactly."""
    values = ", ".join(f"{value:.9g}" for value in vector.tolist())  # whole numbers stay whole
    return f'{{"id": {json.dumps(name)}, "vector": [{values}]}}\n'
