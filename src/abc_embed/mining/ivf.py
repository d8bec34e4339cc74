"""faiss's inverted lists: near candidates without looking at all of them. Not exact."""

import importlib.util
from typing import Any

import numpy as np
import torch
from torch import Tensor

from abc_embed.errors import MissingExtraError
from abc_embed.mining.settings import Floats, Ints, SearchSettings, Vectors


def require_faiss() -> None:
    """Raises `MissingExtraError` where faiss is not installed."""
    if importlib.util.find_spec("faiss") is None:
        raise MissingExtraError.of("mine", "the search 'ivf'")


class InvertedLists:
    """Candidates lie in cells around centroids, and a query looks into `nprobe` of them.

    The centroids are learnt once, from a sample of all candidates; the block at hand is indexed
    when it is loaded. No cell has fewer than 39 samples.
    """

    def __init__(self, candidates: Vectors, settings: SearchSettings) -> None:
        import faiss

        total, width = candidates.shape
        most = max(64, int(0.1 * settings.memory_bytes) // (4 * width))
        order = np.random.default_rng([settings.seed, 0]).permutation(total)
        chosen = np.sort(order[: min(most, 64 * (settings.nlist or total))])
        sample = np.ascontiguousarray(candidates[chosen], dtype=np.float32)
        wanted = settings.nlist or int(4 * total**0.5)
        self._nlist = max(1, min(wanted, len(sample) // 39 or 1))
        self._nprobe = min(settings.nprobe, self._nlist)
        clustering = faiss.Kmeans(
            width,
            self._nlist,
            niter=10,
            seed=settings.seed,
            spherical=True,
            min_points_per_centroid=1,
            max_points_per_centroid=len(sample),
        )
        clustering.train(sample)
        self._quantizer = faiss.IndexFlatIP(width)
        self._quantizer.add(np.asarray(clustering.centroids, dtype=np.float32))
        self._cell_of: dict[int, Ints] = {}  # by block: the same block comes once per query block
        self._index: Any = None

    def load(self, block: Floats, first: int) -> None:
        """Look at these candidates `(m, D)` from now on; `first` is the number of the first."""
        import faiss

        if first not in self._cell_of:
            self._cell_of[first] = self._quantizer.search(block, 1)[1][:, 0]
        self._index = None  # let go of the last block before the next is copied
        index = faiss.IndexIVFFlat(
            self._quantizer, block.shape[1], self._nlist, faiss.METRIC_INNER_PRODUCT
        )
        index.own_fields = False
        index.nprobe = self._nprobe
        cells = faiss.swig_ptr(self._cell_of[first])
        index.add_core(len(block), faiss.swig_ptr(block), None, cells)
        self._index = index

    def nearest(self, queries: Floats, count: int) -> Tensor:
        """`(n, count)` places in the block, best first; -1 where none is."""
        return torch.from_numpy(self._index.search(queries, count)[1])
