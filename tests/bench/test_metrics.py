"""Ranks by brute force and by hand; ties against the model; intervals that know of clusters."""

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from abc_embed.bench import metrics
from abc_embed.errors import NotFiniteError


def by_hand(row: list[float], gold: int) -> int:
    """Rank by its definition: 1 + the others that score at least as much."""
    return 1 + sum(score >= row[gold] for i, score in enumerate(row) if i != gold)


TABLES = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=2, max_dims=2, max_side=6),
    elements=st.sampled_from([-1.0, -0.5, 0.0, 0.25, 1.0]),  # few values: many ties
)


@given(TABLES, st.randoms(use_true_random=False))
def test_ranks_by_brute_force(table: np.ndarray, random: object) -> None:
    gold = [random.randrange(table.shape[1]) for _ in table]  # type: ignore[attr-defined]
    found = metrics.ranks(table, gold)
    assert found.tolist() == [by_hand(r.tolist(), g) for r, g in zip(table, gold, strict=True)]
    for k in (1, 2, 5):
        assert metrics.recall_at(k, found) == np.mean([rank <= k for rank in found])
    assert np.isclose(metrics.mean_reciprocal_rank(found), np.mean([1 / r for r in found]))


def test_ranks_by_hand() -> None:
    scores = [[0.9, 0.5, 0.1], [0.9, 0.5, 0.1], [0.1, 0.7, 0.7], [0.3, 0.3, 0.3]]
    assert metrics.ranks(scores, [0, 2, 1, 0]).tolist() == [1, 3, 2, 3]
    found = metrics.ranks(scores, [0, 2, 1, 0])
    assert metrics.recall_at(1, found) == 0.25
    assert metrics.recall_at(2, found) == 0.5
    assert metrics.mean_reciprocal_rank(found) == pytest.approx((1 + 1 / 3 + 1 / 2 + 1 / 3) / 4)


def test_a_constant_encoder_is_last() -> None:
    found = metrics.ranks(np.ones((5, 40), dtype=np.float32), np.arange(5))
    assert found.tolist() == [40] * 5


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [(0, 0), (1, 2)])
def test_what_is_not_finite_is_no_score(bad: float, place: tuple[int, int]) -> None:
    scores = np.zeros((2, 3))
    scores[place] = bad
    with pytest.raises(NotFiniteError, match="not a finite number"):
        metrics.ranks(scores, [0, 0])


@pytest.mark.parametrize(
    ("scores", "gold"),
    [([[1.0, 2.0]], [0, 1]), ([1.0, 2.0], [0]), ([[1.0, 2.0]], [2]), ([[1.0, 2.0]], [-1])],
)
def test_what_does_not_fit(scores: list[float], gold: list[int]) -> None:
    with pytest.raises(ValueError, match=r"do not fit|none of the 2"):
        metrics.ranks(scores, gold)


def test_nothing_asked_is_no_score() -> None:
    nothing = np.zeros(0, dtype=np.int64)
    for score in (lambda r: metrics.recall_at(1, r), metrics.mean_reciprocal_rank):
        with pytest.raises(ValueError, match="nothing was asked"):
            score(nothing)
    with pytest.raises(ValueError, match="do not fit"):
        metrics.resampled_means(np.zeros((0, 1)), [])
    assert metrics.share([], []) == {"value": None, "interval": None, "of": 0}


# -- intervals -------------------------------------------------------------------------------------


def width(values: np.ndarray, clusters: np.ndarray) -> float:
    low, high = metrics.interval(metrics.resampled_means(values[:, None], clusters)[:, 0])
    return high - low


def test_copies_within_an_image_add_no_certainty() -> None:
    rng = np.random.default_rng(0)
    values = (rng.random(200) < 0.6).astype(float)
    alone = width(values, np.arange(200))
    copies, images = np.repeat(values, 9), np.repeat(np.arange(200), 9)
    assert width(copies, images) == pytest.approx(alone, rel=1e-9)
    assert width(copies, np.arange(1800)) < alone / 2.5  # what a plain bootstrap would claim
    # 1.96 standard errors to each side
    assert alone == pytest.approx(2 * 1.96 * np.sqrt(0.6 * 0.4 / 200), rel=0.15)


