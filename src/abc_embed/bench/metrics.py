"""Ranks, and what follows from them: pure functions of arrays.

Ties count against the model: a constant encoder has the worst rank, not the best. Numbers that are
not finite are an error, not a score.

Shapes: `Q` queries, `K` candidates, `S` statistics measured on each query, `R` resamples, `C`
clusters (images).
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from abc_embed.errors import NotFiniteError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

DRAWS = 2000
"""Bootstrap resamples behind each 95 % interval."""
BLOCK = 512
"""Queries ranked at a time: 512 × 25,000 scores are 50 MB."""
ENOUGH = 30
"""Questions of a kind below which its score says nothing about chance."""


def ranks(scores: ArrayLike, gold: ArrayLike) -> Ints:
    """`(Q, K)` scores and the right candidate's number `(Q,)` -> its rank `(Q,)`, from 1.

    The rank is 1 + the number of *other* candidates whose score is at least the right one's.

    Raises:
        NotFiniteError, ValueError: as `best_ranks`.
    """
    return best_ranks(scores, np.asarray(gold, dtype=np.int64)[:, None].tolist())


def best_ranks(scores: ArrayLike, golds: Sequence[Sequence[int]]) -> Ints:
    """`(Q, K)` scores and all right candidates of each query -> rank of the best one `(Q,)`.

    The rank is 1 + the number of *wrong* candidates whose score is at least the best right one's.

    Raises:
        NotFiniteError: a score is NaN or infinite.
        ValueError: the shapes do not fit, a query has no right candidate, or a number names none.
    """
    table, right = _checked(scores, golds)
    best = np.where(right, table, -np.inf).max(axis=1, initial=-np.inf)
    above: Ints = ((table >= best[:, None]) & ~right).sum(axis=1, dtype=np.int64)
    return above + 1


def rank_vectors(
    queries: NDArray[np.float32],
    candidates: NDArray[np.float32],
    golds: Sequence[Sequence[int]],
    own: Sequence[Sequence[int] | None] | None = None,
) -> Ints:
    """`best_ranks` `(Q,)` of the products of `(Q, D)` and `(K, D)`, `BLOCK` queries at a time.

    Args:
        golds: Numbers of the right candidates of each query.
        own: Numbers of the candidates that a query chooses from; None: all.

    Raises:
        NotFiniteError, ValueError: as `best_ranks`.
    """
    found = np.zeros(len(queries), dtype=np.int64)
    rows = [row for row in range(len(queries)) if own is None or own[row] is None]
    for start in range(0, len(rows), BLOCK):
        block = rows[start : start + BLOCK]
        found[block] = best_ranks(queries[block] @ candidates.T, [golds[row] for row in block])
    for row, among in enumerate(own or ()):
        if among is not None:
            right = [[place for place, number in enumerate(among) if number in golds[row]]]
            found[row] = best_ranks(queries[row : row + 1] @ candidates[list(among)].T, right)[0]
    return found


def map_at_r(scores: ArrayLike, golds: Sequence[Sequence[int]]) -> Floats:
    """mAP@R's summands `(Q,)`: precision at each right place among the first `R`, over `R`.

    `R` is the number of right candidates of the query (ECCV Caption, section 4.1). Of equal scores
    the wrong candidates stand first.

    Raises:
        NotFiniteError, ValueError: as `best_ranks`.
    """
    table, right = _checked(scores, golds)
    order = np.lexsort((right, -table), axis=1)  # by score, wrong before right where they are equal
    hit = np.take_along_axis(right, order, axis=1)
    counts = right.sum(axis=1)
    within = np.arange(table.shape[1]) < counts[:, None]
    precision = hit.cumsum(axis=1) / np.arange(1, table.shape[1] + 1)
    summed: Floats = (precision * hit * within).sum(axis=1) / counts
    return summed


def recall_at(k: int, of: Ints) -> float:
    """R@k: the share of ranks `(Q,)` that are at most `k`."""
    return float((_some(of) <= k).mean())


def mean_reciprocal_rank(of: Ints) -> float:
    """MRR of ranks `(Q,)`."""
    return float((1.0 / _some(of)).mean())


RANK_METRICS: dict[str, tuple[str, Callable[[Ints], float]]] = {
    "r5": ("R@5", lambda of: recall_at(5, of)),
    "r10": ("R@10", lambda of: recall_at(10, of)),
    "mrr": ("MRR", mean_reciprocal_rank),
}
"""Key in a record -> title and function of ranks `(Q,)`: what is reported beside R@1. A line here
is a column of every record, table and CSV from now on; older records show a dash."""


def resampled_means(
    values: ArrayLike, clusters: ArrayLike, *, draws: int = DRAWS, seed: int = 0
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


def share(values: ArrayLike, clusters: ArrayLike) -> dict[str, Any]:
    """The mean of values `(Q,)`, its 95 % interval by cluster, and `Q`, as JSON; None of none."""
    column = np.asarray(values, dtype=np.float64)
    if not len(column):
        return {"value": None, "interval": None, "of": 0}
    means = resampled_means(column[:, None], clusters)[:, 0]
    return {"value": float(column.mean()), "interval": interval(means), "of": len(column)}


def by_kind(
    right: NDArray[np.bool_],
    golds: Sequence[Sequence[int]],
    kinds: Sequence[str],
    clusters: ArrayLike,
) -> dict[str, dict[str, Any]]:
    """R@1 of each kind of question as `share` has it, and its `chance`.

    Chance is R@1 of who always gives the most common answer to that kind.

    Args:
        right: `(Q,)`, whether the first choice is right.
        golds: The right candidates of each.
        kinds: What each asks for.
        clusters: `(Q,)`, the image of each.
    """
    named, images = np.asarray(kinds), np.asarray(clusters)
    found = {}
    for kind in np.unique(named):
        own = np.flatnonzero(named == kind)
        answers = Counter(answer for number in own.tolist() for answer in set(golds[number]))
        chance = max(answers.values()) / len(own)
        found[str(kind)] = {**share(right[own], images[own]), "chance": chance}
    return found


def at_chance(figure: Mapping[str, Any]) -> bool:
    """Whether R@1 of a kind of question may be luck: its interval reaches down to its chance.

    Of fewer than `ENOUGH` questions, and where all have one answer, nothing is said.
    """
    chance = figure.get("chance")
    if chance is None or chance >= 1 or figure["of"] < ENOUGH or figure["interval"] is None:
        return False
    return bool(figure["interval"][0] <= chance)


def sign_flip_test(
    differences: ArrayLike, clusters: ArrayLike, *, draws: int = 10_000, seed: int = 0
) -> float:
    """Paired permutation test: per-query differences of two models `(Q,)` -> two-sided p.

    If the two were alike, each image could as well have been answered with the models' names
    swapped; so the sign of all its differences is drawn anew, `draws` times. `clusters` `(Q,)` says
    to which image a query belongs. Never 0: the data themselves count as one of the draws.

    Raises:
        ValueError: no differences, or the shapes do not fit.
    """
    values = np.asarray(differences, dtype=np.float64)
    _, member = np.unique(np.asarray(clusters), return_inverse=True)
    if values.ndim != 1 or member.shape != values.shape or not len(values):
        raise ValueError(f"differences {values.shape} and clusters {member.shape} do not fit")
    sums = np.bincount(member, weights=values)
    sums = sums[sums != 0.0]  # the others add nothing, whatever their sign
    seen = abs(sums.sum())
    rng = np.random.default_rng(seed)
    reached = 0
    for start in range(0, draws, 1000):  # in parts, so that memory stays small
        signs = rng.integers(0, 2, (min(1000, draws - start), len(sums))) * 2 - 1
        reached += int((np.abs(signs @ sums) >= seen - 1e-9).sum())
    return (1 + reached) / (1 + draws)


def auc(positives: ArrayLike, negatives: ArrayLike) -> float:
    """How often a positive scores above a negative, over all pairs; a tie counts half."""
    above, below = np.asarray(positives, dtype=np.float64), np.sort(np.asarray(negatives))
    lower = np.searchsorted(below, above, "left")
    not_higher = np.searchsorted(below, above, "right")
    return float((lower + not_higher).mean() / 2 / len(below))


def auc_share(
    positives: ArrayLike,
    negatives: ArrayLike,
    clusters: tuple[ArrayLike, ArrayLike],
) -> dict[str, Any]:
    """`auc` of scores `(Q,)` above others `(N,)`, with its interval, as `share` gives one.

    `clusters` say to which image each of the two belongs; whole images are drawn anew, with what
    both have of them.

    Raises:
        ValueError: one of them is empty.
    """
    above, below = np.asarray(positives)[:, None], np.asarray(negatives)[None]
    if not above.size or not below.size:
        raise ValueError("an AUC needs scores of both kinds")
    wins = (above > below) + 0.5 * (above == below)
    names, member = np.unique(np.concatenate([*clusters]), return_inverse=True)
    rows, columns = member[: len(above)], member[len(above) :]
    by_image = np.zeros((len(names), len(names)))
    np.add.at(by_image, (rows[:, None], columns[None]), wins)
    counts = np.stack([np.bincount(of, minlength=len(names)) for of in (rows, columns)])
    equal = np.full(len(names), 1.0 / len(names))
    drawn = np.random.default_rng(0).multinomial(len(names), equal, size=DRAWS)
    pairs = (drawn @ counts.T).prod(axis=1)
    sums = ((drawn @ by_image) * drawn).sum(axis=1)[pairs > 0] / pairs[pairs > 0]
    return {"value": float(wins.mean()), "interval": interval(sums), "of": below.size}


def _some(values: Ints) -> Ints:
    if not len(values):
        raise ValueError("no ranks: nothing was asked")
    return values


def _checked(
    scores: ArrayLike, golds: Sequence[Sequence[int]]
) -> tuple[NDArray[np.floating], NDArray[np.bool_]]:
    """The scores as they are, and whether a candidate is a right one, both `(Q, K)`."""
    table = np.asarray(scores)
    if table.ndim != 2 or len(golds) != len(table) or not all(len(of) for of in golds):
        raise ValueError(f"scores {table.shape} and right candidates of {len(golds)} do not fit")
    if not np.isfinite(table).all():
        raise NotFiniteError(
            "a score is not a finite number, so nothing can be ranked; "
            "load the model with dtype='float32'"
        )
    right = np.zeros(table.shape, dtype=np.bool_)
    for row, numbers in zip(right, golds, strict=True):
        if min(numbers) < 0 or max(numbers) >= table.shape[1]:
            raise ValueError(f"a right candidate is none of the {table.shape[1]}")
        row[list(numbers)] = True
    return table, right
