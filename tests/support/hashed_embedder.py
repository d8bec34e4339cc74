"""In the place of a model: a vector for every content, and a count of what was embedded."""

import hashlib
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from abc_embed.errors import InputError
from abc_embed.inputs import Item


def vector_of(data: bytes, dim: int = 32) -> NDArray[np.float32]:
    """A direction that depends on every byte."""
    seed = int.from_bytes(hashlib.sha256(data).digest()[:8], "big")
    vector = np.random.default_rng(seed).standard_normal(dim).astype(np.float32)
    return vector / np.linalg.norm(vector)


class HashedEmbedder:
    """What an index needs of `Embedder`."""

    dim = 32

    def __init__(self, fingerprint: str = "f" * 64, seconds: float = 0.0) -> None:
        self.fingerprint = fingerprint
        self.config = {"temperature": 0.05, "instruct_adapter": False}
        self.seen: list[bytes] = []
        self._seconds = seconds

    def stream(self, items: Iterable[Item], **_: Any) -> Iterator[Any]:
        from abc_embed.inputs import Skipped, open_image

        for number, item in enumerate(items):
            time.sleep(self._seconds)
            try:
                open_image(item.image)
            except InputError as error:
                yield Skipped(number, item, error)
            else:
                data = (
                    item.image if isinstance(item.image, bytes) else Path(item.image).read_bytes()
                )
                self.seen.append(data)
                yield vector_of(data)

    def embed(self, items: Iterable[Any], **_: Any) -> NDArray[np.float32]:
        def content(item: Any) -> bytes:
            if isinstance(item, str) or item.text is not None:
                return (item if isinstance(item, str) else item.text).encode()
            return Path(item.image).read_bytes()

        return np.stack([vector_of(content(item)) for item in items])


def draw(path: Path, number: int, size: tuple[int, int] = (8, 6), taken: str | None = None) -> None:
    """A small image of its own, old enough that its time of change is trusted."""
    import os

    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.new("RGB", size, (number % 256, number // 256, 7))
    exif = Image.Exif()
    if taken is not None:
        exif[0x0132] = taken
    picture.save(path, exif=exif)
    os.utime(path, (1_000_000, 1_000_000 + number))
