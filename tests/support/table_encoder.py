"""An encoder whose vectors the test chooses: by a function of the item."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from abc_embed.inputs import Item, Kind, as_item

Vector = Callable[[Item], NDArray[np.float32]]


class TableEncoder:
    """Gives each item the vector that `vector` says, and keeps count."""

    name = "table"
    fingerprint = "0" * 64

    def __init__(self, vector: Vector, kinds: frozenset[Kind] = frozenset(Kind)) -> None:
        self.vector, self.supported_kinds = vector, kinds
        self.calls: list[list[Item]] = []
        self.areas: list[int | None] = []

    @property
    def dim(self) -> int:
        return 8

    def describe(self) -> dict[str, Any]:
        return {"dtype": "float32", "device": "cpu"}

    def embed(
        self,
        items: Sequence[str | Item],
        *,
        max_pixels: int | None = None,
        progress: bool = False,
    ) -> NDArray[np.float32]:
        self.calls.append([as_item(item) for item in items])
        self.areas.append(max_pixels)
        return np.stack([self.vector(item) for item in self.calls[-1]])


def constant(item: Item) -> NDArray[np.float32]:
    """The same vector for everything."""
    return np.eye(8, dtype=np.float32)[0]
