"""Which regions of an image are asked about (paper, section 3.3): not the largest, and distinct.

Does: drop the largest boxes, which show the whole scene, and choose some of the others at random,
no two of which overlap much or say much the same. Does not: read files (region_files.py) or write
instructions (instructions.py).
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from abc_embed.data.records import Record
from abc_embed.errors import UsageError
from abc_embed.vlm.replies import content_words, same_text

if TYPE_CHECKING:
    from abc_embed.embedder import Embedder

MOST_STEPS = 20_000
"""Of the search for distinct regions in one image; it takes more only where hundreds overlap."""

Alike = Callable[[int, int], float]
"""How alike two phrases of an image are, by their numbers; 1 is equal."""
Similarity = Callable[[Sequence[str]], Alike]
"""The phrases of an image -> how alike they are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """How regions are chosen; the numbers of the paper are the defaults.

    Raises:
        UsageError: a value that cannot be.
    """

    drop_largest: int = 5
    """Boxes of each image, by area; they show the whole scene (paper, section 3.3)."""
    choose: int = 4
    """Regions of each image; one with fewer distinct regions is left out."""
    max_iou: float = 0.5
    """Two regions may share at most this part of the area that they cover together."""
    max_similarity: float = 0.5
    """Two phrases may be alike by at most this; equal ones are never both chosen."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("drop_largest", 0), ("choose", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise UsageError(f"{name} is {getattr(self, name)}; give at least {least}")
        for name in ("max_iou", "max_similarity"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"{name} is {getattr(self, name)}; give a share from 0 to 1")


@dataclass(frozen=True, slots=True)
class Chosen:
    """Numbers of the chosen regions, in their order in the record; empty if there are too few.

    `largest` were dropped for their size, `silent` have a phrase without a word of meaning, and
    `left` is how many were there to choose from.
    """

    regions: tuple[int, ...]
    largest: tuple[int, ...]
    silent: tuple[int, ...]
    left: int


def choose(record: Record, choice: Choice, similarity: Similarity | None = None) -> Chosen:
    """The regions of an image to ask about; the same for the same record and seed.

    The draw depends on the record's id and the seed alone, not on the other records. `similarity`
    is `words_alike` unless another is given.
    """
    boxes = [region.box for region in record.regions]
    by_area = sorted(range(len(boxes)), key=lambda i: (-boxes[i][2] * boxes[i][3], i))
    largest = by_area[: choice.drop_largest]
    rest = sorted(by_area[choice.drop_largest :])
    silent = [i for i in rest if not content_words(record.regions[i].phrase)]
    rest = [i for i in rest if i not in set(silent)]
    order = [rest[i] for i in _random(record.id, choice.seed).permutation(len(rest))]
    phrases = [record.regions[i].phrase for i in order]
    same = [same_text(phrase) for phrase in phrases]
    alike = (similarity or words_alike)(phrases)

    @cache
    def apart(i: int, j: int) -> bool:
        return (
            same[i] != same[j]
            and iou(boxes[order[i]], boxes[order[j]]) <= choice.max_iou
            and alike(i, j) <= choice.max_similarity
        )

    found = _distinct(len(order), choice.choose, apart)
    regions = tuple(sorted(order[i] for i in found))
    return Chosen(regions, tuple(largest), tuple(silent), len(order))


def _random(name: str, seed: int) -> np.random.Generator:
    digest = hashlib.sha256(name.encode()).digest()
    return np.random.default_rng([seed, int.from_bytes(digest[:8], "little")])


def _distinct(count: int, wanted: int, apart: Callable[[int, int], bool]) -> tuple[int, ...]:
    """The first `wanted` numbers below `count`, in the order of a dictionary, of which every two
    are apart; none if there are no such."""
    chosen: list[int] = []
    start, steps = 0, 0
    while len(chosen) < wanted and steps < MOST_STEPS:
        steps += 1
        fits = (i for i in range(start, count) if all(apart(j, i) for j in chosen))
        found = next(fits, None)
        if found is not None:
            chosen.append(found)
            start = found + 1
        elif chosen:
            start = chosen.pop() + 1
        else:
            break
    return tuple(chosen) if len(chosen) == wanted else ()


def iou(one: Sequence[float], other: Sequence[float]) -> float:
    """Shared area over covered area of two boxes, each x, y, width, height."""
    width = min(one[0] + one[2], other[0] + other[2]) - max(one[0], other[0])
    height = min(one[1] + one[3], other[1] + other[3]) - max(one[1], other[1])
    shared = max(0.0, width) * max(0.0, height)
    return shared / (one[2] * one[3] + other[2] * other[3] - shared)


def words_alike(phrases: Sequence[str]) -> Alike:
    """Alike by words: shared content words over all of both."""
    words = [content_words(phrase) for phrase in phrases]

    def alike(i: int, j: int) -> float:
        return len(words[i] & words[j]) / max(1, len(words[i] | words[j]))

    return alike


def vectors_alike(embedder: "Embedder") -> Similarity:
    """Alike by the cosine of a model's vectors of the phrases."""

    def similarity(phrases: Sequence[str]) -> Alike:
        vectors = embedder.embed(list(phrases)) if phrases else np.zeros((0, 1), np.float32)
        return lambda i, j: float(vectors[i] @ vectors[j])

    return similarity
