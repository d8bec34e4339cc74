"""Tar archives on disk, whole or cut into parts: found, put in order, and read as one file each.

Two layouts look alike by their names: one archive that was cut with `split`, and several archives
that were numbered. The content decides: a file that begins with the header of a tar (inside gzip or
not) begins an archive, any other goes on with the one before it.
"""

import gzip
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
from typing import TYPE_CHECKING

from abc_embed.data.image_files import visible_files
from abc_embed.data.tar_headers import BLOCK
from abc_embed.errors import DataError
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

    Raises:
        DataError: a part is missing, or a file is named like an archive and is none.
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
