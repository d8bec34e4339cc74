"""Scores of every image with every caption -> the pool of hard negatives of each image.

Products run in the fastest format of the device, in blocks under a ceiling of memory. How far such
a product can be from the exact score is bounded from the vectors themselves, so what may belong to
a pool, or lie on either side of a line, is known; that alone is scored anew in float64 (pools.py).
So all exact methods give the same pools on any device; a score may differ in its last bit where
the sum in float64 lies on the edge between two numbers of float32, about one in some millions.

Shapes: `N` queries, `M` candidates, `n` and `m` those of a block, `D` width, `K` size of a pool.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

from abc_embed.errors import DataError
from abc_embed.mining.ivf import InvertedLists, require_faiss
from abc_embed.mining.pools import Pools, PositiveIndex, QueryBlock, exact_scores, largest
from abc_embed.mining.settings import (
    EPSILON,
    POOL,
    Blocks,
    Ints,
    Method,
    SearchSettings,
    Vectors,
    check_rule,
    share_memory,
)
from abc_embed.runtime import resolve_device

SAMPLED = 128
"""Queries whose pools are compared with exact ones, found apart."""
LONGEST = 1e18
"""Length of a vector at most: products of longer ones do not fit float32."""
_GROUP = 32
"""Candidates of which only the best score is looked at, until it may matter."""


def search(
    queries: Vectors,
    candidates: Vectors,
    own: Ints,
    *,
    images: Ints | None = None,
    also_true: Ints | None = None,
    epsilon: float = EPSILON,
    pool: int = POOL,
    settings: SearchSettings | None = None,
    blocks: Blocks | None = None,
    product_dtype: torch.dtype | None = None,
    sampled: int = SAMPLED,
    start: int = 0,
    on_progress: Callable[[int], None] = lambda done: None,
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
        also_true: `(n, 2)`: a query, and a candidate that is a caption of its image as well.
        epsilon: above 0, at most 1.
        pool: 1 or more.
        settings: method, memory and devices; None: the defaults.
        blocks: how the work is cut; None: as the memory allows.
        product_dtype: format of the products; None: the fastest one of the device.
        sampled: so many queries have their pools compared with exact ones, found apart.
        start: the first query; those before it were searched by an earlier run.
        on_progress: given how many queries are done, `start` included, with each candidate block.

    Raises:
        DataError: a vector holds a value that is not finite, or shapes do not fit.
        UsageError: an argument is out of range.
        MissingExtraError: `Method.IVF` is asked for, and faiss is not installed.
    """
    settings = settings or SearchSettings()
    if settings.method is Method.IVF:
        require_faiss()
    check_rule(epsilon, pool)
    _check(queries, candidates, own)
    positives = PositiveIndex(own, images, also_true)
    job = _Job(queries, candidates, own, positives, epsilon, pool, settings, sampled)
    meter = _Meter(start, on_progress)
    devices = search_devices(settings)
    workers = [_Worker(job, d, len(devices), blocks, product_dtype, meter.add) for d in devices]
    return _run(workers, start, queries.shape[0])


def _check(queries: Vectors, candidates: Vectors, own: Ints) -> None:
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


def search_devices(settings: SearchSettings) -> list[torch.device]:
    """Where the search runs: on the CPU alone for methods that are at home there."""
    if settings.method in (Method.PLAIN, Method.IVF):
        return [torch.device("cpu")]
    if settings.devices:
        return [resolve_device(name) for name in settings.devices]
    device = resolve_device("auto")
    if device.type == "cuda":
        return [torch.device("cuda", number) for number in range(torch.cuda.device_count())]
    return [device]


def blocks_on(
    device: torch.device, sharers: int, width: int, pool: int, settings: SearchSettings
) -> Blocks:
    """How the work is cut for a device that shares its memory with others of its kind.

    Raises:
        UsageError: the memory is too little.
    """
    memory, fast_bytes = settings.memory_bytes // sharers, 0
    if device.type == "cuda":
        memory = int(0.9 * torch.cuda.mem_get_info(device)[0])
    score_bytes = 4
    if settings.method is Method.IVF:
        fast_bytes = 4  # its index holds the vectors once more
    elif settings.method is not Method.PLAIN:
        score_bytes = _fastest_dtype(device.type).itemsize
        fast_bytes = 2 if score_bytes == 2 else 4 * (device.type == "mps")
    return share_memory(
        memory,
        width,
        pool,
        value_bytes=4 + fast_bytes,
        score_bytes=score_bytes,
        device=device.type,
    )


