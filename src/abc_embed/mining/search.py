"""Scores of every image with every caption -> the pool of hard negatives of each image.

Products run in the fastest format of the device, in blocks under a ceiling of memory. How far such
a product can be from the exact score is bounded from the vectors themselves, so what may belong to
a pool, or lie on either side of a line, is known; that alone is scored anew in float64.
So all exact methods give the same pools on any device; a score may differ in its last bit where
the sum in float64 lies on the edge between two numbers of float32, about one in some millions.

Shapes: `N` queries, `M` candidates, `n` and `m` those of a block, `D` width, `K` size of a pool.
"""

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache

import numpy as np
import torch
from torch import Tensor

from abc_embed.errors import DataError
from abc_embed.mining.ivf import InvertedLists, require_faiss
from abc_embed.mining.pools import Pools, Truth
from abc_embed.mining.queries import QueryBlock, exact_scores
from abc_embed.mining.settings import (
    Blocks,
    Ints,
    Method,
    MiningSettings,
    Vectors,
    share_memory,
)
from abc_embed.mining.sieve import Loaded, Sieve
from abc_embed.runtime import resolve_device

LONGEST = 1e18
"""Length of a vector at most: products of longer ones do not fit float32."""


def search(
    queries: Vectors,
    candidates: Vectors,
    truth: Truth,
    settings: MiningSettings | None = None,
    *,
    start: int = 0,
    blocks: Blocks | None = None,
    product_dtype: torch.dtype | None = None,
    on_progress: Callable[[int], None] = lambda done: None,
) -> Iterator[Pools]:
    """The pools of all queries from `start` on, block by block.

    A candidate of a query is kept out, by the first of `pools.RULES` that applies, if it is the own
    caption or another caption of the same image, if it scores more than ε times the own caption,
    or if a whole pool of others are better.

    Args:
        queries: `(N, D)`.
        candidates: `(M, D)`, of different texts.
        truth: which candidates are true of each query.
        settings: what a pool is, method, memory and devices; None: the defaults.
        start: the first query; those before it were searched by an earlier run.
        blocks: how the work is cut; None: as the memory allows.
        product_dtype: format of the products; None: the fastest one of the device.
        on_progress: given how many queries are done, `start` included, with each candidate block.

    Raises:
        DataError: a vector holds a value that is not finite, or shapes do not fit.
        UsageError: the memory is too little.
        MissingExtraError: `Method.IVF` is asked for, and faiss is not installed.
    """
    settings = settings or MiningSettings()
    if settings.method is Method.IVF:
        require_faiss()
    _check(queries, candidates, truth.own)
    job = _Job(queries, candidates, truth, settings, on_progress, start)
    devices = search_devices(settings)
    workers = [
        _Worker(
            job,
            device,
            blocks or blocks_on(device, len(devices), queries.shape[1], settings),
            product_dtype or _fastest_dtype(device.type),
        )
        for device in devices
    ]
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


def search_devices(settings: MiningSettings) -> list[torch.device]:
    """Where the search runs: faiss's inverted lists on the CPU alone."""
    if settings.method is Method.IVF:
        return [torch.device("cpu")]
    if settings.devices:
        return [resolve_device(name) for name in settings.devices]
    device = resolve_device("auto")
    if device.type == "cuda":
        return [torch.device("cuda", number) for number in range(torch.cuda.device_count())]
    return [device]


