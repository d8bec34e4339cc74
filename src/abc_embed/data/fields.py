"""JSON lines as dataclasses, checked field by field.

Every `DataError` here is a sentence that names the field and the mend; `parse_lines` puts file and
line before it.
"""

import dataclasses
import math
import re
import reprlib
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from abc_embed.errors import DataError
from abc_embed.storage.files import open_file
from abc_embed.storage.readers import load_json, read_lines

T = TypeVar("T")

_SURROGATE = re.compile("[\ud800-\udfff]")
_FAR = 1e9  # no picture has so many pixels; also false for what is not a number
_DEPTH = 64  # of lists and objects in each other; readers of JSON end at some hundreds
_MOST_BITS = 4096  # of a whole number; Python writes none of more than 4,300 digits

OnBadLine = Callable[[str, DataError], None]
"""Called with the place of a line and what is wrong with it."""


def parse_lines(
    path: Path,
    parse: Callable[[bytes], T],
    id_of: Callable[[T], str] | None = None,
    on_bad_line: OnBadLine | None = None,
) -> Iterator[tuple[int, T]]:
    """Number and value of each line that is not blank, one by one; ids must differ.

    With `on_bad_line` a wrong line is reported there, and the others go on.

    Raises:
        DataError: a line is wrong; names file and line.
        OSError: the file cannot be read.
    """
    lines: dict[str, int] = {}
    with open_file(path) as file:
        for number, _, line in read_lines(file, path):
            try:
                value = parse(line)
                name = id_of(value) if id_of else str(number)
                if name in lines:
                    raise DataError(
                        f"the id {name!r} is that of line {lines[name]} too; give each its own"
                    )
            except DataError as wrong:
                if on_bad_line is None:
                    raise DataError(f"{path}:{number}: {wrong}") from None
                on_bad_line(f"{path}:{number}", wrong)
                continue
            if id_of:
                lines[name] = number
            yield number, value


def parse_json(line: bytes) -> object:
    """One line of a file as JSON values; `DataError` says where it is none."""
    try:
        parsed: object = load_json(line, finite=True)
    except DataError as problem:
        if "UTF-8" in str(problem):
            mend = "save the file as UTF-8"
        else:
            whole = line.endswith(b"\n")
            mend = "write one object per line" if whole else "the file may be cut off"
        raise DataError(f"the line {problem}; {mend}") from None
    return parsed


def parse_object(kind: type[T], row: object) -> T:
    """A dataclass from a JSON object: every name known, every needed one there, lists as tuples.

    A list of dataclasses is read likewise; an error in one says which.
    """
    if not isinstance(row, dict):
        raise DataError(f"found {short(row)} where an object {{…}} is meant")
    needed, elements = _fields(kind)  # type: ignore[arg-type]
    for name in row:
        if name not in needed:
            raise DataError(f"there is no field {name!r}; the fields are {', '.join(needed)}")
    for name in needed:
        if needed[name] and name not in row:
            raise DataError(f"{name} is missing; give it")
    values = dict(row)
    for name in values.keys() & elements.keys():
        if not isinstance(values[name], list):
            raise DataError(f"{name} is {short(values[name])}; give a list […]")
        values[name] = tuple(_parse_elements(name, elements[name], values[name]))
    return kind(**values)


def _parse_elements(name: str, kind: type, values: list[Any]) -> Iterator[Any]:
    for number, value in enumerate(values):
        try:
            yield parse_object(kind, value) if dataclasses.is_dataclass(kind) else value
        except DataError as wrong:
            raise DataError(f"{name}[{number}]: {wrong}") from None


@cache
def _fields(kind: type) -> tuple[dict[str, bool], dict[str, type]]:
    """Which fields are needed, and of those that are sequences, the type of an element."""
    missing = dataclasses.MISSING
    needed = {
        f.name: f.default is missing and f.default_factory is missing
        for f in dataclasses.fields(kind)
    }
    hints = typing.get_type_hints(kind)
    elements = {
        name: typing.get_args(hints[name])[0]
        for name in needed
        if typing.get_origin(hints[name]) in (tuple, Sequence)
    }
    return needed, elements


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


def check_json(name: str, value: object, depth: int = 0) -> None:
    """Raises `DataError` unless JSON can hold the value, and any reader can read it."""
    if depth > _DEPTH:
        raise DataError(f"{name} is nested more than {_DEPTH} deep; make it flatter")
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if not isinstance(key, str):
                raise DataError(f"{name} has the key {short(key)}; give a text")
            check_json(name, inner, depth + 1)
    elif isinstance(value, list | tuple):
        for inner in value:
            check_json(name, inner, depth + 1)
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise DataError(f"{name} holds {value}, which is no JSON; leave it out")
    elif isinstance(value, int):
        if value.bit_length() > _MOST_BITS:
            raise DataError(f"{name} holds a number of over 1,200 digits; give it as a text")
    elif value is not None and not isinstance(value, str):
        raise DataError(f"{name} holds {short(value)}, which is no JSON value; leave it out")


def check_image(image: object) -> None:
    """Raises `DataError` unless it is a path that stays inside the folder it is relative to."""
    check_text("image", image)
    if not stays_inside(str(image)):
        raise DataError(
            f"image is {short(image)}; give a path inside the folder of the records file"
            f"{FETCH_HINT if is_address(image) else ''}"
        )


FETCH_HINT = " (nothing is fetched: get the files with img2dataset, and open what it writes)"


def is_address(image: object) -> bool:
    """Whether it is a web address, which is never fetched."""
    return isinstance(image, str) and re.match(r"(?i)[a-z0-9+.-]{2,}://", image.strip()) is not None


def stays_inside(path: str) -> bool:
    """Whether a relative path does not lead out of the folder that it starts from."""
    parts = path.replace("\\", "/").split("/")
    return bool(parts[0]) and not parts[0].endswith(":") and ".." not in parts and "\0" not in path


def is_number(value: object) -> bool:
    """Whether this is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _FAR


def is_count(value: object, *, least: int) -> bool:
    """Whether this is a whole number of at least `least`."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def short(value: object) -> str:
    """The value for a message, cut if it is long."""
    return reprlib.repr(value) if not isinstance(value, str) else repr(value[:60])
