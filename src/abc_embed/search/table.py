"""The rows of an index in LanceDB: written whole, filtered, and searched exactly or approximately.

Shapes: `N` rows, `Q` queries, `K` closest, `D` width.
"""

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from abc_embed.errors import MissingExtraError, OutputError, UsageError
from abc_embed.vectors import l2_normalize, truncate

try:
    import lancedb
    import pyarrow
    from lancedb.index import Bitmap, BTree, IvfPq, IvfRq
except ImportError:
    raise MissingExtraError.of("index", "an index") from None

Vectors = NDArray[np.float32]
Detail = NDArray[np.int8]
RowIds = NDArray[np.int64]
Row = dict[str, Any]
"""A row by its columns' names."""

NAME = "images"
DTYPES = {"float16": pyarrow.float16(), "float32": pyarrow.float32(), "int8": pyarrow.int8()}
FEW_ROWS = 5_000
"""A filter that leaves no more than so many rows makes the search exact, and quicker too."""
BATCH_ROWS = 8192
COUNTS = 100
"""Filters of which it is remembered how many rows pass."""
MAX_FRAGMENTS = 32
"""More pieces than this are joined: each write makes one, and each costs a search time."""
KEEP_OLD = timedelta(hours=1)
"""For how long a search that began before a change finds the table as it was."""
RECALL_GOAL = 0.98
PROBES, REFINE = (20, 40, 80, 160), (20, 30, 40, 50, 100)


