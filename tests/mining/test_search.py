"""Pools equal brute force, whatever the ties, edges, repeats and blocks."""

import tracemalloc
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from abc_embed.errors import DataError, UsageError
from abc_embed.mining import search as module
from abc_embed.mining.search import RULES, Pools, block_side, search

Case = dict[str, Any]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Small whole numbers, so that every score is exact, and ties and edges are everywhere."""
    width = draw(st.integers(1, 3))
    count = draw(st.integers(1, 14))
    texts = draw(st.lists(st.integers(0, 9), min_size=count, max_size=count))
    number = st.integers(-2, 2)
    vector = st.lists(number, min_size=width, max_size=width)
    of_text = draw(st.lists(vector, min_size=10, max_size=10))
    asked = draw(st.integers(1, 10))
    own = draw(st.lists(st.integers(0, count - 1), min_size=asked, max_size=asked))
    images = draw(st.lists(st.integers(0, 5), min_size=asked, max_size=asked))
    of_image = draw(st.lists(vector, min_size=6, max_size=6))
    return {
        "queries": np.array([of_image[i] for i in images], dtype=np.float32),
        "candidates": np.array([of_text[t] for t in texts], dtype=np.float32),
        "own": np.array(own, dtype=np.int64),
        "captions": np.array(texts, dtype=np.int64),
        "images": np.array(images, dtype=np.int64),
        "epsilon": draw(st.sampled_from([0.25, 0.5, 0.75, 1.0])),
        "pool": draw(st.integers(1, 8)),
    }


def brute(case: Case) -> list[tuple[list[tuple[int, Fraction]], list[int]]]:
    """Each query's pool, and how many each rule dropped, in exact arithmetic."""
    found = []
    captions, images, own = (case[k].tolist() for k in ("captions", "images", "own"))
    for query, vector in enumerate(case["queries"].tolist()):
        true = {captions[o] for o, i in zip(own, images, strict=True) if i == images[query]}
        scores = [
            sum(Fraction(a) * Fraction(b) for a, b in zip(vector, other, strict=True))
            for other in case["candidates"].tolist()
        ]
        line = Fraction(case["epsilon"]) * scores[own[query]]
        dropped, kept = [0] * len(RULES), []
        for number, score in enumerate(scores):
            text = captions[number]
            if text == captions[own[query]]:
                dropped[0] += 1
            elif text in true:
                dropped[1] += 1
            elif text in captions[:number]:
                dropped[2] += 1
            elif score > line:
                dropped[3] += 1
            else:
                kept.append((number, Fraction(score)))
        kept.sort(key=lambda pair: (-pair[1], pair[0]))
        dropped[4] = max(len(kept) - case["pool"], 0)
        found.append((kept[: case["pool"]], dropped))
    return found


def check(case: Case, found: list[Pools]) -> None:
    expected = brute(case)
    place = 0
    for pools in found:
        assert pools.first == place
        for row in range(len(pools.rows)):
            kept, dropped = expected[place]
            size = pools.sizes[row]
            numbers = pools.rows[row, :size].tolist()
            scores = pools.scores[row, :size].tolist()
            assert list(zip(numbers, scores, strict=True)) == kept
            assert (pools.rows[row, size:] == -1).all()
            assert np.isnan(pools.scores[row, size:]).all()
            assert pools.dropped[row].tolist() == dropped
            assert sum(dropped) + size == len(case["candidates"])
            place += 1
    assert place == len(expected)


@given(case=cases(), side=st.sampled_from([1, 2, 3, 5, 100]))
@settings(max_examples=3000)
def test_as_brute_force(case: Case, side: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_SIDE", side)
        check(case, list(search(**case)))


def unit(count: int, width: int, seed: int) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(count, width))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors.astype(np.float32)


def joined(found: list[Pools]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    parts = ([getattr(p, name) for p in found] for name in ("rows", "scores", "dropped"))
    rows, scores, dropped = (np.concatenate(part) for part in parts)
    return rows, scores, dropped


def test_real_vectors_whatever_the_memory() -> None:
    queries, candidates = unit(300, 33, 1), unit(400, 33, 2)
    candidates[100:150] = candidates[:50]  # ties that are no equal texts
    own = np.random.default_rng(3).permutation(300)
    queries += candidates[own]
    wide = joined(list(search(queries, candidates, own)))
    tight = joined(list(search(queries, candidates, own, memory_bytes=200_000)))
    for a, b in zip(wide, tight, strict=True):
        np.testing.assert_array_equal(a, b)
    scores = queries.astype(float) @ candidates.astype(float).T
    for query in range(300):
        line = 0.95 * scores[query, own[query]]
        kept = [c for c in range(400) if scores[query, c] <= line and c != own[query]]
        kept.sort(key=lambda c: (-np.float32(scores[query, c]), c))
        np.testing.assert_array_equal(wide[0][query, : len(kept)], kept[:100])


def test_the_ceiling_holds() -> None:
    queries, candidates = unit(2000, 32, 1), unit(2000, 32, 2)
    own = np.arange(2000)
    given = 3_000_000
    assert block_side(given, 32, 100) < 250  # so that it matters
    tracemalloc.start()
    for _ in search(queries, candidates, own, memory_bytes=given):
        pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < given + 50 * 4000


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("which", ["query", "candidate"])
def test_what_is_no_number_is_refused(value: float, which: str) -> None:
    queries, candidates = unit(5, 4, 1), unit(6, 4, 2)
    (queries if which == "query" else candidates)[3, 2] = value
    with pytest.raises(DataError, match=f"the vector of {which} 3 is not finite"):
        search(queries, candidates, np.arange(5))


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"epsilon": 0.0}, UsageError, "epsilon is 0.0"),
        ({"epsilon": float("nan")}, UsageError, "epsilon is nan"),
        ({"epsilon": 1.01}, UsageError, "epsilon is 1.01"),
        ({"pool": 0}, UsageError, "the pool is 0"),
        ({"memory_bytes": 1000}, UsageError, "give at least 1 MB"),
        ({"own": np.array([0, 1, 2, 3, 6])}, DataError, "candidate 6 is named"),
        ({"own": np.array([0, 1, 2, 3, -1])}, DataError, "0 or more"),
        ({"own": np.arange(4)}, DataError, "each query needs"),
        ({"captions": np.arange(5)}, DataError, "one caption number per candidate"),
        ({"candidates": np.zeros((6, 3), np.float32)}, DataError, "do not fit"),
    ],
)
def test_refused(changes: Case, error: type[Exception], says: str) -> None:
    case = {"queries": unit(5, 4, 1), "candidates": unit(6, 4, 2), "own": np.arange(5)}
    with pytest.raises(error, match=says):
        search(**{**case, **changes})


def test_a_zero_from_below_is_a_zero() -> None:
    queries = np.array([[1e-30]], dtype=np.float32)
    candidates = np.array([[1e30], [-1e-30], [1e-30]], dtype=np.float32)
    (pools,) = search(queries, candidates, np.array([0]), pool=2)
    assert pools.rows.tolist() == [[1, 2]]  # -1e-60 and 1e-60, both 0 as float32: a tie