def blocks_on(device: torch.device, sharers: int, width: int, settings: MiningSettings) -> Blocks:
    """How the work is cut for a device that shares its memory with others of its kind.

    Raises:
        UsageError: the memory is too little.
    """
    memory, fast_bytes = settings.memory_bytes // sharers, 0
    if device.type == "cuda":
        memory = int(0.9 * torch.cuda.mem_get_info(device)[0])
    if settings.method is Method.IVF:
        fast_bytes = 4  # its index holds the vectors once more
    elif settings.method is not Method.PLAIN:
        two = _fastest_dtype(device.type).itemsize == 2
        fast_bytes = 2 if two else 4 * (device.type == "mps")
    lanes = torch.get_num_threads() if device.type == "cpu" else 1
    return share_memory(
        memory, width, settings.pool, value_bytes=4 + fast_bytes, lanes=lanes, device=device.type
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
        yield from (workers[0].run(*span) for span in spans)
        return
    with ThreadPoolExecutor(len(workers)) as threads:
        running: deque[Future[Pools]] = deque()
        for number, span in enumerate(spans):
            if len(running) == len(workers):
                yield running.popleft().result()  # the device whose turn it is
            running.append(threads.submit(workers[number % len(workers)].run, *span))
        while running:
            yield running.popleft().result()


class Lanes:
    """Threads in each of which torch computes alone.

    Each does whole pieces of the work. The threads of one operation wait for each other at the end
    of it, which for many short ones takes longer than the work, above all on a busy machine.
    """

    def __init__(self, device: torch.device) -> None:
        self.count = torch.get_num_threads() if device.type == "cpu" else 1
        self._threads = ThreadPoolExecutor(self.count)
        if self.count > 1:
            all_begun = threading.Barrier(self.count)
            list(self._threads.map(_compute_alone, [all_begun] * self.count))
            torch.set_num_threads(self.count)  # what a thread sets is what later ones begin with

    def run(self, work: Callable[[int], None], pieces: Iterable[int]) -> None:
        """Do every piece; the first error ends it."""
        if self.count == 1:
            for piece in pieces:
                work(piece)
            return
        for _ in self._threads.map(work, pieces):
            pass


def _compute_alone(all_begun: threading.Barrier) -> None:
    torch.get_num_threads()  # or torch would set it anew at the first operation
    torch.set_num_threads(1)
    all_begun.wait()  # so that each of the pool's threads does this, and none begins later


@dataclass(slots=True)
class _Job:
    """What is searched, the same for all devices, and how much of it is done."""

    queries: Vectors
    candidates: Vectors
    truth: Truth
    settings: MiningSettings
    on_progress: Callable[[int], None]
    done: float
    """Queries, of which one is done in part when it has seen a part of the candidates."""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, queries: float) -> None:
        """So many more are done."""
        with self._lock:
            self.done += queries
            self.on_progress(round(self.done))


