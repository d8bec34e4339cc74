"""Samples: seeded by row, from the right places."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from abc_embed.errors import UsageError
from abc_embed.mining.pools import sample_ranks
from abc_embed.mining.settings import MiningSettings, Strategy


@given(size=st.integers(0, 120), count=st.integers(1, 9), row=st.integers(0, 10**7))
def test_uniform(size: int, count: int, row: int) -> None:
    settings = MiningSettings(sample_size=count, seed=1)
    ranks = sample_ranks(size, settings, row)
    assert len(ranks) == min(size, count)
    assert ranks == sorted(set(ranks))
    assert all(0 <= rank < size for rank in ranks)
    assert ranks == sample_ranks(size, settings, row)


@given(size=st.integers(0, 120), count=st.integers(1, 9), row=st.integers(0, 10**7))
def test_one_of_each_five(size: int, count: int, row: int) -> None:
    settings = MiningSettings(sample_size=count, strategy=Strategy.BINS, seed=1)
    ranks = sample_ranks(size, settings, row)
    assert [rank // 5 for rank in ranks] == list(range(min(count, -(-size // 5))))
    assert all(rank < size for rank in ranks)


def test_every_rank_has_the_same_chance() -> None:
    for strategy, reach, chance in ((Strategy.UNIFORM, 100, 0.07), (Strategy.BINS, 35, 0.2)):
        drawn = [sample_ranks(100, MiningSettings(strategy=strategy), row) for row in range(4000)]
        share = np.bincount(np.concatenate(drawn).astype(int), minlength=100) / 4000
        assert (share[reach:] == 0).all()
        np.testing.assert_allclose(share[:reach], chance, atol=0.035)


def test_rows_and_seeds_differ() -> None:
    drawn = {tuple(sample_ranks(100, MiningSettings(seed=s), r)) for s in (0, 1) for r in range(50)}
    assert len(drawn) == 100


@pytest.mark.parametrize(
    ("changes", "says"), [({"sample_size": -1}, "draw is -1"), ({"seed": -1}, "seed is -1")]
)
def test_refused(changes: dict[str, int], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        MiningSettings(**changes)  # type: ignore[arg-type]
