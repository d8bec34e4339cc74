"""A TOML file into frozen dataclasses, strictly: every name known, every type right, none missing.

It knows no field. What is wrong is one sentence with the field's name, the file and the line, or
`--set` where the value came from there.
"""

import dataclasses
import difflib
import math
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from abc_embed.errors import ConfigError

T = TypeVar("T")

_TYPE_NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
_HEADER = re.compile(r"\s*\[\s*(?P<name>[^\[\]]+?)\s*\]\s*(#.*)?$")
_KEY = re.compile(r"""\s*(?P<name>[\w"'.\s-]+?)\s*=""")


def read_toml(config_class: type[T], path: str | Path, overrides: Sequence[str] = ()) -> T:
    """The dataclass from a file, after `overrides` of the form `"section.field=value"`.

    A message that begins with a field's dotted name, also one of the dataclass's own checks, is
    given the place of that field.

    Raises:
        ConfigError: anything is not exactly as the dataclass says.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise ConfigError(f"cannot read the configuration {path}: {reason}") from error
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error
    overridden: set[str] = set()
    for assignment in overrides:
        name = _apply_override(values, assignment)
        if name in overridden:
            raise ConfigError(f"--set {name} is given twice; say which one you mean")
        overridden.add(name)
    try:
        return _build(config_class, values, "")
    except ConfigError as error:
        name = re.split(r"[\s:]", str(error), maxsplit=1)[0]
        where = "--set" if name in overridden else _location(path, text, name)
        raise ConfigError(f"{error} ({where})") from error


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables as dotted names."""
    dotted: dict[str, Any] = {}
    for key, value in values.items():
        inner = isinstance(value, dict)
        dotted |= flatten(value, f"{prefix}{key}.") if inner else {f"{prefix}{key}": value}
    return dotted


def _apply_override(values: dict[str, Any], assignment: str) -> str:
    """Write one `section.field=value` into nested tables; returns the dotted name."""
    name, equals, raw = assignment.partition("=")
    name, raw = name.strip(), raw.strip()
    if not equals or not re.fullmatch(r"[\w-]+(\.[\w-]+)*", name):
        raise ConfigError(f"--set {assignment!r} is not of the form section.field=value")
    try:
        parsed = tomllib.loads(f"value = {raw}")
    except tomllib.TOMLDecodeError:
        parsed = {"value": raw}  # a bare word is a string: a shell user need not quote twice
    value = parsed.pop("value")
    if parsed or isinstance(value, dict):
        raise ConfigError(f"--set {assignment!r} sets more than one field; give each its own --set")
    *sections, last = name.split(".")
    table: Any = values
    for section in sections:
        table = table.setdefault(section, {})
        if not isinstance(table, dict):
            raise ConfigError(f"--set {assignment!r}: {section} is a value, not a section")
    if isinstance(table.get(last), dict):
        raise ConfigError(f"--set {assignment!r}: {name} is a section; set one of its fields")
    table[last] = value
    return name


def _location(path: Path, text: str, name: str) -> str:
    """`file, line N` of a dotted field name; else of the nearest section that holds it; else the
    file alone. Sections, dotted keys and inline tables are all found."""
    section, nearest, depth = "", 0, 0
    for number, line in enumerate(text.splitlines(), 1):
        if header := _HEADER.match(line):
            full = section = _unquoted(header["name"])
        elif key := _KEY.match(line):
            full = ".".join(filter(None, (section, _unquoted(key["name"]))))
        else:
            continue
        if full == name:
            return f"{path}, line {number}"
        if name.startswith(f"{full}.") and len(full) > depth:
            nearest, depth = number, len(full)
    return f"{path}, line {nearest}" if nearest else str(path)


def _unquoted(name: str) -> str:
    """A dotted TOML name without quotes and blanks."""
    return ".".join(part.strip().strip("\"'") for part in name.split("."))


def _build(config_class: type[T], values: Mapping[str, Any], prefix: str) -> T:
    """A dataclass from a table."""
    hints = get_type_hints(config_class)
    arguments: dict[str, Any] = {}
    for key, value in values.items():
        if key not in hints:
            similar = difflib.get_close_matches(key, hints, n=1)
            mend = f"did you mean {similar[0]}?" if similar else f"known here: {', '.join(hints)}"
            raise ConfigError(f"{prefix}{key} is not a field; {mend}")
        arguments[key] = _convert(hints[key], value, f"{prefix}{key}")
    for item in dataclasses.fields(config_class):  # type: ignore[arg-type]
        optional = (item.default, item.default_factory) != (dataclasses.MISSING,) * 2
        if item.name not in arguments and not optional:
            raise ConfigError(f"{prefix}{item.name} is missing; give it a value")
    return config_class(**arguments)


def _convert(hint: Any, value: Any, name: str) -> Any:
    """`value` if it is of the annotated type; whole numbers pass as floats, nothing else bends."""
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, dict):
            raise ConfigError(f"{name} is {value!r}; it must be a section")
        return _build(hint, value, f"{name}.")  # type: ignore[arg-type]
    if get_origin(hint) is Literal:
        choices = get_args(hint)
        if value not in choices:
            listed = ", ".join(map(repr, choices))
            raise ConfigError(f"{name} is {value!r}; it must be one of {listed}")
        return value
    if get_origin(hint) is tuple:
        hints, any_length = get_args(hint), get_args(hint)[-1] is Ellipsis
        if any_length and isinstance(value, list):
            hints = hints[:1] * len(value)
        if not isinstance(value, list) or len(value) != len(hints):
            length = "" if any_length else f" of {len(hints)} numbers"
            raise ConfigError(f"{name} is {value!r}; it must be a list{length}")
        return tuple(_convert(hint, part, name) for hint, part in zip(hints, value, strict=True))
    if get_origin(hint) is dict:
        if not isinstance(value, dict):
            raise ConfigError(f"{name} is {value!r}; it must be a section")
        inner = get_args(hint)[1]
        return {key: _convert(inner, part, f"{name}.{key}") for key, part in value.items()}
    if hint is float and type(value) is int:
        value = float(value)
    if type(value) is not hint:
        quoted = f', in quotes: "{value}"' if hint is str and type(value) in (int, float) else ""
        raise ConfigError(f"{name} is {value!r}; it must be {_TYPE_NAMES[hint]}{quoted}")
    if hint is float and not math.isfinite(value):
        raise ConfigError(f"{name} is {value!r}; it must be a number that is finite")
    return value
