"""Pools of hard negatives: what may be in one, how they are kept on disk, what is drawn from them.

    WORK/pools/KEY/FIRST-STOP.npz        rows, scores, own, better, dropped of a block of queries:
                                         a search that is stopped goes on from there
    WORK/exact-pools/KEY/FIRST-STOP.npz  the same of a sample, that recall is measured by

Shapes: `N` queries, `n` those of a block, `K` size of a pool.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from abc_embed.errors import DataError
from abc_embed.mining.settings import Floats, Ints, Method, MiningSettings, Strategy
from abc_embed.storage.files import atomic_write, make_folder

RULES = ("own caption", "same image", "above the line", "beyond the pool")
"""Why a candidate is not in a pool, in the order in which the rules are asked."""
BIN = 5
"""Neighbours of a sorted list of which the published loader takes one."""


class Truth:
    """Which candidates are true of each query: the captions of all queries with its image."""

    def __init__(
        self, own: Ints, images: Ints | None = None, also_true: Ints | None = None
    ) -> None:
        """Take in what is true.

        Args:
            own: `(N,)` number of the candidate that is the query's own caption.
            images: `(N,)`; equal numbers mean the same image. None: all differ.
            also_true: `(n, 2)`: a query, and a candidate that is a caption of its image as well.

        Raises:
            DataError: a query has no image number.
        """
        self.own = own
        shown = np.arange(len(own)) if images is None else images
        if shown.shape != own.shape:
            raise DataError("give one image number per query")
        _, image = np.unique(shown, return_inverse=True)
        self._image: Ints = image.astype(np.int64)
        pairs = (self._image << 32) | own
        if also_true is not None:
            query, text = also_true.T
            pairs = np.concatenate([pairs, (self._image[query] << 32) | text])
        pairs = np.unique(pairs)
        self._texts: Ints = pairs & ((1 << 32) - 1)
        self._starts: Ints = np.searchsorted(pairs >> 32, np.arange(len(own) + 1))

    def __getitem__(self, queries: slice | Ints) -> "Truth":
        """The same of some of the queries alone."""
        part = Truth.__new__(Truth)
        part.own, part._image = self.own[queries], self._image[queries]
        part._texts, part._starts = self._texts, self._starts
        return part

    def pairs(self) -> tuple[Ints, Ints]:
        """(query, candidate) of all that is true, by ascending query."""
        starts = self._starts[self._image]
        counts = self._starts[self._image + 1] - starts
        queries = np.repeat(np.arange(len(counts)), counts)
        within = np.arange(len(queries)) - np.repeat(np.cumsum(counts) - counts, counts)
        return queries, self._texts[starts[queries] + within]


@dataclass(frozen=True, slots=True, eq=False)
class Pools:
    """The pools of consecutive queries, best first."""

    first: int
    """Number of the first of these queries."""
    rows: NDArray[np.int32]
    """`(n, K)` numbers of candidates; -1 where fewer are left."""
    scores: Floats
    """`(n, K)`; NaN where fewer are left."""
    own: Floats
    """`(n,)` score of the own caption."""
    better: Ints
    """`(n,)` captions of other images that score more than the own one: its rank, from 0."""
    dropped: Ints
    """`(n, 4)`: how many candidates each of `RULES` kept out. With the pool they sum to `M`."""

    @property
    def sizes(self) -> Ints:
        """`(n,)`: how many are in each pool."""
        sizes: Ints = (self.rows >= 0).sum(axis=1)
        return sizes


def recall(found: Iterable[Pools], exact: Iterable[Pools], sample: Ints) -> float | None:
    """The share of the members of exact pools that was found; None where these have no members.

    Args:
        found: the pools of all queries.
        exact: those of a sample of them, in the same order.
        sample: which these are, ascending.
    """
    expected = [row[row >= 0] for pools in exact for row in pools.rows]
    hits = 0
    for pools in found:
        begin, end = np.searchsorted(sample, [pools.first, pools.first + len(pools.rows)])
        for query, row in zip(sample[begin:end], expected[begin:end], strict=True):
            hits += int(np.isin(row, pools.rows[query - pools.first]).sum())
    total = sum(map(len, expected))
    return hits / total if total else None


class PoolStore:
    """The pools of one search, in a folder named by everything that decides them."""

    def __init__(
        self, folder: Path, key: object, arrays: Sequence[Ints], settings: MiningSettings
    ) -> None:
        """`key` and `arrays` are what decides the pools, besides `settings`."""
        digest = hashlib.sha256(repr(key).encode())
        if settings.method is Method.IVF:  # of the exact methods none changes a pool
            values = (settings.nlist, settings.nprobe, settings.seed, settings.memory_bytes)
            digest.update("ivf {} {} {} {}".format(*values).encode())
        for array in arrays:
            digest.update(np.ascontiguousarray(array).view(np.uint8).data)
        self._folder = make_folder(folder / digest.hexdigest()[:32])
        self.known = max((stop for stop, _ in self._files()), default=0)
        """The first query whose pool was not on disk when this was opened."""

    def _files(self) -> Iterator[tuple[int, Path]]:
        """Those of a run without a gap, from the first query on, and where each ends."""
        by_first = {int(path.stem.split("-")[0]): path for path in self._folder.glob("*-*.npz")}
        stop = 0
        while path := by_first.get(stop):
            stop = int(path.stem.split("-")[1])
            yield stop, path

    def add(self, pools: Pools) -> None:
        """Keep the pools of a block.

        Raises:
            OutputError: they cannot be written.
        """
        stop = pools.first + len(pools.own)
        values = {field.name: getattr(pools, field.name) for field in fields(Pools)}
        with atomic_write(self._folder / f"{pools.first:010}-{stop:010}.npz") as file:
            np.savez(file, allow_pickle=False, **values)

    def __iter__(self) -> Iterator[Pools]:
        """All pools, in the order of the queries.

        Raises:
            DataError: a file is damaged.
        """
        for _, path in self._files():
            try:
                with np.load(path, allow_pickle=False) as archive:
                    values = {field.name: archive[field.name] for field in fields(Pools)}
                pools = Pools(int(values.pop("first")), **values)
            except (OSError, ValueError, KeyError, TypeError) as problem:
                raise DataError(
                    f"the pools in {path} cannot be read; delete the file and run again"
                ) from problem
            yield pools


@dataclass(frozen=True, slots=True)
class SampledNegatives:
    """The negatives of one row, best first."""

    row: int
    captions: list[int]
    """Numbers of distinct captions."""
    scores: list[float]
    ranks: list[int]
    """Places in the pool, from 0."""
    own: float
    """Score of the own caption."""


def sample_ranks(size: int, settings: MiningSettings, row: int) -> list[int]:
    """Ranks in a sorted pool of `size`, best first; fewer than were asked for if it is too small.

    They follow from the seed and `row` alone, so the order of the work does not matter.
    """
    random = np.random.default_rng([settings.seed, row])
    if settings.strategy is Strategy.UNIFORM:
        return sorted(random.permutation(size)[: settings.sample_size].tolist())
    starts = range(0, min(size, settings.sample_size * BIN), BIN)
    return [int(random.integers(start, min(start + BIN, size))) for start in starts]
