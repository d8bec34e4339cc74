"""Parquet files with a row per image: ours, those of the hub, or anyone's.

Images are in the file (bytes, or a struct of `bytes` and `path` as on the hub), or paths from its
folder. A file or a group of rows that is damaged costs its own rows.
"""

import json
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, BinaryIO

from abc_embed.data.columns import ColumnDataset, names_of
from abc_embed.data.dataset import Rejected, Row
from abc_embed.data.fields import FETCH_HINT, stays_inside
from abc_embed.data.image_files import ImageRoot
from abc_embed.data.records import Record, to_json
from abc_embed.errors import DataError
from abc_embed.storage.files import open_file
from abc_embed.storage.parquet import import_pyarrow
from abc_embed.storage.readers import reader_errors

CACHED_GROUPS = 2
"""Row groups that stay in memory, the last ones read."""
_ADDRESSES = ("url", "image_url")


class ParquetDataset(ColumnDataset):
    """Rows of one or several Parquet files, in the order of their names.

    A file that cannot be opened is one row, which cannot be used.
    """

    form = "parquet"

    def __init__(
        self,
        path: Path,
        files: Sequence[Path],
        columns: Mapping[str, str],
        images: Path | None = None,
    ) -> None:
        """Raises `DataError` where no file can be opened, or one has no column of images."""
        self.path, self._files, self.columns = path, list(files), dict(columns)
        self._root = ImageRoot(images or self.folder)
        self._groups: list[tuple[Path, int, int, str]] = []
        """File, number of the row group in it and of the group's first row; column of images."""
        sizes: list[int] = []
        faults: dict[int, Rejected] = {}
        for file in files:
            try:
                opened = _open(file)
            except DataError as wrong:
                faults[sum(sizes)] = Rejected(str(file), str(wrong))
                self._groups.append((file, 0, 0, ""))
                sizes.append(1)
                continue
            column, first = self._image_column(file, opened.schema_arrow.names), 0
            for number in range(opened.metadata.num_row_groups):
                self._groups.append((file, number, first, column))
                sizes.append(opened.metadata.row_group(number).num_rows)
                first += sizes[-1]
        if len(faults) == len(files):
            raise DataError(faults[0].why)
        self.faults = faults
        self._ends = list(accumulate(sizes))
        self._cache: dict[int, Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_cache": {}}  # to another process: without rows

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def files(self) -> Sequence[Path]:
        return self._files

    def _image_column(self, file: Path, names: Sequence[str]) -> str:
        wanted = names_of("image", self.columns)
        column = next((name for name in wanted if name in names), wanted[0])
        for name in (*self.columns.values(), column):
            if name not in names:
                lower = {name.lower() for name in names}
                hint = FETCH_HINT if name == column and lower.intersection(_ADDRESSES) else ""
                raise DataError(f"{file} has no column {name!r}; it has {', '.join(names)}{hint}")
        return column

    def _find(self, number: int) -> tuple[int, int]:
        """The row group that holds a row, and the row's number in it."""
        group = bisect_right(self._ends, number)
        return group, number - (self._ends[group - 1] if group else 0)

    def _place(self, number: int) -> str:
        group, inside = self._find(number)
        file, _, first, _ = self._groups[group]
        return f"{file}: row {first + inside}"

    def _row(self, number: int) -> Row:
        group, inside = self._find(number)
        with reader_errors("the row", "make the file anew"):
            part = self._table(group).slice(inside, 1)
            part.validate(full=True)  # or a damaged index of a dictionary reads somewhere else
            (values,) = part.to_pylist()
        column = self._groups[group][3]
        image, name = self._image(values.get(column), column, number)
        return self._row_of(number, values, image, name, used=[column])

    def _table(self, group: int) -> Any:
        """The rows of a group, from memory or the file."""
        if group not in self._cache:
            file, number, _, _ = self._groups[group]
            while len(self._cache) >= CACHED_GROUPS:
                self._cache.pop(next(iter(self._cache)))
            try:
                with reader_errors("its group of rows", "make the file anew"):
                    self._cache[group] = _open(file).read_row_group(number)
            except DataError as wrong:
                self._cache[group] = wrong
        if isinstance(self._cache[group], DataError):
            raise DataError(str(self._cache[group]))
        return self._cache[group]

    def _image(self, value: object, column: str, number: int) -> tuple[Path | bytes, str]:
        """What the column of images holds -> the image, and a path to call it by."""
        name = f"images/{number:08d}"
        if isinstance(value, dict):
            content, path = value.get("bytes"), str(value.get("path") or "")
            if isinstance(content, bytes):
                return content, path if stays_inside(path) else name + Path(path).suffix
            value = path
        if isinstance(value, bytes):
            return value, name
        if isinstance(value, str) and value:
            name, file = self._root.find(self._root.plain_name(value))
            return file, name
        raise DataError(f"{column} is empty; give bytes or a path")


def _open(path: Path) -> Any:
    arrow = import_pyarrow()
    with reader_errors(str(path), "make it anew", damaged="is damaged or no Parquet file"):
        open_file(path).close()  # no pipe, which pyarrow would wait for
        return arrow.parquet.ParquetFile(path)


def write_parquet(file: BinaryIO, rows: Sequence[tuple[Record, bytes]]) -> None:
    """One file of records with their images in it, 100 rows a group; `meta` as JSON."""
    arrow = import_pyarrow("writing Parquet")
    values = []
    for record, image in rows:
        meta = json.dumps(dict(record.meta), ensure_ascii=False)
        picture = {"bytes": image, "path": record.image}
        values.append({**to_json(record), "image": picture, "meta": meta})
    text, integer, texts = arrow.string(), arrow.int64(), arrow.list_(arrow.string())
    region = {"phrase": text, "box": arrow.list_(arrow.float64())}
    instruction = dict.fromkeys(("instruction", "answer", "kind"), text)
    instruction |= {"paraphrases": texts, "region": integer}
    schema = {
        "id": text,
        "image": arrow.struct({"bytes": arrow.binary(), "path": text}),
        "width": integer,
        "height": integer,
        "caption": text,
        "captions": texts,
        "regions": arrow.list_(arrow.struct(region)),
        "instructions": arrow.list_(arrow.struct(instruction)),
        "negatives": texts,
        "source": text,
        "license": text,
        "meta": text,
    }
    table = arrow.Table.from_pylist(values, schema=arrow.schema(schema))
    arrow.parquet.write_table(table, file, row_group_size=100)
