"""An encoder that remembers: nothing is embedded twice, in this process or, with a folder, ever.

Does: know an item by its content (the bytes of the image, the words), ask the other encoder only
for what is new. Does not: see through a wrong fingerprint.
Why: all controls of a benchmark (image only, text only, another instruction, ...) ask for vectors
of the same pictures and texts over and over. Items that are new are handed over in one piece, all
of one picture together, so that a model of ours encodes each picture once per call: whoever needs
several controls gives all their items in one call.

Shapes: `N` items, `D` width.
"""

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from abc_embed.bench.encoders.base import (
    Encoder,
    Vectors,
    WrappedEncoder,
    checked,
    content_keys,
)
from abc_embed.inputs import Item
from abc_embed.pipeline import grouped, image_key
from abc_embed.storage.vector_cache import VectorCache

AT_ONCE = 512
"""New items between two writes to the disk; a kill loses no more than these."""


class CachedEncoder(WrappedEncoder):
    """Any encoder, with its vectors kept in memory, and in `folder` if one is given.

    What is kept is found again by model fingerprint (which covers the prompts), ``max_pixels`` and
    content. Use it as a context, or `close` it, where a folder is given.
    """

    def __init__(self, inner: Encoder, folder: Path | None = None) -> None:
        super().__init__(inner)
        self.folder = folder
        self.hits = 0
        """Items so far whose vectors were remembered, those repeated within a call too."""
        self.embedded = 0
        """Items so far that the other encoder embedded."""
        self._memory: dict[tuple[int | None, str], Vectors] = {}
        self._disk: dict[int | None, VectorCache] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the files; what is in memory stays."""
        for cache in self._disk.values():
            cache.close()
        self._disk.clear()

    def embed(
        self,
        items: Sequence[str | Item],
        *,
        max_pixels: int | None = None,
        progress: bool = False,
    ) -> Vectors:
        """As `Encoder.embed`.

        Raises:
            OutputError: the folder cannot be used.
        """
        values = checked(items, self.takes, self.name)
        keys = content_keys(values)
        self._recall(keys, max_pixels)
        new: dict[str, Item] = {}
        for key, item in zip(keys, values, strict=True):
            if (max_pixels, key) not in self._memory:
                new.setdefault(key, item)
        self.hits += len(values) - len(new)
        self.embedded += len(new)
        self._learn(new, max_pixels, progress)
        if not keys:
            return np.zeros((0, self.dim), dtype=np.float32)
        return np.stack([self._memory[max_pixels, key] for key in keys])

    def _recall(self, keys: Sequence[str], max_pixels: int | None) -> None:
        """From the disk into memory."""
        cache = self._cache(max_pixels)
        if cache is None:
            return
        unknown = [key for key in keys if (max_pixels, key) not in self._memory]
        for key, vector in cache.get(unknown).items():
            self._memory[max_pixels, key] = vector

    def _learn(self, new: dict[str, Item], max_pixels: int | None, progress: bool) -> None:
        """Embed what is new; all at once, or with a disk in pieces that are kept one by one."""
        cache = self._cache(max_pixels)
        keys, items = list(new), list(new.values())
        order = grouped([image_key(item) for item in items])
        size = max(1, len(order) if cache is None else AT_ONCE)
        for start in range(0, len(order), size):
            part = order[start : start + size]
            vectors = self.inner.embed(
                [items[i] for i in part], max_pixels=max_pixels, progress=progress
            )
            found = {keys[i]: vector for i, vector in zip(part, vectors, strict=True)}
            if cache is not None:
                cache.put(found)
            self._memory.update({(max_pixels, key): found[key] for key in found})

    def _cache(self, max_pixels: int | None) -> VectorCache | None:
        if self.folder is None:
            return None
        if max_pixels not in self._disk:
            self._disk[max_pixels] = VectorCache(self.folder, self.fingerprint, max_pixels)
        return self._disk[max_pixels]
