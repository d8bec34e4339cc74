"""Tar archives on disk, whole or cut into parts, seen as one stream of bytes each.

Does: find the archives of a folder and put their parts in order, read several files as one, and
tell by a sample of its bytes whether a part is still the one that was indexed. Does not: know what
is in an archive (tar_index.py).

Two layouts look alike by their names: one archive that was cut with `split`, and several archives
that were numbered. The content decides: a file that begins with the header of a tar (inside gzip or
not) begins an archive, any other goes on with the one before it.
"""

import gzip
import hashlib
import io
import os
import re
import tarfile
import zlib
from bisect import bisect_right
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from abc_embed.errors import DataError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

BLOCK = 512
"""Bytes of a tar header; contents are padded to a multiple of it."""

_NAME = re.compile(
    r"(?P<stem>.+\.(?:tar\.gz|tgz|tar))(?:(?P<tie>[._-]?part[._-]?|[._-]?)(?P<number>[a-z]{2}|\d{1,5}))?"
)
_OTHER_PACKING = re.compile(r".+\.(tar\.(bz2|xz|zst|lz4|lzma|br)|tbz2?|txz|tzst)", re.IGNORECASE)
_GZIP = b"\x1f\x8b\x08"
_SAMPLES, _SAMPLE = 16, 1 << 16


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

    Raises:
        DataError: a part is missing, or a file is named like an archive and is none.
    """
    groups: dict[tuple[Path, str], list[tuple[int, Path]]] = {}
    for path in _files(folder):
        if _OTHER_PACKING.fullmatch(path.name):
            raise DataError(
                f"{path} is packed in a way that has no index; pack it as .tar or .tar.gz instead"
            )
        match = _NAME.fullmatch(path.name)
        if match:
            key = (path.parent, match["stem"] + (match["tie"] or ""))
            groups.setdefault(key, []).append((_number(match["number"]), path))
    archives: list[Archive] = []
    for _, numbered in sorted(groups.items()):
        archives += _in_order(numbered)
    return archives


def _files(folder: Path) -> list[Path]:
    found: list[Path] = []
    for place, inner, names in os.walk(folder):
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        found += [Path(place, name) for name in sorted(names) if not name.startswith(".")]
    return found


def _number(text: str | None) -> int:
    """Which part a name's end means, counted from 0 or 1: `aa` is 0, `ab` 1, `07` 7."""
    if text is None:
        return -1
    if text.isdigit():
        return int(text)
    return (ord(text[0]) - ord("a")) * 26 + ord(text[1]) - ord("a")


def _in_order(numbered: Sequence[tuple[int, Path]]) -> list[Archive]:
    numbered = sorted(numbered)
    _check_numbers(numbered)
    archives: list[Archive] = []
    for _, path in numbered:
        gzipped, begin = _begin(path)
        whole_header = len(begin) == BLOCK or len(numbered) == 1
        if _is_header(begin) or (not archives and not whole_header):
            archives.append(Archive((path,), gzipped))
        elif archives:
            archives[-1] = Archive((*archives[-1].parts, path), archives[-1].gzipped)
        else:
            raise DataError(
                f"{path} does not begin a tar archive; fetch it again, or the part before it"
            )
    return archives


def _check_numbers(numbered: Sequence[tuple[int, Path]]) -> None:
    """Every part from the first to the last is there; a missing last one shows when it is read."""
    first, before = numbered[0]
    if first > 1:
        raise DataError(f"there is no part before {before}; fetch the parts before it")
    for expected, (number, path) in enumerate(numbered, start=first):
        if number != expected:
            raise DataError(f"a part is missing between {before} and {path.name}; fetch it")
        before = path


def _begin(path: Path) -> tuple[bool, bytes]:
    """Whether a file begins like gzip, and the first block of its content, as far as it goes."""
    try:
        with path.open("rb") as file:
            head = file.read(BLOCK)
            if not head.startswith(_GZIP):
                return False, head
            file.seek(0)
            return True, _unpacked(file)
    except OSError as problem:
        raise DataError(f"{path} cannot be read: {problem.strerror}") from problem


def _unpacked(file: BinaryIO) -> bytes:
    plain = b""
    with gzip.GzipFile(fileobj=file) as reader, suppress(gzip.BadGzipFile, EOFError, zlib.error):
        while len(plain) < BLOCK and (more := reader.read(BLOCK - len(plain))):
            plain += more
    return plain


def _is_header(block: bytes) -> bool:
    try:
        tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True


def sample_hash(path: Path) -> str:
    """A hash of a file's size and of pieces spread over it: quick, whatever the size.

    It tells another file, a cut one or one that was filled in part; a few changed bytes between the
    pieces are found when the image there is read.
    """
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        for number in range(_SAMPLES):
            file.seek(max(size - _SAMPLE, 0) * number // (_SAMPLES - 1))
            digest.update(file.read(_SAMPLE))
    return digest.hexdigest()


class Joined(io.RawIOBase):
    """Several files read as one."""

    def __init__(self, paths: Sequence[Path]) -> None:
        """Opens them all.

        Raises `DataError` when one cannot be opened.
        """
        self._files: list[io.FileIO] = []
        try:
            for path in paths:
                self._files.append(io.FileIO(path, "rb"))
        except OSError as problem:
            self.close()
            raise DataError(f"{problem.filename} cannot be read: {problem.strerror}") from problem
        sizes = [os.fstat(file.fileno()).st_size for file in self._files]
        self._ends = list(accumulate(sizes))
        self._position = 0
        self.size = sum(sizes)

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
        """Reads up to the end of one file at a time, as a raw stream may."""
        number = bisect_right(self._ends, self._position)
        view = memoryview(buffer)
        while number < len(self._files):  # an empty part gives nothing, and is no end
            file, end = self._files[number], self._ends[number]
            start = self._ends[number - 1] if number else 0
            file.seek(self._position - start)
            got = file.readinto(view[: end - self._position]) or 0
            if got:
                self._position += got
                return got
            number += 1
        return 0

    def read_at(self, offset: int, size: int) -> bytes:
        """`size` bytes from `offset`, fewer only at the end."""
        self.seek(offset)
        pieces = []
        while size > 0 and (piece := self.read(size)):
            pieces.append(piece)
            size -= len(piece)
        return b"".join(pieces)

    def close(self) -> None:
        for file in self._files:
            file.close()
        super().close()
