"""Ranks, and what follows from them. Pure functions of arrays; no model, no files.

Ties count against the model: a constant encoder has the worst rank, not the best. Numbers that are
not finite are an error, not a score.

Shapes: `Q` queries, `K` candidates, `S` statistics measured on each query, `R` resamples.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from abc_embed.errors import NotFiniteError

Floats = NDArray[np.float64]


def ranks(scores: ArrayLike, gold: ArrayLike) -> NDArray[np.int64]:
    """`(Q, K)` scores and the right candidate's number `(Q,)` -> its rank `(Q,)`, from 1.

    The rank is 1 + the number of *other* candidates whose score is at least the right one's.

    Raises:
        NotFiniteError: a score is NaN or infinite.
        ValueError: the shapes do not fit, or a number names no candidate.
    """
    table, right = np.asarray(scores), np.asarray(gold, dtype=np.int64)
    if table.ndim != 2 or right.shape != table.shape[:1]:
        raise ValueError(f"scores {table.shape} and right candidates {right.shape} do not fit")
    if right.size and not (right.min() >= 0 and right.max() < table.shape[1]):
        raise ValueError(f"a right candidate is none of the {table.shape[1]}")
    if not np.isfinite(table).all():
        raise NotFiniteError(
            "a score is not a finite number, so nothing can be ranked; "
            "load the model with dtype='float32'"
        )
    own = np.take_along_axis(table, right[:, None], axis=1)
    at_least: NDArray[np.int64] = (table >= own).sum(axis=1, dtype=np.int64)  # counts itself
    return at_least


def recall_at(k: int, of: NDArray[np.int64]) -> float:
    """R@k: the share of ranks `(Q,)` that are at most `k`."""
    return float((_some(of) <= k).mean())


def mean_reciprocal_rank(of: NDArray[np.int64]) -> float:
    """MRR of ranks `(Q,)`."""
    return float((1.0 / _some(of)).mean())


def resampled_means(
    values: ArrayLike, clusters: ArrayLike, *, draws: int = 2000, seed: int = 0
) -> Floats:
    """Bootstrap: `(Q, S)` values -> `(R, S)` means, `R = draws`, of whole clusters drawn anew.

    Queries of one image are not independent, so images are drawn, with all their queries; the mean
    is over queries. `clusters` `(Q,)` says to which image each query belongs. Functions of several
    columns (a difference, a maximum) are taken of the rows of the result.

    Raises:
        ValueError: no values, or the shapes do not fit.
    """
    table = np.asarray(values, dtype=np.float64)
    names, member = np.unique(np.asarray(clusters), return_inverse=True)
    if table.ndim != 2 or member.shape != table.shape[:1] or not len(table):
        raise ValueError(f"values {table.shape} and clusters {member.shape} do not fit")
    sums = np.zeros((len(names), table.shape[1] + 1))
    np.add.at(sums, member, np.column_stack([table, np.ones(len(table))]))
    rng = np.random.default_rng(seed)
    share = np.full(len(names), 1.0 / len(names))
    totals = rng.multinomial(len(names), share, size=draws) @ sums
    means: Floats = totals[:, :-1] / totals[:, -1:]
    return means


def interval(samples: ArrayLike, level: float = 0.95) -> tuple[float, float]:
    """The middle `level` of bootstrap samples `(R,)`."""
    outside = (1.0 - level) / 2.0
    low, high = np.quantile(np.asarray(samples, dtype=np.float64), (outside, 1.0 - outside))
    return float(low), float(high)


def _some(values: NDArray[np.int64]) -> NDArray[np.int64]:
    if not len(values):
        raise ValueError("no ranks: nothing was asked")
    return values
