"""Vectors in shards are read as an array is, whatever part of them is asked for."""

from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from abc_embed.mining import shards as module
from abc_embed.mining.shards import ShardRows, Shards, VectorSpace


@pytest.fixture
def stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Shards, np.ndarray]:
    """Ten vectors, four in a file, and the same as an array."""
    monkeypatch.setattr(module, "SHARD", 4)
    vectors = np.random.default_rng(0).standard_normal((10, 3), dtype=np.float32)
    space = VectorSpace(folder=tmp_path, model="model", width=3)
    shards = Shards(space, [str(n) for n in range(10)])
    for number in shards.missing():
        shards.write(number, vectors[shards.span(number)], {})
    return shards, vectors


@pytest.mark.parametrize(
    "numbers",
    [
        *(slice(0, 10), slice(3, 9), slice(4, 8), slice(5, 6), slice(8, 99), slice(7, 2)),
        *([], [0], [9, 0, 4, 4], [3, 4, 7, 8], range(9, -1, -1)),
    ],
    ids=str,
)
def test_any_rows(stored: tuple[Shards, np.ndarray], numbers: slice | list[int]) -> None:
    shards, vectors = stored
    chosen = numbers if isinstance(numbers, slice) else np.array(numbers, dtype=np.int64)
    assert_array_equal(shards[chosen], vectors[chosen])
    assert shards[chosen].dtype == np.float32
    kept = np.array([1, 2, 3, 5, 8, 9])
    some = chosen if isinstance(chosen, slice) else chosen % 6
    assert_array_equal(ShardRows(shards, kept)[some], vectors[kept][some])
