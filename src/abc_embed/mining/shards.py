"""Vectors on disk in shards: whole files, named by what decides them, read in parts.

A shard is named by model, resolution and the content of its items, so it is right wherever it is
found: a run that was killed, a second run with other settings, or one after rows were added embeds
only shards that are not there.

    WORK/vectors/MODEL/SHARD.npy     (n, D) float16 or float32; zeros for an item that failed
    WORK/vectors/MODEL/SHARD.json    why items failed, by number; only where some did
    WORK/vectors/MODEL/KIND-ID.json  manifest of a whole list: model, width, count, its shards

Shapes: `N` items, `D` width.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from abc_embed.errors import DataError
from abc_embed.mining.settings import Floats, Ints
from abc_embed.storage.files import atomic_write, make_folder
from abc_embed.storage.hashing import sha256
from abc_embed.storage.json_files import read_json

SHARD = 1024
"""Items of a file; a kill loses no more than these, for each process."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VectorSpace:
    """What decides a vector besides its item, and where such vectors lie."""

    folder: Path
    model: str
    """`Embedder.fingerprint`."""
    width: int
    max_pixels: int | None = None
    store: str = "float32"

    @property
    def shard_folder(self) -> Path:
        """Of this model, resolution and number format."""
        return self.folder / f"{self.model[:16]}-{self.max_pixels or 0}-{self.store}"


class Shards:
    """The vectors of a list of items, `(N, D)` float32 when read."""

    def __init__(self, space: VectorSpace, keys: Sequence[str]) -> None:
        """`keys` say what each item is: equal ones mean equal items."""
        self.space = space
        self.shape = (len(keys), space.width)
        make_folder(space.shard_folder)
        self.paths = [
            space.shard_folder / f"{self._name(keys[start : start + SHARD])}.npy"
            for start in range(0, len(keys), SHARD)
        ]
        content = sha256("\n".join(path.stem for path in self.paths))
        self.id = sha256(f"{space} {content}")[:32]
        """Names model, resolution, number format and all items."""

    def _name(self, keys: Sequence[str]) -> str:
        space = self.space
        parts = (space.model, space.max_pixels or 0, space.store, *keys)
        return sha256("\n".join(map(str, parts)))[:32]

    def missing(self) -> list[int]:
        """Numbers of the shards that are not there yet."""
        return [number for number, path in enumerate(self.paths) if not path.exists()]

    def span(self, number: int) -> slice:
        """The items of a shard."""
        return slice(number * SHARD, min((number + 1) * SHARD, self.shape[0]))

    def errors(self) -> dict[int, str]:
        """Items that could not be embedded, and why."""
        mend = "delete it and the shard beside it, and run again"
        return {
            number * SHARD + int(place): why
            for number, path in enumerate(self.paths)
            for place, why in read_json(
                path.with_suffix(".json"), required=False, error=DataError, mend=mend
            ).items()
        }

    def write_manifest(self, kind: str) -> Path:
        """Say what all shards together are, for people and for other programs."""
        manifest = {
            "kind": kind,
            "model": self.space.model,
            "max_pixels": self.space.max_pixels,
            "dtype": self.space.store,
            "count": self.shape[0],
            "width": self.shape[1],
            "items_in_a_shard": SHARD,
            "shards": [path.name for path in self.paths],
        }
        path = self.space.shard_folder / f"{kind}-{self.id}.json"
        with atomic_write(path) as file:
            file.write(json.dumps(manifest, indent=1).encode() + b"\n")
        return path

    def __getitem__(self, numbers: slice | Ints) -> Floats:
        """These rows, in this order. Only their part of the files is read."""
        if isinstance(numbers, slice):
            numbers = np.arange(*numbers.indices(self.shape[0]))
        out = np.empty((len(numbers), self.shape[1]), dtype=np.float32)
        shard_of = numbers // SHARD
        for shard in np.unique(shard_of).tolist():
            here = np.flatnonzero(shard_of == shard)
            out[here] = self._open(shard)[numbers[here] % SHARD]
        return out

    def _open(self, number: int) -> NDArray[np.floating[Any]]:
        """A shard, mapped to memory as long as it is looked at."""
        path, span = self.paths[number], self.span(number)
        try:
            vectors: NDArray[np.floating[Any]] = np.load(path, mmap_mode="r", allow_pickle=False)
            if vectors.shape != (span.stop - span.start, self.shape[1]):
                raise ValueError(f"its shape is {vectors.shape}")
        except (OSError, ValueError) as problem:
            raise DataError(
                f"the vectors in {path} cannot be read ({problem}); delete the file and run again"
            ) from problem
        return vectors


class ShardRows:
    """Some rows of shards, in ascending order: what is left when bad items are out."""

    def __init__(self, shards: Shards, numbers: Ints) -> None:
        self._shards, self._numbers = shards, numbers
        self.shape = (len(numbers), shards.shape[1])
        self._has_all = len(numbers) == shards.shape[0]

    def __getitem__(self, numbers: slice | Ints) -> Floats:
        return self._shards[numbers if self._has_all else self._numbers[numbers]]


def write_shard(path: Path, vectors: NDArray[np.float32], errors: dict[int, str]) -> None:
    """A whole shard; its errors first, so that a shard that is there says all.

    Raises:
        OutputError: it cannot be written.
    """
    if errors:
        with atomic_write(path.with_suffix(".json")) as file:
            file.write(json.dumps(errors, ensure_ascii=False, indent=1).encode() + b"\n")
    with atomic_write(path) as file:
        np.save(file, vectors, allow_pickle=False)
