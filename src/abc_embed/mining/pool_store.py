"""Pools on disk, a file for each block of queries: a search that is stopped goes on from there.

WORK/pools/KEY/FIRST-STOP.npz    rows, scores, own, better, dropped, recalled
"""

import hashlib
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import numpy as np

from abc_embed.errors import DataError
from abc_embed.mining.pools import Pools
from abc_embed.mining.settings import Ints, Method, SearchSettings
from abc_embed.storage.files import atomic_write, make_folder


class PoolStore:
    """The pools of one search, in a folder named by everything that decides them."""

    def __init__(
        self, folder: Path, key: object, arrays: list[Ints], settings: SearchSettings
    ) -> None:
        """`key` and `arrays` are what decides the pools, besides `settings`."""
        digest = hashlib.sha256(repr(key).encode())
        if settings.method is Method.IVF:  # of the exact methods none changes a pool
            values = (settings.nlist, settings.nprobe, settings.seed, settings.memory_bytes)
            digest.update("ivf {} {} {} {}".format(*values).encode())
        for array in arrays:
            digest.update(np.ascontiguousarray(array).view(np.uint8).data)
        self.folder = make_folder(folder / digest.hexdigest()[:32])

    def files(self) -> list[Path]:
        """Those of a run without a gap, from the first query on."""
        by_first = {}
        for path in self.folder.glob("*-*.npz"):
            first, stop = map(int, path.stem.split("-"))
            by_first[first] = (stop, path)
        files, at = [], 0
        while at in by_first:
            at, path = by_first[at]
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
        values = {field.name: getattr(pools, field.name) for field in fields(Pools)}
        with atomic_write(self.folder / f"{pools.first:010}-{stop:010}.npz") as file:
            np.savez(file, allow_pickle=False, **values)

    def __iter__(self) -> Iterator[Pools]:
        """All pools, in the order of the queries.

        Raises:
            DataError: a file is damaged.
        """
        for path in self.files():
            try:
                with np.load(path, allow_pickle=False) as archive:
                    values = {name: archive[name] for name in archive.files}
                hits, total = values.pop("recalled").tolist()
                pools = Pools(int(values.pop("first")), recalled=(hits, total), **values)
            except (OSError, ValueError, KeyError, TypeError) as problem:
                raise DataError(
                    f"the pools in {path} cannot be read; delete the file and run again"
                ) from problem
            yield pools
