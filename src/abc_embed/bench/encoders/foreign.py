"""What models of other libraries share: pictures opened as ours are, one kind at a time.

Every model of a comparison then sees the same pixels (upright, RGB, as `inputs.open_image`, shrunk
to `max_pixels`), and a picture that cannot be read is the same plain error for all.

Shapes: `N` items, `D` width.
"""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from PIL import Image

from abc_embed.bench.encoders.base import Encoder, Vectors, no_direction, shrink
from abc_embed.inputs import Item, Kind, group_by_image, image_key, open_image
from abc_embed.progress import track
from abc_embed.vectors import l2_normalize
from abc_embed.weights import fingerprint

BATCH_SIZE = 32
"""Items of a batch, where nobody says it: these libraries have no budget of tokens."""


class ForeignEncoder(Encoder):
    """A torch model that another library loaded."""

    batches_per_call = 1
    """Batches given to `_embed_kind` at once: more where the library sorts and cuts them itself."""

    def __init__(
        self,
        model: Any,
        name: str,
        kinds: frozenset[Kind],
        *,
        dim: int | None,
        batch_size: int | None,
    ) -> None:
        """`dim` of a model that does not say it is found by embedding a word."""
        self.model = model
        self.name = name
        self.supported_kinds = kinds
        self.batch_size = batch_size or BATCH_SIZE
        self.dim = self._embed_kind(Kind.TEXT, ["a"], []).shape[1] if dim is None else dim

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the weights and over what decides a vector besides."""
        return fingerprint(self._config(), self.model.state_dict())

    def _details(self) -> dict[str, Any]:
        dtype, device = self._place()
        return {"dtype": dtype, "device": device, "prompt_hash": None, "config": self._config()}

    def _embed(self, items: list[Item], max_pixels: int | None, progress: bool) -> Vectors:
        vectors = np.zeros((len(items), self.dim), dtype=np.float32)
        for row, vector in track(self._stream(items, max_pixels), len(items), progress):
            vectors[row] = vector
        return vectors

    def _stream(
        self, items: Sequence[Item], max_pixels: int | None
    ) -> Iterator[tuple[int, Vectors]]:
        """(row, vector `(D,)`), kind by kind and picture by picture."""
        for kind in Kind:
            rows = [row for row, item in enumerate(items) if item.kind is kind]
            order = group_by_image([image_key(items[row]) for row in rows])
            size = self.batch_size * self.batches_per_call
            for start in range(0, len(order), size):
                part = [rows[place] for place in order[start : start + size]]
                batch = [items[row] for row in part]
                words = [text for item in batch if (text := item.text or item.instruction)]
                vectors = self._embed_kind(kind, words, _open_pictures(batch, max_pixels))
                yield from zip(part, l2_normalize(vectors, no_direction(self.name)), strict=True)

    @abstractmethod
    def _embed_kind(self, kind: Kind, words: list[str], pictures: list[Image.Image]) -> Vectors:
        """`N` texts or instructions (none for images alone), `N` pictures (none for texts) ->
        `(N, D)`, of any length."""

    @abstractmethod
    def _config(self) -> dict[str, Any]:
        """What decides a vector besides the weights, as JSON values."""

    @abstractmethod
    def _place(self) -> tuple[str, str]:
        """Number format and kind of device."""


def _open_pictures(items: Sequence[Item], max_pixels: int | None) -> list[Image.Image]:
    """Each different picture is opened once."""
    images = {image_key(item): item.image for item in items if item.image is not None}
    opened = {key: shrink(open_image(image), max_pixels) for key, image in images.items()}
    return [opened[image_key(item)] for item in items if item.image is not None]
