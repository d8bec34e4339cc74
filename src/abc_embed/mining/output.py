"""Mined negatives as files, and back: Parquet by row number, or the records with texts.

    row int64 · negatives list<int64> (rows, best first) · scores list<float32> · ranks list<int32>

Rows count from 0 in the order of the data set. A rank is the place in the pool, from 0. A row that
was not mined is absent.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from abc_embed.data import Dataset
from abc_embed.data.contact_sheet import GREEN, RED, draw_cell, write_sheet
from abc_embed.data.records import Record, write_records
from abc_embed.errors import DataError, UsageError
from abc_embed.inputs import open_image
from abc_embed.mining.corpus import Corpus
from abc_embed.mining.pools import SampledNegatives
from abc_embed.mining.settings import Ints
from abc_embed.storage.files import atomic_write, check_writable
from abc_embed.storage.parquet import import_pyarrow

if TYPE_CHECKING:
    from abc_embed.mining.mine import Mined

PARQUET = ".parquet"
CAPTIONS_KEY = b"abc_embed.captions"
"""In the file's metadata: the fingerprint of the captions that the row numbers are of."""
_GROUP = 65536
"""Rows of a row group."""


def check_out(dataset: Dataset, out: Path) -> None:
    """Whether the negatives of a data set can be written to `out`, found out before the work.

    Raises:
        OutputError: nothing can be written there.
        UsageError: Parquet would lie among the files of the data set itself, or records are no
            records file, or would not be where the paths of images start.
        MissingExtraError: pyarrow is needed and not installed.
    """
    check_writable(out)
    path, folder = dataset.path, out.parent.resolve()
    if out.suffix == PARQUET:
        import_pyarrow("writing Parquet", "mine")
        inside = path.is_dir() and any(path.glob(f"*{PARQUET}"))
        if out.resolve() == path.resolve() or (inside and folder == path.resolve()):
            raise UsageError(f"{out} would be a part of the data set {path}; give another folder")
    elif dataset.form != "jsonl":
        raise UsageError(
            f"{path} is no records file, which alone can be written anew with texts; give --out a "
            "name that ends in .parquet"
        )
    elif folder != path.parent.resolve():
        raise UsageError(
            f"--out is in another folder than {path}; give a file next to it, since the paths of "
            "images start there"
        )
    elif out.resolve() == path.resolve():
        raise UsageError("--out is the records file itself; give another name next to it")


def write_mined(mined: "Mined", out: Path) -> None:
    """Write Parquet or records, as the end of the name says.

    Raises:
        DataError: the records were changed since they were read.
        OutputError: `out` cannot be written.
        MissingExtraError: pyarrow is needed and not installed.
    """
    if out.suffix == PARQUET:
        _write_parquet(mined, out)
    else:
        write_records(out, _with_texts(mined))


def _write_parquet(mined: "Mined", out: Path) -> None:
    arrow = import_pyarrow("writing Parquet", "mine")
    schema = arrow.schema(
        [
            ("row", arrow.int64()),
            ("negatives", arrow.list_(arrow.int64())),
            ("scores", arrow.list_(arrow.float32())),
            ("ranks", arrow.list_(arrow.int32())),
        ]
    )
    schema = schema.with_metadata({CAPTIONS_KEY: mined.corpus.fingerprint})
    first_rows = mined.corpus.first_rows
    with (
        atomic_write(out) as file,
        arrow.parquet.ParquetWriter(file, schema, compression="zstd") as writer,
    ):
        negatives = mined.negatives()
        while group := list(islice(negatives, _GROUP)):
            columns = {
                "row": [sampled.row for sampled in group],
                "negatives": [first_rows[sampled.captions] for sampled in group],
                "scores": [sampled.scores for sampled in group],
                "ranks": [sampled.ranks for sampled in group],
            }
            writer.write_table(arrow.table(columns, schema=schema))


def _with_texts(mined: "Mined") -> Iterator[Record]:
    """The records again, with the mined negatives in the place of those they had; rows that could
    not be mined keep theirs, and those that are no records are left out."""
    corpus = mined.corpus
    by_row = mined.negatives()
    coming = next(by_row, None)
    for row in range(len(corpus)):
        try:
            record = corpus.dataset.row(row).record
        except DataError:
            if row in corpus.rejected:
                continue
            raise _changed(corpus.dataset.path) from None
        if coming is not None and coming.row == row:
            if record.caption != corpus.captions[corpus.caption_of[row]]:
                raise _changed(corpus.dataset.path)
            texts = tuple(corpus.captions[caption] for caption in coming.captions)
            record = replace(record, negatives=texts)
            coming = next(by_row, None)
        elif "comes twice" in corpus.rejected.get(row, ""):
            continue
        yield record


def _changed(path: Path) -> DataError:
    return DataError(f"{path} was changed while it was mined; run it again")


def write_rejects(mined: "Mined", out: Path) -> Path | None:
    """Every row that was left out, a line of JSON each, next to `out`; None when there is none.

    A file of an earlier run is removed then.

    Raises:
        OutputError: it cannot be written.
    """
    path = out.with_name(f"{out.stem}.rejects.jsonl")
    if not mined.report.bad:
        path.unlink(missing_ok=True)
        return None
    with atomic_write(path) as file:
        for line in mined.report.rejects:
            file.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
    return path


