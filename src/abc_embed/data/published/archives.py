"""Tar archives on disk, whole or cut into parts: found, put in order, and read as one file each.

Two layouts look alike by their names: one archive that was cut with `split`, and several archives
that were numbered. The content decides: a file that begins with the header of a tar (inside gzip or
not) begins an archive, any other goes on with the one before it.
"""

import gzip
import io
import os
import re
import struct
import tarfile
import zlib
from bisect import bisect_right
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from abc_embed.data.image_files import visible_files
from abc_embed.data.tar_headers import BLOCK
from abc_embed.errors import DataError, MissingExtraError
from abc_embed.storage.plain import PlainFile

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_NAME = re.compile(
    r"(?P<stem>.+\.(?:tar\.gz|tgz|tar))(?:(?P<tie>[._-]?part[._-]?|[._-]?)(?P<number>[a-z]{2}|\d{1,5}))?"
)
_WITHOUT_INDEX = re.compile(r".+\.(tar\.(bz2|xz|zst|lz4|lzma|br)|tbz2?|txz|tzst)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Archive:
    """One tar archive, in one file or in several that follow each other."""

    parts: tuple[Path, ...]
    gzipped: bool

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return sum(part.stat().st_size for part in self.parts)


def find_archives(folder: Path) -> list[Archive]:
    """The tar archives below `folder`, in the order of their names; hidden folders are not seen.

    A missing part, or a file that is named like an archive and is none, is a `DataError`.
    """
    groups: dict[tuple[Path, str], list[tuple[int, Path]]] = {}
    for path in visible_files(folder):
        if _WITHOUT_INDEX.fullmatch(path.name):
            raise DataError(
                f"{path} is packed in a way that has no index; pack it as .tar or .tar.gz instead"
            )
        if match := _NAME.fullmatch(path.name):
            key = (path.parent, match["stem"] + (match["tie"] or ""))
            groups.setdefault(key, []).append((_part_number(match["number"]), path))
    archives: list[Archive] = []
    for _, numbered in sorted(groups.items()):
        archives += _join_parts(sorted(numbered))
    return archives


def _part_number(suffix: str | None) -> int:
    """`aa` is 0, `ab` 1, `07` 7; numbers may count from 0 or 1. Without a suffix: -1."""
    if suffix is None or suffix.isdigit():
        return int(suffix or -1)
    return (ord(suffix[0]) - ord("a")) * 26 + ord(suffix[1]) - ord("a")


def _join_parts(numbered: Sequence[tuple[int, Path]]) -> list[Archive]:
    """Archives of the parts of one name. A missing last part shows when it is read."""
    first, before = numbered[0]
    if first > 1:
        raise DataError(f"there is no part before {before}; fetch the parts before it")
    archives: list[Archive] = []
    for expected, (number, path) in enumerate(numbered, start=first):
        if number != expected:
            raise DataError(f"a part is missing between {before} and {path.name}; fetch it")
        before = path
        gzipped, head = _read_head(path)
        continued = len(head) < BLOCK and len(numbered) > 1  # so short that its header goes on
        if _is_header(head) or (not archives and continued):
            archives.append(Archive((path,), gzipped))
        elif archives:
            archives[-1] = Archive((*archives[-1].parts, path), archives[-1].gzipped)
        else:
            raise DataError(
                f"{path} does not begin a tar archive; fetch it again, or the part before it"
            )
    return archives


def _read_head(path: Path) -> tuple[bool, bytes]:
    """Whether a file begins like gzip, and the first block of its content, as far as it goes."""
    head = b""
    try:
        file = PlainFile(path)
        with suppress(gzip.BadGzipFile, EOFError, zlib.error), file.stream() as content:
            while len(head) < BLOCK and (piece := content.read(BLOCK - len(head))):
                head += piece
    except OSError as problem:
        raise DataError(f"{path} cannot be read: {problem.strerror}") from problem
    return file.gzipped, head


def _is_header(block: bytes) -> bool:
    try:
        tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True


class JoinedFile(io.RawIOBase):
    """Several files read as one."""

    def __init__(self, paths: Sequence[Path]) -> None:
        """Opens them all; raises `DataError` when one cannot be opened."""
        self._files: list[io.FileIO] = []
        try:
            for path in paths:
                self._files.append(io.FileIO(path, "rb"))
        except OSError as problem:
            self.close()
            raise DataError(f"{problem.filename} cannot be read: {problem.strerror}") from problem
        self._ends = list(accumulate(os.fstat(file.fileno()).st_size for file in self._files))
        self._position = 0
        self.size = self._ends[-1]

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.size}[whence]
        self._position = base + offset
        return self._position

    def readinto(self, buffer: "WriteableBuffer", /) -> int:
        """Fills the buffer, as far as there is something."""
        view, count = memoryview(buffer), 0
        while count < len(view):
            number = bisect_right(self._ends, self._position)  # an empty file is never the one
            if number == len(self._files):
                break
            start = self._ends[number - 1] if number else 0
            self._files[number].seek(self._position - start)
            if not (read := self._files[number].readinto(view[count:])):
                break
            self._position += read
            count += read
        return count

    def read_at(self, offset: int, size: int) -> bytes:
        """`size` bytes from `offset`, fewer only at the end."""
        self.seek(offset)
        return self.read(size) or b""

    def close(self) -> None:
        for file in self._files:
            file.close()
        super().close()


# -- gzip from any place ---------------------------------------------------------------------------

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

    Of the points that are known, the first and the last will do. Returns the new points, and the
    plain size of the stream when its end was reached, else 0. The last point of a stream is its
    end.

    Raises:
        DataError: the stream is damaged or cut off.
    """
    last = known[-1] if known else Point(-1, 0, 0, None)
    with _opened(stream, known, spacing, build=True) as file:
        try:
            file.seek(last.plain + reach)
        except _ERRORS as problem:
            raise _damaged(last.plain) from problem
        index = io.BytesIO()
        file.export_index(fileobj=index)
    plain_size, points = unpack_index(index.getvalue())
    return [point for point in points if point.packed > last.packed], plain_size


def inflate(stream: JoinedFile, point: Point, size: int) -> bytes:
    """`size` plain bytes from a point on; `DataError` where the stream is damaged or cut off."""
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
