"""The loop that models of other libraries share: pictures opened as ours are, one kind at a time.

Does: cut the items into pieces that fit into memory, open pictures (upright, RGB, as
`inputs.open_image`), shrink them to ``max_pixels``, call the library's model, restore the order.
Does not: know the library.
Why opened here: every model of a comparison then sees the same pixels, and a picture that cannot be
read is the same plain error for all.

Shapes: `N` items, `D` width.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image

from abc_embed.batching import grouped
from abc_embed.bench.encoders.base import Vectors, kept_area, unit
from abc_embed.bulk import image_source
from abc_embed.embedder import with_bar
from abc_embed.inputs import Item, Kind, open_image

BATCHES = 4
"""Batches whose pictures are in memory together."""

Embed = Callable[[Kind, list[str], list[Image.Image]], Vectors]
"""One kind, `N` texts or instructions (none for images alone), `N` pictures (none for texts) ->
`(N, D)`."""


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
            order = grouped([image_source(items[row]) for row in rows])
            size = batch_size * BATCHES
            for start in range(0, len(order), size):
                part = [rows[place] for place in order[start : start + size]]
                given = [items[row] for row in part]
                vectors = embed(kind, _words(given), _pictures(given, max_pixels))
                yield from zip(part, unit(vectors, name), strict=True)

    found = np.zeros((len(items), dim), dtype=np.float32)
    for row, vector in with_bar(results(), len(items), progress):
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
        source = image_source(item)
        if source not in opened:
            opened[source] = kept_area(open_image(item.image), max_pixels)
        pictures.append(opened[source])
    return pictures
