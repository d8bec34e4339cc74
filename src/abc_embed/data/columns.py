"""The columns of a row that others wrote -> a record, and what of it no field holds."""

import datetime
import decimal
import math
import uuid
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from abc_embed.data.dataset import Dataset, Row, read_head
from abc_embed.data.fields import short
from abc_embed.data.records import FIELDS, to_record
from abc_embed.errors import DataError
from abc_embed.storage.readers import load_json, reader_errors

SAMPLE_KEY = "__key__"
"""What webdataset calls the common beginning of a sample's files."""
ALIASES = {
    "id": ("id", "key", SAMPLE_KEY),
    "image": (
        *("image", "jpg", "jpeg", "png", "webp", "file_name", "filename", "file"),
        *("image_path", "image_name", "path"),
    ),
    "caption": ("caption", "text", "txt", "captions", "texts", "sentences"),
}
"""Our field -> what others call it, in the order in which it is looked for."""


def names_of(field: str, columns: Mapping[str, str]) -> Sequence[str]:
    """What a field may be called: by `columns` where they say it, else by its aliases."""
    return (columns[field],) if field in columns else ALIASES.get(field, (field,))


_DEPTH = 100  # of lists in each other, which no field needs
_MEND = "mend the row, or leave it out"


class ColumnDataset(Dataset):
    """Base of the forms that others write: each row has columns, under names of their own."""

    columns: Mapping[str, str]
    """Our field -> their column, as far as it was said; then come our names, then `ALIASES`."""

    def _row_of(
        self,
        number: int,
        values: Mapping[str, Any],
        image: Path | bytes,
        name: str,
        *,
        used: Iterable[str] = (),
        unused: Iterable[str] = (),
    ) -> Row:
        """A row of its columns.

        Width and height are the image's own where no column says them, the id is the row's number.
        What has no field goes into `meta`: dates and decimal numbers as text, NaN as null. Bytes go
        nowhere and are named in `Row.unused`.

        Args:
            number: Of the row.
            values: By column; None counts as absent.
            image: The image file, or where it is.
            name: Path to call the image by.
            used: Columns that say the image.
            unused: What of the row is left out already.

        Raises:
            DataError: a value cannot be, or the image's size cannot be read.
        """
        with reader_errors("the row", _MEND):
            left_out = {k for k, v in values.items() if isinstance(v, bytes | memoryview)}
            left_out = left_out.union(unused).difference(used)
            elsewhere = left_out.union(used)
            plain = {k: to_plain(v) for k, v in values.items() if k not in elsewhere}
            fields, taken = _fields(plain, self.columns)
            fields["image"] = name
            fields["id"] = _id(fields.get("id"), "id" in values, number)
            if "width" not in fields or "height" not in fields:
                _, width, height = read_head(image)
                fields = {"width": width, "height": height} | fields
            rest = {k: v for k, v in plain.items() if k not in taken and v is not None}
            fields["meta"] = _meta(rest)
            record = to_record(fields)
        return Row(self.place(number), record, image, tuple(sorted(left_out)))


def _fields(
    values: Mapping[str, Any], columns: Mapping[str, str]
) -> tuple[dict[str, Any], set[str]]:
    """Our fields but for image and meta, and which columns say them."""
    fields: dict[str, Any] = {}
    taken = {SAMPLE_KEY}
    for field in FIELDS:
        if field in ("image", "meta"):
            continue
        names = names_of(field, columns)
        column = next((name for name in names if values.get(name) is not None), None)
        if column is None or (column in taken and column != SAMPLE_KEY):
            continue
        fields[field] = values[column]
        taken.add(column)
    if isinstance(fields.get("caption"), list):
        if "captions" in fields:
            raise DataError("two columns hold lists of captions; name one: --column captions=…")
        fields["captions"] = _texts(fields.pop("caption"))
    elif isinstance(fields.get("captions"), list) and fields.get("caption") is not None:
        others = [text for text in fields["captions"] if text != fields["caption"]]
        fields["captions"] = [fields["caption"], *others]
    if "instructions" not in fields and (asked := _asked(values, columns, taken)):
        fields["instructions"] = [asked]
    for name in ("width", "height"):
        if name in fields:
            fields[name] = _whole(fields[name])
    negatives = fields.get("negatives")
    if any(isinstance(n, int) for n in (negatives if isinstance(negatives, list) else [negatives])):
        raise DataError(
            "negatives are numbers of rows, as the published data set has them; "
            "open its folder as abc-pretrain:FOLDER"
        )
    return fields, taken


def _asked(
    values: Mapping[str, Any], columns: Mapping[str, str], taken: set[str]
) -> dict[str, Any] | None:
    """The one instruction of a row that has it in columns of its own, like most sets of others."""
    names = {part: columns.get(part, part) for part in ("instruction", "answer", "kind")}
    if any(values.get(names[part]) is None for part in ("instruction", "answer")):
        return None
    taken.update(names.values())
    kind = values.get(names["kind"])
    asked = {part: values[names[part]] for part in ("instruction", "answer")}
    return asked | {"kind": "question" if kind is None else str(kind)}


def _texts(values: list[Any]) -> list[Any]:
    """Captions of a list; the hub's "sentences" are objects that hold one each."""
    return [v.get("raw", v.get("text", v)) if isinstance(v, dict) else v for v in values]


def _whole(value: Any) -> Any:
    """A whole number, also where it is written as a text or with a point."""
    if isinstance(value, str) and value.strip().removesuffix(".0").isascii():
        text = value.strip().removesuffix(".0")
        return int(text) if text.isdigit() and len(text) < 20 else value
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def _id(value: Any, has_column: bool, number: int) -> str:
    """The id; of a row that has none among those that have, one that no number is."""
    if value is None:
        return f"row-{number}" if has_column else str(number)
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise DataError(f"the id is {short(value)}; give a text or a number")
    return str(value)


def _meta(rest: dict[str, Any]) -> dict[str, Any]:
    """What has no field, with a column `meta` opened where it holds an object or its JSON."""
    meta = rest.pop("meta", None)
    if isinstance(meta, str) and meta.lstrip().startswith("{"):
        with suppress(DataError):  # which words that begin with a brace are
            meta = to_plain(load_json(meta))  # as our own Parquet has it
    if meta is not None and not isinstance(meta, dict):
        meta = {"meta": meta}
    for name, value in (meta or {}).items():
        if rest.setdefault(name, value) != value:
            raise DataError(
                f"meta and the column {name!r} say different things; rename one of them"
            )
    return rest


def to_plain(value: Any, depth: int = 0) -> Any:
    """A value of a column as JSON has it; NaN becomes null, dates and decimals texts."""
    if value is None or isinstance(value, str | bool | int | bytes):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if depth > _DEPTH:
        raise DataError(f"a column is nested more than {_DEPTH} deep; make it flatter")
    if isinstance(value, Mapping):
        return {str(k): to_plain(v, depth + 1) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(v, depth + 1) for v in value]
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, decimal.Decimal):
        exact = value.is_finite() and value == value.to_integral_value() and abs(value) < 2**53
        return int(value) if exact else str(value)
    if isinstance(value, datetime.timedelta | uuid.UUID):
        return str(value)
    raise DataError(f"a column holds {short(value)}, which is no text, number or list")
