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
        self._inflated: _GzipStream | None = None

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
        return io.BufferedReader(_GzipStream(self.path, self._states), _PIECE)

    def read_at(self, start: int, size: int) -> bytes:
        """`size` bytes from `start` on, fewer only at the end; raises as `stream`."""
        if not self.gzipped:
            with open_file(self.path) as file:
                file.seek(start)
                return file.read(size)
        if self._process != os.getpid():  # forked: the file's place is the parent's
            self._reset()
        with self._lock:
            self._inflated = self._inflated or _GzipStream(self.path, self._states)
            self._inflated.seek(start)
            pieces = []
            while size > 0 and (piece := self._inflated.read(min(size, _PIECE))):
                pieces.append(piece)
                size -= len(piece)
            return b"".join(pieces)


class _GzipStream(io.RawIOBase):
    """What is inside gzip; a step back costs the way from the last state that was kept."""

    def __init__(self, path: Path, states: list[tuple[int, int, Any]]) -> None:
        """Begins at one of `states`, and adds to them."""
        self._file, self._states = open_file(path), states
        self._spacing = _SPACING
        self._position = 0
        self._restore(0)

    def _restore(self, number: int) -> None:
        self._start, packed, state = self._states[number]
        self._decoder, self._block, self._input = state.copy(), b"", b""
        self._file.seek(packed)

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
        ahead = self._position - (self._start + len(self._block))
        nearest = bisect_right(self._states, self._position, key=lambda state: state[0]) - 1
        if self._position < self._start or (
            ahead > 0 and self._states[nearest][0] > self._start + len(self._block)
        ):
            self._restore(nearest)
        while self._position >= self._start + len(self._block):
            if not self._inflate():
                return 0
        view = memoryview(buffer).cast("B")
        at = self._position - self._start
        count = min(len(view), len(self._block) - at)
        view[:count] = self._block[at : at + count]
        self._position += count
        return count

    def _inflate(self) -> bool:
        """The next block; False at the true end of the stream."""
        self._start += len(self._block)
        self._block = b""
        while not self._block:
            if self._decoder.eof:
                self._input = self._decoder.unused_data or self._input
                while not self._input.lstrip(b"\0"):  # zeros may follow, and nothing else
                    self._input = self._file.read(_PIECE)
                    if not self._input:
                        return False
                self._input = self._input.lstrip(b"\0")
                if not (self._input + self._file.peek(1)[:1]).startswith(_MAGIC):
                    raise gzip.BadGzipFile("what follows the end of the gzip stream is no gzip")
                self._decoder = _decoder()
            self._input = self._input or self._file.read(_PIECE)
            if not self._input:
                raise EOFError("the gzip stream breaks off")
            self._block = self._decoder.decompress(self._input, _PIECE)
            self._input = self._decoder.unconsumed_tail
        self._keep()
        return True

    def _keep(self) -> None:
        """Remember the state after this block, if the last one is far."""
        end = self._start + len(self._block)
        if end - self._states[-1][0] < self._spacing or self._decoder.eof:
            return
        packed = self._file.tell() - len(self._input)
        self._states.append((end, packed, self._decoder.copy()))
        if len(self._states) > _STATES:
            del self._states[1::2]
            self._spacing *= 2

    def close(self) -> None:
        self._file.close()
        super().close()


def _decoder() -> Any:
    return zlib.decompressobj(wbits=31)
