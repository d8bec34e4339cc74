"""Scores of every image with every caption -> the pool of hard negatives of each image.

Does: go through blocks under a memory ceiling, keep what scores at most ε times the own caption,
and of that the best. Does not: read, embed, or draw from the pool.

Scores are summed in float64 and rounded to float32, so that they do not depend on how the work was
cut (a sum in float32 does, in its last digits), and equal ones are ordered by the lower number of
the candidate. faiss sums in float32: what it finds is scored anew, and where its error could hide a
candidate that matters, the query is asked for more, and in the end scored in full. So all exact
methods give the same pools; a score may differ in its last bit where the sum in float64 lies on the
edge between two numbers of float32, about one in some millions.

Shapes: `N` queries, `M` candidates, `D` width, `K` size of a pool.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from abc_embed.errors import DataError, UsageError
from abc_embed.mining.engines import (
    Blocks,
    Engine,
    Flat,
    Floats,
    Ints,
    Ivf,
    Method,
    blocks,
    resolve_method,
)
from abc_embed.mining.pools import Pools, PositiveIndex, QueryBlock

EPSILON = 0.95
"""A caption that scores more than this part of the own one may be true too (paper, section 3.2)."""
POOL = 100
"""The best so many below that line (paper, section 3.2)."""
MEMORY = 10**9
"""Bytes that a search may take beyond its inputs, unless told otherwise."""
PROBES = 16
"""Cells that a query looks into, with `Method.IVF`."""
SAMPLE = 256
"""Queries whose approximate pools are compared with exact ones."""

_MORE = 4  # so many times as many are asked for, when what was found leaves a doubt
_MOST = 2048  # more than so many are scored in full rather than asked for


class Vectors(Protocol):
    """`(N, D)` float32 that are read in parts: an array, or files (shards.py)."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, numbers: slice | Ints, /) -> Floats: ...


@dataclass(frozen=True, slots=True)
class How:
    """How the search is done; of the exact methods none changes a pool."""

    method: Method = Method.AUTO
    memory_bytes: int = MEMORY
    """Ceiling on what is allocated, beyond the arguments and some 60 bytes for each query and
    candidate."""
    cells: int = 0
    """Of the inverted lists; 0 chooses 4 √M."""
    probes: int = PROBES
    seed: int = 0
    """Of the inverted lists, and of the sample that their recall is measured on."""

    def __post_init__(self) -> None:
        for name, least in (("cells", 0), ("probes", 1)):
            if getattr(self, name) < least:
                raise UsageError(f"{name} is {getattr(self, name)}; give at least {least}")


def search(
    queries: Vectors,
    candidates: Vectors,
    own: Ints,
    *,
    images: Ints | None = None,
    epsilon: float = EPSILON,
    pool: int = POOL,
    how: How | None = None,
    start: int = 0,
    counted: Callable[[int], None] = lambda done: None,
) -> Iterator[Pools]:
    """The pools of all queries from `start` on, block by block.

    A candidate of a query is kept out, by the first of `pools.RULES` that applies, if it is the own
    caption or another caption of the same image, if it scores more than `epsilon` times the own
    caption, or if `pool` others are better.

    Args:
        queries: `(N, D)`.
        candidates: `(M, D)`, of different texts.
        own: `(N,)` number of the candidate that is the query's own caption.
        images: `(N,)`; equal numbers mean the same image. None: all differ.
        epsilon: above 0, at most 1.
        pool: 1 or more.
        how: method and memory; None: the defaults.
        start: the first query; those before it were searched by an earlier run.
        counted: told how many queries are done, `start` included, with each candidate block.

    Raises:
        DataError: a vector holds a value that is not finite, or shapes do not fit.
        UsageError: an argument is out of range.
        MissingExtraError: a method of faiss is asked for, which is not installed.
    """
    how = how or How()
    how = replace(how, method=resolve_method(how.method))
    _check(queries, candidates, own, epsilon, pool)
    shares = blocks(how.memory_bytes, queries.shape[1], pool, how.method)
    kinds = PositiveIndex(own, images)
    worker = _Search(queries, candidates, own, kinds, epsilon, pool, how, shares)
    return worker.run(start, counted)