class _Worker:
    """One device: goes through all candidates for each block of queries."""

    def __init__(self, job: _Job, device: torch.device, blocks: Blocks, dtype: torch.dtype) -> None:
        self.blocks = blocks
        self._job, self._device, self._dtype = job, device, dtype
        self._lanes = Lanes(device)
        self._pair_bytes = blocks.pair_bytes // self._lanes.count
        # Exact scores, and what is found, live where float64 is to be had.
        self._home = torch.device("cpu") if device.type == "mps" else device
        self._candidates: tuple[int, Loaded] | None = None
        if job.settings.method is Method.IVF:
            self._lists = InvertedLists(job.candidates, job.settings)

    def run(self, start: int, stop: int) -> Pools:
        """The pools of these queries."""
        job, total = self._job, self._job.candidates.shape[0]
        loaded, truth = self._load("query", job.queries, start, stop), job.truth[start:stop]
        own = self._own_scores(loaded.exact, truth.own)
        queries = QueryBlock(loaded.exact, own, truth, job.settings)
        for first in range(0, total, self.blocks.candidates):
            candidates = self._load_candidates(first)
            self._compare(queries, loaded, candidates, first)
            job.add((stop - start) * len(candidates.exact) / total)
            del candidates  # or two blocks would be in memory while the next is read
        return queries.pools(start, total)

    def _compare(
        self, queries: QueryBlock, vectors: Loaded, candidates: Loaded, first: int
    ) -> None:
        """Take in all candidates of a block that may matter."""
        method, count = self._job.settings.method, len(queries.own)
        if method is Method.IVF:
            self._lists.take(queries, candidates.exact, first, self.blocks.pair_bytes)
            return
        side = max(16, min(int((self._pair_bytes / 12) ** 0.5), 4096))
        rows = min(
            side if method is Method.PLAIN else self.blocks.rows, -(-count // self._lanes.count)
        )
        # Few rows are scored with more candidates at a time, as far as these have room.
        step = max(side, self._pair_bytes // max(12 * rows, 8 * vectors.exact.shape[1]))

        def compare(start: int) -> None:
            span = slice(start, min(start + rows, count))
            if method is Method.PLAIN:
                queries.add_all(span, candidates.exact, first, step)
            else:
                sieve = Sieve(queries, span, vectors, candidates, first, self._pair_bytes)
                sieve.take(self.blocks.tile)

        self._lanes.run(compare, range(0, count, rows))

    # -- reading -----------------------------------------------------------------------------------

    def _own_scores(self, vectors: Tensor, own: Ints) -> Tensor:
        """`(n,)`: of each query with its own caption."""
        scores, step = [], max(1, self._pair_bytes // (24 * vectors.shape[1]))
        for start in range(0, len(own), step):
            captions = torch.from_numpy(self._job.candidates[own[start : start + step]])
            scores.append(exact_scores(vectors[start : start + step], captions.to(self._home)))
        return torch.cat(scores)

    def _load(self, name: str, vectors: Vectors, start: int, stop: int) -> Loaded:
        """Vectors from files to the device, a few at a time."""
        count, width = stop - start, vectors.shape[1]
        apart = self._dtype != torch.float32 or self._home != self._device
        apart = apart and self._job.settings.resolved_method is Method.FLAT
        exact = _room((count, width), torch.float32, self._home)
        fast = _room((count, width), self._dtype, self._device) if apart else exact
        norms, rounding = torch.zeros(2, count, device=self._home)

        def length(values: Tensor) -> Tensor:
            # At most: as its float32 sum may be too small, and squares too small for float32.
            lengths: Tensor = torch.linalg.vector_norm(values, dim=1)
            return lengths * (1 + (width + 8) * 2.0**-23) + math.sqrt(width) * 2.0**-62

        def load(left: int) -> None:
            part = slice(left, min(left + step, count))
            values = np.ascontiguousarray(vectors[start + left : start + part.stop], np.float32)
            exact[part] = torch.from_numpy(values)
            norms[part] = length(exact[part])
            good = norms[part] < LONGEST
            if not good.all():
                raise DataError(
                    f"the vector of {name} {start + left + int(good.int().argmin())} is not "
                    "finite, or longer than 1e18; embed it anew"
                )
            if apart:
                fast[part] = exact[part].to(self._dtype).to(self._device)
                rounding[part] = length(exact[part] - fast[part].to(self._home))

        step = max(1, self._pair_bytes // (12 * width))
        self._lanes.run(load, range(0, count, step))
        return Loaded(exact, fast, norms, rounding)

    def _load_candidates(self, first: int) -> Loaded:
        """A block of candidates; read again only if it is another than the last."""
        if self._candidates is None or self._candidates[0] != first:
            self._candidates = None
            stop = min(first + self.blocks.candidates, self._job.candidates.shape[0])
            loaded = self._load("candidate", self._job.candidates, first, stop)
            self._candidates = (first, loaded)
            if self._job.settings.method is Method.IVF:
                self._lists.load(loaded.exact.numpy(), first)
        return self._candidates[1]


def _room(shape: int | tuple[int, int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Memory for many numbers. NumPy asks the system for large pages, which torch does not: so
    they are there far sooner."""
    if device.type != "cpu":
        return torch.empty(shape, dtype=dtype, device=device)
    kind = np.int16 if dtype.itemsize == 2 else np.int32
    room: Tensor = torch.from_numpy(np.empty(shape, dtype=kind)).view(dtype)
    return room
