"""Parquet files with a row per image: ours, those of the hub, or anyone's.

Does: read rows by number, one row group at a time; write a part. Images are in the file (bytes, or
a struct of `bytes` and `path` as on the hub), or paths from its folder. Does not: read the numbers
of rows that the published data set has for negatives; data.sources does.
"""

import json
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from abc_embed.data.dataset import ALIASES, Dataset, Row, record_from_columns
from abc_embed.data.records import Record, to_json
from abc_embed.errors import DataError, MissingExtraError

KEPT_GROUPS = 2
"""Row groups that stay in memory, the last ones used."""


class ParquetDataset(Dataset):
    """Rows of one or several Parquet files, in the order of their names."""

    form = "parquet"

    def __init__(self, path: Path, files: Sequence[Path], columns: Mapping[str, str]) -> None:
        """Raises `DataError` for a file that is damaged, or has no column of images."""
        self.path, self._files, self._columns = path, list(files), dict(columns)
        groups: list[tuple[int, int, int]] = []  # file, row group, rows
        for number, path in enumerate(self._files):
            metadata = _opened(path).metadata
            groups += [
                (number, g, metadata.row_group(g).num_rows) for g in range(metadata.num_row_groups)
            ]
        self._groups = groups
        self._ends = list(accumulate(rows for _, _, rows in groups))
        names = _opened(self._files[0]).schema_arrow.names
        wanted = (columns["image"],) if "image" in columns else ALIASES["image"]
        self._image = next((name for name in wanted if name in names), "")
        for column in [*columns.values(), *([] if self._image else [wanted[0]])]:
            if column not in names:
                raise DataError(
                    f"{self._files[0]} has no column {column!r}; it has {', '.join(names)}"
                )
        self._kept: dict[int, list[dict[str, Any]]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_kept": {}}  # to another process: without rows

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def _find(self, number: int) -> tuple[int, int]:
        """The row group that holds a row, and the row's number in it."""
        group = bisect_right(self._ends, number)
        return group, number - (self._ends[group] - self._groups[group][2])

    def place(self, number: int) -> str:
        file = self._groups[self._find(number)[0]][0]
        before = sum(rows for f, _, rows in self._groups if f < file)
        return f"{self._files[file]}: row {number - before}"

    def row(self, number: int) -> Row:
        group, inside = self._find(number)
        file, its_number, _ = self._groups[group]
        if group not in self._kept:
            table = _opened(self._files[file]).read_row_group(its_number)
            while len(self._kept) >= KEPT_GROUPS:
                self._kept.pop(next(iter(self._kept)))
            self._kept[group] = table.to_pylist()
        values = self._kept[group][inside]
        image, name = self._picture(values.get(self._image), number)
        if any(isinstance(n, int) for n in values.get("negatives") or ()):
            raise DataError(
                "negatives are numbers of rows, as the published data set has them; "
                "open its folder as abc-pretrain:FOLDER"
            )
        return Row(
            self.place(number),
            record_from_columns(values, image, name, number, self._columns),
            image,
        )

    def _picture(self, value: object, number: int) -> tuple[Path | bytes, str]:
        """What the column of images holds -> the image, and a path to call it by."""
        name = f"images/{number:08d}"
        if isinstance(value, dict):
            held, path = value.get("bytes"), str(value.get("path") or "")
            if isinstance(held, bytes):
                return held, path if _stays_inside(path) else name + Path(path).suffix
            value = path
        if isinstance(value, bytes):
            return value, name
        if isinstance(value, str) and value:
            return self.folder / value, value
        raise DataError(f"{self._image} is empty; give bytes or a path")


def _stays_inside(path: str) -> bool:
    parts = PurePosixPath(path).parts
    return bool(parts) and ".." not in parts and not PurePosixPath(path).is_absolute()


def _library() -> Any:
    try:
        import pyarrow.parquet
    except ImportError:
        raise MissingExtraError.of("data", "Parquet") from None
    return pyarrow.parquet


def _opened(path: Path) -> Any:
    parquet = _library()
    try:
        return parquet.ParquetFile(path)
    except (OSError, ValueError) as problem:
        raise DataError(f"{path} is damaged or no Parquet file ({problem}); make it anew") from None


def write_parquet(file: BinaryIO, rows: Sequence[tuple[Record, bytes]]) -> None:
    """One file of records with their images in it, 100 rows a group; `meta` as JSON."""
    parquet = _library()
    import pyarrow as arrow

    values = []
    for record, image in rows:
        meta = json.dumps(dict(record.meta), ensure_ascii=False)
        values.append(
            {**to_json(record), "image": {"bytes": image, "path": record.image}, "meta": meta}
        )
    text, count = arrow.string(), arrow.int64()
    box = arrow.list_(arrow.float64())
    region = arrow.struct([("phrase", text), ("box", box)])
    ask = arrow.struct(
        [
            *(("instruction", text), ("answer", text), ("kind", text)),
            *(("paraphrases", arrow.list_(text)), ("region", count)),
        ]
    )
    schema = arrow.schema(
        [
            *(("id", text), ("image", arrow.struct([("bytes", arrow.binary()), ("path", text)]))),
            *(("width", count), ("height", count), ("caption", text)),
            *(("regions", arrow.list_(region)), ("instructions", arrow.list_(ask))),
            *(("negatives", arrow.list_(text)), ("source", text), ("license", text)),
            ("meta", text),
        ]
    )
    table = arrow.Table.from_pylist(values, schema=schema)
    parquet.write_table(table, file, row_group_size=100)
