"""faiss's inverted lists: near candidates without looking at all of them. Not exact."""

import importlib.util
from typing import Any

import numpy as np
import torch
from torch import Tensor

from abc_embed.errors import MissingExtraError
from abc_embed.mining.queries import QueryBlock
from abc_embed.mining.settings import Floats, Ints, MiningSettings, Vectors


def require_faiss() -> None:
    """Raises `MissingExtraError` where faiss is not installed."""
    if importlib.util.find_spec("faiss") is None:
        raise MissingExtraError.of("mine", "the search 'ivf'")


class InvertedLists:
    """Candidates lie in cells around centroids, and a query looks into `nprobe` of them.

    The centroids are learnt once, from a sample of all candidates; the block at hand is indexed
    when it is loaded. No cell has fewer than 39 samples.
    """

    def __init__(self, candidates: Vectors, settings: MiningSettings) -> None:
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

    def take(self, queries: QueryBlock, vectors: Tensor, first: int, room_bytes: int) -> None:
        """Take in what the lists find among `vectors` `(m, D)`, which were loaded; more are asked
        for where a pool stays open."""
        ask = queries.pool + max(queries.pool // 4, 64)
        span = slice(0, len(queries.own))
        query, text = queries.positives_of(span, slice(first, first + len(vectors)))
        positive = query * len(vectors) + text
        todo = torch.arange(len(queries.own))
        while len(todo):
            ask = min(ask, len(vectors))
            step = max(1, room_bytes // (90 * ask + 4 * vectors.shape[1]))
            left = []
            for some in todo.split(step):
                # Places in the block, best first; -1 where no more are in the cells.
                places = torch.from_numpy(self._index.search(queries.vectors[some].numpy(), ask)[1])
                row, column = (places >= 0).nonzero().T
                place = places[row, column]
                allowed = ~torch.isin(some[row] * len(vectors) + place, positive)
                row, place = row[allowed], place[allowed]
                scores = queries.score(some[row], vectors, place, room_bytes)
                below = torch.bincount(row[scores <= queries.line[some[row]]], minlength=len(some))
                enough = (below >= queries.pool) | (places[:, -1] < 0)
                enough |= ask == len(vectors)
                sure = enough[row]
                queries.add(some[row][sure], place[sure] + first, scores[sure])
                left.append(some[~enough])
            todo, ask = torch.cat(left), 4 * ask