class ImageTable:
    """The table of an index: a path, what is known of the file, its vector, and its detail."""

    def __init__(self, folder: Path, dim: int, dtype: str, parts: int = 0) -> None:
        os.environ.setdefault("LANCE_LOG", "error")  # its warnings are no news to a user
        self.folder = folder
        self.dim = dim
        self.dtype = dtype
        self._counts: dict[tuple[int, str | None], int] = {}
        self.parts = parts
        """`C` vectors of an image's parts, as int8; 0: none are kept."""
        schema = pyarrow.schema(
            [
                ("path", pyarrow.string()),
                ("content", pyarrow.string()),  # SHA-256
                ("size", pyarrow.int64()),
                ("mtime_ns", pyarrow.int64()),
                ("vanished", pyarrow.bool_()),
                ("width", pyarrow.int32()),
                ("height", pyarrow.int32()),
                ("taken", pyarrow.string()),  # text, since LanceDB compares no dates with text
                ("vector", pyarrow.list_(DTYPES[dtype], dim)),
                *([("detail", pyarrow.list_(pyarrow.int8(), parts * dim))] if parts else []),
            ]
        )
        with self.reported():
            database = lancedb.connect(str(folder))
            try:
                self.lance: Any = database.open_table(NAME)
            except (ValueError, FileNotFoundError) as error:
                if "not found" not in str(error):
                    raise
                self.lance = database.create_table(NAME, schema=schema)

    @property
    def columns(self) -> list[str]:
        """The columns that a filter can use."""
        return [name for name in self.lance.schema.names if name not in ("vector", "detail")]

    def count(self, where: str | None = None) -> int:
        """How many rows pass a filter; counted once for each state of the table.

        Raises:
            UsageError: LanceDB refuses the filter.
        """
        with self.reported(where):
            key = (int(self.lance.version), where)
            if (known := self._counts.get(key)) is None:
                known = int(self.lance.count_rows(where))
                # Made anew, not changed: other threads may be reading it.
                self._counts = dict([*self._counts.items(), (key, known)][-COUNTS:])
            return known

    def passing(self, rows: Sequence[Row], where: str) -> set[str]:
        """Of rows that are not written, the paths of those that pass a filter.

        Raises:
            UsageError: LanceDB refuses the filter.
        """
        own = {"content", "mtime_ns", "vanished", "vector", "detail"}
        fields = [field for field in self.lance.schema if field.name not in own]
        columns = {field.name: [row.get(field.name) for row in rows] for field in fields}
        with self.reported(where):
            table = pyarrow.table(columns, pyarrow.schema(fields))
            found = lancedb.connect("memory://").create_table(NAME, table).search().where(where)
            return set(found.select(["path"]).to_arrow()["path"].to_pylist())

    def fragments(self) -> int:
        """How many pieces it is in."""
        with self.reported():
            return int(self.lance.stats()["fragment_stats"]["num_fragments"])

    def scan(
        self,
        columns: Sequence[str],
        where: str | None = None,
        *,
        row_ids: bool = False,
        batch_rows: int = BATCH_ROWS,
    ) -> Iterator[pyarrow.RecordBatch]:
        """The rows that pass a filter, some at a time."""
        with self.reported(where):
            query = self.lance.search().select(list(columns)).with_row_id(row_ids)
            query = query if where is None else query.where(where)
            yield from query.to_batches(batch_size=batch_rows)

    def sample(self, count: int) -> Vectors:
        """`(count, D)` of the vectors, spread over the table; all of them if there are fewer."""
        rows = self.count()
        places = np.unique(np.linspace(0, rows - 1, min(count, rows)).astype(int))
        with self.reported():
            table = self.lance.take_offsets(places.tolist()).select(["vector"]).to_arrow()
        return self.decode(table["vector"].combine_chunks(), len(table))

    # -- writing ---------------------------------------------------------------------------------

    def add(self, rows: Sequence[Row]) -> None:
        """Write rows of new paths, all or none."""
        columns = {name: [row.get(name) for row in rows] for name in self.columns}
        columns["vector"] = [row["vector"] for row in rows]
        if self.parts:
            columns["detail"] = [row["detail"] for row in rows]
        with self.reported():
            self.lance.add(pyarrow.Table.from_batches([self.batch(columns)]))
        if self.fragments() > MAX_FRAGMENTS:
            self.optimize()

    def add_batches(self, batches: Iterable[pyarrow.RecordBatch]) -> None:
        """Write batches as they come, all or none; paths that are known are replaced."""
        reader = pyarrow.RecordBatchReader.from_batches(self.lance.schema, batches)
        with self.reported():
            if self.lance.count_rows():
                merge = self.lance.merge_insert("path").when_matched_update_all()
                merge.when_not_matched_insert_all().execute(reader)
            else:
                self.lance.add(reader)

    def patch(self, rows: Sequence[Row]) -> None:
        """Change some columns of paths that are there; all others stay as they are."""
        alike: dict[tuple[str, ...], list[Row]] = {}
        for row in rows:
            alike.setdefault(tuple(row), []).append(row)
        for names, part in alike.items():
            batch = self.batch({name: [row[name] for row in part] for name in names}, partial=True)
            with self.reported():
                merge = self.lance.merge_insert("path").when_matched_update_all()
                merge.execute(pyarrow.Table.from_batches([batch]))

    def delete(self, where: str) -> int:
        """Take out rows; how many."""
        with self.reported(where):
            before = self.lance.count_rows()
            self.lance.delete(where)
            return int(before - self.lance.count_rows())

    def add_columns(self, schema: pyarrow.Schema) -> None:
        """Make sure that these columns are there, empty where they are new."""
        fields: list[Any] = [schema.field(name) for name in schema.names]
        new = [field for field in fields if field.name not in self.lance.schema.names]
        if new:
            with self.reported():
                self.lance.add_columns(pyarrow.schema(new))

    def optimize(self, keep_old: timedelta = KEEP_OLD) -> None:
        """Join the pieces, sort new rows into the search indexes, delete states older than that."""
        with self.reported():
            self.lance.optimize(cleanup_older_than=keep_old)

    def batch(self, columns: Mapping[str, Any], *, partial: bool = False) -> pyarrow.RecordBatch:
        """A batch with the table's columns; those not given are empty, or left out if `partial`."""
        empty = [None] * len(columns["path"])
        fields = [field for field in self.lance.schema if not partial or field.name in columns]
        arrays = [
            self._encode(np.asarray(columns["vector"]))
            if field.name == "vector"
            else self._encode_detail(columns.get("detail"), len(empty))
            if field.name == "detail"
            else pyarrow.array(columns.get(field.name, empty), field.type)
            for field in fields
        ]
        return pyarrow.RecordBatch.from_arrays(arrays, schema=pyarrow.schema(fields))

    def _encode(self, vectors: Vectors) -> pyarrow.Array:
        """Unit vectors `(N, D)` in the table's number format; int8 keeps the direction alone."""
        if self.dtype == "int8":
            vectors = np.rint(vectors / np.abs(vectors).max(axis=1, keepdims=True) * 127)
        values = pyarrow.array(vectors.astype(self.dtype).ravel())
        return pyarrow.FixedSizeListArray.from_arrays(values, self.dim)

    def _encode_detail(self, details: Sequence[Detail] | None, rows: int) -> pyarrow.Array:
        """`(C, D)` of each row; zeros where there is none, which no search finds."""
        width = self.parts * self.dim
        values = np.zeros((rows, width)) if details is None else np.stack(list(details))
        flat = pyarrow.array(values.astype(np.int8).ravel())
        return pyarrow.FixedSizeListArray.from_arrays(flat, width)

    def decode_detail(self, column: pyarrow.Array, rows: int) -> Detail:
        """A column of details as `(N, C, D)`."""
        values: Detail = column.flatten().to_numpy()
        return values.reshape(rows, self.parts, self.dim)

    def decode(self, column: pyarrow.Array, rows: int) -> Vectors:
        """A column of vectors as float32 `(N, D)`, at unit length."""
        values = column.flatten().to_numpy(zero_copy_only=False)
        vectors = values.reshape(rows, self.dim).astype(np.float32)
        with np.errstate(divide="ignore", invalid="ignore"):
            unit: Vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        return unit

    def stored_recall(self, full: Vectors, queries: Vectors) -> float:
        """Recall@10 of vectors as they are stored, against all of `full` `(N, W)`.

        Args:
            full: as the model gave them, `W` at least `D`.
            queries: `(Q, W)`.
        """
        stored = self.decode(self._encode(truncate(full, self.dim)), len(full))
        exact, found = (
            np.argsort(-(some @ of.T), axis=1)[:, :10]
            for some, of in ((queries, full), (truncate(queries, self.dim), stored))
        )
        hits = [len(np.intersect1d(*pair)) for pair in zip(exact, found, strict=True)]
        return round(sum(hits) / exact.size, 4)

    # -- searching -------------------------------------------------------------------------------

    def nearest(
        self, vectors: Vectors, count: int, where: str | None, ann: Mapping[str, Any] | None
    ) -> list[tuple[list[str], Vectors]]:
        """For each of `(Q, D)` the paths and vectors `(K, D)` of the closest rows, best first.

        Args:
            vectors: the queries.
            count: `K` at most.
            where: a filter, applied before the ranking.
            ann: what `build_ann` returned; None compares with every row.
        """
        wrong = UsageError("a query's vector is zero or not finite")
        vectors = l2_normalize(vectors, wrong).astype(np.float32)
        if ann and where and self.count(where) <= FEW_ROWS:
            ann = None
        with self.reported(where):
            if ann:
                probes, refine = ann["nprobes"], ann["refine_factor"]
                found = (self._approximate(v, count, where, probes, refine) for v in vectors)
                return [(paths, matrix) for _, paths, matrix in found]
            ids = self._exact(vectors, count, where)
            paths, stored = self.take(sorted({int(row) for part in ids for row in part}))
        results = []
        for vector, part in zip(vectors, ids, strict=True):
            rows = [int(row) for row in part]
            matrix = np.array([stored[row] for row in rows], np.float32).reshape(-1, self.dim)
            order = np.argsort(-(matrix @ vector), kind="stable")
            results.append(([paths[rows[at]] for at in order], matrix[order]))
        return results

    def take(self, row_ids: list[int]) -> tuple[dict[int, str], dict[int, Vectors]]:
        """Paths and vectors `(D,)` of rows."""
        if not row_ids:
            return {}, {}
        query = self.lance.take_row_ids(row_ids).with_row_id()
        table = query.select(["path", "vector"]).to_arrow()
        vectors = self.decode(table["vector"].combine_chunks(), len(table))
        ids = table["_rowid"].to_pylist()  # they come in any order
        names = table["path"].to_pylist()
        return dict(zip(ids, names, strict=True)), dict(zip(ids, vectors, strict=True))

    def _exact(self, vectors: Vectors, count: int, where: str | None) -> list[RowIds]:
        scores = np.zeros((len(vectors), 0), np.float32)
        ids = np.zeros((len(vectors), 0), np.int64)
        for batch in self.scan(["vector"], where, row_ids=True):
            new = vectors @ self.decode(batch["vector"], batch.num_rows).T
            rows = np.broadcast_to(batch["_rowid"].to_numpy().astype(np.int64), new.shape)
            scores, ids = np.hstack([scores, new]), np.hstack([ids, rows])
            if scores.shape[1] > count:
                best = np.argpartition(-scores, count - 1, axis=1)[:, :count]
                scores = np.take_along_axis(scores, best, 1)
                ids = np.take_along_axis(ids, best, 1)
        return list(ids)

    def _approximate(
        self, vector: Vectors, count: int, where: str | None, nprobes: int, refine_factor: int
    ) -> tuple[RowIds, list[str], Vectors]:
        """Row ids, paths and vectors `(K, D)`, best first, of what the approximate index finds.

        One call of LanceDB brings the candidates with their vectors, by which they are ranked: its
        own refining, and taking the vectors of the best after that, would read them twice.
        """
        query = self.lance.search(vector, vector_column_name="vector").distance_type("cosine")
        # Without a most, a narrow filter lets it look on until it has enough.
        query = query.minimum_nprobes(nprobes).maximum_nprobes(0)
        query = query if where is None else query.where(where)
        query = query.select(["path", "vector", "_distance"]).with_row_id(True)
        # So many candidates for each of the first ten are ranked by their stored vectors.
        rows = query.limit(max(count, 10 * refine_factor)).to_arrow()
        matrix = self.decode(rows["vector"].combine_chunks(), len(rows))
        order = np.argsort(-(matrix @ vector), kind="stable")[:count]
        best = rows.select(["path", "_rowid"]).take(order)
        ids: RowIds = best["_rowid"].to_numpy().astype(np.int64)
        return ids, best["path"].to_pylist(), matrix[order]

    def build_ann(self, queries: Vectors) -> dict[str, Any]:
        """Build the approximate index, and find the cheapest search of it that is good enough.

        Recall@10 is measured against the exact search, with `queries` `(Q, D)`.
        """
        kind = "IVF_RQ" if self.dim % 8 == 0 else "IVF_PQ"
        config = (IvfRq if kind == "IVF_RQ" else IvfPq)(distance_type="cosine")
        with self.reported():
            self.lance.create_index("vector", config=config, replace=True)
            for column in set(self.columns) - {"content"}:  # for filters
                kind_of_index = Bitmap() if column == "vanished" else BTree()
                self.lance.create_index(column, config=kind_of_index, replace=True)
            exact = [set(ids.tolist()) for ids in self._exact(queries, 10, None)]
            for nprobes, refine in product(PROBES, REFINE):
                found = (self._approximate(q, 10, None, nprobes, refine)[0] for q in queries)
                hits = [len(best & set(f.tolist())) for best, f in zip(exact, found, strict=True)]
                recall = sum(hits) / (10 * len(queries))
                if recall >= RECALL_GOAL:
                    break
        return {
            "type": kind,
            "rows": self.count(),
            "nprobes": nprobes,
            "refine_factor": refine,
            "recall_at_10": round(recall, 4),
        }

    @contextmanager
    def reported(self, where: str | None = None) -> Iterator[None]:
        """LanceDB's errors as one sentence; one about a filter is the user's.

        Raises:
            UsageError: the filter is refused.
            OutputError: anything else; the disk is full, say.
        """
        try:
            yield
        except (ValueError, RuntimeError, OSError, KeyError) as error:
            text = re.sub(r",? ?/\S+\.rs:\d+\S*", "", " ".join(str(error).split()))
            text = text.removeprefix("Invalid input, ").rstrip(". ")[:400]
            if "No space left" in text or "storage full" in text.lower():
                text = "the disk is full; make room and give the command again, it goes on"
            elif where is not None and isinstance(error, ValueError):
                raise UsageError(f"LanceDB refuses the filter: {text}") from error
            raise OutputError(f"the index {str(self.folder)!r} cannot be used: {text}") from error
