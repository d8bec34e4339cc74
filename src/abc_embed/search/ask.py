"""A new instruction over an old index: rank cheaply, then look again at the most promising images.

The index holds vectors of images alone, which do not know what an instruction asks for. So the most
promising images are embedded again with the instruction, and these joint vectors give the answer.
Nothing is learnt from what was looked at: neither a ridge map from image vectors to joint vectors
nor going on from the best answers so far finds more (`tools/bench_ask.py`).
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from abc_embed.errors import CheckpointError, DataError, UsageError
from abc_embed.inputs import Item, Skipped
from abc_embed.search.hits import Hit
from abc_embed.search.queries import Query, as_query, embed_queries

if TYPE_CHECKING:
    from abc_embed.pipeline import Vector
    from abc_embed.search.index import Index
    from abc_embed.search.tokens import TokenStore

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
    keep_tokens: bool = False,
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
        keep_tokens: keep the visual tokens of what is looked at in the index, and use those that
            are there, so that the vision encoder is not run for the next instruction.
        on_progress: called with how many were looked at, of how many.

    Raises:
        UsageError: the budget is not above 0 and at most 1, or the filter is refused.
        CheckpointError: the model has no instruction adapter.
        OutputError: the kept tokens cannot be used, or the disk is full.
        DataError: there is no image to look at, or none of them can be read any more.
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
    ranked = index.promising(vector, passes, where)
    promising = [path for path in ranked if path not in set(sample)][: passes - size]
    looked = [*promising, *sample]
    scores: dict[str, float] = {}
    with ExitStack() as stack:
        store = stack.enter_context(index.token_store()) if keep_tokens else None
        for done, (path, result) in enumerate(_look(index, looked, instruction, store), 1):
            if isinstance(result, np.ndarray):
                scores[path] = float(result @ vector)
            on_progress(done, len(looked))
    if not scores:
        raise DataError(
            f"none of the {len(looked)} images that were to be looked at can be read; "
            "bring the index up to date with: index add"
        )
    best = sorted(scores, key=lambda path: -scores[path])[:count]
    known = [path for path in sample if path in scores]
    return Asked(
        hits=[Hit(Path(path), scores[path]) for path in best],
        images=len(paths),
        passes=len(scores),
        share=1.0 if passes >= len(paths) else _share(known, scores, set(ranked)),
        unreadable=len(looked) - len(scores),
    )


def _look(
    index: "Index", paths: Sequence[str], instruction: str, store: "TokenStore | None"
) -> "Iterator[tuple[str, Vector | Skipped]]":
    """Images with the instruction: their joint vectors `(D,)`, or why there is none."""
    embedder, max_pixels = index.needed_embedder(), index.max_pixels
    items = [Item(image=path, instruction=instruction) for path in paths]
    if store is None:
        results = embedder.stream(items, max_pixels=max_pixels, on_error="skip")
    else:
        from abc_embed.search.tokens import KeptTokens

        engine = partial(KeptTokens, store=store, model_key=embedder.fingerprint)
        pipeline = embedder.pipeline(max_pixels, None, "skip", engine=engine)
        results = (result for _, result in pipeline.run(enumerate(items)))
    return zip(paths, results, strict=True)


def _share(sample: Sequence[str], scores: dict[str, float], ranked: set[str]) -> float | None:
    if len(sample) < SMALLEST_SAMPLE:
        return None
    best = sorted(sample, key=lambda path: -scores[path])[: max(1, len(sample) // 10)]
    return sum(path in ranked for path in best) / len(best)
