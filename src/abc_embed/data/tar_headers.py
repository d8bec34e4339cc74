"""The headers of a tar archive up to its true end; what is damaged is said, and read on after.

`tarfile` takes a damaged header, or a stretch of zeros, for the end of the archive, without a word.
Here every block up to the end of the file is accounted for: it belongs to a member, to the end mark
and its padding, or to a `Fault`, after which the next valid header is looked for.
"""

import io
import tarfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import IO

BLOCK = 512
"""Bytes of a header; contents are padded to a multiple of it."""
_RECORD = 20 * BLOCK
"""What archives are padded to, so that one that was appended to another begins there."""
_HEADER_LIMIT = 1 << 20  # bytes of a long name, or of the attributes of one member
_ZEROS = bytes(BLOCK)


@dataclass(frozen=True, slots=True)
class Fault:
    """A stretch of an archive that is no member."""

    start: int
    """Its first byte."""
    stop: int
    """Where reading goes on: at a header, or at the end."""
    why: str
    harmless: bool = False
    """Another archive was appended there; nothing is lost."""

    def __str__(self) -> str:
        return f"{self.why} at byte {self.start:,}"


def read_headers(
    source: IO[bytes], start: int = 0
) -> Iterator[tuple[tarfile.TarInfo, int] | Fault]:
    """Each member with the place of the header after it, and each fault, in their order.

    `source` is read forwards, and never more than a block back. The content of a member may be read
    or not before the next one is asked for. A fault of the tar is never raised; what `source`
    raises is.
    """
    archive = tarfile.TarFile(fileobj=io.BytesIO(bytes(2 * BLOCK)), encoding="utf-8")
    archive.fileobj = _Bounded(source)  # type: ignore[assignment]
    position = start
    while True:
        source.seek(position)
        block = source.read(BLOCK)
        info: tarfile.TarInfo | str
        if block == _ZEROS:
            info = "an end mark in the middle"
        elif not block:
            yield Fault(position, position, "no end mark")
            return
        else:
            info = _read_header(archive, source, position)
        if isinstance(info, str):
            after, only_zeros = _next_header(source, max(position + BLOCK, source.tell() - BLOCK))
            at_end = after is None
            if block == _ZEROS and at_end and only_zeros:
                return
            after = source.tell() if after is None else after
            appended = block == _ZEROS and only_zeros and not after % _RECORD
            yield Fault(position, after, info, harmless=appended)
            if at_end:
                return
            position = after
            continue
        following = archive.offset
        source.seek(info.offset_data)
        yield info, following
        end = info.offset_data + info.size
        if following > info.offset_data and info.size:
            source.seek(end - 1)
            if not source.read(1):
                yield Fault(info.offset, end, f"{info.name!r} breaks off")
                return
        position = following


def _read_header(
    archive: tarfile.TarFile, source: IO[bytes], position: int
) -> tarfile.TarInfo | str:
    """The member that begins there, extended headers included; or what is wrong."""
    source.seek(position)
    archive.offset = position
    try:
        info = tarfile.TarInfo.fromtarfile(archive)
    except tarfile.TarError as problem:
        return str(problem) if type(problem) is tarfile.TarError else "a damaged header"
    except (ValueError, LookupError, TypeError, OverflowError, RecursionError):
        return "a damaged header"  # an extended one, whose numbers and names are text
    if info.size < 0 or archive.offset < info.offset_data:
        return "a header with a size below 0"
    return info


class _Bounded:
    """A source from which no header takes more than a header can have."""

    def __init__(self, source: IO[bytes]) -> None:
        self._source = source
        self.tell, self.seek = source.tell, source.seek

    def read(self, size: int) -> bytes:
        if not 0 <= size <= _HEADER_LIMIT:
            raise tarfile.TarError(f"it has a header of {size:,} bytes, as no archive has,")
        return self._source.read(size)


def _next_header(source: IO[bytes], position: int) -> tuple[int | None, bool]:
    """Where the next valid header begins (None: there is none), and whether all before is zeros."""
    source.seek(position)
    only_zeros = True
    while block := source.read(BLOCK):
        if block[257:262] == b"ustar" and len(block) == BLOCK:
            with suppress(tarfile.TarError, ValueError):
                tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
                return position, only_zeros
        only_zeros = only_zeros and not any(block)
        position += len(block)
    return None, only_zeros
