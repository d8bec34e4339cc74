"""A lasting index of images: built by content, filtered, and whole after a kill.

Its rows lie in LanceDB (table.py). What changed on disk is found in update.py; which hits are no
answer is decided in cutoff.py.

Shapes: `N` images, `Q` queries, `K` hits, `D` width.
"""

import fcntl
import logging
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from abc_embed.errors import DataError, OutputError, UsageError
from abc_embed.search import cutoff
from abc_embed.search.hits import Hit
from abc_embed.search.queries import Query, as_query, embed_queries
from abc_embed.search.settings import (
    FORMAT,
    PARTS,
    TOKEN_LIMIT_BYTES,
    TOKENS,
    read_settings,
    write_settings,
)
from abc_embed.search.table import BATCH_ROWS, DTYPES, ImageTable, Vectors
from abc_embed.search.update import Report, update
from abc_embed.storage.files import atomic_write, is_unicode, make_folder
from abc_embed.storage.vector_cache import FileStamp
from abc_embed.vectors import VectorFormat, l2_normalize, truncate

if TYPE_CHECKING:
    from os import PathLike

    from abc_embed.embedder import Embedder
    from abc_embed.inputs import Item
    from abc_embed.search.metadata import Captions
    from abc_embed.search.tokens import TokenStore

BANK, LOCK = "texts.npy", ".lock"
EXACT_ROWS = 100_000
"""Up to so many rows every vector is compared; above, an approximate index finds the candidates."""
RECALL_QUERIES = 100
FEWEST_ORIGINALS, MOST_ORIGINALS = 50, 2_000
DETAIL_ROWS = 1024
"""Images whose details are compared at a time."""

log = logging.getLogger(__name__)


