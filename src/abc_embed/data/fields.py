"""Rows of JSON, field by field: what a file of ours may hold, and what is said when it does not.

Does: parse a line, match a row with the fields of a dataclass, check texts and paths. Does not:
know what a record is (``records``, ``bench.schema`` and ``bench.audit_sets`` do).

Every function here raises `DataError` with a sentence that names the field and the mend; the caller
puts file and line before it.
"""

import dataclasses
import json
import re
import reprlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from abc_embed.errors import DataError

T = TypeVar("T")

_SURROGATE = re.compile("[\ud800-\udfff]")
_FAR = 1e9  # no picture has so many pixels; also false for what is not a number


def parse_json(line: bytes) -> object:
    """One line of a file as JSON values; `DataError` says where it is none."""
    try:
        parsed: object = json.loads(line.decode("utf-8"), parse_constant=_refuse_constant)
    except UnicodeDecodeError:
        raise DataError("the line is not UTF-8; save the file as UTF-8") from None
    except (ValueError, RecursionError) as problem:
        place = problem.pos + 1 if isinstance(problem, json.JSONDecodeError) else None
        where = f" (character {place})" if place else ""
        mend = "write one object per line" if line.endswith(b"\n") else "the file may be cut off"
        raise DataError(f"the line is not JSON{where}; {mend}") from None
    return parsed


def parse_lines(path: Path, parse: Callable[[bytes], T]) -> Iterator[tuple[int, T]]:
    """(line number, what `parse` makes of the line) of a file, blank lines left out.

    Raises:
        DataError: that of `parse`, with file and line before it.
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                try:
                    row = parse(line)
                except DataError as wrong:
                    raise DataError(f"{path}:{number}: {wrong}") from None
                yield number, row


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def fields_of(kind: type, row: object) -> dict[str, Any]:
    """The row as keyword arguments of `kind`: every name known, every needed one there."""
    if not isinstance(row, dict):
        raise DataError(f"found {short(row)} where an object {{…}} is meant")
    known = {f.name: f for f in dataclasses.fields(kind)}
    for name in row:
        if name not in known:
            raise DataError(f"there is no field {name!r}; the fields are {', '.join(known)}")
    for name, its in known.items():
        optional = (
            its.default is not dataclasses.MISSING or its.default_factory is not dataclasses.MISSING
        )
        if not optional and name not in row:
            raise DataError(f"{name} is missing; give it")
    return dict(row)


def list_of(name: str, value: object) -> list[Any]:
    """The value, which must be a list; `name` is in the message."""
    if not isinstance(value, list):
        raise DataError(f"{name} is {short(value)}; give a list […]")
    return value


def check_text(name: str, value: object) -> None:
    """Raises `DataError` unless the value is a text, whole and not empty."""
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{name} is {short(value)}; give a text that is not empty")
    if not value.isascii() and _SURROGATE.search(value):
        raise DataError(f"{name} is {short(value)}, with half a character; mend its escapes")


def check_texts(name: str, values: tuple[str, ...]) -> None:
    """`check_text` of each, named by its place."""
    for number, value in enumerate(values):
        check_text(f"{name}[{number}]", value)


def check_image(image: object) -> None:
    """Raises `DataError` unless it is a path that stays inside the folder it is relative to."""
    check_text("image", image)
    parts = str(image).replace("\\", "/").split("/")
    if ".." in parts or not parts[0] or parts[0].endswith(":") or "\0" in str(image):
        raise DataError(
            f"image is {short(image)}; give a path inside the folder of the records file"
        )


def are_numbers(values: Sequence[object], *, count: int) -> bool:
    """Whether these are `count` finite numbers."""
    return len(values) == count and all(
        isinstance(v, int | float) and not isinstance(v, bool) and abs(v) < _FAR for v in values
    )


def is_count(value: object, *, least: int) -> bool:
    """Whether this is a whole number of at least `least`."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def short(value: object) -> str:
    """The value for a message, cut if it is long."""
    return reprlib.repr(value) if not isinstance(value, str) else repr(value[:60])
