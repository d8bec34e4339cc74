"""Chance as an encoder: a direction drawn for every content, the same each time."""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from abc_embed.bench.encoders.base import Vectors, checked, content_keys, takes_in_words, unit
from abc_embed.errors import UsageError
from abc_embed.inputs import Item, Kind

DIM = 64


class RandomEncoder:
    """Equal items have equal vectors; all others are independent of each other.

    Raises:
        UsageError: the width is not positive.
    """

    takes = frozenset(Kind)

    def __init__(self, dim: int = DIM, seed: int = 0) -> None:
        if dim < 1:
            raise UsageError(f"the width of a random encoder is {dim}; give at least 1")
        self.dim = dim
        self.seed = seed
        self.name = "random" if dim == DIM else f"random:{dim}"

    @property
    def fingerprint(self) -> str:
        """SHA-256 of width and seed."""
        return hashlib.sha256(f"random {self.dim} {self.seed}".encode()).hexdigest()

    def embed(
        self,
        items: Sequence[str | Item],
        *,
        max_pixels: int | None = None,
        progress: bool = False,
    ) -> Vectors:
        """As `Encoder.embed`; `max_pixels` changes nothing."""
        keys = content_keys(checked(items, self.takes, self.name))
        vectors = np.zeros((len(keys), self.dim))
        for row, key in enumerate(keys):
            digest = hashlib.sha256(f"{self.seed} {key}".encode()).digest()
            rng = np.random.default_rng(int.from_bytes(digest))
            vectors[row] = rng.standard_normal(self.dim)
        return unit(vectors, self.name)

    def describe(self) -> dict[str, Any]:
        """As `Encoder.describe`."""
        return {
            "kind": "random",
            "takes": takes_in_words(self.takes),
            "dtype": "float32",
            "device": "cpu",
            "prompt_hash": None,
            "config": {"dim": self.dim, "seed": self.seed},
        }
