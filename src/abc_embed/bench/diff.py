"""Two records of one benchmark, query by query: which model is better, and could it be chance?

Does: the difference in R@1 with its 95 % interval, and a paired permutation test, both by picture.
Does not: compare records of different questions.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from abc_embed.bench import metrics
from abc_embed.bench.packed import unpack
from abc_embed.errors import DataError, UsageError

Record = Mapping[str, Any]


def diff(a: Record, b: Record, *, draws: int = 10_000) -> list[dict[str, Any]]:
    """For each way of asking that both records have: R@1 of each, `a` − `b`, interval, p.

    Raises:
        UsageError: they have no way of asking in common.
        DataError: a record has no ranks by query, or the questions are not the same.
    """
    for name, record in (("first", a), ("second", b)):
        if "ranks" not in record or "clusters" not in record:
            raise DataError(f"the {name} record has no ranks by query; measure again")
    same = ("benchmark_hash", "sizes", "missing")
    if any(a.get(key) != b.get(key) for key in same):
        raise DataError(
            f"the records are of different questions ({a['benchmark']} {a['benchmark_hash'][:8]} "
            f"and {b['benchmark']} {b['benchmark_hash'][:8]}); measure both models with the same "
            "benchmark and the same --limit"
        )
    ways = [way for way in a["ranks"] if way in b["ranks"] and way != "random"]
    if not ways:
        raise UsageError("the two models have no way of asking in common; nothing can be compared")
    return [_row(way, a, b, draws) for way in ways]


def _row(way: str, a: Record, b: Record, draws: int) -> dict[str, Any]:
    ranks = [unpack(record["ranks"][way]) for record in (a, b)]
    clusters = unpack(a["clusters"])
    if not len(ranks[0]) == len(ranks[1]) == len(clusters):
        raise DataError("the records' ranks are not of one length; measure again")
    asked = (ranks[0] > 0) & (ranks[1] > 0)
    if not asked.any():
        raise DataError(f"no question was asked as {way!r} in both records; measure again")
    hits = np.stack([of[asked] == 1 for of in ranks], axis=1).astype(np.float64)
    its = clusters[asked]
    change = hits[:, 0] - hits[:, 1]
    means = metrics.resampled_means(change[:, None], its)[:, 0]
    return {
        "way": way,
        "of": int(asked.sum()),
        "a": float(hits[:, 0].mean()),
        "b": float(hits[:, 1].mean()),
        "difference": float(change.mean()),
        "interval": metrics.interval(means),
        "p": metrics.sign_flip_test(change, its, draws=draws),
    }
