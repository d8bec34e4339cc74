"""From a pool to the few negatives that are trained on.

Does: draw by number, the same for the same seed and row. Does not: score or read files.
"""

from enum import StrEnum

import numpy as np

from abc_embed.errors import UsageError

DRAW = 7
"""Negatives of one image (paper, section 3.2)."""
BIN = 5
"""Neighbours of a sorted list of which the published loader draws one."""


class How(StrEnum):
    """How negatives are drawn from a pool."""

    UNIFORM = "uniform"
    """Any of the pool, without putting back (the paper's text)."""
    BINS = "bins"
    """One of the first five, one of the next five, and so on (the published loader)."""


def draw(size: int, count: int, how: How, *, seed: int, row: int) -> list[int]:
    """Ranks drawn from a sorted pool of `size`, best first; fewer than `count` if it is too small.

    What is drawn follows from `seed` and `row` alone, so the order of the work does not matter.

    Raises:
        UsageError: `count` or `seed` is below 0.
    """
    if count < 0 or seed < 0:
        raise UsageError(f"draw is {count} and seed is {seed}; give 0 or more")
    random = np.random.default_rng([seed, row])
    if how is How.UNIFORM:
        return sorted(random.permutation(size)[:count].tolist())
    starts = range(0, min(size, count * BIN), BIN)
    return [int(random.integers(start, min(start + BIN, size))) for start in starts]
