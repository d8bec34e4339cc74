"""Further right pairs of MSCOCO 5K: CxC and ECCV Caption, from the package `eccv-caption`.

Does: give them by the numbers of our images and captions. Does not: score.
Why: of MSCOCO's "wrong" captions many are right. CxC ranks models as R@1 does; ECCV's mAP@R ranks
them otherwise, so it is reported next to it.
"""

import importlib.util
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from abc_embed.bench.sets.karpathy import CaptionSet
from abc_embed.errors import DataError, MissingExtraError


@dataclass(frozen=True, slots=True)
class Positives:
    """Queries of both directions that have judgements, and their right candidates."""

    name: str
    to_text: dict[int, tuple[int, ...]]
    """Image -> captions, by their places in the set."""
    to_image: dict[int, tuple[int, ...]]
    """Caption -> images."""
    absent: int
    """Judged pairs that name an image or a caption which is not in the set."""


def load_positives(name: str, captions: CaptionSet) -> Positives:
    """`name` is "cxc" or "eccv".

    Raises:
        MissingExtraError: the package is not installed.
        DataError: none of its pairs is about this set: it is no MSCOCO.
    """
    images = {number: place for place, number in enumerate(captions.image_ids)}
    texts = {number: place for place, number in enumerate(captions.caption_ids)}
    stem = {"cxc": "cxc", "eccv": "eccv"}[name]
    to_text, lost = _places(_read(f"{stem}_image_to_caption.json"), images, texts)
    to_image, more = _places(_read(f"{stem}_caption_to_image.json"), texts, images)
    if not to_text or not to_image:
        raise DataError(f"no pair of {name} is about {captions.name}; it belongs to MSCOCO 5K")
    return Positives(name, to_text, to_image, lost + more)


def _read(file: str) -> Mapping[str, Sequence[int]]:
    # The package is found, not imported: importing it warns about what it would like to have.
    found = importlib.util.find_spec("eccv_caption")
    if found is None or found.origin is None:
        raise MissingExtraError.of("bench", "further right pairs of MSCOCO (cxc, eccv)")
    pairs: Mapping[str, Sequence[int]] = json.loads(
        (Path(found.origin).parent / "data" / file).read_text(encoding="utf-8")
    )
    return pairs


def _places(
    pairs: Mapping[str, Sequence[int]], queries: Mapping[int, int], candidates: Mapping[int, int]
) -> tuple[dict[int, tuple[int, ...]], int]:
    kept: dict[int, tuple[int, ...]] = {}
    absent = 0
    for query, rights in pairs.items():
        there = tuple(candidates[r] for r in rights if r in candidates)
        if int(query) in queries and there:
            kept[queries[int(query)]] = there
            absent += len(rights) - len(there)
        else:
            absent += len(rights)
    return kept, absent
