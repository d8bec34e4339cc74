"""The rows of the published data sets: copied out of Parquet once, and what each of them says.

Parquet is packed in groups of rows: one row costs as much as its group. The copy is one Arrow file
that is mapped, not loaded: all processes share it, and a row costs microseconds.

abc-pretrain      a caption per image; columns id, url, caption, image, negatives (row numbers)
abc-vg-instruct   four regions per image; columns "0" to "3", each a struct of
                  id, image, instruction, phrase, x, y, width, height
"""

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from abc_embed.data.image_files import visible_files
from abc_embed.data.records import Instruction, Region
from abc_embed.errors import DataError
from abc_embed.storage.files import atomic_write, make_folder
from abc_embed.storage.hashing import sample_hash
from abc_embed.storage.parquet import import_pyarrow

_FILES_KEY = b"abc_embed_files"
_BATCH = 16_384


def find_parquet(folder: Path) -> list[Path]:
    """The Parquet files below a folder, in order; of several splits, those of `train`.

    Raises:
        DataError: there is none.
    """
    files = sorted(path for path in visible_files(folder) if path.suffix == ".parquet")
    if not files:
        raise DataError(
            f"{folder} holds no .parquet file; give the folder of a published data set, or fetch it"
        )
    return [path for path in files if "train" in path.name] or files


def copy_parquet(files: Sequence[Path], path: Path) -> None:
    """Copy Parquet files into the Arrow file `path`.

    Raises:
        DataError: a file is no Parquet, or has other columns than the first.
        OutputError: `path` cannot be written.
        MissingExtraError: pyarrow is not installed.
    """
    arrow = import_pyarrow()
    make_folder(path.parent)
    schema: Any = None
    with atomic_write(path) as out, ExitStack() as writers:
        for file in files:
            try:
                reader = arrow.parquet.ParquetFile(file)
            except (arrow.ArrowException, OSError) as problem:
                raise DataError(f"{file} is no whole Parquet file; fetch it again") from problem
            with reader:
                columns = reader.schema_arrow.remove_metadata()
                if schema is None:
                    schema = columns.with_metadata({_FILES_KEY: _fingerprint(files)})
                    writer = writers.enter_context(arrow.ipc.new_file(out, schema))
                elif columns != schema.remove_metadata():
                    raise DataError(f"{file} has other columns than {files[0]}; fetch both again")
                for batch in reader.iter_batches(batch_size=_BATCH):
                    writer.write_batch(batch.replace_schema_metadata(schema.metadata))


def _fingerprint(files: Sequence[Path]) -> bytes:
    return json.dumps([[file.name, sample_hash(file)] for file in files]).encode()


class ArrowTable:
    """Rows of an Arrow file by number; survives pickling."""

    def __init__(self, path: Path, files: Sequence[Path] | None = None) -> None:
        """Maps the file. With `files`, checks that it is the copy of these.

        Raises:
            DataError: there is no such file, it is damaged, or the Parquet files have changed.
        """
        self._path = path
        arrow = import_pyarrow()
        try:
            self._table = arrow.ipc.open_file(arrow.memory_map(str(path))).read_all()
        except (arrow.ArrowException, OSError) as problem:
            raise DataError(f"there is no whole {path}; make it with data index") from problem
        metadata = self._table.schema.metadata or {}
        if files is not None and metadata.get(_FILES_KEY) != _fingerprint(files):
            raise DataError(
                f"the Parquet files beside {path} are not those that were indexed; index them anew "
                "with --again"
            )
        self.names: list[str] = self._table.column_names

    def __reduce__(self) -> tuple[type["ArrowTable"], tuple[Path]]:
        return (ArrowTable, (self._path,))

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def value(self, number: int, column: str) -> Any:
        """One value of a row, as Python has it."""
        if not 0 <= number < len(self):
            raise DataError(f"there is no row {number}; the rows are 0 to {len(self) - 1}")
        return self._table.column(column)[number].as_py()

    def row(self, number: int) -> dict[str, Any]:
        """A whole row."""
        return {name: self.value(number, name) for name in self.names}


Fields = dict[str, Any]
"""What a `Record` is made of, but for the image's size. `image` is as the column names it."""

_STRUCT = ("id", "image", "instruction", "phrase", "x", "y", "width", "height")


@dataclass(frozen=True, slots=True)
class Layout:
    """A data set as it lies on the Hugging Face hub."""

    repository: str
    columns: tuple[str, ...]
    about: str
    fields: Callable[[ArrowTable, int], Fields]
    """What row number so and so says. Raises `DataError` for one that cannot be used."""


def _pretrain_fields(table: ArrowTable, number: int) -> Fields:
    values = table.row(number)
    caption, image = values["caption"], values["image"]
    if not isinstance(caption, str) or not caption.strip():
        raise DataError("it has no caption; leave it out")
    if not isinstance(image, str) or not image:
        raise DataError("it names no image; leave it out")
    return {
        "id": str(values["id"]),
        "image": image,
        "caption": caption,
        "negatives": Captions(table, values["negatives"] or ()),
        "meta": {"url": values["url"]} if values.get("url") else {},
    }


def _instruct_fields(table: ArrowTable, number: int) -> Fields:
    values = table.row(number)
    parts = [values[name] for name in LAYOUTS["abc-vg-instruct"].columns]
    parts = [part for part in parts if part is not None]
    if not parts:
        raise DataError("it is empty; leave it out")
    absent = [name for part in parts for name in _STRUCT if part.get(name) is None]
    if absent:
        raise DataError(f"{absent[0]} is missing; leave it out")
    if len({part["image"] for part in parts}) > 1:
        raise DataError("its parts are about different images; leave it out")
    return {
        "id": f"{parts[0]['image']}-{number}",
        "image": str(parts[0]["image"]),
        "regions": tuple(
            Region(phrase=p["phrase"], box=(p["x"], p["y"], p["width"], p["height"])) for p in parts
        ),
        "instructions": tuple(
            Instruction(instruction=p["instruction"], answer=p["phrase"], kind="region", region=i)
            for i, p in enumerate(parts)
        ),
        "meta": {"ids": [part["id"] for part in parts]},
    }


LAYOUTS: Mapping[str, Layout] = MappingProxyType(
    {
        "abc-pretrain": Layout(
            "TIGER-Lab/ABC-Pretraining-Data",
            ("id", "caption", "image", "negatives"),
            "image and caption, with mined negatives (paper section 4)",
            _pretrain_fields,
        ),
        "abc-vg-instruct": Layout(
            "TIGER-Lab/ABC-VG-Instruct",
            ("0", "1", "2", "3"),
            "four regions of an image, each with an instruction (paper section 5)",
            _instruct_fields,
        ),
    }
)
"""The published sets by name."""


class Captions(Sequence[str]):
    """The captions of some rows, each looked up when it is asked for."""

    def __init__(self, table: ArrowTable, numbers: Sequence[int]) -> None:
        self._table = table
        self._numbers = numbers

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return Captions(self._table, self._numbers[place])
        caption = self._table.value(self._numbers[place], "caption")
        if not isinstance(caption, str) or not caption.strip():
            raise DataError(
                f"row {self._numbers[place]} is named as a negative and has no caption; see: "
                "abc-embed data complete"
            )
        return caption