def _check(queries: Vectors, candidates: Vectors, own: Ints, epsilon: float, pool: int) -> None:
    if len(queries.shape) != 2 or queries.shape[1:] != candidates.shape[1:]:
        raise DataError(
            f"queries of shape {queries.shape} and candidates of shape {candidates.shape} do not "
            "fit; give (N, D) and (M, D) from one model"
        )
    if own.shape != (queries.shape[0],) or (own.size and own.min() < 0):
        raise DataError("each query needs the number of its own candidate, 0 or more")
    if own.size and own.max() >= candidates.shape[0]:
        raise DataError(f"candidate {own.max()} is named but there are {candidates.shape[0]}")
    if candidates.shape[0] >= 1 << 31:
        raise DataError(f"{candidates.shape[0]} candidates are too many; give fewer than 2^31")
    if not 0 < epsilon <= 1:
        raise UsageError(f"epsilon is {epsilon}; give a number above 0, and at most 1")
    if pool < 1:
        raise UsageError(f"the pool is {pool}; give 1 or more")


class _Search:
    """The blocks, one after the other."""

    def __init__(
        self,
        queries: Vectors,
        candidates: Vectors,
        own: Ints,
        kinds: PositiveIndex,
        epsilon: float,
        pool: int,
        how: How,
        shares: Blocks,
    ) -> None:
        self._queries, self._candidates, self._own = queries, candidates, own
        self._kinds, self._epsilon, self._pool = kinds, epsilon, pool
        self._how, self._shares = how, shares
        self._block: tuple[int, Floats] | None = None
        self._ask = pool + max(pool // 4, 8)  # grows where more are needed
        count = queries.shape[0]
        sample = np.random.default_rng([how.seed, 1]).permutation(count)[:SAMPLE]
        self._sample = np.sort(sample) if how.method is Method.IVF else sample[:0]

    def run(self, start: int, counted: Callable[[int], None]) -> Iterator[Pools]:
        count, total = self._queries.shape[0], self._candidates.shape[0]
        engine = self._engine()
        while start < count:
            stop = min(start + self._shares.queries, count)
            asked = self._open(start, stop)
            here = self._sample[(self._sample >= start) & (self._sample < stop)] - start
            truth = asked.part(here)
            for first in range(0, total, self._shares.candidates):
                block = self._load(engine, first)
                if engine is None:
                    asked.score_all(np.arange(stop - start), block, first, self._shares.side)
                else:
                    self._score(engine, asked, block, first)
                truth.score_all(np.arange(len(here)), block, first, self._shares.side)
                del block  # or two would be in memory while the next is read
                done = min(first + self._shares.candidates, total)
                counted(start + (stop - start) * done // total)
            yield asked.pools(start, total, truth.best, here)
            start = stop

    def _open(self, start: int, stop: int) -> QueryBlock:
        """A block of queries with their own scores; nothing found yet."""
        vectors = self._read("query", self._queries, start, stop)
        own = np.empty(stop - start, dtype=np.float32)
        step = max(1, self._shares.pair_bytes // (32 * vectors.shape[1]))
        for left in range(0, stop - start, step):
            right = min(left + step, stop - start)
            mine = self._candidates[self._own[start + left : start + right]]
            own[left:right] = exact(vectors[left:right], mine)
        query, text = self._kinds.forbidden(start, stop)
        return QueryBlock(vectors, own, self._epsilon, self._pool, query, text)

    def _read(self, name: str, vectors: Vectors, start: int, stop: int) -> Floats:
        part = np.ascontiguousarray(vectors[start:stop], dtype=np.float32)
        step = max(1, self._shares.pair_bytes // (4 * part.shape[1]))
        for left in range(0, len(part), step):
            good = np.isfinite(part[left : left + step]).all(axis=1)
            if not good.all():
                raise DataError(
                    f"the vector of {name} {start + left + int(np.argmin(good))} is not finite; "
                    "embed it anew"
                )
        return part

    def _load(self, engine: Engine | None, first: int) -> Floats:
        """A block of candidates; read again only if it is another than the last."""
        if self._block is None or self._block[0] != first:
            self._block = None
            stop = min(first + self._shares.candidates, self._candidates.shape[0])
            self._block = (first, self._read("candidate", self._candidates, first, stop))
            if engine is not None:
                engine.load(self._block[1], first)
        return self._block[1]

    def _engine(self) -> Engine | None:
        if self._how.method is Method.PLAIN or not min(
            self._queries.shape[0], self._candidates.shape[0]
        ):
            return None
        if self._how.method is Method.FLAT:
            return Flat()
        total, width = self._candidates.shape
        most = max(64, int(0.1 * self._how.memory_bytes) // (4 * width))
        order = np.random.default_rng([self._how.seed, 0]).permutation(total)
        sample = self._candidates[np.sort(order[: min(most, 64 * (self._how.cells or total))])]
        return Ivf(
            np.ascontiguousarray(sample, dtype=np.float32),
            total,
            cells=self._how.cells,
            probes=self._how.probes,
            seed=self._how.seed,
        )

    def _score(self, engine: Engine, asked: QueryBlock, block: Floats, first: int) -> None:
        """Ask the engine for a few, for more where that leaves a doubt, then score in full."""
        todo = np.arange(len(asked.vectors))
        longest = float(np.sqrt(np.einsum("nd,nd->n", block, block, dtype=np.float64).max()))
        most = _within(engine.exact, len(block))
        k = min(self._ask, len(block)) if most == len(block) else self._ask
        while len(todo) and k <= most:
            step = self._shares.asked_at_once(len(todo), k, block.shape[1])
            left = [
                self._ask_for(engine, asked, todo[at : at + step], block, first, k, longest)
                for at in range(0, len(todo), step)
            ]
            doubtful = np.concatenate(left)
            if len(doubtful) > len(todo) // 20 and k == self._ask:
                self._ask = min(2 * self._ask, _MOST)  # for the next block; too few are slower
            todo = doubtful
            k = min(_MORE * k, most) if k < most else most + 1
        if len(todo):
            asked.score_all(todo, block, first, self._shares.side)

    def _ask_for(
        self,
        engine: Engine,
        asked: QueryBlock,
        queries: Ints,
        block: Floats,
        first: int,
        k: int,
        longest: float,
    ) -> Ints:
        """Take in the best `k` of the block for these queries; those for which that may be too few
        are left as they were, and returned."""
        near, places = engine.nearest(asked.vectors[queries], k)
        step = self._shares.taken_at_once(k, block.shape[1])
        sure = np.concatenate(
            [
                self._take(
                    asked,
                    queries[at : at + step],
                    block,
                    first,
                    near[at : at + step],
                    places[at : at + step],
                    longest if engine.exact else None,
                )
                for at in range(0, len(queries), step)
            ]
        )
        left: Ints = queries[~sure]
        return left

    def _take(
        self,
        asked: QueryBlock,
        queries: Ints,
        block: Floats,
        first: int,
        near: Floats,
        places: Ints,
        longest: float | None,
    ) -> NDArray[np.bool_]:
        """For which queries that was enough; `longest` is None where the engine is not exact."""
        vectors, k = asked.vectors[queries], near.shape[1]
        slack = _slack(vectors, longest or 1.0)
        low = asked.least(queries) - slack
        row, column = np.nonzero((places >= 0) & (near >= low[:, None]))
        place = places[row, column]
        allowed = asked.allowed(queries[row], place + first)
        row, column, place = row[allowed], column[allowed], place[allowed]
        scores = np.empty(len(row), dtype=np.float32)
        step = max(1, self._shares.pair_bytes // (32 * block.shape[1]))
        for at in range(0, len(row), step):
            part = slice(at, at + step)
            scores[part] = exact(vectors[row[part]], block[place[part]])
        found = asked.found(queries, row, column, place + first, scores, k)
        if k == len(block):
            sure = np.ones(len(queries), dtype=np.bool_)
        elif longest is not None:
            sure = near[:, -1] + slack < found.bound
        else:
            sure = found.full | (places[:, -1] < 0)
        asked.take(found, sure)
        return sure


def _within(exact: bool, size: int) -> int:
    """How many of a block to ask for at most; for more, scoring in full is quicker."""
    return min(_MOST, size // 4) if exact else size


def exact(queries: Floats, candidates: Floats) -> Floats:
    """`(n, D)` and `(n, D)` -> the score of each pair `(n,)`, summed in float64."""
    sums = np.einsum("nd,nd->n", queries.astype(np.float64), candidates.astype(np.float64))
    scores: Floats = sums.astype(np.float32) + np.float32(
        0
    )  # -0 becomes 0, or they would not be equal
    return scores


def _slack(queries: Floats, longest: float) -> NDArray[np.float64]:
    """How far a float32 sum, in whatever order, can be off for each query `(n,)`."""
    width = queries.shape[1]
    lengths = np.sqrt(np.einsum("nd,nd->n", queries, queries, dtype=np.float64))
    part = (width + 4) * 2.0**-24
    slack: NDArray[np.float64] = lengths * longest * (part / (1 - part)) + (width + 4) * 2.0**-126
    return slack
