"""What mining can be told, and how a ceiling of memory is shared out; it needs no torch."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from abc_embed.errors import UsageError

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

EPSILON = 0.95
"""A caption that scores more than this part of the own one may be true too (paper, section 3.2)."""
POOL = 100
"""The best so many below that line (paper, section 3.2)."""
SAMPLE_SIZE = 7
"""Negatives of one image (paper, section 3.2)."""
NPROBE = 16
MEMORY_BYTES = 10**9
STORES = ("float32", "float16")
"""Number formats of vectors on disk; float16 takes half the room, and moves a score by less than
0.001."""


class Vectors(Protocol):
    """`(N, D)` float32 that are read in parts: an array, or files (shards.py)."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, numbers: slice | Ints, /) -> Floats: ...


class Method(StrEnum):
    """How candidates are searched. The first three give the same pools."""

    AUTO = "auto"
    """`flat`."""
    FLAT = "flat"
    """Every candidate, found in the fastest format of the device and scored anew in float64."""
    PLAIN = "plain"
    """Every candidate in float64 at once: several times slower, what `flat` is measured by."""
    IVF = "ivf"
    """faiss's inverted lists: only the cells next to a query are looked at. Not exact."""


class Strategy(StrEnum):
    """How negatives are sampled from a pool."""

    UNIFORM = "uniform"
    """Any of the pool, without putting back (the paper's text)."""
    BINS = "bins"
    """One of the first five, one of the next five, and so on (the published loader)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MiningSettings:
    """What decides the negatives, apart from model and records, and how they are searched."""

    epsilon: float = EPSILON
    """Above 0, at most 1."""
    pool: int = POOL
    sample_size: int = SAMPLE_SIZE
    strategy: Strategy = Strategy.UNIFORM
    seed: int = 0
    """Of the samples from pools, and of the inverted lists."""
    store: str = "float32"
    """Number format of vectors on disk."""
    method: Method = Method.AUTO
    memory_bytes: int = MEMORY_BYTES
    """Ceiling on what is allocated on the CPU, beyond the arguments and some 60 bytes for each
    query and candidate. A CUDA device is filled as far as it is free."""
    nlist: int = 0
    """Cells of the inverted lists; 0 chooses 4 √M."""
    nprobe: int = NPROBE
    """Cells that a query looks into."""
    devices: tuple[str, ...] = ()
    """Each takes its share of the queries. None named: all CUDA devices, else mps, else cpu."""

    def __post_init__(self) -> None:
        if not 0 < self.epsilon <= 1:
            raise UsageError(f"epsilon is {self.epsilon}; give a number above 0, and at most 1")
        for option, value, least in (
            ("the pool", self.pool, 1),
            ("draw", self.sample_size, 1),
            ("seed", self.seed, 0),
            ("cells", self.nlist, 0),
            ("probes", self.nprobe, 1),
        ):
            if value < least:
                raise UsageError(f"{option} is {value}; give at least {least}")
        if self.store not in STORES:
            raise UsageError(f"the store is {self.store!r}; give {' or '.join(STORES)}")
        share_memory(self.memory_bytes, 1, self.pool)  # no width needs less

    @property
    def resolved_method(self) -> Method:
        """What `AUTO` means."""
        return Method.FLAT if self.method is Method.AUTO else self.method

    def as_json(self) -> dict[str, Any]:
        """JSON values, named like the options of the command."""
        search = {
            "method": self.method,
            "memory_bytes": self.memory_bytes,
            "cells": self.nlist,
            "probes": self.nprobe,
            "seed": self.seed,
            "devices": self.devices,
        }
        return {
            "epsilon": self.epsilon,
            "pool": self.pool,
            "draw": self.sample_size,
            "how": self.strategy,
            "seed": self.seed,
            "store": self.store,
            "search": search,
        }


class Blocks(NamedTuple):
    """How much is at hand at once."""

    queries: int
    candidates: int
    rows: int
    """Queries of one product."""
    tile: int
    """Candidates of one product."""
    pair_bytes: int
    """For the vectors of pairs that are scored anew, and for files on their way."""


MAX_QUERIES = 16384
"""Queries of a block at most: a search that is stopped loses no more than one block."""
_SHARES = {"cpu": (0.5, 0.12, 0.18, 0.05), "cuda": (0.7, 0.08, 0.12, 0.04)}
"""Of the memory: candidates, queries, scores, pairs. The rest is for what the allocator keeps."""
_TILES = {"cpu": 2048, "cuda": 131072}
_MAX_ROWS = {"cpu": 1024, "cuda": 4096}
_MAX_PAIR_BYTES = {"cpu": 4 << 20, "cuda": 1 << 30}  # what a cache holds is scored anew faster


def share_memory(
    memory_bytes: int,
    width: int,
    pool: int,
    *,
    value_bytes: int = 4,
    lanes: int = 1,
    device: str = "cpu",
) -> Blocks:
    """Cut the work so that all of it keeps under a ceiling.

    Args:
        memory_bytes: the ceiling.
        width: `D`.
        pool: size of a pool.
        value_bytes: of one number of a vector, all copies together.
        lanes: products that are computed at the same time.
        device: `"cpu"`, `"mps"` or `"cuda"`.

    Raises:
        UsageError: not even small blocks fit.
    """
    kind = "cuda" if device == "cuda" else "cpu"
    shares = _SHARES[kind]
    for_candidates, for_queries, for_scores, for_pairs = (share * memory_bytes for share in shares)
    candidate, query = value_bytes * width, value_bytes * width + 32 * pool + 128
    least = max(16 * candidate / shares[0], 16 * query / shares[1], 64 * width / shares[3])
    if memory_bytes < least:
        raise UsageError(
            f"the memory is too little for the search; give at least {int(least) // 10**6 + 1} MB"
        )
    candidates = int(for_candidates / candidate)
    # For each member of a pool some numbers of 8 bytes are kept, sorted and looked at meanwhile.
    rows = min(max(int(for_scores / (256 * pool * lanes)), 16), _MAX_ROWS[kind])
    # Of a tile there are the scores in two formats, and which of them are high enough.
    tile = min(_TILES[kind], candidates, int(for_scores / (8 * rows * lanes)))
    return Blocks(
        queries=min(int(for_queries / query), MAX_QUERIES),
        candidates=candidates,
        rows=rows,
        tile=max(tile // 32, 1) * 32,
        pair_bytes=min(int(for_pairs), _MAX_PAIR_BYTES[kind]),
    )
