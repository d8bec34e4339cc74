"""Who is near: candidates of one block by descending score, by faiss; and how memory is shared out.

Does: wrap faiss's exact search and its inverted lists (IVF) behind one small face. Does not: apply
rules, or decide whether what was found is enough (search.py does, and scores anew in float64).

Shapes: `n` queries, `m` candidates of a block, `k` that are asked for, `D` width.
"""

import importlib.util
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from abc_embed.errors import MissingExtraError, UsageError

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]


class Method(StrEnum):
    """How candidates are searched. The first three give the same pools."""

    AUTO = "auto"
    """`flat` where faiss is installed, else `plain`."""
    FLAT = "flat"
    """faiss, every candidate; whatever its float32 sums leave in doubt is scored by `plain`."""
    PLAIN = "plain"
    """NumPy in float64: needs no extra, several times slower."""
    IVF = "ivf"
    """faiss's inverted lists: only the cells next to a query are looked at. Not exact."""


def resolve_method(method: Method) -> Method:
    """What `AUTO` means on this machine.

    Raises:
        MissingExtraError: faiss is asked for by name and not installed.
    """
    installed = importlib.util.find_spec("faiss") is not None
    if method is Method.AUTO:
        return Method.FLAT if installed else Method.PLAIN
    if method is not Method.PLAIN and not installed:
        raise MissingExtraError.of("mine", f"the search {method.value!r}")
    return method


# -- memory ----------------------------------------------------------------------------------------

_CELL = 64  # bytes for each score of a plain tile: float64, float32, bits, keys, masks, copies
_NEAR = 36  # bytes for each one that faiss is asked for: its reservoir, and the answer
_TILE = 4096  # bytes of one query's line in faiss's own tile of scores
_TAKEN = 90  # bytes for each one that was found: masks, places, keys, copies
_MOST_QUERIES = 16384
"""Queries of a block at most: a search that is stopped loses no more than one block."""
_PLAIN_SIDE = 4096


@dataclass(frozen=True, slots=True)
class Blocks:
    """How much is at hand at once, so that all of it keeps under the ceiling."""

    queries: int
    candidates: int
    side: int
    """Of a tile of plain scores."""
    near_bytes: int
    """For faiss at work."""
    taken_bytes: int
    """For what is made of its answer."""
    pair_bytes: int
    """For the vectors of pairs that are scored anew."""

    def asked_at_once(self, count: int, k: int, width: int) -> int:
        """Of `count` queries, how many ask for `k` candidates together. As many as can be: below
        some 2,000 faiss 1.15 takes three times as long for each."""
        most = max(1, self.near_bytes // (_NEAR * k + _TILE + 4 * width))
        return -(-count // -(-count // most))  # parts of one size

    def taken_at_once(self, k: int, width: int) -> int:
        """Of how many queries the answers are looked at together."""
        return max(1, self.taken_bytes // (_TAKEN * k + 4 * width))


def blocks(memory_bytes: int, width: int, pool: int, method: Method) -> Blocks:
    """Share out a ceiling: 36 % candidates, 12 % queries, then 18 % for faiss, 8 % for its answers
    and 5 % for pairs, or 20 % for a plain tile; the rest is for what the allocator keeps.

    Raises:
        UsageError: not even small blocks fit.
    """
    share = 0.36 if method is not Method.IVF else 0.17  # its index holds them once more
    candidates = int(share * memory_bytes) // (4 * width)
    queries = int(0.12 * memory_bytes) // (4 * width + 24 * pool + 64)
    line = 2 * 16 * width + 40 * pool  # a tile is b · b cells and 2 · b lines
    tile = 0.2 * memory_bytes
    side = int((-line + (line * line + 4 * _CELL * tile) ** 0.5) / (2 * _CELL))
    if min(candidates, queries, side) < 16:
        least = max(16 * 4 * width / share, 16 * (4 * width + 24 * pool + 64) / 0.12)
        least = max(least, (_CELL * 16 + line) * 17 / 0.2)
        raise UsageError(
            f"the memory is too little for the search; give at least {int(least) // 10**6 + 1} MB"
        )
    return Blocks(
        queries=min(queries, _MOST_QUERIES),
        candidates=candidates,
        side=min(side, _PLAIN_SIDE),
        near_bytes=int(0.18 * memory_bytes),
        taken_bytes=int(0.08 * memory_bytes),
        pair_bytes=int(0.05 * memory_bytes),
    )


# -- engines ---------------------------------------------------------------------------------------


class Engine(Protocol):
    """Finds the best candidates of one block at a time."""

    exact: bool
    """Whether none is passed over but for the rounding of float32."""

    def load(self, block: Floats, first: int) -> None:
        """Look at these candidates `(m, D)` from now on; `first` is the number of the first."""

    def nearest(self, queries: Floats, k: int) -> tuple[Floats, Ints]:
        """Scores `(n, k)` in float32, descending, and places in the block; -1 where none is."""


class Flat:
    """Every candidate of the block, scored by faiss as `IndexFlatIP` does, without its copy."""

    exact = True

    def load(self, block: Floats, first: int) -> None:
        self._block = block

    def nearest(self, queries: Floats, k: int) -> tuple[Floats, Ints]:
        import faiss

        scores, places = faiss.knn(queries, self._block, k, metric=faiss.METRIC_INNER_PRODUCT)
        return scores, places


class Ivf:
    """Inverted lists: candidates lie in cells around centroids, a query looks into `probes` of
    them.

    The centroids are learnt once, from a sample of all candidates; the block at hand is indexed
    when it is loaded. `cells` 0 means 4 √M, and no cell of fewer than 39 samples.
    """

    exact = False

    def __init__(self, sample: Floats, count: int, *, cells: int, probes: int, seed: int) -> None:
        import faiss

        wanted = cells or int(4 * count**0.5)
        self.cells = max(1, min(wanted, len(sample) // 39 or 1))
        self.probes = min(probes, self.cells)
        means = faiss.Kmeans(
            sample.shape[1],
            self.cells,
            niter=10,
            seed=seed,
            spherical=True,
            min_points_per_centroid=1,
            max_points_per_centroid=len(sample),
        )
        means.train(sample)
        self._centroids: Floats = np.asarray(means.centroids, dtype=np.float32)
        self._cell_of: dict[int, Ints] = {}  # by block: the same block comes once per query block
        self._index: Any = None

    def load(self, block: Floats, first: int) -> None:
        import faiss

        width = block.shape[1]
        quantizer = faiss.IndexFlatIP(width)
        quantizer.add(self._centroids)
        if first not in self._cell_of:
            self._cell_of[first] = quantizer.search(block, 1)[1][:, 0]
        self._index = None  # let go of the last block before the next is copied
        index = faiss.IndexIVFFlat(quantizer, width, self.cells, faiss.METRIC_INNER_PRODUCT)
        index.own_fields = False
        index.nprobe = self.probes
        index.add_core(
            len(block),
            faiss.swig_ptr(block),
            None,
            faiss.swig_ptr(self._cell_of[first]),
        )
        self._quantizer, self._index = quantizer, index

    def nearest(self, queries: Floats, k: int) -> tuple[Floats, Ints]:
        scores, places = self._index.search(queries, k)
        return scores, places
