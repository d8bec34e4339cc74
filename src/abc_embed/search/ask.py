"""A new instruction over an old index: rank cheaply, then look again at the most promising images.

The index holds vectors of images alone, which do not know what an instruction asks for. So the
images closest to the text are embedded again with the instruction, and these joint vectors give the
answer. Nothing is learnt from what was looked at: a ridge map from image vectors to joint vectors
finds no more (`tools/bench_ask.py`).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from abc_embed.errors import CheckpointError, DataError, UsageError
from abc_embed.inputs import Item
from abc_embed.search.folder import Hit
from abc_embed.search.queries import Query, as_query, embed_queries

if TYPE_CHECKING:
    from abc_embed.search.index import Index

SAMPLE = 100
"""At most so many random images are among those looked at, to estimate the share; no more than a
quarter of them all."""
SMALLEST_SAMPLE = 20


@dataclass(frozen=True, slots=True)
class Asked:
    """What an instruction over an index found."""

    hits: list[Hit]
    images: int
    """How many images there are to answer for."""
    passes: int
    """How many of them were looked at again."""
    share: float | None
    """Estimated share of the direct answer: of the best tenth of the random images, how many the
    cheap ranking would have looked at. None: too few to say."""
    unreadable: int
    """Images that should have been looked at, and are gone or damaged."""


def ask(
    index: "Index",
    query: "str | Query",
    instruction: str,
    *,
    count: int = 5,
    budget: float = 0.1,
    where: str | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Asked:
    """The images that fit a text best where the instruction points, like "a dog" on the left.

    Args:
        index: with an embedder.
        query: what is looked for.
        instruction: what to look at, like "what is on the left?".
        count: how many hits.
        budget: the share of the images that may be looked at again; 1 is exact.
        where: a filter, applied before the ranking.
        on_progress: called with how many were looked at, of how many.

    Raises:
        UsageError: the budget is not above 0 and at most 1, or the filter is refused.
        CheckpointError: the model has no instruction adapter.
        DataError: there is no image to look at.
    """
    if not 0 < budget <= 1:
        raise UsageError(f"the budget is {budget:g}; give a share above 0 and at most 1")
    embedder = index.needed_embedder()
    if not embedder.config["instruct_adapter"]:
        raise CheckpointError("this model has no instruction adapter, so it cannot be asked")
    paths = index.paths(where)
    if not paths:
        raise DataError("there is no image to look at in the index; add some, or widen the filter")
    vector = embed_queries([as_query(query)], embedder, index.max_pixels)[0]
    passes = math.ceil(budget * len(paths))
    size = min(SAMPLE, passes // 4) if passes < len(paths) else 0
    sample = np.random.default_rng(0).permutation(paths)[:size].tolist()
    ranked = index.nearest(vector[None], passes, where)[0][0]
    promising = [path for path in ranked if path not in set(sample)][: passes - size]
    looked = [*promising, *sample]
    items = (Item(image=path, instruction=instruction) for path in looked)
    results = embedder.stream(items, max_pixels=index.max_pixels, on_error="skip")
    scores: dict[str, float] = {}
    for done, (path, result) in enumerate(zip(looked, results, strict=True), 1):
        if isinstance(result, np.ndarray):
            scores[path] = float(result @ vector)
        on_progress(done, len(looked))
    best = sorted(scores, key=lambda path: -scores[path])[:count]
    known = [path for path in sample if path in scores]
    return Asked(
        hits=[Hit(Path(path), scores[path]) for path in best],
        images=len(paths),
        passes=len(scores),
        share=1.0 if passes >= len(paths) else _share(known, scores, set(ranked)),
        unreadable=len(looked) - len(scores),
    )


def _share(sample: Sequence[str], scores: dict[str, float], ranked: set[str]) -> float | None:
    if len(sample) < SMALLEST_SAMPLE:
        return None
    best = sorted(sample, key=lambda path: -scores[path])[: max(1, len(sample) // 10)]
    return sum(path in ranked for path in best) / len(best)
