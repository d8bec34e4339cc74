"""Query vectors of every way of asking -> every number of a CtrlBench record.

Does: rank, and put what only means something together into one place, the composition gap first.
Does not: embed (ctrlbench.py). Intervals are 95 %, by bootstrap over pictures with all their
questions; a picture and its mirror are drawn together, since they show the same things.

Shapes: `D` width, `Q` queries, `K` candidates, `P` mirrored pairs.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from abc_embed.bench import metrics
from abc_embed.bench.ctrlbench.schema import PAIR_TIER
from abc_embed.bench.packed import pack
from abc_embed.bench.sets.findings import share

if TYPE_CHECKING:
    from abc_embed.bench.ctrlbench.measure import Plan

Ints = NDArray[np.int64]

CONTROLS = ("image", "text", "late")
"""The ways of asking without composition; joint has to beat the best of them."""
TOP = 3
"""First choices of joint that are kept for pictures."""
TARGETS = {
    "S": (
        ("joint", "at least", 0.80),
        ("image", "at most", 0.35),
        ("text", "at most", 0.15),
        ("late", "at most", 0.45),
        ("mirror_accuracy", "at least", 0.70),
    )
}
"""What the bundled model is to reach: R@1, and the share of mirrored pairs both right."""


def findings(
    asked: "Plan",
    vectors: Mapping[str, NDArray[np.float32]],
    captions: NDArray[np.float32],
    *,
    random: bool,
    draws: int,
) -> dict[str, Any]:
    """All numbers, with their intervals, and every query's rank.

    `vectors` has `(Q, D)` for each way of asking, zeros where there is nothing to ask; joint may
    have the queries of mirrored pairs below those that are scored. `captions` is `(K, D)`.

    Raises:
        NotFiniteError: a vector is not finite.
    """
    golds = _numbers(asked, "positives")
    ranks = {
        way: _ranks(found[: asked.scored], captions, golds[: asked.scored])
        for way, found in vectors.items()
    }
    if random:
        chance = np.random.default_rng(21).random((asked.scored, len(captions)))
        ranks["random"] = metrics.best_ranks(chance, golds[: asked.scored])
    clusters = cluster_numbers(asked)
    found: dict[str, Any] = {
        "composition_gap": _gap(ranks, clusters, draws),
        "scores": {way: _score(of, clusters, draws) for way, of in ranks.items()},
        **_joint(asked, vectors, captions, golds, draws),
        "ranks": {way: pack(of) for way, of in ranks.items()},
        "clusters": pack(clusters[: asked.scored]),
    }
    return {**found, "checks": _checks(asked.tier, found)}


def _ranks(
    queries: NDArray[np.float32], captions: NDArray[np.float32], golds: Sequence[Sequence[int]]
) -> Ints:
    """`(Q,)`; 0 where nothing was asked."""
    found = metrics.best_ranks(queries @ captions.T, golds)
    return np.where(queries.any(axis=1), found, 0)


def _numbers(asked: "Plan", name: str) -> list[list[int]]:
    """Places of captions in the corpus, for each query."""
    places = {c.cap_id: number for number, c in enumerate(asked.benchmark.corpus)}
    return [[places[cap] for cap in getattr(query, name)] for query in asked.queries]


def cluster_numbers(asked: "Plan") -> Ints:
    """For each query the number of its picture; a picture and its mirror have one."""
    numbers: dict[str, int] = {}
    for picture in asked.benchmark.images:
        known = numbers.get(picture.mirror or "")
        numbers[picture.image_id] = len(numbers) if known is None else known
    return np.array([numbers[q.image_id] for q in asked.queries])


def pair_numbers(asked: "Plan") -> list[tuple[int, int]]:
    """Mirrored pairs: places of one question that is asked of a picture and of its mirror, and has
    another answer there. Where questions are asked for their pair only, these are the pairs."""
    kind = PAIR_TIER if any(q.tier == PAIR_TIER for q in asked.queries) else asked.tier
    mirrors = {p.image_id: p.mirror for p in asked.benchmark.images}
    places = {
        (q.image_id, q.instruction): number
        for number, q in enumerate(asked.queries)
        if q.tier == kind
    }
    pairs = []
    for (image, instruction), number in places.items():
        twin = places.get((mirrors[image] or "", instruction), -1)
        if twin > number:
            one, other = asked.queries[number], asked.queries[twin]
            if set(one.positives) != set(other.positives):
                pairs.append((number, twin))
    return pairs


# -- scores ----------------------------------------------------------------------------------------


def _score(of: Ints, clusters: Ints, draws: int) -> dict[str, Any]:
    asked = of > 0
    if not asked.any():
        return {"r1": None, "r1_interval": None, "r5": None, "r10": None, "mrr": None, "of": 0}
    its = of[asked]
    first = share(its == 1, clusters[: len(of)][asked], draws)
    return {
        "r1": first["value"],
        "r1_interval": first["interval"],
        "r5": metrics.recall_at(5, its),
        "r10": metrics.recall_at(10, its),
        "mrr": metrics.mean_reciprocal_rank(its),
        "of": len(its),
    }


def _gap(ranks: Mapping[str, Ints], clusters: Ints, draws: int) -> dict[str, Any] | None:
    """R@1 of joint over the best control; None where joint or all controls cannot be asked.

    The best control is found anew in every resample, so that its luck is in the interval.
    """
    controls = [way for way in CONTROLS if way in ranks]
    if "joint" not in ranks or not controls:
        return None
    ways = ("joint", *controls)
    hits = np.stack([ranks[way] == 1 for way in ways], axis=1).astype(np.float64)
    means = metrics.resampled_means(hits, clusters[: len(hits)], draws=draws)
    shares = hits.mean(axis=0)
    return {
        "value": float(shares[0] - shares[1:].max()),
        "interval": metrics.interval(means[:, 0] - means[:, 1:].max(axis=1)),
        "over": controls[int(shares[1:].argmax())],
    }


def _joint(
    asked: "Plan",
    vectors: Mapping[str, NDArray[np.float32]],
    captions: NDArray[np.float32],
    golds: Sequence[Sequence[int]],
    draws: int,
) -> dict[str, Any]:
    """What is said of image + instruction alone: whose caption comes first, group, flip, mirror."""
    if "joint" not in vectors:
        return {"joint": None, "by_aspect": {}, "by_group": {}, "top": None}
    table = vectors["joint"] @ captions.T
    right = metrics.best_ranks(table, golds) == 1
    scored, clusters = slice(asked.scored), cluster_numbers(asked)
    own = _numbers(asked, "same_image")[scored]
    among = np.array(
        [
            _first_among(row, g, o)
            for row, g, o in zip(table[scored], golds[scored], own, strict=True)
        ]
    )
    at_home = metrics.best_ranks(table[scored], own) == 1
    best = np.argsort(-table[scored], axis=1, kind="stable")[:, :TOP]
    pairs = np.array(pair_numbers(asked), dtype=np.int64).reshape(-1, 2)
    joint = {
        "image_accuracy": share(at_home, clusters[scored], draws),
        "aspect_accuracy": share(among, clusters[scored], draws),
        **_groups(asked, right[scored], best[:, 0], clusters, draws),
        "mirror_accuracy": _share(right[pairs].all(axis=1), clusters[pairs[:, 0]], draws),
    }
    groups = {p.image_id: p.group for p in asked.benchmark.images}
    grouped = [groups[q.image_id] for q in asked.kept]
    aspects = [q.aspect.partition(":")[0] for q in asked.kept]
    return {
        "joint": joint,
        "by_aspect": _split(right[scored], aspects, clusters, draws),
        "by_group": _split(right[scored], grouped, clusters, draws),
        "top": pack(best),
    }


def _first_among(row: NDArray[np.float32], gold: Sequence[int], own: Sequence[int]) -> bool:
    """Whether the best right caption beats every other of its picture; a tie does not."""
    others = [number for number in own if number not in gold]
    return not others or bool(row[gold].max() > row[others].max())


def _groups(
    asked: "Plan", right: NDArray[np.bool_], first: Ints, clusters: Ints, draws: int
) -> dict[str, Any]:
    """Of pictures asked more than once: all questions right; first choices that change."""
    places: dict[str, list[int]] = {}
    for number, query in enumerate(asked.kept):
        places.setdefault(query.image_id, []).append(number)
    several = [its for its in places.values() if len(its) > 1]
    of = np.array([clusters[its[0]] for its in several])
    whole = np.array([right[its].all() for its in several])
    flips = np.array([len(np.unique(first[its])) > 1 for its in several])
    return {
        "group_accuracy": _share(whole, of, draws),
        "flip_rate": _share(flips, of, draws),
    }


def _split(
    right: NDArray[np.bool_], names: Sequence[str], clusters: Ints, draws: int
) -> dict[str, Any]:
    """R@1 of the queries of each name."""
    named = np.asarray(names)
    its = clusters[: len(named)]
    return {
        str(name): _share(right[named == name], its[named == name], draws)
        for name in np.unique(named)
    }


def _share(values: NDArray[Any], clusters: Ints, draws: int) -> dict[str, Any]:
    """A share with its interval; None of none."""
    if not len(values):
        return {"value": None, "interval": None, "of": 0}
    return share(values, clusters, draws)


def _checks(tier: str, found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Each target of a tier beside what was found."""
    rows = []
    for name, bound, target in TARGETS.get(tier, ()):
        joint = found["joint"] or {}
        score = found["scores"].get(name, {}).get("r1")
        value = joint.get(name, {}).get("value") if name in joint else score
        reached = value is not None and (
            value >= target if bound == "at least" else value <= target
        )
        rows.append(
            {"name": name, "value": value, "bound": bound, "target": target, "reached": reached}
        )
    return rows