class Index:
    """Images with their vectors on disk; safe with several processes, and whole after a kill.

    Make one with `create` or `open`; `add` brings it up to date with folders, `search` asks it.
    """

    def __init__(self, folder: Path, settings: dict[str, Any], embedder: "Embedder | None") -> None:
        self.folder = folder
        self.settings = settings
        self.embedder = embedder
        self.max_pixels: int | None = settings["max_pixels"]
        self.dim: int = settings["dim"]
        self.parts: int = settings.get("parts", 0)
        self.table = ImageTable(folder, self.dim, settings["dtype"], self.parts)
        self._bank: Vectors | None = None
        self.originals: list[Vectors] = []
        """Some vectors of an update as the model gave them: by these it is measured what the
        stored ones, shorter or rounded, find."""

    @classmethod
    def create(
        cls,
        folder: "str | PathLike[str]",
        embedder: "Embedder | None" = None,
        *,
        dim: int | None = None,
        max_pixels: int | None = None,
        dtype: str = "float16",
        detail: bool = False,
        model: str = "",
    ) -> Self:
        """A new, empty index.

        Args:
            folder: where; new, or empty.
            embedder: what its images and queries go through.
            dim: the width to which the embedder's vectors are cut, or that of vectors that are made
                elsewhere, without an embedder.
            max_pixels: the resolution at which images are seen; None: as the model says.
            dtype: how vectors are kept: float16, float32, or int8, which is searched exactly.
            detail: keep small vectors of each image's parts too, which `ask` ranks by.
            model: the name under which the embedder is loaded again.

        Raises:
            OutputError: the folder holds something else, or cannot be written.
        """
        folder = Path(folder)
        if dtype not in DTYPES:
            raise UsageError(f"vectors are kept as {', '.join(DTYPES)}, not {dtype!r}")
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise OutputError(f"{str(folder)!r} is there and no index; choose a new folder")
        if embedder is None and dim is None:
            raise UsageError("an index needs an embedder, or the width of its vectors as dim")
        if detail and embedder is None:
            raise UsageError("detail is made by a model; create the index with an embedder")
        if embedder is not None and dim is not None:  # refused, or warned of: it was not trained
            VectorFormat(embedder.dim, embedder.model.vector_facts, dim, "float32")
        settings: dict[str, Any] = {
            "format": FORMAT,
            "model": model,
            "fingerprint": embedder.fingerprint if embedder else "",
            "temperature": embedder.config["temperature"] if embedder else None,
            "max_pixels": max_pixels,
            "dim": embedder.dim if embedder and dim is None else dim,
            "dtype": dtype,
            "parts": PARTS if detail else 0,
            "folders": [],
            "filters": {},
        }
        write_settings(make_folder(folder), settings)
        return cls(folder, settings, embedder)

    @classmethod
    def open(
        cls,
        folder: "str | PathLike[str]",
        embedder: "Embedder | None" = None,
        *,
        max_pixels: int | None = None,
    ) -> Self:
        """An index that is there.

        Raises:
            DataError: it is none, is damaged, or was made with another model or resolution.
        """
        folder = Path(folder)
        settings = read_settings(folder)
        made_with = settings["fingerprint"]
        if embedder is not None and made_with != embedder.fingerprint:
            name = settings["model"] or "another model"
            raise DataError(
                f"the index {str(folder)!r} was made with {name} ({made_with[:12]}), not with this "
                f"model ({embedder.fingerprint[:12]}); use that one, or build another index"
            )
        if max_pixels is not None and settings["max_pixels"] != max_pixels:
            own = settings["max_pixels"]
            seen = "the model's own resolution" if own is None else f"{own} pixels"
            raise DataError(
                f"the images of the index {str(folder)!r} were seen at {seen}, not at "
                f"{max_pixels} pixels; leave out the resolution, or build another index"
            )
        return cls(folder, settings, embedder)

    # -- what it holds ---------------------------------------------------------------------------

    def __len__(self) -> int:
        return self.table.count("NOT vanished")

    def info(self) -> dict[str, Any]:
        """What it is and holds, for people and programs."""
        files = (path for path in self.folder.rglob("*") if path.is_file())
        keys = ("model", "fingerprint", "max_pixels", "dim", "dtype", "folders")
        return {
            "images": len(self),
            "vanished": self.table.count("vanished"),
            **{key: self.settings[key] for key in keys},
            "detail": f"{self.parts} x {self.dim} int8 an image" if self.parts else "none",
            "filters": self.settings.get("filters", {}),
            "columns": self.table.columns,
            "bytes": sum(path.stat().st_size for path in files),
            "fragments": self.table.fragments(),
            "search": self.settings.get("ann") or {"type": "exact"},
            "stored_recall": self.settings.get("stored_recall", "not measured"),
            "cutoffs": self.settings.get("cutoffs", {}),
            "kept_tokens": self._kept_tokens(),
        }

    def check(self) -> list[str]:
        """Read all of it; one sentence for each thing that is wrong."""
        paths: set[str] = set()
        twice = wrong = 0
        for batch in self.table.scan(["path", "vector"]):
            vectors = self.table.decode(batch["vector"], batch.num_rows)
            wrong += int((~np.isfinite(vectors).all(axis=1)).sum())
            twice += batch.num_rows - len(set(batch["path"].to_pylist()) - paths)
            paths.update(batch["path"].to_pylist())
        problems = {"vectors are zero or not finite": wrong, "paths are there twice": twice}
        return [f"{count} {problem}" for problem, count in problems.items() if count]

    def stale_paths(self) -> list[str]:
        """Images whose files changed or vanished since they were embedded."""
        stale = []
        for batch in self.table.scan(["path", "size", "mtime_ns"], "NOT vanished AND size >= 0"):
            for row in batch.to_pylist():
                try:
                    stamp = FileStamp.of(Path(row["path"]))
                except OSError:
                    stale.append(row["path"])
                else:
                    if stamp.size != row["size"] or row["mtime_ns"] not in (-1, stamp.mtime_ns):
                        stale.append(row["path"])
        return stale

    def refresh(self) -> bool:
        """Take over what other processes wrote since it was opened; whether there is anything."""
        settings = read_settings(self.folder)
        if settings["fingerprint"] != self.settings["fingerprint"]:
            raise DataError(f"the index {str(self.folder)!r} was made anew with another model")
        with self.table.reported():
            before = self.table.lance.version
            self.table.lance.checkout_latest()
            changed = bool(self.table.lance.version != before) or settings != self.settings
        self.settings.update(settings)
        return changed

    # -- searching -------------------------------------------------------------------------------

    def search(
        self, query: "str | Item | Query | Vectors", count: int = 5, *, where: str | None = None
    ) -> list[Hit]:
        """The `count` images closest to a query, answers first, by their cosine.

        Args:
            query: a text, an image, an image with an instruction, a `Query`, or a vector `(D,)`.
            count: how many.
            where: a filter in LanceDB's language, applied before the ranking.

        Raises:
            DataError: the index is empty.
            UsageError: LanceDB refuses the filter.
        """
        return self.search_many([query], count, where=where)[0]

    def search_many(
        self,
        queries: "Sequence[str | Item | Query | Vectors]",
        count: int = 5,
        *,
        where: str | None = None,
    ) -> list[list[Hit]]:
        """`search` for several queries at once."""
        self.check_query(where)
        known = [None if isinstance(query, np.ndarray) else as_query(query) for query in queries]
        asked = [query for query in known if query is not None]
        embedded = iter(
            embed_queries(asked, self.needed_embedder(), self.max_pixels) if asked else ()
        )
        vectors = np.stack(
            [query if isinstance(query, np.ndarray) else next(embedded) for query in queries]
        )
        return self.search_embedded(known, vectors, count, where=where)

    def search_embedded(
        self,
        queries: "Sequence[Query | None]",
        vectors: Vectors,
        count: int = 5,
        *,
        where: str | None = None,
    ) -> list[list[Hit]]:
        """`search` for queries whose vectors `(Q, D)` are there; None: only the vector is known."""
        vectors = truncate(vectors, self.dim)
        results = []
        found = self.nearest(vectors, max(count, cutoff.CANDIDATES), where)
        for parts, vector, (paths, images) in zip(queries, vectors, found, strict=True):
            answers = None if parts is None else cutoff.answers(self, parts, vector, images)
            flags = [None] * len(paths) if answers is None else answers.tolist()
            rows = zip(paths, (images @ vector).tolist(), flags, strict=True)
            hits = [Hit(Path(path), score, flag) for path, score, flag in rows]
            results.append(sorted(hits, key=lambda hit: hit.is_answer is False)[:count])
        return results

    def check_query(self, where: str | None) -> None:
        """Find out before anything is embedded whether there is something to search.

        Raises:
            DataError: the index is empty.
            UsageError: LanceDB refuses the filter.
        """
        if not len(self):
            raise DataError(f"the index {str(self.folder)!r} is empty; add images with: index add")
        if where is not None:
            self.table.count(where)  # refuses it in the user's own words

    def nearest(
        self, vectors: Vectors, count: int, where: str | None = None
    ) -> list[tuple[list[str], Vectors]]:
        """For each of `(Q, D)` the paths and vectors `(K, D)` of the closest images, best first."""
        if self.table.count("vanished"):
            where = f"NOT vanished AND ({where})" if where else "NOT vanished"
        return self.table.nearest(vectors, count, where, self.settings.get("ann"))

    def promising(self, vector: Vectors, count: int, where: str | None = None) -> list[str]:
        """Paths of the `count` images that are the most promising for a text's vector `(D,)`.

        Those closest to it; with detail, by turns the best part and the best whole, each of which
        finds images that the other misses, and both weighed against everyday things, since some
        parts are close to every text (docs/search.md).
        """
        vector = truncate(vector, self.dim)
        if not self.parts:
            return self.nearest(vector[None], count, where)[0][0]
        from abc_embed.search.detail import TEMPERATURE, best_part, by_turns  # torch comes with it

        bank = self.text_bank()

        there = f"NOT vanished AND ({where})" if where else "NOT vanished"
        paths: list[str] = []
        wholes, parts = [np.zeros(0, np.float32)], [np.zeros(0, np.float32)]
        columns = ["path", "vector", "detail"]
        for batch in self.table.scan(columns, there, batch_rows=DETAIL_ROWS):
            paths += batch["path"].to_pylist()
            images = self.table.decode(batch["vector"], batch.num_rows)
            wholes.append(cutoff.score(vector, images, bank, TEMPERATURE))
            details = self.table.decode_detail(batch["detail"], batch.num_rows)
            parts.append(best_part(details, vector, bank))
        order = by_turns(np.concatenate(parts), np.concatenate(wholes))[:count]
        return [paths[at] for at in order]

    def paths(self, where: str | None = None) -> list[str]:
        """Paths of all images that pass a filter, vanished ones left out.

        Raises:
            UsageError: LanceDB refuses the filter.
        """
        if where is not None:
            self.table.count(where)  # refuses it in the user's own words
        there = f"NOT vanished AND ({where})" if where else "NOT vanished"
        batches = self.table.scan(["path"], there)
        return [path for batch in batches for path in batch["path"].to_pylist()]

    def text_bank(self) -> Vectors | None:
        """Vectors of everyday things, which a text is weighed against; None without a model."""
        path = self.folder / BANK
        if self._bank is None and path.exists():
            self._bank = np.load(path)
        if self._bank is None and self.embedder is not None:
            self._bank = truncate(cutoff.make_bank(self.embedder), self.dim)
            with atomic_write(path) as file:
                np.save(file, self._bank)
        return self._bank

    def token_store(self) -> "TokenStore":
        """Visual tokens of images that were looked at, to be closed after use.

        Raises:
            OutputError: their file cannot be made or opened.
        """
        from abc_embed.search.tokens import TokenStore  # torch comes with it

        return TokenStore(self.folder)

    def shortened(self, vector: Vectors) -> Vectors:
        """A vector as the model gave it `(D,)`, at the width that is kept; some are remembered."""
        is_less = self.dim < len(vector) or self.settings["dtype"] != "float32"
        if is_less and len(self.originals) < MOST_ORIGINALS:
            self.originals.append(vector)
        return truncate(vector, self.dim)

    def _kept_tokens(self) -> dict[str, int]:
        images = size = 0
        if (self.folder / TOKENS).exists():
            with self.token_store() as store:
                images, size = store.size()
        return {"images": images, "bytes": size, "at_most": TOKEN_LIMIT_BYTES}

    def needed_embedder(self) -> "Embedder":
        """The model.

        Raises:
            UsageError: there is none.
        """
        if self.embedder is None:
            raise UsageError("this index was opened without a model; open it with an embedder")
        return self.embedder

    # -- writing ---------------------------------------------------------------------------------

    def add(
        self,
        sources: Iterable["str | PathLike[str]"] = (),
        *,
        captions: "Captions | None" = None,
        **options: Any,
    ) -> Report:
        """Bring it up to date with image files and folders; without any, with those it has.

        The options are those of `update.update`.

        Raises:
            OutputError: the disk is full, say; what was written until then stays.
        """
        with self.writing():
            report = update(self, [Path(source) for source in sources], captions, **options)
            if report.written or "cutoffs" not in self.settings:
                self._maintain()
        return report

    def add_vectors(
        self, paths: Sequence[str], vectors: Vectors, columns: Mapping[str, Sequence[Any]] = {}
    ) -> None:
        """Vectors `(N, D)` that were made elsewhere, with further columns; all or none.

        They are read piece by piece, so `vectors` may be a memory map. A path may be known.

        Raises:
            DataError: widths or lengths differ, a path comes twice, a vector is zero or not finite.
        """
        if vectors.shape != (len(paths), self.dim):
            raise DataError(
                f"there are vectors {vectors.shape} for {len(paths)} names in an index of width "
                f"{self.dim}; give one vector of this width for each name"
            )
        if len(set(paths)) < len(paths):
            raise DataError("a path comes twice; give each vector its own")
        wrong = DataError("one of the vectors is zero or not finite; leave it out")

        parts = [slice(at, at + BATCH_ROWS) for at in range(0, len(paths), BATCH_ROWS)]
        for part in parts:  # before anything is written
            l2_normalize(vectors[part], wrong)

        def batches() -> Iterator[Any]:
            for part in parts:
                names = list(paths[part])
                own = {"content": "", "size": -1, "mtime_ns": -1, "vanished": False}
                yield self.table.batch(
                    {
                        "path": names,
                        "vector": l2_normalize(vectors[part], wrong).astype(np.float32),
                        **{name: [value] * len(names) for name, value in own.items()},
                        **{name: values[part] for name, values in columns.items()},
                    }
                )

        import pyarrow

        with self.writing():
            if columns:
                self.table.add_columns(pyarrow.table(dict(columns)).schema)
            self.table.add_batches(batches())
            self._maintain()

    def remove(self, paths: Iterable["str | PathLike[str]"]) -> int:
        """Take out images, and all below a folder; how many."""
        removed = 0
        with self.writing():
            before = list(self.settings["folders"])
            for path in filter(is_unicode, map(os.path.abspath, paths)):  # an index has no other
                self.settings["folders"] = [f for f in self.settings["folders"] if f != path]
                self.settings.get("filters", {}).pop(path, None)
                below = _quoted(path.rstrip(os.sep) + os.sep)
                removed += self.table.delete(
                    f"path = {_quoted(path)} OR starts_with(path, {below})"
                )
            if removed or self.settings["folders"] != before:
                self._maintain()
        return removed

    def compact(self, *, drop_tokens: bool = False) -> int:
        """Drop vanished images and old states, join the pieces; how many images were dropped.

        With `drop_tokens` the visual tokens that `ask` kept go too.
        """
        with self.writing(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that a search under way may fail: docs/search.md
            dropped = self.table.delete("vanished") if self.table.count("vanished") else 0
            self.table.optimize(timedelta(0))
            self._maintain()
            if drop_tokens:
                for file in self.folder.glob(f"{TOKENS}*"):
                    file.unlink(missing_ok=True)
        return dropped

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the index for writing; another process that does is waited for, with a message."""
        with (self.folder / LOCK).open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                log.info("another process writes to %s; waiting until it is done", self.folder)
                fcntl.flock(file, fcntl.LOCK_EX)
            self.settings.update(read_settings(self.folder))
            with self.table.reported():
                self.table.lance.checkout_latest()
            yield

    def save_settings(self) -> None:
        """Write what the index says of itself, whole or not at all."""
        write_settings(self.folder, self.settings)

    def _maintain(self) -> None:
        """After a change: the approximate index and the cut-offs follow what is there now."""
        rows, ann = self.table.count(), self.settings.get("ann")
        if rows <= EXACT_ROWS or self.settings["dtype"] == "int8":
            self.settings["ann"] = None
        elif ann is None or not ann["rows"] / 2 <= rows <= ann["rows"] * 2:
            log.info("building the approximate index of %s rows", f"{rows:,}")
            queries = cutoff.halves(self.table.sample(4 * RECALL_QUERIES), RECALL_QUERIES)
            self.settings["ann"] = ann = self.table.build_ann(queries)
            log.info("%s: recall@10 against exact %.3f", ann["type"], ann["recall_at_10"])
        elif ann["rows"] != rows:  # a few more: sorted into the index as it is
            self.table.optimize()
        if len(self.originals) >= FEWEST_ORIGINALS:
            full = np.stack(self.originals)
            queries = cutoff.halves(full, RECALL_QUERIES)
            kept = {"images": len(full), "recall": self.table.stored_recall(full, queries)}
            if kept["images"] >= self.settings.get("stored_recall", kept)["images"]:
                self.settings["stored_recall"] = kept
        self.originals = []
        if rows:
            self.settings["cutoffs"] = cutoff.calibrate(self)
        self.save_settings()


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
