"""The pools of a block of queries while candidates go by: rules, order and counts.

Scores are summed in float64 and rounded to float32, so that they do not depend on how the work was
cut, and equal ones are ordered by the lower number of the candidate.

Shapes: `n` queries of a block, `m` candidates of a block, `D` width, `K` size of a pool.
"""

import numpy as np
import torch
from torch import Tensor

from abc_embed.mining.pools import Pools, Truth
from abc_embed.mining.settings import MiningSettings


def exact_scores(queries: Tensor, candidates: Tensor) -> Tensor:
    """`(n, D)` and `(n, D)` -> the score of each pair `(n,)`: a sum in float64, as float32."""
    if queries.device.type == "cpu":  # without copies of all in float64: half the time
        pair = (queries.numpy(), candidates.numpy())
        scores = torch.from_numpy(np.einsum("nd,nd->n", *pair, dtype=np.float64)).float()
    else:
        scores = (queries.double() * candidates).sum(dim=1).float()
    return scores + 0.0  # -0 becomes 0, or they would not be equal


class QueryBlock:
    """`n` queries, the best so far of each, and how many candidates the rules kept out."""

    def __init__(
        self, vectors: Tensor, own: Tensor, truth: Truth, settings: MiningSettings
    ) -> None:
        """`vectors` `(n, D)`, the score of each with its own caption `(n,)`, what is true of each,
        and what a pool is."""
        self.vectors, self.own, self.pool = vectors, own, settings.pool
        self._positives = tuple(torch.from_numpy(part).to(own.device) for part in truth.pairs())
        """(query, text) of what is true of an image, by ascending query."""
        line = settings.epsilon * own.double()
        rounded = line.float()
        below = torch.nextafter(rounded, torch.full_like(rounded, -torch.inf))
        self.line = torch.where(rounded.double() > line, below, rounded)
        """Above it a candidate may be true as well: the greatest float32 that is not."""
        self.best = vectors.new_full((len(own), self.pool), _NONE, dtype=torch.int64)
        """`(n, K)` keys, in no order; `_NONE` where fewer are known."""
        self.above = torch.zeros_like(own, dtype=torch.int64)
        self.better = torch.zeros_like(self.above)

    def positives_of(self, queries: slice, texts: slice) -> tuple[Tensor, Tensor]:
        """(query, text) of what is true among these, both counted from the start of their slice."""
        query, text = self._positives
        ends = torch.searchsorted(query, query.new_tensor([queries.start, queries.stop])).tolist()
        query, text = query[slice(*ends)], text[slice(*ends)]
        here = (text >= texts.start) & (text < texts.stop)
        return query[here] - queries.start, text[here] - texts.start

    def last(self, queries: slice) -> Tensor:
        """`(n,)`: the lowest score of each pool; -∞ where it is not full."""
        lowest = self.best[queries].amin(dim=1)
        return torch.where(lowest == _NONE, -torch.inf, _score_of(lowest))

    def score(self, rows: Tensor, vectors: Tensor, places: Tensor, room_bytes: int) -> Tensor:
        """The exact score of each pair `(n,)` of a query and one of `vectors`."""
        width, scores = vectors.shape[1], torch.empty(len(rows), device=vectors.device)
        step = max(1, room_bytes // (24 * width))
        left, right = vectors.new_empty(2, min(step, len(rows)), width)
        parts = (part.split(step) for part in (rows, places, scores))
        for row, place, out in zip(*parts, strict=True):
            asked, some = left[: len(row)], right[: len(row)]
            torch.index_select(self.vectors, 0, row, out=asked)
            torch.index_select(vectors, 0, place, out=some)
            out.copy_(exact_scores(asked, some))
        return scores

    def add(self, queries: Tensor, texts: Tensor, scores: Tensor) -> None:
        """Take in pairs that are not positive, each once; `queries` ascend."""
        below = scores <= self.line[queries]
        self.above.index_add_(0, queries, (~below).long())
        self.better.index_add_(0, queries, (scores > self.own[queries]).long())
        keys = _keys(scores[below], texts[below])
        rows, row_of, counts = torch.unique_consecutive(
            queries[below], return_inverse=True, return_counts=True
        )
        if not len(rows):
            return
        rank = torch.arange(len(keys), device=keys.device) - (counts.cumsum(0) - counts)[row_of]
        width = 2 * self.pool
        for start in range(0, int(counts.max()), width):
            here = (rank >= start) & (rank < start + width)
            columns = min(width, int(counts.max()) - start)
            new = keys.new_full((len(rows), columns), _NONE)
            new[row_of[here], rank[here] - start] = keys[here]
            self.best[rows] = largest(torch.cat([self.best[rows], new], dim=1), self.pool)

    def add_all(self, queries: slice, vectors: Tensor, first: int, step: int) -> None:
        """Score these queries with every candidate `(m, D)` in float64, `step` at a time, and take
        in what changes a pool or a count."""
        asked = self.vectors[queries].double()
        for left in range(0, len(vectors), step):
            texts = slice(first + left, first + min(left + step, len(vectors)))
            scores = (asked @ vectors[left : left + step].double().T).float() + 0.0
            scores[self.positives_of(queries, texts)] = -torch.inf
            floor = torch.minimum(self.last(queries), self.own[queries])[:, None]
            row, place = ((scores >= floor) & (scores > -torch.inf)).nonzero().T
            self.add(row + queries.start, place + texts.start, scores[row, place])

    def pools(self, first: int, total: int) -> Pools:
        """The pools, after all of the `total` candidates; `first` numbers the first query."""
        keys = self.best.sort(dim=1, descending=True).values
        none = keys == _NONE
        positive = torch.bincount(self._positives[0], minlength=len(self.own))
        beyond = total - positive - self.above - (~none).sum(dim=1)
        own = torch.ones_like(positive)
        return Pools(
            first=first,
            rows=torch.where(none, -1, _number_of(keys)).int().cpu().numpy(),
            scores=torch.where(none, torch.nan, _score_of(keys)).cpu().numpy(),
            own=self.own.cpu().numpy(),
            better=self.better.cpu().numpy(),
            dropped=torch.stack([own, positive - own, self.above, beyond], dim=1).cpu().numpy(),
        )


def largest(values: Tensor, count: int) -> Tensor:
    """The `count` largest of each row, in no order."""
    if values.device.type == "cpu":  # NumPy's quickselect takes a tenth of the time of torch's
        return torch.from_numpy(np.partition(values.numpy(), -count, axis=1)[:, -count:])
    return values.topk(count, dim=1, sorted=False).values


def sort_in_place(values: Tensor) -> None:
    """Whole numbers `(n,)`, in order."""
    if values.device.type == "cpu":
        values.numpy().sort()
    else:
        values.copy_(values.sort().values)


def ranges(starts: Tensor, stops: Tensor) -> Tensor:
    """All whole numbers from each start to its stop, one after the other."""
    counts = stops - starts
    shift = starts - counts.cumsum(0) + counts
    return shift.repeat_interleave(counts) + torch.arange(int(counts.sum()), device=starts.device)


# A key is one int64 whose order is that of the pool: the score in the upper 32 bits, and below it
# the number of the candidate, counted down so that the lower one comes first.

_NONE = torch.iinfo(torch.int64).min
"""No candidate."""
_LOW = (1 << 32) - 1


def _keys(scores: Tensor, numbers: Tensor) -> Tensor:
    bits = scores.view(torch.int32).long()
    return (torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits) << 32) | (_LOW - numbers)


def _score_of(keys: Tensor) -> Tensor:
    bits = keys >> 32
    return torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).int().view(torch.float32)


def _number_of(keys: Tensor) -> Tensor:
    return _LOW - (keys & _LOW)
