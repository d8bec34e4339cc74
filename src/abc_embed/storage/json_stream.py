"""JSON files of any size, one element at a time; a damaged file is an error that says where.

Python's own reader needs ten times the file in memory.
"""

import json
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

from abc_embed.errors import DataError

_CHUNK_CHARS = 1 << 20  # characters read at a time
_MAX_CHARS = 1 << 28  # characters of one element: beyond it, the file is damaged
_NUMBER = "+-.0123456789eE"
_NEAR_END = 16  # an error so near the end of what was read may only mean: read more


def stream_json(path: Path, *, chunk_chars: int = _CHUNK_CHARS) -> Iterator[tuple[str, int, Any]]:
    """(name, number, element) of a JSON list, or of each list in a JSON object, one at a time.

    The name is empty for a list; of an object's other values, the number is 0. Never more than
    one element and `chunk_chars` characters are in memory.

    Raises:
        DataError: the file is not there, or is damaged; names the element.
    """
    try:
        with path.open(encoding="utf-8-sig") as file:
            reader = _Reader(file.read, str(path), chunk_chars)
            opening = reader.next()
            if opening == "[":
                yield from (("", number, value) for number, value in reader.elements())
            elif opening == "{":
                yield from reader.fields()
            else:
                raise DataError(f"{path} is no JSON list or object; is it the right file?")
    except UnicodeDecodeError:
        raise DataError(f"{path} is not UTF-8; get the file again") from None
    except OSError as problem:
        raise DataError(f"{path} cannot be read: {problem.strerror}; mend that") from problem


class _Reader:
    """A JSON text of any length, a piece at a time."""

    def __init__(self, read: Callable[[int], str], name: str, chunk_chars: int) -> None:
        self._read, self._name, self._chunk_chars = read, name, chunk_chars
        self._text, self._at, self._at_end = "", 0, False
        self._decode = json.JSONDecoder().raw_decode
        self._inside = "the beginning"

    def _more(self) -> bool:
        """Whether there was more; what is done with is forgotten."""
        size = max(self._chunk_chars, len(self._text) - self._at)
        new = "" if self._at_end else self._read(size)
        self._text, self._at = self._text[self._at :] + new, 0
        self._at_end = not new
        if len(self._text) > _MAX_CHARS:
            raise self._damaged()
        return bool(new)

    def _damaged(self) -> DataError:
        return DataError(
            f"{self._name} is cut off or damaged at {self._inside}; get the file again"
        )

    def next(self) -> str:
        """The next character that is no space, taken; empty at the end."""
        while True:
            while self._at < len(self._text):
                self._at += 1
                if not self._text[self._at - 1].isspace():
                    return self._text[self._at - 1]
            if not self._more():
                return ""

    def value(self) -> Any:
        """The next value, whole."""
        if not self.next():
            raise self._damaged()
        self._at -= 1
        while True:
            try:
                value, end = self._decode(self._text, self._at)
                length = end - self._at
                ended = end < len(self._text) and self._text[end] not in _NUMBER
                if ended or not self._more():  # "12" may go on as "123", "1.2" as "1.2e3"
                    self._at += length
                    return value
            except json.JSONDecodeError as problem:
                early = problem.pos < len(self._text) - _NEAR_END
                if (early and "Unterminated" not in problem.msg) or not self._more():
                    raise self._damaged() from None
            except RecursionError:
                raise self._damaged() from None

    def elements(self, name: str = "") -> Iterator[tuple[int, Any]]:
        """Number and value of each element of a list, after its bracket."""
        self._inside = f"element 0 of {name or 'the list'}"
        for number in self._numbers("]"):
            self._inside = f"element {number} of {name or 'the list'}"
            yield number, self.value()

    def fields(self) -> Iterator[tuple[str, int, Any]]:
        """The elements of each list in an object, and its other values, after its brace."""
        for _ in self._numbers("}"):
            name = self.value()
            if not isinstance(name, str) or self.next() != ":":
                raise self._damaged()
            self._inside = name
            if (mark := self.next()) == "[":
                yield from ((name, number, value) for number, value in self.elements(name))
            else:
                self._at -= bool(mark)
                yield name, 0, self.value()

    def _numbers(self, end: str) -> Iterator[int]:
        """The number of each element when its turn to be read comes, up to the bracket `end`."""
        if (mark := self.next()) == end:
            return
        self._at -= bool(mark)
        for number in count():
            yield number
            if (mark := self.next()) == end:
                return
            if mark != ",":
                raise self._damaged()
