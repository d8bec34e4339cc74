"""What models of other libraries share: pictures opened as ours are, one kind at a time.

Does: cut the items into pieces that fit into memory, open pictures (upright, RGB, as
`inputs.open_image`), shrink them to ``max_pixels``, call the library's model, restore the order.
Does not: know the library.
Why opened here: every model of a comparison then sees the same pixels, and a picture that cannot be
read is the same plain error for all.

Shapes: `N` items, `D` width.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from abc_embed.bench.encoders.base import Vectors, checked, kept_area, takes_in_words, unit
from abc_embed.inputs import Item, Kind, open_image
from abc_embed.pipeline import grouped, image_key
from abc_embed.progress import track
from abc_embed.weights import fingerprint

BATCHES = 4
"""Batches whose pictures are in memory together."""

Embed = Callable[[Kind, list[str], list[Image.Image]], Vectors]
"""One kind, `N` texts or instructions (none for images alone), `N` pictures (none for texts) ->
`(N, D)`."""


class ForeignEncoder(ABC):
    """`Encoder` of a torch model that another library loaded."""

    LIBRARY: ClassVar[str]
    """What records call it."""

    def __init__(
        self, model: Any, name: str, takes: frozenset[Kind], *, dim: int | None, batch_size: int
    ) -> None:
        """`dim` is None of a model that does not say it."""
        self.model = model
        self.name = name
        self.takes = takes
        self.batch_size = batch_size
        self._fingerprint: str | None = None
        self._dim = dim

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the weights and over what decides a vector besides; computed once."""
        if self._fingerprint is None:
            self._fingerprint = fingerprint(self._config(), self.model.state_dict())
        return self._fingerprint

    @property
    def dim(self) -> int:
        """`D`; of a model that does not say it, found by embedding a word."""
        if self._dim is None:
            self._dim = int(self._embed(Kind.TEXT, ["a"], []).shape[1])
        return self._dim

    def embed(
        self,
        items: Sequence[str | Item],
        *,
        max_pixels: int | None = None,
        progress: bool = False,
    ) -> Vectors:
        """As `Encoder.embed`; with `max_pixels` pictures are shrunk before the model has them."""
        return embed_by_kind(
            checked(items, self.takes, self.name),
            self._embed,
            name=self.name,
            dim=self.dim,
            batch_size=self.batch_size,
            max_pixels=max_pixels,
            progress=progress,
        )

    def describe(self) -> dict[str, Any]:
        """As `Encoder.describe`."""
        dtype, device = self._place()
        return {
            "kind": self.LIBRARY,
            "takes": takes_in_words(self.takes),
            "dtype": dtype,
            "device": device,
            "prompt_hash": None,
            "config": self._config(),
        }

    @abstractmethod
    def _embed(self, kind: Kind, words: list[str], pictures: list[Image.Image]) -> Vectors:
        """As `Embed`."""

    @abstractmethod
    def _config(self) -> dict[str, Any]:
        """What decides a vector besides the weights, as JSON values."""

    @abstractmethod
    def _place(self) -> tuple[str, str]:
        """Number format and kind of device."""


def embed_by_kind(
    items: Sequence[Item],
    embed: Embed,
    *,
    name: str,
    dim: int,
    batch_size: int,
    max_pixels: int | None,
    progress: bool,
) -> Vectors:
    """Items -> unit vectors `(N, D)`, kind by kind and picture by picture.

    Raises:
        ImageError: a picture cannot be opened.
        NotFiniteError: a vector is not finite.
    """

    def results() -> Iterator[tuple[int, Vectors]]:
        for kind in Kind:
            rows = [row for row, item in enumerate(items) if item.kind is kind]
            order = grouped([image_key(items[row]) for row in rows])
            size = batch_size * BATCHES
            for start in range(0, len(order), size):
                part = [rows[place] for place in order[start : start + size]]
                given = [items[row] for row in part]
                vectors = embed(kind, _words(given), _pictures(given, max_pixels))
                yield from zip(part, unit(vectors, name), strict=True)

    found = np.zeros((len(items), dim), dtype=np.float32)
    for row, vector in track(results(), len(items), progress):
        found[row] = vector
    return found


def _words(items: Sequence[Item]) -> list[str]:
    texts = (item.text if item.image is None else item.instruction for item in items)
    return [text for text in texts if text is not None]


def _pictures(items: Sequence[Item], max_pixels: int | None) -> list[Image.Image]:
    opened: dict[Any, Image.Image] = {}
    pictures = []
    for item in items:
        if item.image is None:
            continue
        source = image_key(item)
        if source not in opened:
            opened[source] = kept_area(open_image(item.image), max_pixels)
        pictures.append(opened[source])
    return pictures
