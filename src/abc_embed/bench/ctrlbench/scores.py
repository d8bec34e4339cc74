"""Query vectors of every condition -> every number of a CtrlBench record.

Intervals are 95 %, by bootstrap over pictures with all their questions; a picture and its mirror
are drawn together, since they show the same things.

Shapes: `D` width, `Q` queries, `K` candidates.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from abc_embed.bench import metrics
from abc_embed.bench.ctrlbench.scene_benchmark import NOVEL
from abc_embed.bench.ctrlbench.schema import TierQueries
from abc_embed.bench.metrics import RANK_METRICS, Ints, share
from abc_embed.bench.records import pack

CONTROLS = ("image", "text", "late")
"""The conditions without composition; joint has to beat the best of them."""
TOP = 3
"""First choices of joint that are kept for pictures."""
TARGETS = {
    "S": (
        ("joint", "at least", 0.95),
        (NOVEL, "at least", 0.93),
        ("image", "at most", 0.35),
        ("text", "at most", 0.05),
        ("late", "at most", 0.35),
        ("mirror_accuracy", "at least", 0.93),
        ("answerable_auc", "at least", 0.95),
    )
}
"""What the bundled model is to reach: R@1 of conditions and groups, and figures of joint."""


def compute_scores(
    queries: TierQueries,
    vectors: Mapping[str, NDArray[np.float32]],
    captions: NDArray[np.float32],
    *,
    unanswerable: Mapping[str, NDArray[np.float32]],
    random: bool,
) -> dict[str, Any]:
    """All numbers, with their intervals, and every query's rank.

    Args:
        vectors: `(Q, D)` for each condition, zeros where there is nothing to ask; joint may have
            the queries of mirrored pairs below those that are scored.
        captions: `(K, D)`.
        unanswerable: image_id -> `(D,)` of a question that the image does not answer.
        random: whether to add scores drawn at random.

    Raises:
        NotFiniteError: a vector is not finite.
    """
    count = len(queries.scored)
    golds = queries.caption_numbers([q.positives for q in queries.all])
    ranks = {
        name: _ranks(table[:count], captions, golds[:count]) for name, table in vectors.items()
    }
    if random:
        chance = np.random.default_rng(21).random((count, len(captions)))
        ranks["random"] = metrics.best_ranks(chance, golds[:count])
    clusters = queries.clusters()
    findings: dict[str, Any] = {
        "composition_gap": _composition_gap(ranks, clusters[:count]),
        "scores": {name: _score(of, clusters[:count]) for name, of in ranks.items()},
        **_joint_findings(queries, vectors, captions, golds, unanswerable),
        "ranks": {name: pack(of) for name, of in ranks.items()},
        "clusters": pack(clusters[:count]),
    }
    return {**findings, "checks": _checks(queries.tier, findings)}


def _ranks(
    queries: NDArray[np.float32], captions: NDArray[np.float32], golds: Sequence[Sequence[int]]
) -> Ints:
    """`(Q,)`; 0 where nothing was asked."""
    return np.where(queries.any(axis=1), metrics.best_ranks(queries @ captions.T, golds), 0)


def _score(ranks: Ints, clusters: Ints) -> dict[str, Any]:
    asked = ranks > 0
    if not asked.any():
        return {"r1": None, "r1_interval": None, **dict.fromkeys(RANK_METRICS), "of": 0}
    first = share(ranks[asked] == 1, clusters[asked])
    return {
        "r1": first["value"],
        "r1_interval": first["interval"],
        **{name: metric(ranks[asked]) for name, (_, metric) in RANK_METRICS.items()},
        "of": first["of"],
    }


def _composition_gap(ranks: Mapping[str, Ints], clusters: Ints) -> dict[str, Any] | None:
    """R@1 of joint over the best control; None where joint or all controls cannot be asked.

    The best control is found anew in every resample, so that its luck is in the interval.
    """
    controls = [name for name in CONTROLS if name in ranks]
    if "joint" not in ranks or not controls:
        return None
    hits = np.stack([ranks[name] == 1 for name in ("joint", *controls)], axis=1).astype(np.float64)
    means = metrics.resampled_means(hits, clusters)
    shares = hits.mean(axis=0)
    return {
        "value": float(shares[0] - shares[1:].max()),
        "interval": metrics.interval(means[:, 0] - means[:, 1:].max(axis=1)),
        "over": controls[int(shares[1:].argmax())],
    }


def _joint_findings(
    queries: TierQueries,
    vectors: Mapping[str, NDArray[np.float32]],
    captions: NDArray[np.float32],
    golds: Sequence[Sequence[int]],
    unanswerable: Mapping[str, NDArray[np.float32]],
) -> dict[str, Any]:
    """What is reported of image + instruction alone."""
    if "joint" not in vectors:
        return {"joint": None, "by_aspect": {}, "by_group": {}, "top": None}
    table = vectors["joint"] @ captions.T
    right = metrics.best_ranks(table, golds) == 1
    count, all_clusters = len(queries.scored), queries.clusters()
    table, clusters = table[:count], all_clusters[:count]
    own = queries.caption_numbers([q.same_image for q in queries.scored])
    first_of_own = [_is_first_of(*row) for row in zip(table, golds[:count], own, strict=True)]
    top = np.argsort(-table, axis=1, kind="stable")[:, :TOP]
    pairs = np.array(queries.mirrored_pairs(), dtype=np.int64).reshape(-1, 2)
    image_groups = {p.image_id: p.group for p in queries.benchmark.images}
    groups = [image_groups[q.image_id] for q in queries.scored]
    aspects = [q.aspect.partition(":")[0] for q in queries.scored]
    joint = {
        "image_accuracy": share(metrics.best_ranks(table, own) == 1, clusters),
        "aspect_accuracy": share(first_of_own, clusters),
        **_image_findings(queries, right, top[:, 0], clusters),
        "mirror_accuracy": share(right[pairs].all(axis=1), all_clusters[pairs[:, 0]]),
    }
    if unanswerable:
        of_image = {q.image_id: c for q, c in zip(queries.scored, clusters, strict=True)}
        nothing = (np.stack([*unanswerable.values()]) @ captions.T).max(axis=1)
        both = clusters, np.array([of_image[image] for image in unanswerable])
        joint["answerable_auc"] = metrics.auc_share(table.max(axis=1), nothing, both)
    return {
        "joint": joint,
        "by_aspect": metrics.by_kind(right[:count], golds[:count], aspects, clusters),
        "by_group": metrics.by_kind(right[:count], golds[:count], groups, clusters),
        "top": pack(top),
    }


def _is_first_of(row: NDArray[np.float32], gold: Sequence[int], own: Sequence[int]) -> bool:
    """Whether the best right caption beats every other of its picture; a tie does not."""
    others = [number for number in own if number not in gold]
    return not others or bool(row[gold].max() > row[others].max())


def _image_findings(
    queries: TierQueries, right: NDArray[np.bool_], first: Ints, clusters: Ints
) -> dict[str, Any]:
    """Of pictures asked more than once: all questions right; first choices that change."""
    places: dict[str, list[int]] = {}
    for number, query in enumerate(queries.scored):
        places.setdefault(query.image_id, []).append(number)
    groups = [group for group in places.values() if len(group) > 1]
    image_clusters = np.array([clusters[group[0]] for group in groups])
    all_right = np.array([right[group].all() for group in groups])
    flips = np.array([len(np.unique(first[group])) > 1 for group in groups])
    return {
        "group_accuracy": share(all_right, image_clusters),
        "flip_rate": share(flips, image_clusters),
    }


def _checks(tier: str, findings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Each target of a tier beside the value reached."""
    joint, scores = findings["joint"] or {}, findings["scores"]
    figures = {name: score["r1"] for name, score in scores.items()}
    figures |= {name: of["value"] for name, of in (findings["by_group"] | joint).items()}
    rows = []
    for name, bound, target in TARGETS.get(tier, ()):
        if name == "answerable_auc" and name not in figures:
            continue  # nothing unanswerable was asked
        value = figures.get(name)
        reached = value is not None and (
            value >= target if bound == "at least" else value <= target
        )
        rows.append(
            {"name": name, "value": value, "bound": bound, "target": target, "reached": reached}
        )
    return rows