@cache
def _fastest_dtype(device: str) -> torch.dtype:
    """In which format products are quickest; many processors have bfloat16, in many it is slow."""
    if device != "cpu":
        return torch.bfloat16 if device == "cuda" else torch.float32

    def seconds(dtype: torch.dtype) -> float:
        left, right = torch.ones(128, 256, dtype=dtype), torch.ones(2048, 256, dtype=dtype)
        times = []
        for _ in range(4):
            begin = time.perf_counter()
            torch.mm(left, right.T)
            times.append(time.perf_counter() - begin)
        return min(times[1:])

    bfloat16_wins = seconds(torch.bfloat16) < 0.7 * seconds(torch.float32)
    return torch.bfloat16 if bfloat16_wins else torch.float32


def _run(workers: "list[_Worker]", start: int, count: int) -> Iterator[Pools]:
    """One block of queries for each device at a time, in their order."""
    step = min(worker.blocks.queries for worker in workers)
    spans = [(first, min(first + step, count)) for first in range(start, count, step)]
    if len(workers) == 1:
        for span in spans:
            yield workers[0].run(*span)
        return
    with ThreadPoolExecutor(len(workers)) as threads:
        running: deque[Future[Pools]] = deque()
        for number, span in enumerate(spans):
            if len(running) == len(workers):
                yield running.popleft().result()  # the device whose turn it is
            running.append(threads.submit(workers[number % len(workers)].run, *span))
        while running:
            yield running.popleft().result()


class _Meter:
    """Adds up what the devices have done."""

    def __init__(self, start: int, on_progress: Callable[[int], None]) -> None:
        self._done, self._on_progress, self._lock = float(start), on_progress, threading.Lock()

    def add(self, queries: float) -> None:
        with self._lock:
            self._done += queries
            self._on_progress(round(self._done))


@dataclass(frozen=True, slots=True)
class _Job:
    """What is searched, the same for all devices."""

    queries: Vectors
    candidates: Vectors
    own: Ints
    positives: PositiveIndex
    epsilon: float
    pool: int
    settings: SearchSettings
    sampled: int


@dataclass(frozen=True, slots=True)
class _Loaded:
    """Vectors on a device: as they are, as they are multiplied, and what lies between."""

    exact: Tensor
    """`(m, D)` float32."""
    fast: Tensor
    """`(m, D)`; the same tensor where that is the format."""
    norms: Tensor
    """`(m,)` float64."""
    rounding: Tensor
    """`(m,)` float64: length of what the faster format leaves out."""


