"""Rows that are in memory, or in another library's data set: Hugging Face's, dicts, or records."""

import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from abc_embed.data.columns import ColumnDataset, names_of
from abc_embed.data.dataset import Row
from abc_embed.data.fields import FETCH_HINT, is_address, short, stays_inside
from abc_embed.data.records import Record
from abc_embed.errors import DataError, InputError
from abc_embed.inputs import open_image


class MemoryDataset(ColumnDataset):
    """Rows by number: a `datasets.Dataset`, or any list of dicts, `Record`s or `Row`s.

    Images are files' bytes, pictures, arrays, tensors, the hub's dicts, or paths; those of
    `Record`s are from the current folder.
    """

    form = "memory"
    path = Path()

    def __init__(self, rows: Any, columns: Mapping[str, str]) -> None:
        """Raises `DataError` for what has no rows by number, like a streamed data set."""
        self.columns = dict(columns)
        self._rows = _by_number(rows)

    def __len__(self) -> int:
        return len(self._rows)

    def _place(self, number: int) -> str:
        return f"row {number}"

    def _row(self, number: int) -> Row:
        value = self._rows[number]
        if isinstance(value, Row):
            return value
        if isinstance(value, Record):
            return Row(self.place(number), value, self.path / value.image)
        if not isinstance(value, Mapping):
            raise DataError(f"a row is a {type(value).__name__}; give dicts or Records")
        names = names_of("image", self.columns)
        column = next((name for name in names if value.get(name) is not None), None)
        if column is None:
            raise DataError(f"the row has no {names[0]!r}; it has {', '.join(map(str, value))}")
        image, name = self._image(value[column], number)
        rest = {key: cell for key, cell in value.items() if key != column}
        return self._row_of(number, rest, image, name)

    def _image(self, value: Any, number: int) -> tuple[Path | bytes, str]:
        """What a row holds -> the image file or its bytes, and a path to call it by."""
        if isinstance(value, Mapping) and {"bytes", "path"} >= set(value):
            value = value.get("bytes") or value.get("path")
        name = f"images/{number:08d}"
        if isinstance(value, str | Path):  # anywhere: who runs this wrote it
            plain = str(value)
            if is_address(plain):
                raise DataError(f"image is {short(plain)}{FETCH_HINT}")
            return self.path / plain, plain if stays_inside(plain) else name + Path(value).suffix
        if isinstance(value, bytes):
            return value, name
        try:
            picture = open_image(value)
        except InputError as wrong:
            raise DataError(f"the image cannot be used: {wrong}") from None
        stored = io.BytesIO()
        picture.save(stored, format="PNG")
        return stored.getvalue(), f"{name}.png"

    def files(self) -> Sequence[Path]:
        return ()

    def fingerprint(self) -> str:
        return self.scan("caption").fingerprint


def _by_number(rows: Any) -> Any:
    """Rows as something with a length and numbers; images of the hub's sets as their bytes."""
    if isinstance(rows, Mapping):
        raise DataError(
            f"this is a mapping of {', '.join(map(str, list(rows)[:5]))}; give one of its data sets"
        )
    if hasattr(rows, "features"):
        if not hasattr(rows, "__len__"):
            raise DataError(
                "a streamed data set has no rows by number, and each epoch takes them in another "
                "order; load it without streaming=True"
            )
        from datasets import Image  # there, since it made these rows

        for name, feature in rows.features.items():
            if isinstance(feature, Image) and feature.decode:
                rows = rows.cast_column(name, Image(decode=False))
        return rows
    if not isinstance(rows, Iterable):
        raise DataError(f"this is a {type(rows).__name__}; give a data set, or a list of rows")
    return rows if isinstance(rows, Sequence) else list(rows)
