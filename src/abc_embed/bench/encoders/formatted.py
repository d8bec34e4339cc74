"""Another encoder's vectors as they are stored: cut to a width, in a small number format."""

from typing import Any

import numpy as np

from abc_embed.bench.encoders.base import Encoder, Vectors, WrappedEncoder, no_direction
from abc_embed.inputs import Item
from abc_embed.storage.hashing import sha256
from abc_embed.vectors import VectorFacts, VectorFormat, dequantize, l2_normalize, ranges_at


class FormattedEncoder(WrappedEncoder):
    """What is left of `inner` after `vectors.VectorFormat`, as float32 of unit length.

    Where the model has no ranges for int8 and uint8, they are those of the vectors that are
    embedded together.

    Raises:
        UsageError: no such width or number format.
    """

    def __init__(
        self, inner: Encoder, dim: int | None, output: str, facts: VectorFacts | None = None
    ) -> None:
        super().__init__(inner)
        self.facts = facts or VectorFacts()
        self.dim = dim or inner.dim
        self.output = output
        self.name = f"{inner.name}, {self.dim} × {output}"
        self._own_ranges = self.dim not in self.facts.ranges
        self._format(np.ones((2, inner.dim), dtype=np.float32))  # what cannot be is found now

    @property
    def fingerprint(self) -> str:
        """Of the inner encoder, the width and the number format."""
        return sha256(f"{self.inner.fingerprint} {self.dim} {self.output}")

    @property
    def bytes_per_vector(self) -> int:
        """Of a stored vector."""
        count, dtype = self._format(np.ones((2, self.inner.dim), np.float32)).stored
        return count * np.dtype(dtype).itemsize

    def _format(self, vectors: Vectors) -> VectorFormat:
        facts = self.facts
        if self._own_ranges and self.output in ("int8", "uint8"):
            facts = VectorFacts(facts.matryoshka, ranges_at(vectors, [self.dim]))
        return VectorFormat(self.inner.dim, facts, self.dim, self.output)

    def _embed(self, items: list[Item], max_pixels: int | None, progress: bool) -> Vectors:
        vectors = self.inner.embed(items, max_pixels=max_pixels, progress=progress)
        formatted = self._format(vectors)
        restored = dequantize(formatted(vectors), self.output, formatted.ranges)[:, : self.dim]
        return l2_normalize(restored, no_direction(self.name)).astype(np.float32)

    def _details(self) -> dict[str, Any]:
        details = self.inner._details()
        form = {"dim": self.dim, "output": self.output, "bytes": self.bytes_per_vector}
        return details | {"config": (details.get("config") or {}) | {"vectors": form}}
