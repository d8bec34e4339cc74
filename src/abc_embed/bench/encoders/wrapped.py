"""Chance, and encoders made of another one: late fusion, stored formats, a memory.

Chance and late fusion of an image and a text vector are what a joint model has to beat.
"""

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np

from abc_embed.bench.encoders.base import (
    Encoder,
    Parts,
    Vectors,
    content_keys,
    no_direction,
    read_image,
)
from abc_embed.errors import InputError, UsageError
from abc_embed.inputs import Item, Kind, group_by_image, image_key
from abc_embed.storage.hashing import sha256
from abc_embed.storage.vector_cache import VectorCache
from abc_embed.vectors import VectorFacts, VectorFormat, dequantize, l2_normalize, ranges_at

RANDOM_DIM = 64
SAVE_EVERY = 512
"""New items between two writes to the disk; a kill loses no more than these."""
MAX_BYTES = 256 * 2**20
"""Of image files that are in memory at once."""


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

    def _embed(self, items: list[Item]) -> Vectors:
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


class WrappedEncoder(Encoder):
    """Another encoder, the same but for `_embed`, which subclasses write."""

    def __init__(self, inner: Encoder) -> None:
        self.inner = inner
        self.name, self.dim = inner.name, inner.dim
        self.supported_kinds, self.library = inner.supported_kinds, inner.library
        self.max_pixels, self.progress = inner.max_pixels, inner.progress

    def at(self, max_pixels: int | None) -> Self:
        other = super().at(max_pixels)
        other.inner = self.inner.at(max_pixels)
        return other

    @property
    def fingerprint(self) -> str:
        return self.inner.fingerprint

    def _details(self) -> dict[str, Any]:
        return self.inner._details()


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

    def _embed(self, items: list[Item]) -> Vectors:
        """Each picture and each instruction is embedded once."""
        both = [item.kind is Kind.INSTRUCTED for item in items]
        apart: list[Parts] = [
            (Item(image=item.image), Item(text=item.instruction)) if fused else (item,)
            for item, fused in zip(items, both, strict=True)
        ]
        vectors = self.inner.embed_sums({"items": apart})["items"]
        vectors[both] = l2_normalize(vectors[both], no_direction(self.name))
        return vectors


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
        # What cannot be is found here.
        count, dtype = self._format(np.ones((2, inner.dim), dtype=np.float32)).stored
        self.bytes_per_vector = count * np.dtype(dtype).itemsize

    @property
    def fingerprint(self) -> str:
        """Of the inner encoder, the width and the number format."""
        return sha256(f"{self.inner.fingerprint} {self.dim} {self.output}")

    def _format(self, vectors: Vectors) -> VectorFormat:
        facts = self.facts
        if self.output in ("int8", "uint8") and self.dim not in facts.ranges:
            facts = VectorFacts(facts.matryoshka, ranges_at(vectors, [self.dim]))
        return VectorFormat(self.inner.dim, facts, self.dim, self.output)

    def _embed(self, items: list[Item]) -> Vectors:
        vectors = self.inner.embed(items)
        formatted = self._format(vectors)
        restored = dequantize(formatted(vectors), self.output, formatted.ranges)[:, : self.dim]
        return l2_normalize(restored, no_direction(self.name)).astype(np.float32)

    def _details(self) -> dict[str, Any]:
        details = self.inner._details()
        form = {"dim": self.dim, "output": self.output, "bytes": self.bytes_per_vector}
        return details | {"config": (details.get("config") or {}) | {"vectors": form}}


class CachedEncoder(WrappedEncoder):
    """Any encoder, with its vectors kept in memory, and in `folder` if one is given.

    What is kept is found again by model fingerprint (which covers the prompts), `max_pixels` and
    content. Use it as a context, or `close` it, where a folder is given.
    """

    def __init__(self, inner: Encoder, folder: Path | None = None) -> None:
        super().__init__(inner)
        self.folder = folder
        self._memory: dict[str, Vectors] = {}
        self._disk: VectorCache | None = None

    def at(self, max_pixels: int | None) -> Self:
        return type(self)(self.inner.at(max_pixels), self.folder)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the files; what is in memory stays."""
        if self._disk is not None:
            self._disk.close()
        self._disk = None

    def _embed(self, items: list[Item]) -> Vectors:
        """Of what is new, all at once, or with a disk in pieces that are kept one by one."""
        if not items:
            return np.zeros((0, self.dim), dtype=np.float32)
        keys = content_keys(items)
        known = self._memory
        if self.folder is not None and self._disk is None:
            self._disk = VectorCache(self.folder, self.fingerprint, self.max_pixels)
        cache = self._disk
        if cache is not None:
            known.update(cache.get(key for key in keys if key not in known))
        new = {k: item for k, item in zip(keys, items, strict=True) if k not in known}
        new_keys = list(new)
        order = group_by_image([image_key(item) for item in new.values()])
        ordered = {new_keys[place]: new[new_keys[place]] for place in order}
        found: dict[str, Vectors] = {}
        for part in _in_memory(ordered) if cache is not None else [ordered] if ordered else []:
            embedded = list(part.values())
            try:
                vectors = self.inner.embed(embedded)
            except InputError:  # once more by their paths, for an error that names the file
                self.inner.embed([new[key] for key in part])
                raise
            found.update(zip(part, vectors, strict=True))
            if cache is None:
                known.update(found)
                continue
            # Kept under what was embedded: a file may have changed since it was first hashed.
            kept = dict(zip(content_keys(embedded), vectors, strict=True))
            cache.put(kept)
            known.update(kept)
        return np.stack([found[key] if key in found else known[key] for key in keys])


def _in_memory(items: dict[str, Item]) -> Iterator[dict[str, Item]]:
    """The items by their keys, part by part, each image file as its bytes, read once a part."""
    part: dict[str, Item] = {}
    files: dict[str, bytes] = {}
    for key, item in items.items():
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
