"""The same scores give the same numbers in mteb. In a file of its own: mteb is slow to import."""

import numpy as np
import pytest

from abc_embed.bench import metrics


@pytest.mark.parametrize("seed", range(3))
def test_the_same_as_mteb(seed: int) -> None:
    """Its hit rate is R@k with several right answers; its recall_at_1 is not."""
    library = pytest.importorskip("mteb._evaluators.retrieval_metrics")
    rng = np.random.default_rng(seed)
    scores = rng.permutation(40 * 25).reshape(40, 25) / 1000  # none twice: its ties go by name
    golds = [rng.choice(25, size=rng.integers(1, 8), replace=False).tolist() for _ in range(40)]
    relevant = {f"q{n}": {f"d{i}": 1 for i in of} for n, of in enumerate(golds)}
    results = {
        f"q{n}": {f"d{i}": float(score) for i, score in enumerate(row)}
        for n, row in enumerate(scores)
    }
    theirs = library.calculate_retrieval_scores(results, relevant, [1, 5, 10, 25])
    found = metrics.best_ranks(scores, golds)
    for k in (1, 5, 10):
        ours = metrics.recall_at(k, found)
        assert ours == pytest.approx(theirs.hit_rate[f"HitRate@{k}"], abs=1e-5)
    reciprocal = np.mean(theirs.mrr["MRR@25"])
    assert metrics.mean_reciprocal_rank(found) == pytest.approx(reciprocal, abs=1e-5)
    assert theirs.recall["Recall@1"] != pytest.approx(metrics.recall_at(1, found), abs=1e-5)
