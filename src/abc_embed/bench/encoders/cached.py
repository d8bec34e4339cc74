"""An encoder that remembers: nothing is embedded twice, in this process or, with a folder, ever.

All controls of a benchmark (image only, text only, another instruction, ...) ask for vectors of the
same pictures and texts over and over. New items are handed over in one piece, all of one picture
together, so that a model of ours encodes each picture once per call: whoever needs several controls
gives all their items in one call.
"""

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Self

import numpy as np

from abc_embed.bench.encoders.base import (
    Encoder,
    Vectors,
    WrappedEncoder,
    content_keys,
    read_image,
)
from abc_embed.errors import InputError
from abc_embed.inputs import Item, group_by_image, image_key
from abc_embed.storage.vector_cache import VectorCache

SAVE_EVERY = 512
"""New items between two writes to the disk; a kill loses no more than these."""
MAX_BYTES = 256 * 2**20
"""Of image files that are in memory at once."""


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
        if cache is None:
            all_new = [new_keys[place] for place in order]
            if all_new:
                vectors = self.inner.embed(
                    [new[key] for key in all_new], max_pixels=max_pixels, progress=progress
                )
                known.update(zip(all_new, vectors, strict=True))
            return np.stack([known[key] for key in keys])
        found: dict[str, Vectors] = {}
        for part in _in_memory([new_keys[place] for place in order], new):
            asked, items = list(part), list(part.values())
            try:
                vectors = self.inner.embed(items, max_pixels=max_pixels, progress=progress)
            except InputError:  # once more by their paths, for an error that names the file
                self.inner.embed([new[key] for key in asked], max_pixels=max_pixels)
                raise
            found.update(zip(asked, vectors, strict=True))
            # Kept under what was embedded: a file may have changed since it was first hashed.
            embedded = dict(zip(content_keys(items), vectors, strict=True))
            cache.put(embedded)
            known.update(embedded)
        return np.stack([found[key] if key in found else known[key] for key in keys])

    def _open_cache(self, max_pixels: int | None) -> VectorCache | None:
        if self.folder is not None and max_pixels not in self._disk:
            self._disk[max_pixels] = VectorCache(self.folder, self.fingerprint, max_pixels)
        return self._disk.get(max_pixels)


def _in_memory(keys: list[str], items: dict[str, Item]) -> Iterator[dict[str, Item]]:
    """The items of these keys, part by part, each image file as its bytes, read once a part."""
    part: dict[str, Item] = {}
    files: dict[str, bytes] = {}
    for key in keys:
        item = items[key]
        image = item.image
        if isinstance(image, os.PathLike) or (
            isinstance(image, str) and image[:5].lower() != "data:"
        ):
            name = os.fspath(image)
            if name not in files:
                files[name] = read_image(name)
            item = replace(item, image=files[name])
        part[key] = item
        if len(part) == SAVE_EVERY or sum(map(len, files.values())) > MAX_BYTES:
            yield part
            part, files = {}, {}
    if part:
        yield part
