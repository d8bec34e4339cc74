"""Scores of every image with every caption -> the pool of hard negatives of each image.

Does: score block by block under a memory ceiling, keep what scores at most ε times the own caption,
and of that the best. Exact: nothing is approximated, and equal scores are ordered by the lower
number of the candidate. Does not: read, embed, or draw from the pool.

Scores are summed in float64 and rounded to float32, so that they do not depend on how the work was
cut into blocks (a sum in float32 does, in its last digits).

Shapes: `N` queries, `M` candidates, `D` width, `K` size of a pool.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from abc_embed.errors import DataError, UsageError

EPSILON = 0.95
"""A caption that scores more than this part of the own one may be true too (paper, section 3.2)."""
POOL = 100
"""The best so many below that line (paper, section 3.2)."""
MEMORY = 1 << 30
"""Bytes that a search may take beyond its inputs, unless told otherwise."""
RULES = ("own caption", "same image", "repeated caption", "above the line", "beyond the pool")
"""Why a candidate is not in a pool, in the order in which the rules are asked."""

_CELL = 64  # bytes for each score of a block: float64, float32, bits, keys, masks, and copies
_SIDE = 8192  # scores on a side of a block; larger ones are no faster

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Pools:
    """The pools of consecutive queries, best first."""

    first: int
    """Number of the first of these queries."""
    rows: Ints
    """`(n, K)` numbers of candidates; -1 where fewer are left."""
    scores: Floats
    """`(n, K)`; NaN where fewer are left."""
    own: Floats
    """`(n,)` score of the own caption."""
    dropped: Ints
    """`(n, 5)`: how many candidates each of `RULES` kept out. With the pool they sum to `M`."""

    @property
    def sizes(self) -> Ints:
        """`(n,)`: how many are in each pool."""
        sizes: Ints = (self.rows >= 0).sum(axis=1)
        return sizes


def block_side(memory_bytes: int, width: int, pool: int) -> int:
    """Queries, and candidates, of a block that keeps under the ceiling.

    Raises:
        UsageError: not even a small block fits.
    """
    # cell · b² + line · b <= memory; a line is a query's and a candidate's vector and a pool
    line = 2 * 16 * width + 40 * pool
    side = int((-line + (line * line + 4 * _CELL * memory_bytes) ** 0.5) / (2 * _CELL))
    if side < 16:
        least = (_CELL * 16 + line) * 16 // 10**6 + 1
        raise UsageError(f"the memory is too little for the search; give at least {least} MB")
    return min(side, _SIDE)


def search(
    queries: Floats,
    candidates: Floats,
    own: Ints,
    *,
    captions: Ints | None = None,
    images: Ints | None = None,
    epsilon: float = EPSILON,
    pool: int = POOL,
    memory_bytes: int = MEMORY,
    counted: Callable[[int], None] = lambda done: None,
) -> Iterator[Pools]:
    """The pools of all queries, block by block.

    A candidate of a query is kept out, by the first of `RULES` that applies, if its text is the own
    caption or another caption of the same image, if its text stands at a lower number already, if
    it scores more than `epsilon` times the own caption, or if `pool` others are better.

    Args:
        queries: `(N, D)`; may be a memory map.
        candidates: `(M, D)`; may be a memory map.
        own: `(N,)` number of the candidate that is the query's own caption.
        captions: `(M,)`; equal numbers mean equal texts. None: all differ.
        images: `(N,)`; equal numbers mean the same image. None: all differ.
        epsilon: above 0, at most 1.
        pool: 1 or more.
        memory_bytes: ceiling on what is allocated here, beyond the arguments and some 50 bytes for
            each query and candidate.
        counted: told how many queries are done.

    Raises:
        DataError: a vector holds a value that is not finite, or shapes do not fit.
        UsageError: an argument is out of range.
    """
    _check(queries, candidates, own, epsilon, pool)
    side = block_side(memory_bytes, queries.shape[1], pool)
    for name, vectors in (("query", queries), ("candidate", candidates)):
        _check_finite(name, vectors, side)
    kinds = _Kinds(own, captions, images, len(candidates))
    return _search(queries, candidates, own, kinds, epsilon, pool, side, counted)


def _check(queries: Floats, candidates: Floats, own: Ints, epsilon: float, pool: int) -> None:
    if queries.ndim != 2 or candidates.ndim != 2 or queries.shape[1] != candidates.shape[1]:
        raise DataError(
            f"queries of shape {queries.shape} and candidates of shape {candidates.shape} do not "
            "fit; give (N, D) and (M, D) from one model"
        )
    if own.shape != (len(queries),) or (own.size and not 0 <= own.min() <= own.max()):
        raise DataError("each query needs the number of its own candidate, 0 or more")
    if own.size and own.max() >= len(candidates):
        raise DataError(f"candidate {own.max()} is named but there are {len(candidates)}")
    if len(candidates) >= 1 << 32:
        raise DataError(f"{len(candidates)} candidates are too many; give fewer than 2^32")
    if not 0 < epsilon <= 1:
        raise UsageError(f"epsilon is {epsilon}; give a number above 0, and at most 1")
    if pool < 1:
        raise UsageError(f"the pool is {pool}; give 1 or more")


def _check_finite(name: str, vectors: Floats, side: int) -> None:
    for start in range(0, len(vectors), side):
        good = np.isfinite(vectors[start : start + side]).all(axis=1)
        if not good.all():
            raise DataError(
                f"the vector of {name} {start + int(np.argmin(good))} is not finite; embed it anew"
            )


class _Kinds:
    """Which candidates are one text, and which texts an image has.

    Texts are numbered in the order in which they come first among the candidates.
    """

    def __init__(self, own: Ints, captions: Ints | None, images: Ints | None, count: int) -> None:
        numbers = np.arange(count) if captions is None else captions
        shown = np.arange(len(own)) if images is None else images
        if numbers.shape != (count,) or shown.shape != own.shape:
            raise DataError("give one caption number per candidate and one image number per query")
        _, first, text = np.unique(numbers, return_index=True, return_inverse=True)
        order = np.argsort(first)
        place = np.empty_like(order)
        place[order] = np.arange(len(order))
        self.columns: Ints = first[order]
        """The candidate that stands for each text: the one of the lowest number."""
        text = place[text]
        self.count = np.bincount(text, minlength=len(order))
        """How many candidates are each text."""
        self.own: Ints = text[own]
        """The text of each query's own caption."""
        _, self._image = np.unique(shown, return_inverse=True)
        pairs = np.unique(np.stack([self._image, self.own], axis=1), axis=0)
        self._texts: Ints = pairs[:, 1]
        self._starts: Ints = np.searchsorted(pairs[:, 0], np.arange(len(own) + 1))

    def forbidden(self, start: int, stop: int) -> tuple[Ints, Ints]:
        """(query from `start`, text) of all that is true of the images of these queries."""
        images = self._image[start:stop]
        counts = self._starts[images + 1] - self._starts[images]
        queries = np.repeat(np.arange(stop - start), counts)
        within = np.arange(len(queries)) - np.repeat(np.cumsum(counts) - counts, counts)
        return queries, self._texts[np.repeat(self._starts[images], counts) + within]


