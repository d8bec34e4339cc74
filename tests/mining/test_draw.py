"""Draws: seeded by row, from the right places."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from abc_embed.errors import UsageError
from abc_embed.mining.sample import How, draw


@given(size=st.integers(0, 120), count=st.integers(0, 9), row=st.integers(0, 10**7))
def test_uniform(size: int, count: int, row: int) -> None:
    ranks = draw(size, count, How.UNIFORM, seed=1, row=row)
    assert len(ranks) == min(size, count)
    assert ranks == sorted(set(ranks))
    assert all(0 <= rank < size for rank in ranks)
    assert ranks == draw(size, count, How.UNIFORM, seed=1, row=row)


@given(size=st.integers(0, 120), count=st.integers(0, 9), row=st.integers(0, 10**7))
def test_one_of_each_five(size: int, count: int, row: int) -> None:
    ranks = draw(size, count, How.BINS, seed=1, row=row)
    assert [rank // 5 for rank in ranks] == list(range(min(count, -(-size // 5))))
    assert all(rank < size for rank in ranks)


def test_every_rank_has_the_same_chance() -> None:
    for how, reach, chance in ((How.UNIFORM, 100, 0.07), (How.BINS, 35, 0.2)):
        drawn = [draw(100, 7, how, seed=0, row=row) for row in range(4000)]
        share = np.bincount(np.concatenate(drawn).astype(int), minlength=100) / 4000
        assert (share[reach:] == 0).all()
        np.testing.assert_allclose(share[:reach], chance, atol=0.035)


def test_rows_and_seeds_differ() -> None:
    drawn = {tuple(draw(100, 7, How.UNIFORM, seed=s, row=r)) for s in (0, 1) for r in range(50)}
    assert len(drawn) == 100


def test_refused() -> None:
    with pytest.raises(UsageError, match="draw is -1"):
        draw(3, -1, How.UNIFORM, seed=0, row=0)