class _Worker:
    """One device: goes through all candidates for each block of queries."""

    def __init__(
        self,
        job: _Job,
        device: torch.device,
        sharers: int,
        blocks: Blocks | None,
        dtype: torch.dtype | None,
        on_progress: Callable[[float], None],
    ) -> None:
        count, width = job.queries.shape
        self._job, self._device, self._on_progress = job, device, on_progress
        self.blocks = blocks or blocks_on(device, sharers, width, job.pool, job.settings)
        self._dtype = dtype or _fastest_dtype(device.type)
        # Exact scores, and what is found, live where float64 is to be had.
        self._home = torch.device("cpu") if device.type == "mps" else device
        self._candidates: tuple[int, _Loaded] | None = None
        if job.settings.method is Method.IVF:
            self._lists = InvertedLists(job.candidates, job.settings)
        sample = np.random.default_rng([job.settings.seed, 1]).permutation(count)[: job.sampled]
        self._sample = np.sort(sample if job.settings.method is not Method.PLAIN else sample[:0])
        self._side = max(16, min(int((self.blocks.pair_bytes / 12) ** 0.5), 4096))

    def run(self, start: int, stop: int) -> Pools:
        """The pools of these queries."""
        job, total = self._job, self._job.candidates.shape[0]
        queries, loaded = self._open(start, stop)
        here = self._sample[(self._sample >= start) & (self._sample < stop)] - start
        sampled = torch.from_numpy(here).to(self._home)
        truth = queries.part(sampled)
        for first in range(0, total, self.blocks.candidates):
            candidates = self._load_candidates(first)
            if job.settings.method is Method.PLAIN:
                queries.add_all(candidates.exact, first, self._side)
            elif job.settings.method is Method.IVF:
                self._look_up(queries, candidates.exact, first)
            else:
                self._compare(queries, loaded, candidates, first)
            truth.add_all(candidates.exact, first, self._side)
            self._on_progress((stop - start) * len(candidates.exact) / total)
        return queries.pools(start, total, truth, sampled)

    # -- reading -----------------------------------------------------------------------------------

    def _open(self, start: int, stop: int) -> tuple[QueryBlock, _Loaded]:
        """A block of queries with the scores of their own captions; nothing found yet."""
        job = self._job
        loaded = self._load("query", job.queries, start, stop)
        own = torch.empty(stop - start, device=self._home)
        step = max(1, self.blocks.pair_bytes // (24 * loaded.exact.shape[1]))
        for left in range(0, stop - start, step):
            right = min(left + step, stop - start)
            captions = torch.from_numpy(job.candidates[job.own[start + left : start + right]])
            part = loaded.exact[left:right]
            own[left:right] = exact_scores(part, captions.to(self._home))
        query, text = (part.to(self._home) for part in job.positives.pairs(start, stop))
        return QueryBlock(loaded.exact, own, (query, text), job.epsilon, job.pool), loaded

    def _load(self, name: str, vectors: Vectors, start: int, stop: int) -> _Loaded:
        """Vectors from files to the device, a few at a time."""
        count, width = stop - start, vectors.shape[1]
        exact = torch.empty(count, width, device=self._home)
        norms = torch.empty(count, device=self._home, dtype=torch.float64)
        rounding = torch.zeros_like(norms)
        apart = self._dtype != torch.float32 or self._home != self._device
        apart = apart and self._job.settings.method in (Method.AUTO, Method.FLAT)
        fast = torch.empty(count, width, device=self._device, dtype=self._dtype) if apart else exact
        step = max(1, self.blocks.pair_bytes // (12 * width))
        for left in range(0, count, step):
            part = slice(left, min(left + step, count))
            values = np.ascontiguousarray(vectors[start + left : start + part.stop], np.float32)
            exact[part] = torch.from_numpy(values)
            norms[part] = torch.linalg.vector_norm(exact[part], dim=1, dtype=torch.float64)
            good = norms[part] < LONGEST
            if not good.all():
                raise DataError(
                    f"the vector of {name} {start + left + int(good.int().argmin())} is not "
                    "finite, or longer than 1e18; embed it anew"
                )
            if apart:
                fast[part] = exact[part].to(self._dtype).to(self._device)
                left_out = exact[part] - fast[part].to(self._home).float()
                rounding[part] = torch.linalg.vector_norm(left_out, dim=1, dtype=torch.float64)
        return _Loaded(exact, fast, norms, rounding)

    def _load_candidates(self, first: int) -> _Loaded:
        """A block of candidates; read again only if it is another than the last."""
        if self._candidates is None or self._candidates[0] != first:
            self._candidates = None  # or two would be in memory while the next is read
            stop = min(first + self.blocks.candidates, self._job.candidates.shape[0])
            loaded = self._load("candidate", self._job.candidates, first, stop)
            self._candidates = (first, loaded)
            if self._job.settings.method is Method.IVF:
                self._lists.load(loaded.exact.numpy(), first)
        return self._candidates[1]

    # -- comparing ---------------------------------------------------------------------------------

    def _compare(
        self, queries: QueryBlock, vectors: _Loaded, candidates: _Loaded, first: int
    ) -> None:
        """Take in all candidates of a block that may matter."""
        count, m = len(queries.own), len(candidates.exact)
        group = _GROUP
        while group > 1 and m < 4 * group * self._job.pool:
            group //= 2
        rows = min(self.blocks.rows, count)
        room = torch.empty(-(-m // group) * group * rows, dtype=self._dtype, device=self._device)
        for start in range(0, count, rows):
            span = slice(start, min(start + rows, count))
            size = span.stop - start
            scores = room[: len(room) // rows * size].view(-1, group, size)
            bound = self._bound(vectors, span, candidates)
            stretch = _Stretch(queries, span, candidates, first, scores, bound, self.blocks)
            stretch.take(vectors.fast[span])

    def _bound(self, queries: _Loaded, span: slice, candidates: _Loaded) -> "_Bound":
        """How far products of these queries can be from the exact scores (Cauchy-Schwarz, and the
        error of a float32 sum in any order)."""
        width = queries.exact.shape[1]
        norm, rounding = queries.norms[span], queries.rounding[span]
        longest, left_out = candidates.norms.max(), candidates.rounding.max()
        # A CUDA device cuts off where a CPU rounds, and may add parts of a sum in bfloat16.
        cuda = self._device.type == "cuda"
        unit = (width + 4) * 2.0 ** (-22 if cuda else -24)
        error = rounding * longest + (norm + rounding) * left_out
        error += (norm + rounding) * (longest + left_out) * unit / (1 - unit)
        error += (width + 4) * 2.0**-126 * (1 + norm + longest)
        relative = 2.0**-22 if self._dtype == torch.float32 else 2.0 ** (-7 if cuda else -8)
        return _Bound((error * (1 + 1e-6)).float(), relative)

    def _look_up(self, queries: QueryBlock, vectors: Tensor, first: int) -> None:
        """Take in what the inverted lists find; more are asked for where a pool stays open."""
        ask = self._job.pool + max(self._job.pool // 4, 64)
        span = slice(0, len(queries.own))
        query, text = queries.positives_of(span, slice(first, first + len(vectors)))
        positive = query * len(vectors) + text
        todo = torch.arange(len(queries.own))
        while len(todo):
            ask = min(ask, len(vectors))
            step = max(1, self.blocks.pair_bytes // (90 * ask + 4 * vectors.shape[1]))
            left = []
            for some in todo.split(step):
                places = self._lists.nearest(queries.vectors[some].numpy(), ask)
                row, column = (places >= 0).nonzero().T
                place = places[row, column]
                allowed = ~torch.isin(some[row] * len(vectors) + place, positive)
                row, place = row[allowed], place[allowed]
                scores = _score_pairs(queries, some[row], vectors, place, self.blocks.pair_bytes)
                below = torch.bincount(row[scores <= queries.line[some[row]]], minlength=len(some))
                enough = (below >= self._job.pool) | (places[:, -1] < 0)
                enough |= ask == len(vectors)
                sure = enough[row]
                queries.add(some[row][sure], place[sure] + first, scores[sure])
                left.append(some[~enough])
            todo, ask = torch.cat(left), 4 * ask


def _score_pairs(
    queries: QueryBlock, rows: Tensor, vectors: Tensor, places: Tensor, room_bytes: int
) -> Tensor:
    """The exact score of each pair `(n,)`."""
    scores = torch.empty(len(rows), device=vectors.device)
    step = max(1, room_bytes // (24 * vectors.shape[1]))
    for at in range(0, len(rows), step):
        part = slice(at, at + step)
        left = queries.vectors.index_select(0, rows[part])
        scores[part] = exact_scores(left, vectors.index_select(0, places[part]))
    return scores


@dataclass(frozen=True, slots=True)
class _Bound:
    """What a fast score can be, for an exact one; in that sense both never lie."""

    error: Tensor
    """`(n,)` before the score is rounded to its format."""
    relative: float
    """By which it is rounded at most."""

    def lower(self, exact: Tensor) -> Tensor:
        """No candidate that scores `exact` or more has a fast score below this."""
        value = exact - self.error
        return (value - self.relative * value.abs()).clamp_min(torch.finfo(torch.float32).min)

    def upper(self, exact: Tensor) -> Tensor:
        """No candidate that scores `exact` or less has a fast score above this."""
        value = exact + self.error
        return value + self.relative * value.abs()

    def at_least(self, fast: Tensor) -> Tensor:
        """What a candidate with this fast score has at least."""
        return fast - self.relative * fast.abs() - self.error


class _Stretch:
    """Some queries and a block of candidates: their fast scores, and what is made of them."""

    def __init__(
        self,
        queries: QueryBlock,
        span: slice,
        candidates: _Loaded,
        first: int,
        scores: Tensor,
        bound: _Bound,
        blocks: Blocks,
    ) -> None:
        self._queries, self._span = queries, span
        self._candidates, self._first, self._blocks = candidates, first, blocks
        self._scores, self._bound = scores, bound
        self._best_of = scores.new_empty(scores.shape[0], scores.shape[2])
        line, own = queries.line[span], queries.own[span]
        device = scores.device
        self._line_top = bound.upper(line).to(device)
        self._line_low = bound.lower(line).to(device)
        self._own_top, self._own_low = bound.upper(own).to(device), bound.lower(own).to(device)

    def take(self, vectors: Tensor) -> None:
        """Score these vectors `(n, D)`, the queries in the fast format, and take in what counts."""
        self._multiply(vectors)
        crowded = (self._best_of > self._line_top).sum(dim=0) > len(self._best_of) // 4
        for row in crowded.nonzero()[:, 0].tolist():
            self._count_above(row)
        groups = self._best_of.T.contiguous()
        floor = self._floor(groups)
        row, group = (groups >= floor[:, None]).nonzero().T
        step = max(1, self._blocks.pair_bytes // (16 * self._scores.shape[1] + 64))
        for at in range(0, len(row), step):
            self._take_groups(row[at : at + step], group[at : at + step], floor)

    def _multiply(self, vectors: Tensor) -> None:
        """All fast scores, -∞ for what is true of an image, and the best one of each group."""
        fast, tile, size = self._candidates.fast, self._blocks.tile, self._scores.shape[1]
        flat = self._scores.view(-1, len(vectors))
        texts = slice(self._first, self._first + len(fast))
        query, text = self._queries.positives_of(self._span, texts)
        order = text.argsort()
        query, text = (part[order].to(vectors.device) for part in (query, text))
        ends = [*range(tile, len(fast), tile), len(fast)]
        bounds = [0, *torch.searchsorted(text, text.new_tensor(ends)).tolist()]
        flat[len(fast) :] = -torch.inf
        for number, end in enumerate(ends):
            start = number * tile
            torch.mm(fast[start:end], vectors.T, out=flat[start:end])
            here = slice(bounds[number], bounds[number + 1])
            flat[text[here], query[here]] = -torch.inf
            groups = slice(start // size, -(-end // size))
            torch.amax(self._scores[groups], dim=1, out=self._best_of[groups])

    def _count_above(self, row: int) -> None:
        """Count what is surely above the line of a query that has much of it, and be rid of it."""
        scores = self._scores[:, :, row]
        above = scores > self._line_top[row]
        near_own = above & (scores >= self._own_low[row]) & (scores <= self._own_top[row])
        better = above & (scores > self._own_top[row])
        query, home = self._span.start + row, self._queries.own.device
        self._queries.above[query] += (above.sum() - near_own.sum()).to(home)
        self._queries.better[query] += better.sum().to(home)
        place = near_own.flatten().nonzero()[:, 0]
        self._add(torch.full_like(place, row), place)
        scores[above] = -torch.inf
        self._best_of[:, row] = scores.amax(dim=1)

    def _floor(self, groups: Tensor) -> Tensor:
        """`(n,)`: what has a lower fast score changes nothing, neither a pool nor a count."""
        last = self._queries.last(self._span)
        if groups.shape[1] >= self._queries.pool:
            # The best of as many groups, all surely below the line, are that many candidates.
            sure = torch.where(groups < self._line_low[:, None], groups, -torch.inf).float()
            lowest = largest(sure, self._queries.pool).amin(dim=1).to(last.device)
            last = torch.maximum(last, self._bound.at_least(lowest))
        least = torch.minimum(last, self._queries.own[self._span])
        return self._bound.lower(least).to(groups.device)

    def _take_groups(self, row: Tensor, group: Tensor, floor: Tensor) -> None:
        """Look at every candidate of these groups; `row` ascends."""
        scores = self._scores[group, :, row].float()
        which, member = (scores >= floor[row, None]).nonzero().T
        score, row = scores[which, member], row[which]
        place = group[which] * scores.shape[1] + member
        above, better = score > self._line_top[row], score > self._own_top[row]
        doubtful = ~above | ((score >= self._own_low[row]) & ~better)
        certain = ~doubtful
        home = self._queries.own.device
        if certain.any():
            queries = (row[certain] + self._span.start).to(home)
            self._queries.above.index_add_(0, queries, above[certain].long().to(home))
            self._queries.better.index_add_(0, queries, better[certain].long().to(home))
        self._add(row[doubtful], place[doubtful])

    def _add(self, row: Tensor, place: Tensor) -> None:
        """Score pairs exactly, and take them in."""
        home = self._queries.own.device
        rows, places = (row + self._span.start).to(home), place.to(home)
        vectors = self._candidates.exact
        scores = _score_pairs(self._queries, rows, vectors, places, self._blocks.pair_bytes)
        self._queries.add(rows, places + self._first, scores)
