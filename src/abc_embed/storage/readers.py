"""Other people's readers (json, csv, tarfile, pyarrow, gzip), and what they raise as our errors.

What such a library raises on damaged bytes is no list that could be kept: assertions, struct
errors, lookups, its own classes. So each use stands in one block of `reader_errors`, and all of it
becomes the error of the one item at hand.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from abc_embed.errors import AbcError, DataError

BOM = b"\xef\xbb\xbf"
"""The byte-order mark that Windows editors put before UTF-8."""
LINE_LIMIT = 1 << 28
"""Bytes of one line; beyond it, the file is no file of lines."""
_WHY = 150  # characters of a library's own words


@contextmanager
def reader_errors(what: str, mend: str, *, damaged: str = "is damaged") -> Iterator[None]:
    """Whatever a reader raises inside becomes the `DataError` `what … (why); mend`; ours pass."""
    try:
        yield
    except AbcError:
        raise
    except Exception as problem:  # noqa: BLE001  (of a reader of damaged bytes, anything)
        raise DataError(f"{what} {_why(problem, damaged)}; {mend}") from None


def _why(problem: Exception, damaged: str) -> str:
    if isinstance(problem, MemoryError):
        return "does not fit into memory"
    if isinstance(problem, UnicodeDecodeError):
        return f"is not UTF-8 (byte {problem.start:,})"
    if isinstance(problem, OSError) and problem.strerror and type(problem).__module__ == "builtins":
        return f"cannot be read: {problem.strerror}"
    words = (str(problem).strip() or type(problem).__name__).splitlines()[0][:_WHY]
    return f"{damaged} ({words})"


def decode_text(data: bytes) -> str:
    """UTF-8 with or without a byte-order mark."""
    return data.removeprefix(BOM).decode()


def load_json(data: bytes | str, *, finite: bool = False) -> Any:
    """JSON values as others write them; with `finite`, NaN and infinities are refused.

    A `DataError` says that it is no JSON, nested too deep, or has a number of thousands of digits.
    """
    try:
        text = decode_text(data) if isinstance(data, bytes) else data
        return json.loads(text, parse_constant=_refuse_constant if finite else None)
    except UnicodeDecodeError as problem:
        raise DataError(f"is not UTF-8 (byte {problem.start:,})") from None
    except json.JSONDecodeError as problem:
        raise DataError(f"is not JSON (character {problem.pos + 1})") from None
    except RecursionError:
        raise DataError("is not JSON that can be read (nested too deep)") from None
    except ValueError as problem:  # a constant, or more digits than Python converts
        raise DataError(f"is not JSON ({str(problem).split(';')[0][:_WHY]})") from None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def read_lines(file: IO[bytes], path: Path) -> Iterator[tuple[int, int, bytes]]:
    """(number from 1, first byte, line) of each line that is not blank, to the true end.

    Raises:
        DataError: a line is longer than `LINE_LIMIT`, or the file is damaged there.
    """
    number = start = 0
    while True:
        with reader_errors(str(path), "get it again"):
            line = file.readline(LINE_LIMIT)
        if not line:
            return
        if len(line) == LINE_LIMIT:
            raise DataError(
                f"{path}:{number + 1}: the line has {LINE_LIMIT:,} bytes or more, as no record has"
            )
        number += 1
        if line.removeprefix(BOM).strip():
            yield number, start, line
        start += len(line)
