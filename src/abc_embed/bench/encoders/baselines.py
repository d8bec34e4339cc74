"""What a joint model has to beat: chance, and late fusion of an image and a text vector."""

from typing import Any

import numpy as np

from abc_embed.bench.encoders.base import (
    Encoder,
    Vectors,
    WrappedEncoder,
    content_keys,
    no_direction,
)
from abc_embed.errors import UsageError
from abc_embed.inputs import Item, Kind, image_key
from abc_embed.storage.hashing import sha256
from abc_embed.vectors import l2_normalize

RANDOM_DIM = 64


class RandomEncoder(Encoder):
    """A direction drawn for every content: equal items have equal vectors, others independent ones.

    Raises:
        UsageError: the width is not positive.
    """

    library = "random"
    supported_kinds = frozenset(Kind)

    def __init__(self, dim: int = RANDOM_DIM, seed: int = 0) -> None:
        if dim < 1:
            raise UsageError(f"the width of a random encoder is {dim}; give at least 1")
        self.dim = dim
        self.seed = seed
        self.name = "random" if dim == RANDOM_DIM else f"random:{dim}"

    @property
    def fingerprint(self) -> str:
        return sha256(f"random {self.dim} {self.seed}")

    def _embed(self, items: list[Item], max_pixels: int | None, progress: bool) -> Vectors:
        vectors = np.zeros((len(items), self.dim))
        for row, key in enumerate(content_keys(items)):
            rng = np.random.default_rng(int(sha256(f"{self.seed} {key}"), 16))
            vectors[row] = rng.standard_normal(self.dim)
        return l2_normalize(vectors, no_direction(self.name)).astype(np.float32)

    def _details(self) -> dict[str, Any]:
        return {
            "dtype": "float32",
            "device": "cpu",
            "prompt_hash": None,
            "config": {"dim": self.dim, "seed": self.seed},
        }


class LateFusion(WrappedEncoder):
    """Another encoder, which sees an image and its instruction apart; the two vectors are added.

    It is what people do who have no joint model, and a benchmark that it solves does not measure
    control: the composition gap is the lead over it. Both parts are unit vectors before they are
    added, so neither outweighs the other; texts and images alone have the other encoder's vectors.

    Raises:
        UsageError: the other encoder does not take both images and texts.
    """

    def __init__(self, inner: Encoder) -> None:
        if not {Kind.TEXT, Kind.IMAGE} <= inner.supported_kinds:
            raise UsageError(
                f"late fusion adds an image vector and a text vector, and {inner.name} does not "
                "take both; choose a model that does"
            )
        super().__init__(inner)
        self.name = f"late:{inner.name}"
        self.supported_kinds = frozenset(Kind)
        self.library = f"late fusion of {inner.library}"

    @property
    def fingerprint(self) -> str:
        return sha256(f"late {self.inner.fingerprint}")

    def _embed(self, items: list[Item], max_pixels: int | None, progress: bool) -> Vectors:
        """Each picture and each instruction is embedded once."""
        parts: dict[Any, Item] = {}
        keys: list[list[Any]] = []  # of each item: its picture, its words, or both
        for item in items:
            own: list[Any] = []
            if item.image is not None:
                own.append(("image", image_key(item)))
                parts.setdefault(own[-1], Item(image=item.image))
            if text := item.text or item.instruction:
                own.append(("text", text))
                parts.setdefault(own[-1], Item(text=text))
            keys.append(own)
        vectors = self.inner.embed(list(parts.values()), max_pixels=max_pixels, progress=progress)
        place = {key: number for number, key in enumerate(parts)}
        fused = vectors[[place[first] for first, *_ in keys]]
        both = [row for row, own in enumerate(keys) if len(own) == 2]
        if both:
            words = vectors[[place[keys[row][1]] for row in both]]
            fused[both] = l2_normalize(fused[both] + words, no_direction(self.name))
        return fused
