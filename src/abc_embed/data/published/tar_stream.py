"""The plain bytes of a gzipped archive, from any place on.

Why not one `IndexedGzipFile` with its whole index: a point holds the 32 KiB before it, so an index
of 300 GB at 4 MB is 2.4 GB that every process would hold in memory, and one that is half made is
lost when the process dies. The file format of its index is simple, so an index of one or two points
is made up for each call: memory stays flat, and building goes on from the last point that was kept.
"""

import io
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from abc_embed.data.published.archives import JoinedFile
from abc_embed.data.tar_headers import BLOCK
from abc_embed.errors import DataError, MissingExtraError

SPACING = 4_000_000
"""Plain bytes between two points: 32 KiB of disk each, and half of it is inflated on the way to an
image, on average."""
LEAST_SPACING = 1 << 17

_WINDOW = 1 << 15
_HEAD = struct.Struct("<5sBBQQIII")  # magic, version, flags, packed size, plain size, spacing, …
_POINT = struct.Struct("<QQBB")
_READ = 1 << 18
_ERRORS = (OSError, EOFError, ValueError)  # what those of indexed_gzip inherit from


@dataclass(frozen=True, slots=True)
class Point:
    """A place in a gzip stream at which inflating can begin: where a block begins."""

    packed: int
    """Byte of the gzip stream."""
    plain: int
    """Byte of what it unpacks to."""
    bits: int
    """Bits of the byte before `packed` that belong to the block."""
    window: bytes | None
    """The 32 KiB before it; None where a gzip member begins."""


def find_points(
    stream: JoinedFile, known: Sequence[Point], reach: int, spacing: int
) -> tuple[list[Point], int]:
    """The points after the last of `known`, up to about `reach` plain bytes beyond it.

    Of `known` only the first and the last are used. Returns the new points, and the plain size of
    the stream when its end was reached, else 0. The last point of a stream is its end.

    Raises:
        DataError: the stream is damaged or cut off.
    """
    seed = [known[0], known[-1]] if len(known) > 1 else list(known)
    last = known[-1] if known else Point(-1, 0, 0, None)
    with _opened(stream, seed, spacing, build=True) as file:
        try:
            file.seek(last.plain + reach)
        except _ERRORS as problem:
            raise _damaged(last.plain) from problem
        index = io.BytesIO()
        file.export_index(fileobj=index)
    plain_size, points = unpack_index(index.getvalue())
    return [point for point in points if point.packed > last.packed], plain_size


def inflate(stream: JoinedFile, point: Point, size: int) -> bytes:
    """`size` plain bytes from a point on.

    Raises:
        DataError: the stream is damaged or cut off there.
    """
    if not size:
        return b""
    with _opened(stream, [point], SPACING, build=False) as file:
        try:
            plain: bytes = file.raw.pread(size, point.plain)
        except _ERRORS as problem:
            raise _damaged(point.plain) from problem
    if len(plain) != size:
        raise _damaged(point.plain)
    return plain


def _damaged(plain: int) -> DataError:
    return DataError(
        f"the gzip stream is damaged or cut off near byte {plain:,} of its content; "
        "fetch its parts again"
    )


def _opened(stream: JoinedFile, points: Sequence[Point], spacing: int, *, build: bool) -> Any:
    try:
        import indexed_gzip
    except ModuleNotFoundError:
        raise MissingExtraError.of("data", "reading images out of a .tar.gz") from None
    file = indexed_gzip.IndexedGzipFile(
        fileobj=stream,
        spacing=max(spacing, LEAST_SPACING),
        auto_build=build,
        skip_crc_check=True,  # impossible from the middle; tar_index.py keeps a sum of its own
        readbuf_size=_READ,
    )
    if points:
        file.import_index(fileobj=io.BytesIO(pack_index(stream.size, points, spacing)))
    return file


def pack_index(packed_size: int, points: Sequence[Point], spacing: int) -> bytes:
    """An index of some points, as indexed_gzip writes it."""
    counts = (packed_size, 0, max(spacing, LEAST_SPACING), _WINDOW, len(points))
    pieces = [_HEAD.pack(b"GZIDX", 1, 0, *counts)]
    pieces += [_POINT.pack(p.packed, p.plain, p.bits, p.window is not None) for p in points]
    pieces += [p.window for p in points if p.window is not None]
    return b"".join(pieces)


def unpack_index(index: bytes) -> tuple[int, list[Point]]:
    """The plain size (0: not known yet) and the points of an index."""
    *_, plain_size, _spacing, width, count = _HEAD.unpack_from(index)
    windows = _HEAD.size + count * _POINT.size
    points = []
    for number in range(count):
        at = _HEAD.size + number * _POINT.size
        packed, plain, bits, has_window = _POINT.unpack_from(index, at)
        window = index[windows : windows + width] if has_window else None
        windows += width if has_window else 0
        points.append(Point(packed, plain, bits, window))
    return plain_size, points


class ForwardReader:
    """Plain bytes from blocks that follow each other: read forwards, and a byte back at times."""

    def __init__(self, blocks: Iterator[tuple[int, bytes]], start: int = 0) -> None:
        """`blocks`, each with its place, begin at or before `start`."""
        self._blocks = blocks
        self._position = self._buffer_start = start
        self._buffer = b""

    def tell(self) -> int:
        return self._position

    def seek(self, position: int) -> None:
        self._position = position

    def read(self, size: int) -> bytes:
        """Up to `size` bytes, fewer only at the end of the stream."""
        end = self._position + size
        while self._buffer_start + len(self._buffer) < end:
            start, content = next(self._blocks, (0, b""))
            if not content:
                break
            if not self._buffer:
                self._buffer_start, self._buffer = start, content
                continue
            drop = min(max(self._position - BLOCK - self._buffer_start, 0), len(self._buffer))
            self._buffer_start += drop
            self._buffer = self._buffer[drop:] + content
        at = self._position - self._buffer_start
        content = self._buffer[at : at + size]
        self._position += len(content)
        return content
