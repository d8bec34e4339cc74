"""Pools on disk, a file for each block of queries: a search that is stopped goes on from there.

Does: name the folder by everything that decides a pool, write each block whole, read them again.
Does not: search.

    WORK/pools/KEY/FIRST-STOP.npz    rows, scores, own, better, dropped, recalled
"""

import hashlib
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import numpy as np

from abc_embed.errors import DataError
from abc_embed.mining.engines import Ints, Method
from abc_embed.mining.pools import Pools
from abc_embed.mining.search import How
from abc_embed.storage.files import atomic_write, make_folder


class PoolStore:
    """The pools of one search."""

    def __init__(self, folder: Path, told: object, arrays: list[Ints], how: How) -> None:
        """`told` and `arrays` are what decides the pools, besides `how`."""
        digest = hashlib.sha256(repr(told).encode())
        if how.method is Method.IVF:  # of the exact methods none changes a pool
            digest.update(f"ivf {how.cells} {how.probes} {how.seed} {how.memory_bytes}".encode())
        for array in arrays:
            digest.update(np.ascontiguousarray(array).view(np.uint8).data)
        self.folder = make_folder(folder / digest.hexdigest()[:32])

    def files(self) -> list[Path]:
        """Those of a run without a gap, from the first query on."""
        found = {}
        for path in self.folder.glob("*-*.npz"):
            first, stop = path.stem.split("-")
            found[int(first)] = (int(stop), path)
        files, at = [], 0
        while at in found:
            at, path = found[at]
            files.append(path)
        return files

    @property
    def done(self) -> int:
        """The first query that is not searched yet."""
        files = self.files()
        return int(files[-1].stem.split("-")[1]) if files else 0

    def add(self, pools: Pools) -> None:
        """Keep the pools of a block.

        Raises:
            OutputError: they cannot be written.
        """
        stop = pools.first + len(pools.own)
        values = {one.name: getattr(pools, one.name) for one in fields(Pools)}
        with atomic_write(self.folder / f"{pools.first:010}-{stop:010}.npz") as file:
            np.savez(file, allow_pickle=False, **values)

    def __iter__(self) -> Iterator[Pools]:
        """All pools, in the order of the queries.

        Raises:
            DataError: a file is damaged.
        """
        for path in self.files():
            try:
                with np.load(path, allow_pickle=False) as kept:
                    values = {name: kept[name] for name in kept.files}
                hits, of = values.pop("recalled").tolist()
                first = int(values.pop("first"))
                pools = Pools(first, recalled=(hits, of), **values)
            except (OSError, ValueError, KeyError, TypeError) as problem:
                raise DataError(
                    f"the pools in {path} cannot be read; delete the file and run again"
                ) from problem
            yield pools
