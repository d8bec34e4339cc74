"""An encoder whose vectors the test chooses: by a function of the item."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from abc_embed.bench.encoders.base import Encoder
from abc_embed.inputs import Item, Kind

Vector = Callable[[Item], NDArray[np.float32]]


class TableEncoder(Encoder):
    """Gives each item the vector that `vector` says, and keeps count."""

    name = library = "table"
    dim = 8
    fingerprint = "0" * 64

    def __init__(self, vector: Vector, kinds: frozenset[Kind] = frozenset(Kind)) -> None:
        self.vector, self.supported_kinds = vector, kinds
        self.calls: list[list[Item]] = []
        self.areas: list[int | None] = []

    def _details(self) -> dict[str, Any]:
        return {"dtype": "float32", "device": "cpu"}

    def _embed(self, items: list[Item]) -> NDArray[np.float32]:
        self.calls.append(items)
        self.areas.append(self.max_pixels)
        return np.stack([self.vector(item) for item in items])


def constant(item: Item) -> NDArray[np.float32]:
    """The same vector for everything."""
    return np.eye(8, dtype=np.float32)[0]
