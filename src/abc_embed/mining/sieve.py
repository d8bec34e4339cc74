"""Fast scores of a block -> the few pairs that may matter, which are scored anew in float64.

Shapes: `n` queries, `m` candidates of a block, `D` width.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from abc_embed.mining.queries import QueryBlock, ranges, sort_in_place

FAST = torch.bfloat16
"""Format of scores that are looked at, whatever the format of the product."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """Vectors on a device: as they are, as they are multiplied, and what lies between."""

    exact: Tensor
    """`(m, D)` float32."""
    fast: Tensor
    """`(m, D)`; the same tensor where that is the format."""
    norms: Tensor
    """`(m,)`: their lengths at most."""
    rounding: Tensor
    """`(m,)`: length of what the faster format leaves out, at most."""


class Sieve:
    """Some queries and a block of candidates: of the fast scores what may matter is kept.

    A product is looked at once, while it is in the cache: what reaches the floor of its query goes
    on. The floor rises with what was found, so that few do.
    """

    def __init__(
        self,
        queries: QueryBlock,
        span: slice,
        vectors: Loaded,
        candidates: Loaded,
        first: int,
        pair_bytes: int,
    ) -> None:
        self._queries, self._span = queries, span
        self._vectors = vectors.fast[span]
        self._candidates, self._first, self._pair_bytes = candidates, first, pair_bytes
        # A CUDA device cuts off where a CPU rounds, and may add parts of a sum in bfloat16.
        cuda = vectors.fast.device.type == "cuda"
        self._error, self._relative = _error(vectors, span, candidates, cuda), 2.0 ** (cuda - 8)
        """`(n,)` before the score is rounded to its format, and by which it is rounded at most."""
        line, self._own = queries.line[span], queries.own[span]
        self._line_low, self._line_top = self._lower(line), self._upper(line)
        self._own_low, self._own_top = self._lower(self._own), self._upper(self._own)
        self._last = queries.last(span)
        """`(n,)`: what a member of the pool scores at least, as far as is known."""
        self._most = 3 * queries.pool * len(line)
        self._keys = queries.best.new_empty(2 * self._most)
        """Of the pairs that may matter: the first `_held`."""
        self._held = 0

    def take(self, tile: int) -> None:
        """Score the queries in the fast format, `tile` candidates at a time, and take in what
        counts."""
        fast, device, count = self._candidates.fast, self._vectors.device, len(self._own)
        shift = (count - 1).bit_length()  # so that the place in a tile splits by bits
        vectors = torch.nn.functional.pad(self._vectors, (0, 0, 0, (1 << shift) - count))
        texts = slice(self._first, self._first + len(fast))
        query, text = self._queries.positives_of(self._span, texts)
        order = text.argsort()
        query, text = query[order].to(device), text[order].to(device)
        stops = [min(2 * self._queries.pool, tile, len(fast))]
        while stops[-1] < len(fast):  # no wider than all before: the floor rises early
            stops.append(min(stops[-1] + min(tile, stops[-1]), len(fast)))
        ends = torch.searchsorted(text, text.new_tensor(stops)).tolist()
        room = torch.empty(min(tile, len(fast)), len(vectors), dtype=FAST, device=device)
        floor, start, begin = self._floor(len(vectors), device), 0, 0
        for stop, end in zip(stops, ends, strict=True):
            scores = room[: stop - start]
            if fast.dtype == FAST:
                torch.mm(fast[start:stop], vectors.T, out=scores)
            else:
                scores.copy_(torch.mm(fast[start:stop], vectors.T))
            if end > begin:
                scores[text[begin:end] - start, query[begin:end]] = -torch.inf
            for keys in _reaching(scores, floor, shift, start).split(self._most):
                self._keys[self._held : self._held + len(keys)] = keys
                self._held += len(keys)
                if self._held > self._most or start == 0:
                    self._sift()
                    floor = self._floor(len(vectors), device)
            start, begin = stop, end
        self._sift(last=True)

    def _floor(self, count: int, device: torch.device) -> Tensor:
        """`(count,)`: what has a lower fast score changes nothing, neither a pool nor a count."""
        floor = self._lower(torch.minimum(self._last, self._own))
        return torch.nn.functional.pad(floor, (0, count - len(floor)), value=torch.inf).to(device)

    # Limits are rounded like fast scores: between two of those it does not matter where one lies.

    def _lower(self, exact: Tensor) -> Tensor:
        """No candidate that scores `exact` or more has a fast score below this."""
        value = exact - self._error
        return (value - self._relative * value.abs()).clamp_min(-1e37).to(FAST)  # none is as low

    def _upper(self, exact: Tensor) -> Tensor:
        """No candidate that scores `exact` or less has a fast score above this."""
        value = exact + self._error
        return (value + self._relative * value.abs()).to(FAST)

    def _sift(self, last: bool = False) -> None:
        """Count what is surely above the line, and let go of what no longer matters.

        What is left, if it is much or the `last`, is scored exactly and taken in.
        """
        queries, pool, count = self._queries, self._queries.pool, len(self._own)
        keys = self._keys[: self._held]
        sort_in_place(keys)
        rows = torch.arange(count, device=keys.device)

        def first(limit: Tensor, *, above: bool = False) -> Tensor:
            """`(n,)`: where in each row the scores begin that are at least, or `above`, a limit."""
            return torch.searchsorted(keys, _keys(rows, limit) + _PLACE * above, right=above)

        begin, end = torch.searchsorted(keys, torch.stack([rows, rows + 1]) << _ROW)
        low, top = first(self._line_low), first(self._line_top, above=True)
        own = first(self._own_low).maximum(top)
        better = first(self._own_top, above=True).maximum(own)
        # Above the line for sure, but next to the own score, a pair is still in doubt.
        queries.above[self._span] += own - top + end - better
        queries.better[self._span] += end - better
        # So many, all surely below the line, say what a member of the pool has at least.
        full = (low - begin >= pool).nonzero()[:, 0]
        fast = _scores(keys[low[full] - pool]).float()
        lowest = fast - self._relative * fast.abs() - self._error[full]
        self._last[full] = self._last[full].maximum(lowest)
        floor = first(self._floor(count, keys.device)).minimum(top)
        starts, stops = torch.stack([floor, own], dim=1), torch.stack([top, better], dim=1)
        keys = keys[ranges(starts.view(-1), stops.view(-1))]
        if last or len(keys) > 3 * self._most // 4:
            query, place = (keys >> _ROW) + self._span.start, keys & _PLACE
            exact = queries.score(query, self._candidates.exact, place, self._pair_bytes)
            queries.add(query, place + self._first, exact)
            self._last = self._last.maximum(queries.last(self._span))
            keys = keys[:0]
        self._held = len(keys)
        self._keys[: self._held] = keys


def _error(queries: Loaded, span: slice, candidates: Loaded, cuda: bool) -> Tensor:
    """`(n,)`: how far products of these queries can be from the exact scores (Cauchy-Schwarz, and
    the error of a float32 sum in any order)."""
    width = queries.exact.shape[1]
    longest, left_out = candidates.norms.max().item(), candidates.rounding.max().item()
    norm, rounding = queries.norms[span].double(), queries.rounding[span].double()
    unit = (width + 4) * 2.0 ** (-22 if cuda else -24)
    error = rounding * longest + (norm + rounding) * left_out
    error += (norm + rounding) * (longest + left_out) * unit / (1 - unit)
    error += (width + 4) * 2.0**-126 * (1 + norm + longest)
    return (error * (1 + 1e-6)).float()


_ROW, _PLACE = 47, (1 << 31) - 1
"""A key is the query, the order of its fast score in 16 bits, and the place of the candidate."""


def _keys(rows: Tensor, scores: Tensor) -> Tensor:
    """The keys of pairs with these fast scores, and of candidate 0."""
    return _pack(rows.clone(), _mirror(scores.view(torch.int16)))


def _pack(rows: Tensor, order: Tensor) -> Tensor:
    """Keys of candidate 0, in the memory of `rows`."""
    rows <<= 16
    rows += order
    rows <<= 31
    rows += 32768 << 31
    return rows


def _scores(keys: Tensor) -> Tensor:
    """The fast scores of keys."""
    return _mirror((keys >> 31 & 0xFFFF) - 32768).short().view(FAST)


def _mirror(bits: Tensor) -> Tensor:
    """Bits of fast scores -> numbers in the order of the scores, and back; -0 is 0."""
    return torch.where(bits < 0, -32768 - bits, bits)


def _reaching(scores: Tensor, floor: Tensor, shift: int, start: int) -> Tensor:
    """The keys of those of `scores` `(m, 2^shift)` that reach the floor of their query.

    `start` is the candidate of the first row.
    """
    if scores.device.type == "cpu" and floor.min() > 0:
        # Above 0 the order of numbers is that of their bits, which NumPy compares far sooner.
        bits = scores.view(torch.int16).numpy()
        at = np.flatnonzero(bits >= floor.view(torch.int16).numpy())
        places, order = torch.from_numpy(at), torch.from_numpy(bits.reshape(-1)[at])
    else:
        places = (scores >= floor).view(-1).nonzero()[:, 0]
        order = _mirror(scores.view(-1)[places].view(torch.int16))
    keys = _pack(places & ((1 << shift) - 1), order)
    places >>= shift
    keys += places
    keys += start
    return keys
