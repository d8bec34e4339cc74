"""The headers of a tar archive, read from a stream of its bytes.

Does: give tarfile the bytes as it wants them, from any header on, and say when an archive does not
end as it must. Does not: know where the bytes come from (tar_index.py), or keep contents.
"""

import tarfile
from collections.abc import Iterator
from typing import Any

from abc_embed.data.published.tar_parts import BLOCK
from abc_embed.errors import DataError

_HEADER_LIMIT = 1 << 24
"""Bytes that are read at once: more than any header that an honest archive has."""


class Forward:
    """Plain bytes as tarfile wants to read them: forwards, and a byte back at times."""

    def __init__(self, blocks: Iterator[tuple[int, bytes]], start: int, name: str) -> None:
        self._blocks = blocks
        self.name = name
        self._position = start
        self._buffer = b""
        self._at = start

    def tell(self) -> int:
        return self._position

    def seek(self, position: int) -> None:
        self._position = position

    def read(self, size: int) -> bytes:
        """Up to `size` bytes, fewer only at the end of the stream."""
        if size > _HEADER_LIMIT:
            raise DataError(f"{self.name} has a header of {size:,} bytes, as no archive has")
        end = self._position + size
        while self._at + len(self._buffer) < end:
            block = next(self._blocks, None)
            if block is None:
                break
            at, content = block
            if not self._buffer:
                self._at, self._buffer = at, content
                continue
            keep = max(self._position - BLOCK - self._at, 0)
            self._at += min(keep, len(self._buffer))
            self._buffer = self._buffer[keep:] + content
        start = self._position - self._at
        found = self._buffer[start : start + size]
        self._position += len(found)
        return found


def members(forward: Forward) -> Iterator[tuple[tarfile.TarInfo, int]]:
    """Each header with the place of the one after it; the content between may be read or not.

    tarfile takes a damaged header in the middle for the end; here the end must be marked as such.
    """
    archive: Any = None
    name = forward.name
    try:
        archive = tarfile.TarFile(fileobj=forward, encoding="utf-8")  # type: ignore[arg-type]
        while (info := archive.next()) is not None:
            archive.members = []  # tarfile remembers all of them else
            forward.seek(info.offset_data)
            yield info, archive.offset
    except (tarfile.TarError, EOFError, ValueError) as problem:
        raise DataError(f"{name} is damaged or cut off ({problem}); fetch it again") from problem
    forward.seek(archive.offset)
    mark = forward.read(BLOCK)
    if len(mark) < BLOCK or any(mark):
        raise DataError(
            f"{name} is damaged or cut off: it has no end mark at byte {archive.offset:,} of its "
            "content; fetch its parts again"
        )


def kind_of(info: tarfile.TarInfo) -> str:
    if info.issym() or info.islnk():
        return f"a link to {printable(info.linkname)}"
    return "a sparse file" if info.issparse() else "a device, a pipe or something else"


def printable(name: str) -> str:
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
