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
from typing import Any

import numpy as np
from PIL import Image

from abc_embed.data.contact_sheet import GREEN, RED, draw_cell, write_sheet
from abc_embed.data.records import Record, write_records
from abc_embed.errors import DataError
from abc_embed.inputs import open_image
from abc_embed.mining.corpus import PARQUET, Corpus
from abc_embed.mining.mine import Mined
from abc_embed.mining.sample import SampledNegatives
from abc_embed.mining.settings import Ints
from abc_embed.storage.files import atomic_write
from abc_embed.storage.parquet import import_pyarrow

CAPTIONS_KEY = b"abc_embed.captions"
"""In the file's metadata: the fingerprint of the captions that the row numbers are of."""
_GROUP = 65536
"""Rows of a row group."""


def write_mined(mined: Mined, out: Path) -> None:
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


def _write_parquet(mined: Mined, out: Path) -> None:
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
    first_row = mined.corpus.first_row
    with (
        atomic_write(out) as file,
        arrow.parquet.ParquetWriter(file, schema, compression="zstd") as writer,
    ):
        negatives = mined.negatives()
        while group := list(islice(negatives, _GROUP)):
            columns = {
                "row": [sampled.row for sampled in group],
                "negatives": [[first_row[c] for c in sampled.captions] for sampled in group],
                "scores": [sampled.scores for sampled in group],
                "ranks": [sampled.ranks for sampled in group],
            }
            writer.write_table(arrow.table(columns, schema=schema))


def _with_texts(mined: Mined) -> Iterator[Record]:
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


def write_rejects(mined: Mined, out: Path) -> Path | None:
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
        for row, place, why in mined.report.bad:
            line = {"row": row, "place": place, "why": why}
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
    numbers: list[Ints] = []
    counts: list[Ints] = []
    values: list[Ints] = []
    seen = 0
    for file in files:
        try:
            table = arrow.parquet.ParquetFile(file)
            names = table.schema_arrow.names
            if "negatives" not in names:
                raise DataError(f"{file} has no column 'negatives'; give what abc-embed mine wrote")
            kind = table.schema_arrow.field("negatives").type
            listed = arrow.types.is_list(kind) or arrow.types.is_large_list(kind)
            if not listed or not arrow.types.is_integer(kind.value_type):
                raise DataError(f"{file}: negatives must be lists of row numbers, not {kind}")
            mined_from = (table.schema_arrow.metadata or {}).get(CAPTIONS_KEY, b"").decode()
            if captions and mined_from not in ("", captions):
                raise DataError(
                    f"{file} was mined from other records, or from these in another order; its row "
                    "numbers mean other captions now: mine these records again"
                )
            wanted = [name for name in ("row", "negatives") if name in names]
            for batch in table.iter_batches(columns=wanted):
                lists = batch.column("negatives")
                counts.append(
                    _array(arrow.compute.fill_null(arrow.compute.list_value_length(lists), 0))
                )
                values.append(_array(lists.flatten()))
                own = batch.column("row") if "row" in wanted else np.arange(seen, seen + len(lists))
                numbers.append(_array(own))
                seen += len(lists)
        except (arrow.ArrowException, OSError) as problem:
            raise DataError(f"{file} is no whole Parquet file ({problem}); make it again") from None
    return _joined(path, numbers, counts, values, rows)


def _array(column: Any) -> Ints:
    return np.asarray(column).astype(np.int64)


def _joined(
    path: Path, numbers: list[Ints], counts: list[Ints], values: list[Ints], rows: int | None
) -> NegativeTable:
    none = [np.zeros(0, dtype=np.int64)]
    number, count, value = (np.concatenate(part or none) for part in (numbers, counts, values))
    if number.size and ((number[1:] <= number[:-1]).any() or number[0] < 0):
        raise DataError(f"{path}: rows do not ascend; write it again in the order of the rows")
    total = rows if rows is not None else max(number.max(initial=-1), value.max(initial=-1)) + 1
    outside = [int(part.max(initial=-1)) for part in (number, value)]
    if max(outside) >= total or value.min(initial=0) < 0:
        bad = max(outside) if max(outside) >= total else int(value.min())
        raise DataError(
            f"{path} names row {bad} but there are {total} rows, from 0; mine these records again"
        )
    per_row = np.zeros(total, dtype=np.int64)
    per_row[number] = count
    return NegativeTable(np.cumsum(per_row), value)


# -- a page to look at -----------------------------------------------------------------------------


def draw_sheet(mined: Mined, out: Path, count: int = 12) -> int:
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
