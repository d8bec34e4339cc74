"""A folder of vectors as `abc-embed batch` writes it, for those who read it: `index` and `mine`.

    FOLDER/batch.json            model, fingerprint, resolution, width, number format, rows
    FOLDER/vectors-HASH.parquet  a part, whole: the columns below, in any order of parts
    FOLDER/vectors.lance         instead of the parts: one table, where Lance was asked for
    FOLDER/rejects.jsonl         rows that have no vector: {"place": ..., "why": ...}

Columns are `id`, `vector`, `content` (SHA-256 of the image file), `fingerprint` of the model and
`max_pixels`, the resolution. Shapes: `N` rows of a part, `D` width.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from abc_embed.errors import DataError, MissingExtraError
from abc_embed.storage.json_files import read_json
from abc_embed.storage.parquet import import_pyarrow
from abc_embed.storage.readers import reader_errors

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FACTS_FILE = "batch.json"
TABLE = "vectors"
COLUMNS = ("id", "vector", "content", "fingerprint", "max_pixels")
BATCH_ROWS = 8192
COMPARABLE = ("float32", "float16")
"""Number formats that an index or a search for negatives can take."""


def is_vector_folder(path: Path) -> bool:
    """Whether a job has begun to write there."""
    return (path / FACTS_FILE).is_file()


class VectorFolder:
    """The vectors of a folder, part by part."""

    def __init__(self, path: Path) -> None:
        """Raises `DataError` where there is no such folder."""
        self.path = path
        mend = "give a folder that abc-embed batch wrote"
        self.facts = read_json(path / FACTS_FILE, error=DataError, mend=mend)

    def check(self, fingerprint: str, max_pixels: int | None) -> None:
        """Raises `DataError` unless all vectors are there, and of a model at a resolution."""
        facts, name = self.facts, str(self.path)
        if not facts["complete"]:
            raise DataError(f"{name!r} is not complete; give abc-embed batch again, which goes on")
        if facts["fingerprint"] != fingerprint:
            raise DataError(
                f"the vectors in {name!r} were made with {facts['model']} "
                f"({facts['fingerprint'][:12]}), not with this model ({fingerprint[:12]}); use that"
            )
        if facts["max_pixels"] != max_pixels:
            own = facts["max_pixels"]
            seen = "the model's own resolution" if own is None else f"{own} pixels"
            raise DataError(
                f"the images of {name!r} were seen at {seen}; give the same --max-pixels"
            )
        if facts["instruction"] is not None or facts["output"] not in COMPARABLE:
            why = "an instruction" if facts["instruction"] is not None else facts["output"]
            raise DataError(f"the vectors in {name!r} are made with {why}; images alone in float32")

    def parts(self) -> list[Path]:
        """The Parquet files, by name."""
        return sorted(self.path.glob(f"{TABLE}-*.parquet"))

    def batches(self, columns: Sequence[str] = COLUMNS) -> Iterator[Any]:
        """Record batches of pyarrow with these columns.

        Raises:
            DataError: a part is damaged.
            MissingExtraError: pyarrow or lancedb is absent.
        """
        if self.facts["format"] == "lance" and not self.parts():
            yield from _scan_table(self.path, list(columns))
            return
        arrow = import_pyarrow("reading the vectors of batch", "scale")
        for part in self.parts():
            with reader_errors(str(part), "delete it and give abc-embed batch again"):
                file = arrow.parquet.ParquetFile(part)
                yield from file.iter_batches(BATCH_ROWS, columns=list(columns))

    def vectors(self) -> "Iterator[tuple[list[str], NDArray[np.float32], list[bytes]]]":
        """Ids, vectors `(N, D)` in float32 and content hashes, some at a time."""
        import numpy as np

        for batch in self.batches(("id", "vector", "content")):
            flat = batch["vector"].flatten().to_numpy(zero_copy_only=False)
            matrix = flat.reshape(batch.num_rows, -1).astype(np.float32)
            yield batch["id"].to_pylist(), matrix, batch["content"].to_pylist()


def import_lancedb() -> Any:
    """The module; as `import_pyarrow`."""
    try:
        import lancedb
    except ImportError:
        raise MissingExtraError.of("index", "Lance") from None
    return lancedb


def _scan_table(folder: Path, columns: list[str]) -> Iterator[Any]:
    lancedb = import_lancedb()
    try:
        table = lancedb.connect(folder).open_table(TABLE)
        yield from table.search().select(columns).to_batches(batch_size=BATCH_ROWS)
    except (ValueError, RuntimeError, OSError) as error:
        raise DataError(f"the table in {str(folder)!r} cannot be read: {error}") from error
