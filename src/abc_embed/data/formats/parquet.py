"""Parquet files with a row per image: ours, those of the hub, or anyone's.

Images are in the file (bytes, or a struct of `bytes` and `path` as on the hub), or paths from its
folder.
"""

import json
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, BinaryIO

from abc_embed.data.dataset import ALIASES, Dataset, Row, record_from_columns
from abc_embed.data.fields import stays_inside
from abc_embed.data.records import Record, to_json
from abc_embed.errors import DataError
from abc_embed.storage.files import open_file
from abc_embed.storage.parquet import import_pyarrow

CACHED_GROUPS = 2
"""Row groups that stay in memory, the last ones read."""


class ParquetDataset(Dataset):
    """Rows of one or several Parquet files, in the order of their names."""

    form = "parquet"

    def __init__(self, path: Path, files: Sequence[Path], columns: Mapping[str, str]) -> None:
        """Raises `DataError` for a file that is damaged, or has no column of images."""
        self.path, self._columns = path, dict(columns)
        self._groups: list[tuple[Path, int, int]] = []
        """File, number of the row group in it, and of the group's first row."""
        sizes = []
        for file in files:
            metadata, first = _open(file).metadata, 0
            for number in range(metadata.num_row_groups):
                self._groups.append((file, number, first))
                sizes.append(metadata.row_group(number).num_rows)
                first += sizes[-1]
        self._ends = list(accumulate(sizes))
        names = _open(files[0]).schema_arrow.names
        wanted = (columns["image"],) if "image" in columns else ALIASES["image"]
        self._image_column = next((name for name in wanted if name in names), wanted[0])
        for column in (*columns.values(), self._image_column):
            if column not in names:
                raise DataError(f"{files[0]} has no column {column!r}; it has {', '.join(names)}")
        self._cache: dict[int, list[dict[str, Any]]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_cache": {}}  # to another process: without rows

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def _find(self, number: int) -> tuple[int, int]:
        """The row group that holds a row, and the row's number in it."""
        group = bisect_right(self._ends, number)
        return group, number - (self._ends[group - 1] if group else 0)

    def place(self, number: int) -> str:
        group, inside = self._find(number)
        file, _, first = self._groups[group]
        return f"{file}: row {first + inside}"

    def row(self, number: int) -> Row:
        group, inside = self._find(number)
        if group not in self._cache:
            file, group_in_file, _ = self._groups[group]
            table = _open(file).read_row_group(group_in_file)
            while len(self._cache) >= CACHED_GROUPS:
                self._cache.pop(next(iter(self._cache)))
            self._cache[group] = table.to_pylist()
        values = self._cache[group][inside]
        image, name = self._image(values.get(self._image_column), number)
        if any(isinstance(n, int) for n in values.get("negatives") or ()):
            raise DataError(
                "negatives are numbers of rows, as the published data set has them; "
                "open its folder as abc-pretrain:FOLDER"
            )
        record = record_from_columns(values, image, name, number, self._columns)
        return Row(self.place(number), record, image)

    def _image(self, value: object, number: int) -> tuple[Path | bytes, str]:
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
            return self.folder / value, value
        raise DataError(f"{self._image_column} is empty; give bytes or a path")


def _open(path: Path) -> Any:
    arrow = import_pyarrow()
    try:
        open_file(path).close()  # no pipe, which pyarrow would wait for
        return arrow.parquet.ParquetFile(path)
    except (OSError, ValueError) as problem:
        raise DataError(f"{path} is damaged or no Parquet file ({problem}); make it anew") from None


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
    instruction = {
        "instruction": text,
        "answer": text,
        "kind": text,
        "paraphrases": texts,
        "region": integer,
    }
    schema = {
        "id": text,
        "image": arrow.struct({"bytes": arrow.binary(), "path": text}),
        "width": integer,
        "height": integer,
        "caption": text,
        "regions": arrow.list_(arrow.struct(region)),
        "instructions": arrow.list_(arrow.struct(instruction)),
        "negatives": texts,
        "source": text,
        "license": text,
        "meta": text,
    }
    table = arrow.Table.from_pylist(values, schema=arrow.schema(schema))
    arrow.parquet.write_table(table, file, row_group_size=100)