# -- reading ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class NegativeTable:
    """Negatives by row number, 8 bytes each. It survives pickling."""

    ends: Ints
    """`(rows,)`: where those of each row end."""
    values: Ints
    """Rows of negatives, all lists one after the other."""

    def __len__(self) -> int:
        return len(self.ends)

    def of(self, row: int) -> Ints:
        """Rows whose captions are negatives of this one, best first; none if it was not mined."""
        if not 0 <= row < len(self.ends):
            return self.values[:0]
        return self.values[self.ends[row - 1] if row else 0 : self.ends[row]]


def read_mined(path: Path, rows: int | None = None, captions: str = "") -> NegativeTable:
    """What `abc-embed mine` wrote, or the `negatives` column of the published data set.

    Without a column `row`, lines are rows, as in the published files. A folder is read file by
    file, in the order of their names. `rows` is how many the data set has, and `captions` the
    fingerprint of its captions, if that is known.

    Raises:
        DataError: there is no such file, it has no such column, it names rows that are not, or it
            was mined from other captions or the same in another order.
        MissingExtraError: pyarrow is not installed.
    """
    arrow = import_pyarrow("reading mined negatives", "mine")
    files = sorted(path.glob(f"*{PARQUET}")) if path.is_dir() else [path]
    if not files:
        raise DataError(f"{path} holds no {PARQUET} file; give what abc-embed mine wrote")
    numbers, counts, values = ([np.zeros(0, dtype=np.int64)] for _ in range(3))
    seen = 0
    for file in files:
        try:
            table = arrow.parquet.ParquetFile(file)
            _check_columns(arrow, file, table.schema_arrow, captions)
            has_row = "row" in table.schema_arrow.names
            for batch in table.iter_batches(columns=["row"] * has_row + ["negatives"]):
                lists = batch.column("negatives")
                own = batch.column("row") if has_row else np.arange(seen, seen + len(lists))
                lengths = arrow.compute.fill_null(arrow.compute.list_value_length(lists), 0)
                columns = (numbers, own), (counts, lengths), (values, lists.flatten())
                for parts, column in columns:
                    parts.append(np.asarray(column).astype(np.int64))
                seen += len(lists)
        except (arrow.ArrowException, OSError) as problem:
            raise DataError(f"{file} is no whole Parquet file ({problem}); make it again") from None
    number, count, value = map(np.concatenate, (numbers, counts, values))
    if number.size and ((number[1:] <= number[:-1]).any() or number[0] < 0):
        raise DataError(f"{path}: rows do not ascend; write it again in the order of the rows")
    total = rows if rows is not None else max(part.max(initial=-1) for part in (number, value)) + 1
    for part in (number, value):
        outside = part[(part < 0) | (part >= total)]
        if outside.size:
            raise DataError(
                f"{path} names row {outside[0]} but there are {total} rows, from 0; mine these "
                "records again"
            )
    per_row = np.zeros(total, dtype=np.int64)
    per_row[number] = count
    return NegativeTable(np.cumsum(per_row), value)


def _check_columns(arrow: Any, file: Path, schema: Any, captions: str) -> None:
    """Raises `DataError` unless there are lists of row numbers, mined from these captions."""
    if "negatives" not in schema.names:
        raise DataError(f"{file} has no column 'negatives'; give what abc-embed mine wrote")
    kind = schema.field("negatives").type
    listed = arrow.types.is_list(kind) or arrow.types.is_large_list(kind)
    if not listed or not arrow.types.is_integer(kind.value_type):
        raise DataError(f"{file}: negatives must be lists of row numbers, not {kind}")
    mined_from = (schema.metadata or {}).get(CAPTIONS_KEY, b"").decode()
    if captions and mined_from not in ("", captions):
        raise DataError(
            f"{file} was mined from other records, or from these in another order; its row "
            "numbers mean other captions now: mine these records again"
        )


# -- a page to look at -----------------------------------------------------------------------------


def draw_sheet(mined: "Mined", out: Path, count: int = 12) -> int:
    """A page of `count` of the mined rows, spread evenly over the file; returns how many there are.

    Each has its image, its own caption in green and the mined ones in red, with their scores.

    Raises:
        OutputError: the page cannot be written.
    """
    total = len(mined.rows)
    count = min(count, total)
    chosen = {int(mined.rows[place * total // count]) for place in range(count)}
    sampled = (negatives for negatives in mined.negatives() if negatives.row in chosen)
    write_sheet([_cell(mined.corpus, negatives) for negatives in sampled], out)
    return count


def _cell(corpus: Corpus, negatives: SampledNegatives) -> Image.Image:
    """One row: the image, and its captions beside it."""
    captions = corpus.captions
    own = captions[corpus.caption_of[negatives.row]]
    lines = [(f"{negatives.own:.3f}  {own}", GREEN)]
    for caption, score in zip(negatives.captions, negatives.scores, strict=True):
        lines.append((f"{score:.3f}  {captions[caption]}", RED))
    row = corpus.dataset.row(negatives.row)
    return draw_cell(open_image(row.image), row.record.id, lines)
