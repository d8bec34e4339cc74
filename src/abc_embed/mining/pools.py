"""What is known of a block of queries while candidates go by, and the pools at the end.

Does: the rules (what may be in a pool), the order (score, then the lower number), the counts.
Does not: compute who is near (engines.py) or cut the work (search.py).

Shapes: `n` queries of a block, `D` width, `K` size of a pool.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from abc_embed.errors import DataError
from abc_embed.mining.engines import Floats, Ints

RULES = ("own caption", "same image", "above the line", "beyond the pool")
"""Why a candidate is not in a pool, in the order in which the rules are asked."""

Keys = NDArray[np.uint64]


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
    recalled: tuple[int, int] = (0, 0)
    """Members of exact pools that were found, and all of them, for a sample of these queries; 0
    of 0 where the search is exact."""

    @property
    def sizes(self) -> Ints:
        """`(n,)`: how many are in each pool."""
        sizes: Ints = (self.rows >= 0).sum(axis=1)
        return sizes


class PositiveIndex:
    """Which texts are true of each image: the own captions of all queries with that image."""

    def __init__(self, own: Ints, images: Ints | None) -> None:
        shown = np.arange(len(own)) if images is None else images
        if shown.shape != own.shape:
            raise DataError("give one image number per query")
        _, self._image = np.unique(shown, return_inverse=True)
        pairs = np.unique((self._image.astype(np.int64) << 32) | own)
        self._texts: Ints = pairs & ((1 << 32) - 1)
        self._starts: Ints = np.searchsorted(pairs >> 32, np.arange(len(own) + 1))

    def forbidden(self, start: int, stop: int) -> tuple[Ints, Ints]:
        """(query from `start`, text) of all that is true of the images of these queries, sorted."""
        images = self._image[start:stop]
        counts = self._starts[images + 1] - self._starts[images]
        queries = np.repeat(np.arange(stop - start), counts)
        within = np.arange(len(queries)) - np.repeat(np.cumsum(counts) - counts, counts)
        return queries, self._texts[np.repeat(self._starts[images], counts) + within]


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """What a part of the queries would be with what was found in one block."""

    queries: Ints
    best: Keys
    above: Ints
    better: Ints
    full: NDArray[np.bool_]
    """Whether the pool has all its members."""
    bound: NDArray[np.float64]
    """What scores less changes nothing: neither pool, nor a count."""


class QueryBlock:
    """`n` queries, the best so far of each, and how many candidates the rules kept out."""

    def __init__(
        self, vectors: Floats, own: Floats, epsilon: float, pool: int, query: Ints, text: Ints
    ) -> None:
        self.vectors, self.own = vectors, own
        self.line: NDArray[np.float64] = epsilon * own.astype(np.float64)
        """Above it a candidate may be true as well."""
        self.best: Keys = np.zeros((len(own), pool), dtype=np.uint64)
        """`(n, K)` keys, ascending; 0 where fewer are known."""
        self._pool, self._epsilon = pool, epsilon
        self._above: Ints = np.zeros(len(own), dtype=np.int64)
        self._better: Ints = np.zeros(len(own), dtype=np.int64)
        self._query, self._text = query, text
        self._true = (query << 32) | text  # ascending, as both are

    def part(self, queries: Ints) -> "QueryBlock":
        """These queries alone, with nothing found yet."""
        here = np.isin(self._query, queries)
        at = np.searchsorted(queries, self._query[here])
        vectors, own = self.vectors[queries], self.own[queries]
        return QueryBlock(vectors, own, self._epsilon, self._pool, at, self._text[here])

    def allowed(self, queries: Ints, texts: Ints) -> NDArray[np.bool_]:
        """Which of these pairs are not true of the image."""
        pairs = (queries << 32) | texts
        place = np.searchsorted(self._true, pairs)
        place[place == len(self._true)] = 0
        return self._true[place] != pairs if len(self._true) else np.ones(len(pairs), np.bool_)

    def least(self, queries: Ints) -> NDArray[np.float64]:
        """`(n,)`: what scores less changes nothing for these queries, as it stands."""
        return self._bound(self.best[queries], queries)

    def _bound(self, best: Keys, queries: Ints) -> NDArray[np.float64]:
        last = np.where(best[:, 0] > 0, _score_of(best[:, 0]).astype(np.float64), -np.inf)
        return np.minimum(last, np.minimum(self.line[queries], self.own[queries]))

    def found(
        self, queries: Ints, row: Ints, column: Ints, texts: Ints, scores: Floats, k: int
    ) -> Found:
        """With these pairs added: text `texts[i]` for `queries[row[i]]`; columns are below `k`."""
        who, count = queries[row], len(queries)
        below = scores <= self.line[who]
        keys = np.zeros((count, k), dtype=np.uint64)
        keys[row[below], column[below]] = _keys(scores[below], texts[below])
        best = _best(self.best[queries], keys, self._pool)
        return Found(
            queries=queries,
            best=best,
            above=np.bincount(row[~below], minlength=count),
            better=np.bincount(row[scores > self.own[who]], minlength=count),
            full=best[:, 0] > 0,
            bound=self._bound(best, queries),
        )

    def take(self, found: Found, sure: NDArray[np.bool_]) -> None:
        """Keep what was found for those queries that are sure."""
        queries = found.queries[sure]
        self.best[queries] = found.best[sure]
        self._above[queries] += found.above[sure]
        self._better[queries] += found.better[sure]

    def score_all(self, queries: Ints, block: Floats, first: int, side: int) -> None:
        """Score these queries with every candidate of the block, in tiles of `side` × `side`."""
        for top in range(0, len(queries), side):
            some = queries[top : top + side]
            vectors = self.vectors[some].astype(np.float64)
            at, text = self._true_of(some)
            for left in range(0, len(block), side):
                others = block[left : left + side].astype(np.float64)
                scores = (vectors @ others.T).astype(np.float32)
                scores += np.float32(0)  # -0 becomes 0, or they would not be equal
                here = (text >= first + left) & (text < first + left + len(others))
                wrong = np.ones(scores.shape, dtype=np.bool_)
                wrong[at[here], text[here] - first - left] = False
                self._better[some] += (wrong & (scores > self.own[some, None])).sum(axis=1)
                kept = wrong & (scores <= self.line[some, None])
                self._above[some] += (wrong & ~kept).sum(axis=1)
                numbers = np.arange(first + left, first + left + len(others))
                keys = _keys(scores, numbers)
                keys[~kept] = 0
                self.best[some] = _best(self.best[some], keys, self._pool)

    def _true_of(self, queries: Ints) -> tuple[Ints, Ints]:
        """(place in `queries`, text) of what is true of these queries, which ascend."""
        here = np.isin(self._query, queries)
        return np.searchsorted(queries, self._query[here]), self._text[here]

    def pools(self, first: int, total: int, truth: Keys, sampled: Ints) -> Pools:
        """The pools; `truth` are exact keys of the queries `sampled`, to count what was found."""
        count = len(self.own)
        keys = self.best[:, ::-1]
        none = keys == 0
        rows = _number_of(keys)
        rows[none] = -1
        scores = _score_of(keys)
        scores[none] = np.nan
        true = np.bincount(self._query, minlength=count)
        beyond = total - true - self._above - (~none).sum(axis=1)
        own = np.ones(count, dtype=np.int64)
        dropped = np.stack([own, true - own, self._above, beyond], axis=1)
        pairs = zip(self.best[sampled], truth, strict=True)
        hits = sum(int(np.isin(t[t > 0], f).sum()) for f, t in pairs)
        recalled = (hits, int((truth > 0).sum()))
        return Pools(first, rows, scores, self.own, self._better, dropped, recalled)


# A key is one number whose order is that of the pool: the score in the upper 32 bits, and below it
# the number of the candidate, counted down so that the lower one comes first. 0 is no candidate.

_LOW = np.uint64((1 << 32) - 1)


def _keys(scores: Floats, numbers: Ints) -> Keys:
    bits = scores.view(np.uint32)
    negative = bits >> np.uint32(31) != 0
    keys = np.where(negative, ~bits, bits | np.uint32(1 << 31)).astype(np.uint64)
    keys <<= np.uint64(32)
    keys |= _LOW - numbers.astype(np.uint64)
    return keys


def _score_of(keys: Keys) -> Floats:
    upper = (keys >> np.uint64(32)).astype(np.uint32)
    bits = np.where(upper >> np.uint32(31) != 0, upper & np.uint32((1 << 31) - 1), ~upper)
    return np.ascontiguousarray(bits.astype(np.uint32)).view(np.float32)


def _number_of(keys: Keys) -> NDArray[np.int32]:
    return (_LOW - (keys & _LOW)).astype(np.int64).astype(np.int32)


def _best(best: Keys, keys: Keys, pool: int) -> Keys:
    """The best `pool` of both, ascending."""
    if keys.shape[1] > pool:
        keys.partition(keys.shape[1] - pool, axis=1)
        keys = keys[:, -pool:]
    both = np.concatenate([best, keys], axis=1)
    both.sort(axis=1)
    return both[:, -pool:].copy()
