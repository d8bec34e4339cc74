"""An encoder that remembers: nothing is embedded twice, in this process or, with a folder, ever.

All controls of a benchmark (image only, text only, another instruction, ...) ask for vectors of the
same pictures and texts over and over. New items are handed over in one piece, all of one picture
together, so that a model of ours encodes each picture once per call: whoever needs several controls
gives all their items in one call.
"""

from pathlib import Path
from typing import Self

import numpy as np

from abc_embed.bench.encoders.base import Encoder, Vectors, WrappedEncoder, content_keys
from abc_embed.inputs import Item
from abc_embed.pipeline import group_by_image, image_key
from abc_embed.storage.vector_cache import VectorCache

SAVE_EVERY = 512
"""New items between two writes to the disk; a kill loses no more than these."""


class CachedEncoder(WrappedEncoder):
    """Any encoder, with its vectors kept in memory, and in `folder` if one is given.

    What is kept is found again by model fingerprint (which covers the prompts), `max_pixels` and
    content. Use it as a context, or `close` it, where a folder is given.
    """

    def __init__(self, inner: Encoder, folder: Path | None = None) -> None:
        super().__init__(inner)
        self.folder = folder
        self._memory: dict[int | None, dict[str, Vectors]] = {}
        self._disk: dict[int | None, VectorCache] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the files; what is in memory stays."""
        for cache in self._disk.values():
            cache.close()
        self._disk.clear()

    def _embed(self, items: list[Item], max_pixels: int | None, progress: bool) -> Vectors:
        """Of what is new, all at once, or with a disk in pieces that are kept one by one."""
        if not items:
            return np.zeros((0, self.dim), dtype=np.float32)
        keys = content_keys(items)
        known = self._memory.setdefault(max_pixels, {})
        cache = self._open_cache(max_pixels)
        if cache is not None:
            known.update(cache.get(key for key in keys if key not in known))
        new = {k: item for k, item in zip(keys, items, strict=True) if k not in known}
        new_keys = list(new)
        order = group_by_image([image_key(item) for item in new.values()])
        size = max(1, len(order)) if cache is None else SAVE_EVERY
        for start in range(0, len(order), size):
            part = [new_keys[place] for place in order[start : start + size]]
            vectors = self.inner.embed(
                [new[key] for key in part], max_pixels=max_pixels, progress=progress
            )
            embedded = dict(zip(part, vectors, strict=True))
            if cache is not None:
                cache.put(embedded)
            known.update(embedded)
        return np.stack([known[key] for key in keys])

    def _open_cache(self, max_pixels: int | None) -> VectorCache | None:
        if self.folder is not None and max_pixels not in self._disk:
            self._disk[max_pixels] = VectorCache(self.folder, self.fingerprint, max_pixels)
        return self._disk.get(max_pixels)
