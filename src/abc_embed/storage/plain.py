"""The content of a file from any place, whether it is gzipped or not.

`indexed_gzip`, which reads the published sets, takes a cut stream for a whole one and checks no
sums; `gzip` inflates from the beginning for every step back. Here the state of zlib is kept every
few megabytes, and a stream that does not end as it should is an error.
"""

import gzip
import io
import os
import threading
import zlib
from bisect import bisect_right
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from abc_embed.storage.files import open_file

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_MAGIC = b"\x1f\x8b"
_SPACING = 4_000_000
"""Plain bytes between two states at first; twice as many whenever there are too many states."""
_STATES = 512  # of about 45 kB each
_PIECE = 1 << 16

Blocks = Iterator[tuple[int, bytes]]
"""Plain bytes that follow each other, none empty, each with its place."""


class PlainFile:
    """A file by place. It can be pickled, forked and used by several threads."""

    def __init__(self, path: Path) -> None:
        """Raises `OSError` when it cannot be opened, or is no ordinary file."""
        self.path = path
        with open_file(path) as file:
            self.gzipped = file.peek(2).startswith(_MAGIC)
        self._reset()

    def _reset(self) -> None:
        self._process, self._lock = os.getpid(), threading.Lock()
        self._states: list[tuple[int, int, Any]] = [(0, 0, _decoder())]
        """(plain byte, packed byte, state of zlib) of places where inflating can begin."""
        self._spacing = _SPACING
        self._inflated = BlockStream(self._blocks)

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "gzipped": self.gzipped}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._reset()

    def stream(self) -> IO[bytes]:
        """The content from its beginning.

        Raises:
            OSError: it cannot be opened. Reading raises `EOFError`, `zlib.error` or
                `gzip.BadGzipFile` where a gzip stream is cut off or damaged.
        """
        if not self.gzipped:
            return open_file(self.path)
        return io.BufferedReader(BlockStream(self._blocks), _PIECE)

    def read_at(self, start: int, size: int) -> bytes:
        """`size` bytes from `start` on, fewer only at the end; raises as `stream`."""
        if not self.gzipped:
            with open_file(self.path) as file:
                file.seek(start)
                return file.read(size)
        if self._process != os.getpid():  # forked: the file's place is the parent's
            self._reset()
        with self._lock:
            if start - self._inflated.tell() > _SPACING:  # a state may be known that is nearer
                self._inflated = BlockStream(self._blocks)
            self._inflated.seek(start)
            pieces = []
            while size > 0 and (piece := self._inflated.read(min(size, _PIECE))):
                pieces.append(piece)
                size -= len(piece)
            return b"".join(pieces)

    def _blocks(self, start: int) -> Blocks:
        """What is inside gzip, from the last known state before `start` to the true end."""
        number = bisect_right(self._states, start, key=lambda state: state[0]) - 1
        place, packed, state = self._states[number]
        decoder, data = state.copy(), b""
        with open_file(self.path) as file:
            file.seek(packed)
            while True:
                if decoder.eof:
                    data = decoder.unused_data or data
                    while not data.lstrip(b"\0"):  # zeros may follow, and nothing else
                        data = file.read(_PIECE)
                        if not data:
                            return
                    data = data.lstrip(b"\0")
                    if not (data + file.peek(1)[:1]).startswith(_MAGIC):
                        raise gzip.BadGzipFile("what follows the end of the gzip stream is no gzip")
                    decoder = _decoder()
                data = data or file.read(_PIECE)
                if not data:
                    raise EOFError("the gzip stream breaks off")
                block = decoder.decompress(data, _PIECE)
                data = decoder.unconsumed_tail
                if not block:
                    continue
                yield place, block
                place += len(block)
                if place - self._states[-1][0] >= self._spacing and not decoder.eof:
                    self._keep((place, file.tell() - len(data), decoder.copy()))

    def _keep(self, state: tuple[int, int, Any]) -> None:
        self._states.append(state)
        if len(self._states) > _STATES:
            del self._states[1::2]
            self._spacing *= 2


def _decoder() -> Any:
    return zlib.decompressobj(wbits=31)


class BlockStream(io.RawIOBase):
    """Blocks as a file: read on, or anew from a place that lies before them."""

    def __init__(self, blocks_from: Callable[[int], Blocks]) -> None:
        """`blocks_from` gives the blocks from a place on; they may begin before it."""
        self._blocks_from = blocks_from
        self._position = 0
        self._blocks: Blocks | None = None
        self._start, self._block = 0, b""

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        if whence == os.SEEK_END:
            raise io.UnsupportedOperation("the end is not known before it is reached")
        self._position = offset + (self._position if whence == os.SEEK_CUR else 0)
        return self._position

    def readinto(self, buffer: "WriteableBuffer", /) -> int:
        if self._blocks is None or self._position < self._start:
            self._blocks, self._start, self._block = self._blocks_from(self._position), 0, b""
        while self._position >= self._start + len(self._block):
            try:
                found = next(self._blocks, None)
            except BaseException:
                self._blocks = None  # which has ended: to go on would look like the end
                raise
            if found is None:
                self._start, self._block = self._start + len(self._block), b""
                return 0
            self._start, self._block = found
        view = memoryview(buffer).cast("B")
        at = self._position - self._start
        count = min(len(view), len(self._block) - at)
        view[:count] = self._block[at : at + count]
        self._position += count
        return count