def _search(
    queries: Floats,
    candidates: Floats,
    own: Ints,
    kinds: _Kinds,
    epsilon: float,
    pool: int,
    side: int,
    counted: Callable[[int], None],
) -> Iterator[Pools]:
    texts = len(kinds.columns)
    for start in range(0, len(queries), side):
        stop = min(start + side, len(queries))
        vectors = np.asarray(queries[start:stop], dtype=np.float64)
        own_scores = _own_scores(vectors, candidates, own[start:stop])
        line = epsilon * own_scores.astype(np.float64)
        at, text = kinds.forbidden(start, stop)
        best = np.zeros((stop - start, 0), dtype=np.uint64)
        below = np.zeros(stop - start, dtype=np.int64)
        for left in range(0, texts, side):
            columns = kinds.columns[left : left + side]
            others = np.asarray(candidates[columns], dtype=np.float64)
            scores = _rounded(vectors @ others.T)
            kept = scores <= line[:, None]
            here = (text >= left) & (text < left + len(columns))
            kept[at[here], text[here] - left] = False
            below += kept.sum(axis=1)
            best = _best(best, _keys(scores, columns, kept), pool)
        dropped = _dropped(kinds, start, stop, at, text, below, pool)
        yield _decoded(start, best, own_scores, dropped, pool)
        counted(stop)


def _own_scores(vectors: NDArray[np.float64], candidates: Floats, own: Ints) -> Floats:
    mine = np.asarray(candidates[own], dtype=np.float64)
    return _rounded(np.einsum("nd,nd->n", vectors, mine))


def _rounded(scores: NDArray[np.float64]) -> Floats:
    return scores.astype(np.float32) + np.float32(0)  # -0 becomes 0, or they would not be equal


# A key is one number whose order is that of the pool: the score in the upper 32 bits, and below it
# the number of the candidate, counted down so that the lower one comes first. 0 is no candidate.


def _keys(scores: Floats, columns: Ints, kept: NDArray[np.bool_]) -> NDArray[np.uint64]:
    bits = scores.view(np.uint32)
    negative = bits >> np.uint32(31) != 0
    keys = np.where(negative, ~bits, bits | np.uint32(1 << 31)).astype(np.uint64)
    keys <<= np.uint64(32)
    keys |= np.uint64((1 << 32) - 1) - columns.astype(np.uint64)
    keys[~kept] = 0
    return keys


def _best(best: NDArray[np.uint64], keys: NDArray[np.uint64], pool: int) -> NDArray[np.uint64]:
    if keys.shape[1] > pool:
        keys.partition(keys.shape[1] - pool, axis=1)
        keys = keys[:, -pool:]
    both = np.concatenate([best, keys], axis=1)
    both.sort(axis=1)
    return both[:, -pool:].copy()


def _decoded(start: int, best: NDArray[np.uint64], own: Floats, dropped: Ints, pool: int) -> Pools:
    keys = np.zeros((len(best), pool), dtype=np.uint64)
    keys[:, : best.shape[1]] = best[:, ::-1]
    upper = (keys >> np.uint64(32)).astype(np.uint32)
    bits = np.where(upper >> np.uint32(31) != 0, upper & np.uint32((1 << 31) - 1), ~upper)
    rows = (np.uint64((1 << 32) - 1) - (keys & np.uint64((1 << 32) - 1))).astype(np.int64)
    none = keys == 0
    rows[none] = -1
    scores = bits.astype(np.uint32).view(np.float32).copy()
    scores[none] = np.nan
    return Pools(start, rows, scores, own, dropped)


def _dropped(
    kinds: _Kinds, start: int, stop: int, at: Ints, text: Ints, below: Ints, pool: int
) -> Ints:
    """`(n, 5)`: see `Pools.dropped`."""
    size, count = stop - start, int(kinds.count.sum())
    true = np.bincount(at, weights=kinds.count[text], minlength=size).astype(np.int64)
    own = kinds.count[kinds.own[start:stop]]
    left = len(kinds.columns) - np.bincount(at, minlength=size)  # texts that may be wrong
    repeated = count - true - left
    beyond = np.maximum(below - pool, 0)
    return np.stack([own, true - own, repeated, left - below, beyond], axis=1).astype(np.int64)
