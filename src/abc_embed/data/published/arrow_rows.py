"""The rows of Parquet files, by number.

Does: copy Parquet once into an Arrow file that is mapped into memory, and read rows from it. Does
not: know what the columns mean (sources.py does).

Parquet is packed in groups of rows: one row costs as much as its group. The copy is mapped, not
loaded: all processes share it, and a row costs microseconds, whatever the number of rows.
"""

import json
import os
from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from abc_embed.data.published.tar_parts import sample_hash
from abc_embed.errors import DataError, MissingExtraError
from abc_embed.storage.files import atomic_write, make_folder

_FILES_KEY = b"abc_embed_files"
_BATCH = 16_384


def find_parquet(folder: Path) -> list[Path]:
    """The Parquet files below a folder, in order; of several splits, those of `train`.

    Raises:
        DataError: there is none.
    """
    found = [
        path
        for path in sorted(folder.rglob("*.parquet"))
        if not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]
    if not found:
        raise DataError(
            f"{folder} holds no .parquet file; give the folder of a published data set, or fetch it"
        )
    return [path for path in found if "train" in path.name] or found


def build_rows(
    files: Sequence[Path],
    path: Path,
    counted: Callable[[int, int], None] = lambda done, of: None,
) -> int:
    """Copy Parquet files into the Arrow file `path`; returns how many rows.

    Raises:
        DataError: a file is no Parquet, or has other columns than the first.
        OutputError: `path` cannot be written.
        MissingExtraError: pyarrow is not installed.
    """
    arrow = _library()
    import pyarrow.parquet as parquet

    make_folder(path.parent)
    done, total = 0, sum(file.stat().st_size for file in files)
    rows = 0
    with atomic_write(path) as out:
        schema: Any = None
        writer: Any = None
        for file in files:
            try:
                reader = parquet.ParquetFile(file)
            except (arrow.ArrowException, OSError) as problem:
                raise DataError(f"{file} is no whole Parquet file; fetch it again") from problem
            with reader:
                if schema is None:
                    schema = reader.schema_arrow.remove_metadata()
                    kept = schema.with_metadata({_FILES_KEY: _key(files)})
                    writer = arrow.ipc.new_file(out, kept)
                elif reader.schema_arrow.remove_metadata() != schema:
                    raise DataError(f"{file} has other columns than {files[0]}; fetch both again")
                for batch in reader.iter_batches(batch_size=_BATCH):
                    writer.write_batch(batch.replace_schema_metadata({_FILES_KEY: _key(files)}))
                    rows += batch.num_rows
            done += file.stat().st_size
            counted(done, total)
        if writer is not None:
            writer.close()
    return rows


def _key(files: Sequence[Path]) -> bytes:
    return json.dumps([[file.name, sample_hash(file)] for file in files]).encode()


def _library() -> Any:
    try:
        import pyarrow
    except ModuleNotFoundError:
        raise MissingExtraError.of("data", "reading Parquet") from None
    return pyarrow


class Rows:
    """Rows of an Arrow file by number; survives pickling."""

    def __init__(self, path: str | os.PathLike[str], files: Sequence[Path] | None = None) -> None:
        """Maps the file. With `files`, checks that it is the copy of these.

        Raises:
            DataError: there is no such file, it is damaged, or the Parquet files have changed.
        """
        self._path = Path(path)
        arrow = _library()
        try:
            reader = arrow.ipc.open_file(arrow.memory_map(str(self._path)))
        except (arrow.ArrowException, OSError) as problem:
            raise DataError(f"there is no whole {self._path}; make it with data index") from problem
        if files is not None and (reader.schema.metadata or {}).get(_FILES_KEY) != _key(files):
            raise DataError(
                f"the Parquet files beside {self._path} are not those that were indexed; index "
                "them anew with --again"
            )
        self._batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
        self._ends = list(accumulate(batch.num_rows for batch in self._batches))
        self.names: list[str] = list(reader.schema.names)
        self.types: dict[str, str] = {f.name: str(f.type) for f in reader.schema}

    def __reduce__(self) -> tuple[type["Rows"], tuple[Path]]:
        return (Rows, (self._path,))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def value(self, number: int, name: str) -> Any:
        """One value of a row, as Python has it."""
        batch, place = self._place(number)
        return self._batches[batch].column(name)[place].as_py()

    def row(self, number: int) -> dict[str, Any]:
        """A whole row."""
        batch, place = self._place(number)
        columns = self._batches[batch]
        return {name: columns.column(name)[place].as_py() for name in self.names}

    def column(self, name: str) -> Any:
        """All values of a column, one after the other, a batch at a time in memory."""
        for batch in self._batches:
            yield from batch.column(name).to_pylist()

    def _place(self, number: int) -> tuple[int, int]:
        if not 0 <= number < len(self):
            raise DataError(f"there is no row {number}; the rows are 0 to {len(self) - 1}")
        batch = bisect_right(self._ends, number)
        return batch, number - (self._ends[batch - 1] if batch else 0)