def test_means_are_over_queries_not_images() -> None:
    # one image with 9 right, one with 1 wrong: drawn twice, once each, or not at all
    values = np.array([1.0] * 9 + [0.0])[:, None]
    means = metrics.resampled_means(values, ["a"] * 9 + ["b"], draws=400)[:, 0]
    assert set(means) == {0.0, 0.9, 1.0}
    assert (means == 0.9).mean() == pytest.approx(0.5, abs=0.1)


def test_columns_are_drawn_together() -> None:
    values = np.column_stack([np.arange(30.0), np.arange(30.0) + 1])
    means = metrics.resampled_means(values, np.arange(30) // 3, draws=50)
    assert means.shape == (50, 2)
    assert np.allclose(means[:, 1] - means[:, 0], 1)


def test_the_same_seed_gives_the_same_interval() -> None:
    values = np.arange(20.0)[:, None]
    one, again = (metrics.resampled_means(values, np.arange(20), seed=3) for _ in range(2))
    assert np.array_equal(one, again)
    assert not np.array_equal(one, metrics.resampled_means(values, np.arange(20), seed=4))
    low, high = metrics.interval(one[:, 0])
    assert low < 9.5 < high
    narrow = metrics.interval(one[:, 0], level=0.5)
    assert low < narrow[0] < narrow[1] < high


# -- several right candidates, and the libraries that have the same metrics ------------------------


def right_ones(random: Any, table: np.ndarray) -> list[list[int]]:
    width = table.shape[1]
    return [random.sample(range(width), random.randint(1, width)) for _ in table]


@given(TABLES, st.randoms(use_true_random=False))
def test_the_best_of_several_by_brute_force(table: np.ndarray, random: Any) -> None:
    golds = right_ones(random, table)
    expected = []
    for row, of in zip(table, golds, strict=True):
        best = max(row[of])
        expected.append(1 + sum(row[i] >= best for i in range(len(row)) if i not in of))
    assert metrics.best_ranks(table, golds).tolist() == expected
    single = [of[:1] for of in golds]
    numbers = [of[0] for of in golds]
    assert (metrics.best_ranks(table, single) == metrics.ranks(table, numbers)).all()


@pytest.mark.parametrize("golds", [[[0]], [[0], []], [[0], [2]], [[0], [-1]]])
def test_right_candidates_that_do_not_fit(golds: list[list[int]]) -> None:
    with pytest.raises(ValueError, match=r"do not fit|none of the 2"):
        metrics.best_ranks([[1.0, 2.0], [1.0, 2.0]], golds)
    with pytest.raises(NotFiniteError):
        metrics.best_ranks([[1.0, np.nan]], [[0]])


def untied(seed: int, queries: int = 40, width: int = 25) -> tuple[np.ndarray, list[list[int]]]:
    """Scores of which no two are equal, as the libraries leave the order of equal ones open."""
    rng = np.random.default_rng(seed)
    scores = rng.permutation(queries * width).reshape(queries, width) / (queries * width)
    golds = [
        rng.choice(width, size=rng.integers(1, 8), replace=False).tolist() for _ in range(queries)
    ]
    return scores, golds


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.filterwarnings("ignore:failed to import")  # ujson: it can do without
def test_the_same_as_eccv_caption(seed: int) -> None:
    library = pytest.importorskip("eccv_caption._metrics")
    scores, golds = untied(seed)
    order = {number: row.tolist() for number, row in enumerate(np.argsort(-scores, axis=1))}
    right = dict(enumerate(golds))
    theirs = library.compute_eccv_metrics(order, right)
    assert metrics.map_at_r(scores, golds).mean() == pytest.approx(theirs["eccv_map_at_r"])
    found = metrics.best_ranks(scores, golds)
    for k in (1, 5, 10):
        assert metrics.recall_at(k, found) == pytest.approx(library.compute_r_at_k(order, right, k))


def test_map_at_r_by_hand_and_with_ties() -> None:
    # right ones at places 1 and 3 of R = 2: (1/1) / 2; at places 1 and 2: 1; at 2 and 3: (1/2) / 2
    scores = [[0.9, 0.1, 0.5, 0.3], [0.9, 0.8, 0.1, 0.0], [0.1, 0.9, 0.5, 0.4]]
    golds = [[0, 3], [0, 1], [2, 3]]
    assert metrics.map_at_r(scores, golds).tolist() == [0.5, 1.0, 0.25]
    assert metrics.map_at_r([[0.5, 0.5, 0.5]], [[0]]).tolist() == [0.0]  # a tie is no hit


# -- paired test -----------------------------------------------------------------------------------


def every_sign(sums: np.ndarray) -> float:
    """The exact p: all ways to swap the models on each image."""
    signs = np.array(list(itertools.product((-1, 1), repeat=len(sums))))
    return float(np.mean(np.abs(signs @ sums) >= abs(sums.sum()) - 1e-9))


@pytest.mark.parametrize("seed", range(4))
def test_the_paired_test_is_that_of_all_swaps(seed: int) -> None:
    rng = np.random.default_rng(seed)
    change, images = rng.integers(-1, 2, 30), np.repeat(np.arange(10), 3)
    sums = change.reshape(10, 3).sum(axis=1)
    found = metrics.sign_flip_test(change, images, draws=20_000)
    assert found == pytest.approx(every_sign(sums), abs=0.015)


def test_the_paired_test_knows_of_images() -> None:
    """Ten questions of one image that all changed are one piece of evidence."""
    change = np.ones(10)
    assert metrics.sign_flip_test(change, np.zeros(10)) == 1.0
    assert metrics.sign_flip_test(change, np.arange(10)) == pytest.approx(2 / 2**10, abs=2e-3)
    assert metrics.sign_flip_test(np.zeros(5), np.arange(5)) == 1.0
    assert metrics.sign_flip_test(np.ones(200), np.arange(200), draws=99) == 0.01  # never 0
    with pytest.raises(ValueError, match="do not fit"):
        metrics.sign_flip_test([1.0, 2.0], [0])


def test_a_metric_of_ranks_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """What stands in the table of metrics is in scores, tables and CSV."""
    from abc_embed.bench import tables
    from abc_embed.bench.ctrlbench import scores

    monkeypatch.setitem(metrics.RANK_METRICS, "r2", ("R@2", lambda of: metrics.recall_at(2, of)))
    found = scores._score(np.array([1, 2, 2, 9]), np.arange(4))
    assert found["r2"] == 0.75
    assert tables._further_scores(found).endswith(", 0.750")
    assert tables._further_scores({"r5": 0.5, "r10": 0.5, "mrr": 0.5}).endswith("–")  # an older one


def test_the_area_of_images_drawn_anew_is_that_of_auc() -> None:
    rng = np.random.default_rng(3)
    above, below = rng.normal(0.6, 1, 60), rng.normal(0, 1, 30)
    clusters = np.arange(60) // 2, np.arange(30)
    found = metrics.auc_share(above, below, clusters)
    assert found["value"] == pytest.approx(metrics.auc(above, below)) and found["of"] == 30
    redrawn = []
    for _ in range(400):  # the same by hand: images with all that both have of them
        drawn = rng.integers(0, 30, 30)
        rows = (2 * drawn[:, None] + np.arange(2)).ravel()
        redrawn.append(metrics.auc(above[rows], below[drawn]))
    assert found["interval"] == pytest.approx(metrics.interval(redrawn), abs=0.04)
    with pytest.raises(ValueError, match="both kinds"):
        metrics.auc_share([], below, ([], clusters[1]))


def test_a_kind_of_question_at_chance() -> None:
    golds = (
        [[n % 3] for n in range(60)]
        + [[3 + n % 8] for n in range(60)]
        + [[n % 2] for n in range(8)]
    )
    kinds = ["shape"] * 60 + ["colour"] * 60 + ["few"] * 8
    right = np.array([n % 3 == 0 for n in range(60)] + [True] * 60 + [False] * 8)
    clusters = [n % 60 for n in range(128)]
    found = metrics.by_kind(right, golds, kinds, clusters)
    assert {name: one["chance"] for name, one in found.items()} == {
        "shape": pytest.approx(1 / 3),
        "colour": pytest.approx(8 / 60),
        "few": 0.5,
    }
    assert found["shape"]["value"] == pytest.approx(1 / 3) and found["colour"]["value"] == 1.0
    assert {name for name, one in found.items() if metrics.at_chance(one)} == {"shape"}
    assert not metrics.at_chance({**found["shape"], "chance": 0.1})
    assert not metrics.at_chance({**found["shape"], "chance": 1.0})  # one answer for all
    older = {name: found["shape"][name] for name in ("value", "interval", "of")}
    assert not metrics.at_chance(older)
