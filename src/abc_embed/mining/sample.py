"""From a pool to the few negatives that are trained on."""

from dataclasses import dataclass

import numpy as np

from abc_embed.errors import UsageError
from abc_embed.mining.settings import Strategy

BIN = 5
"""Neighbours of a sorted list of which the published loader takes one."""


@dataclass(frozen=True, slots=True)
class SampledNegatives:
    """The negatives of one row, best first."""

    row: int
    captions: list[int]
    """Numbers of distinct captions."""
    scores: list[float]
    ranks: list[int]
    """Places in the pool, from 0."""
    own: float
    """Score of the own caption."""


def sample_ranks(size: int, count: int, strategy: Strategy, *, seed: int, row: int) -> list[int]:
    """Ranks in a sorted pool of `size`, best first; fewer than `count` if it is too small.

    They follow from `seed` and `row` alone, so the order of the work does not matter.

    Raises:
        UsageError: `count` or `seed` is below 0.
    """
    if count < 0 or seed < 0:
        raise UsageError(f"draw is {count} and seed is {seed}; give 0 or more")
    random = np.random.default_rng([seed, row])
    if strategy is Strategy.UNIFORM:
        return sorted(random.permutation(size)[:count].tolist())
    starts = range(0, min(size, count * BIN), BIN)
    return [int(random.integers(start, min(start + BIN, size))) for start in starts]
