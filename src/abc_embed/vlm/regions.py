"""Which regions of an image are asked about (paper, section 3.3): not the largest, and distinct.

The largest boxes, which show the whole scene, are dropped; some of the others are chosen at random,
no two of which overlap much or say much the same.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from abc_embed.data.records import Record
from abc_embed.errors import UsageError
from abc_embed.storage.hashing import sha256
from abc_embed.vlm.replies import content_stems, same_text

if TYPE_CHECKING:
    from abc_embed.embedder import Embedder

MAX_STEPS = 20_000
"""Of the search for distinct regions in one image; it takes more only where hundreds overlap."""

PairSimilarity = Callable[[int, int], float]
"""How alike two phrases of an image are, by their numbers; 1 is equal."""
Similarity = Callable[[Sequence[str]], PairSimilarity]
"""The phrases of an image -> how alike they are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RegionSettings:
    """How regions are chosen, by default as in the paper; `UsageError` for what cannot be."""

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
        for name, smallest in (("drop_largest", 0), ("choose", 1), ("seed", 0)):
            if getattr(self, name) < smallest:
                raise UsageError(f"{name} is {getattr(self, name)}; give at least {smallest}")
        for name in ("max_iou", "max_similarity"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"{name} is {getattr(self, name)}; give a share from 0 to 1")


@dataclass(frozen=True, slots=True)
class ChosenRegions:
    """Numbers of the chosen regions, in their order in the record; empty if there are too few."""

    regions: tuple[int, ...]
    largest: tuple[int, ...]
    """Dropped for their size."""
    wordless: tuple[int, ...]
    """Their phrase has no word of meaning."""
    candidates: int
    """How many were there to choose from."""


def choose_regions(
    record: Record, settings: RegionSettings, similarity: Similarity | None = None
) -> ChosenRegions:
    """The regions of an image to ask about; the same for the same record and seed.

    The draw depends on the record's id and the seed alone, not on the other records. `similarity`
    is `word_similarity` unless another is given.
    """
    boxes = [region.box for region in record.regions]
    by_area = sorted(range(len(boxes)), key=lambda i: (-boxes[i][2] * boxes[i][3], i))
    largest = by_area[: settings.drop_largest]
    rest = sorted(by_area[settings.drop_largest :])
    wordless = [i for i in rest if not content_stems(record.regions[i].phrase)]
    rest = [i for i in rest if i not in set(wordless)]
    order = [rest[i] for i in rng_for(record.id, settings.seed).permutation(len(rest))]
    phrases = [record.regions[i].phrase for i in order]
    plain = [same_text(phrase) for phrase in phrases]
    alike = (similarity or word_similarity)(phrases)

    @cache
    def are_distinct(i: int, j: int) -> bool:
        return (
            plain[i] != plain[j]
            and iou(boxes[order[i]], boxes[order[j]]) <= settings.max_iou
            and alike(i, j) <= settings.max_similarity
        )

    chosen = first_distinct(len(order), settings.choose, are_distinct)
    regions = tuple(sorted(order[i] for i in chosen))
    return ChosenRegions(regions, tuple(largest), tuple(wordless), len(order))


def rng_for(name: str, seed: int) -> np.random.Generator:
    """A generator that depends on a name and a seed alone, on every machine."""
    first_bytes = bytes.fromhex(sha256(name))[:8]
    return np.random.default_rng([seed, int.from_bytes(first_bytes, "little")])


def first_distinct(
    count: int, wanted: int, are_distinct: Callable[[int, int], bool]
) -> tuple[int, ...]:
    """The first `wanted` numbers below `count`, in the order of a dictionary, of which every two
    are distinct; none if there are no such."""
    chosen: list[int] = []
    start, steps = 0, 0
    while len(chosen) < wanted and steps < MAX_STEPS:
        steps += 1
        fits = (i for i in range(start, count) if all(are_distinct(j, i) for j in chosen))
        number = next(fits, None)
        if number is not None:
            chosen.append(number)
            start = number + 1
        elif chosen:
            start = chosen.pop() + 1
        else:
            break
    return tuple(chosen) if len(chosen) == wanted else ()


def iou(a: Sequence[float], b: Sequence[float]) -> float:
    """Shared area over covered area of two boxes, each x, y, width, height."""
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    shared = max(0.0, width) * max(0.0, height)
    return shared / (a[2] * a[3] + b[2] * b[3] - shared)


def word_similarity(phrases: Sequence[str]) -> PairSimilarity:
    """Shared content words over all of both."""
    stems = [content_stems(phrase) for phrase in phrases]
    return lambda i, j: len(stems[i] & stems[j]) / max(1, len(stems[i] | stems[j]))


def vector_similarity(embedder: "Embedder") -> Similarity:
    """The cosine of a model's vectors of the phrases."""

    def similarity(phrases: Sequence[str]) -> PairSimilarity:
        vectors = embedder.embed(list(phrases)) if phrases else np.zeros((0, 1), np.float32)
        return lambda i, j: float(vectors[i] @ vectors[j])

    return similarity
