"""Captions of images, both ways: R@1, R@5, R@10 and their sum, as the field reports them.

Does: embed each image and each caption once, for both directions; rank blockwise. Any of an
image's captions counts as right; ties count against the model. Does not: read files (karpathy).

Shapes: `I` images, `C` captions, `D` width, `Q` queries of one direction.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from abc_embed.bench import metrics
from abc_embed.bench.encoders.base import Encoder, Vectors
from abc_embed.bench.metrics import DRAWS, share
from abc_embed.bench.sets.findings import Findings, check_any, content_hash
from abc_embed.bench.sets.karpathy import CaptionSet
from abc_embed.bench.sets.positives import Positives
from abc_embed.errors import UsageError
from abc_embed.inputs import Item, Kind

BLOCK = 512
"""Queries ranked at a time: 512 × 25,000 scores are 50 MB."""

Rights = Mapping[int, Sequence[int]]
"""Query -> its right candidates, by their places."""


def measure(
    encoder: Encoder,
    captions: CaptionSet,
    further: Sequence[Positives] = (),
    *,
    max_pixels: int | None = None,
    draws: int = DRAWS,
    progress: bool = False,
) -> Findings:
    """Both directions, with intervals by image; `further` adds CxC and ECCV.

    Raises:
        UsageError: the encoder takes no images or no texts.
        DataError: not one image is there.
        NotFiniteError, InputError: as the encoder.
    """
    if not {Kind.IMAGE, Kind.TEXT} <= encoder.supported_kinds:
        raise UsageError(f"{encoder.name} does not take both images and texts; measure another")
    check_any(len(captions.images), captions.missing)
    items = [Item(image=path) for path in captions.images]
    images = encoder.embed(items, max_pixels=max_pixels, progress=progress)
    texts = encoder.embed(list(captions.captions), progress=progress)
    scores = directions(images, texts, captions, draws=draws)
    for positives in further:
        scores |= _further(images, texts, positives)
    return {
        "benchmark": captions.name,
        "benchmark_hash": content_hash(
            zip(captions.captions, captions.image_of, strict=True), captions.images
        ),
        "settings": {"max_pixels": max_pixels, "draws": draws},
        "sizes": {"images": len(images), "captions": len(texts)},
        "missing": list(captions.missing),
        "scores": scores,
    }


def directions(
    images: Vectors, texts: Vectors, captions: CaptionSet, *, draws: int = DRAWS
) -> dict[str, Any]:
    """`(I, D)` and `(C, D)` -> the usual figures of both directions, and RSUM in per cent."""
    image_of = np.asarray(captions.image_of)
    own: dict[int, list[int]] = {image: [] for image in range(len(images))}
    for caption, image in enumerate(captions.image_of):
        own[image].append(caption)
    to_text, _ = _ranked(images, texts, own)
    to_image, _ = _ranked(texts, images, {c: (i,) for c, i in enumerate(captions.image_of)})
    found = {
        f"{way}_r{k}": share(ranks <= k, clusters, draws)
        for way, ranks, clusters in (
            ("image_to_text", to_text, np.arange(len(images))),
            ("text_to_image", to_image, image_of),
        )
        for k in (1, 5, 10)
    }
    total = 100 * sum(figure["value"] for figure in found.values())
    return {**found, "rsum": {"value": total, "interval": None, "of": len(images) + len(texts)}}


def _further(images: Vectors, texts: Vectors, positives: Positives) -> dict[str, Any]:
    """R@1 with all right pairs, R-precision and mAP@R, both ways (ECCV Caption, section 4)."""
    found: dict[str, Any] = {}
    for way, queries, candidates, rights in (
        ("image_to_text", images, texts, positives.to_text),
        ("text_to_image", texts, images, positives.to_image),
    ):
        ranks, maps = _ranked(queries, candidates, rights)
        for name, values in (("r1", ranks == 1), ("r5", ranks <= 5), ("map_at_r", maps)):
            found[f"{positives.name}_{way}_{name}"] = share(values, np.arange(len(ranks)))
    return found


def _ranked(queries: Vectors, candidates: Vectors, rights: Rights) -> tuple[Any, Any]:
    """Rank of the best right candidate and mAP@R of each query in `rights`, blockwise."""
    numbers = list(rights)
    ranks, maps = [], []
    for start in range(0, len(numbers), BLOCK):
        block = numbers[start : start + BLOCK]
        scores = queries[block] @ candidates.T
        golds = [rights[number] for number in block]
        ranks.append(metrics.best_ranks(scores, golds))
        maps.append(metrics.map_at_r(scores, golds))
    return np.concatenate(ranks), np.concatenate(maps)
