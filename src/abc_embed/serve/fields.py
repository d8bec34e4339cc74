"""The fields of a request: each read by name and type, or refused with its place in the request.

Nothing here opens a file or an address: an image becomes bytes, or the request is refused.
"""

import base64
import binascii
import json
import re
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from abc_embed.errors import RequestError

ReadImage = Callable[[object, str], bytes]
"""The value of an image and its place in the request -> the bytes of the image file."""

MAX_VALUES = 1_000_000
"""Values in one body: each takes some 60 bytes when it is parsed, however short it is written."""

PLAIN_VALUES, PLAIN_LENGTH = 64, 8192

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_DATA_URL = re.compile(r"data:[^,;]*(?:;[^,;]*)*;base64,", re.IGNORECASE)


def parse_json(body: bytes) -> "Fields":
    """The body of a request, which must be a JSON object.

    Raises:
        RequestError: it is none, holds too many values, or text that is no Unicode.
    """
    if sum(map(body.count, (b",", b"[", b"{"))) > MAX_VALUES:  # a text's commas count too
        raise RequestError(f"the body has more than {MAX_VALUES:,} values; send fewer", None, 413)
    try:
        value = json.loads(body.decode("utf-8"), parse_constant=_refuse_constant)
        if b"\\ud" in body.lower():  # half of a surrogate pair cannot be sent back
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except RecursionError:
        raise RequestError("the body is nested too deeply; give a flat JSON object") from None
    except UnicodeEncodeError:
        raise RequestError("a text is no Unicode: half of a surrogate pair; send UTF-8") from None
    except ValueError as error:
        # What follows a colon is Python's advice to its programmer.
        why = error.msg if isinstance(error, json.JSONDecodeError) else str(error).split(":")[0]
        raise RequestError(f"the body is no JSON ({why}); give a JSON object in UTF-8") from None
    return Fields(value, "")


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


class Fields:
    """A JSON object, its fields taken one by one; what is left at the end is not known."""

    def __init__(self, value: object, place: str) -> None:
        if not isinstance(value, dict):
            what = f"{place} is" if place else "the body is"
            raise RequestError(f"{what} {kind_of(value)}; give a JSON object", place or None)
        self._values: dict[str, Any] = dict(value)
        self.place = place

    def __contains__(self, name: str) -> bool:
        return self._values.get(name) is not None

    @property
    def is_plain(self) -> bool:
        """Whether it holds a few short texts and no image: quick to take apart."""
        values = [v for f in self._values.values() for v in (f if isinstance(f, list) else [f])]
        if {"images", "modality"} & {*self._values} or len(values) > PLAIN_VALUES:
            return False
        if any(isinstance(value, dict | list) for value in values):
            return False
        return sum(len(value) for value in values if isinstance(value, str)) <= PLAIN_LENGTH

    def at(self, name: str) -> str:
        """The place of a field in the request."""
        return f"{self.place}.{name}" if self.place else name

    def take(self, name: str) -> Any:
        """The value of a field, or None where it is absent or null."""
        return self._values.pop(name, None)

    def text(self, name: str, *, required: bool = False) -> str | None:
        """A text; None where it may be left out and is."""
        value = self.take(name)
        if value is None and not required:
            return None
        if not isinstance(value, str):
            self.refuse(name, f"is {kind_of(value)}; give a text")
        return value

    def flag(self, name: str, default: bool) -> bool:
        """true or false."""
        value = self.take(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            self.refuse(name, f"is {kind_of(value)}; give true or false")
        return value

    def integer(self, name: str, *, least: int = 1, most: int = 1 << 31) -> int | None:
        """A whole number within bounds; None where it is left out."""
        value = self.take(name)
        if value is None:
            return None
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            self.refuse(name, f"must be a whole number from {least} to {most}")
        return value

    def number(self, name: str, *, least: float, most: float) -> float | None:
        """A number within bounds; None where it is left out."""
        value = self.take(name)
        if value is None:
            return None
        if not isinstance(value, int | float) or isinstance(value, bool):
            self.refuse(name, f"is {kind_of(value)}; give a number")
        if not least <= value <= most:
            self.refuse(name, f"must be a number from {least:g} to {most:g}")
        return float(value)

    def choice(self, name: str, options: Sequence[str], default: str) -> str:
        """One of several words."""
        value = self.take(name)
        if value is None:
            return default
        if value not in options:
            self.refuse(name, f"must be one of: {', '.join(options)}")
        return str(value)

    def items(self, name: str, most: int) -> list[tuple[str, Any]]:
        """The elements of a list that is not empty, each with its place."""
        value = self.take(name)
        if not isinstance(value, list) or not value:
            self.refuse(name, "must be a list with at least one element")
        if len(value) > most:
            self.refuse(name, f"has {len(value):,} elements and the most is {most:,}", status=413)
        return [(f"{self.at(name)}[{index}]", element) for index, element in enumerate(value)]

    def done(self) -> None:
        """Refuse what nobody has taken."""
        for name, value in self._values.items():
            if value is not None:
                self.refuse(name, "is not known here; leave it out")

    def refuse(self, name: str, why: str, status: int = 400) -> NoReturn:
        """One sentence about a field."""
        raise RequestError(f"{self.at(name)} {why}", self.at(name), status)


def image_bytes(value: object, place: str) -> bytes:
    """A data: URL or bare base64 -> the bytes of the image file.

    Raises:
        RequestError: an address (nothing is fetched), or no base64.
    """
    if not isinstance(value, str):
        raise RequestError(f"{place} is {kind_of(value)}; give the image as a data: URL", place)
    if value[:5].lower() == "data:":
        found = _DATA_URL.match(value)
        if not found:
            raise RequestError(f"{place} is a data: URL without ;base64, in it", place)
        value = value[found.end() :]
    elif is_address(value):
        raise RequestError(
            f"{place} is an address, and this server fetches nothing; send the image itself as a "
            "data: URL in base64",
            place,
        )
    try:
        data = base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        raise RequestError(f"{place} is no base64; give a data: URL", place) from None
    if not data:
        raise RequestError(f"{place} is empty; give the image as a data: URL", place)
    return data


def is_address(value: object) -> bool:
    """Whether it is a web address."""
    return isinstance(value, str) and _URL.match(value) is not None


def kind_of(value: object) -> str:
    """What a JSON value is, in words."""
    if value is None:
        return "missing"
    names = {str: "a text", bool: "true or false", int: "a number", float: "a number"}
    return names.get(type(value), "a list" if isinstance(value, list) else "an object")
