"""What is known of an image beside its content: size, EXIF date, columns of a caption file."""

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from abc_embed.errors import DataError, InputError, MissingExtraError
from abc_embed.inputs import read_header

if TYPE_CHECKING:
    import pyarrow

NAMES = ("path", "file", "file_name", "filename", "image")
"""What the column that names an image may be called, the first that is there."""
OWN = {
    "path",
    "content",
    "size",
    "mtime_ns",
    "vanished",
    "width",
    "height",
    "taken",
    "vector",
    "detail",
}
"""Columns that every index has itself."""


def describe(image: Path | bytes) -> dict[str, Any]:
    """`width` and `height` as it is seen, and `taken` like 2025-01-31T12:30:00; None if unknown."""
    values: dict[str, Any] = {"width": None, "height": None, "taken": None}
    with suppress(InputError):  # embedding it says what is wrong
        header = read_header(image)
        values["width"], values["height"] = header.width, header.height
        values["taken"] = _as_date(header.taken or "")
    return values


def _as_date(taken: str) -> str | None:
    """EXIF's date as ISO 8601; cameras without a clock write blanks, zeros and more."""
    day, time = taken[:10].replace(":", "-"), taken[11:19]
    for text in (f"{day}T{time}", day):
        with suppress(ValueError):
            return datetime.fromisoformat(text).isoformat(timespec="seconds")
    return None


@dataclass(frozen=True, slots=True)
class Captions:
    """Columns of a CSV or JSONL file, one row an image."""

    schema: "pyarrow.Schema"
    rows: dict[str, tuple[Any, ...]]
    """By the image's name as it stands in the file."""
    folder: Path
    """What names are relative to; else to a folder that is indexed."""

    def by_path(self, paths: Iterable[str], folders: Iterable[Path]) -> dict[str, dict[str, Any]]:
        """The columns of each image that has any."""
        roots = [self.folder.absolute(), *folders]
        named: dict[str, tuple[Any, ...]] = {}
        for name, values in self.rows.items():
            for root in roots:
                named.setdefault(str(root / name), values)
        columns = self.schema.names
        return {p: dict(zip(columns, named[p], strict=True)) for p in paths if p in named}


def read_captions(path: Path) -> Captions:
    """Read a caption file.

    Raises:
        DataError: it cannot be read, or does not say which image a row is about.
    """
    try:
        import pyarrow
        import pyarrow.csv
        import pyarrow.json
    except ImportError:
        raise MissingExtraError.of("index", "an index") from None
    read = {".csv": pyarrow.csv.read_csv, ".jsonl": pyarrow.json.read_json}.get(path.suffix.lower())
    if read is None:
        raise DataError(f"{str(path)!r} ends neither in .csv nor in .jsonl; give one of these")
    try:
        table = read(path)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise DataError(f"the caption file {str(path)!r} cannot be read: {why}") from error
    key = next((name for name in NAMES if name in table.column_names), None)
    if key is None:
        raise DataError(f"no column of {str(path)!r} names the image; call it one of {NAMES}")
    columns = [name for name in table.column_names if name != key]
    if not columns:
        raise DataError(
            f"{str(path)!r} has no column beside {key!r}; it says nothing of the images"
        )
    if taken := sorted(set(columns) & OWN):
        raise DataError(f"{str(path)!r} has a column {taken[0]!r}, which the index has itself")
    fields = [pyarrow.field(name, _kind(table.schema.field(name).type, path)) for name in columns]
    schema = pyarrow.schema(fields)
    names = table[key].cast(pyarrow.string()).to_pylist()
    values = [table[name].cast(schema.field(name).type).to_pylist() for name in columns]
    rows = dict(zip(names, zip(*values, strict=True), strict=True))
    return Captions(schema, rows, path.parent)


def _kind(found: Any, path: Path) -> Any:
    """The type that a column has in the index: whole numbers, numbers, yes or no, else text."""
    import pyarrow
    from pyarrow import types

    if types.is_nested(found):
        raise DataError(f"{str(path)!r} has lists or objects in a column; give plain values")
    for test, kind in (
        (types.is_boolean, pyarrow.bool_()),
        (types.is_integer, pyarrow.int64()),
        (types.is_floating, pyarrow.float64()),
    ):
        if test(found):
            return kind
    return pyarrow.string()
