"""Pools equal brute force, whatever the method, the ties, edges, repeats and blocks."""

import importlib.util
import tracemalloc
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from abc_embed.errors import DataError, MissingExtraError, UsageError
from abc_embed.mining import search as module
from abc_embed.mining.engines import Blocks, Method, blocks, resolve_method
from abc_embed.mining.pools import RULES, Pools
from abc_embed.mining.search import How, search

Case = dict[str, Any]
PLAIN, FLAT, IVF = How(method=Method.PLAIN), How(method=Method.FLAT), How(method=Method.IVF)


def a_case(seed: int) -> Case:
    """Small whole numbers, so that every score is exact, and ties and edges are everywhere."""
    random = np.random.default_rng(seed)
    width, count, asked = random.integers(1, [4, 15, 11])
    of_image = random.integers(-2, 3, (6, width))
    images = random.integers(0, 6, asked)
    return {
        "queries": of_image[images].astype(np.float32),
        "candidates": random.integers(-2, 3, (count, width)).astype(np.float32),
        "own": random.integers(0, count, asked),
        "images": images,
        "epsilon": float(random.choice([0.25, 0.5, 0.75, 1.0])),
        "pool": int(random.integers(1, 9)),
    }


def brute(case: Case) -> list[tuple[list[tuple[int, float]], list[int], int]]:
    """Each query's pool, how many each rule dropped, and how many beat the own caption."""
    found = []
    images, own = (case[k].tolist() for k in ("images", "own"))
    for query, vector in enumerate(case["queries"].tolist()):
        true = {o for o, i in zip(own, images, strict=True) if i == images[query]}
        scores = [
            sum(a * b for a, b in zip(vector, other, strict=True))  # whole numbers: exact
            for other in case["candidates"].tolist()
        ]
        line = case["epsilon"] * scores[own[query]]
        dropped, kept, better = [0] * len(RULES), [], 0
        for number, score in enumerate(scores):
            better += number not in true and score > scores[own[query]]
            if number == own[query]:
                dropped[0] += 1
            elif number in true:
                dropped[1] += 1
            elif score > line:
                dropped[2] += 1
            else:
                kept.append((number, score))
        kept.sort(key=lambda pair: (-pair[1], pair[0]))
        dropped[3] = max(len(kept) - case["pool"], 0)
        found.append((kept[: case["pool"]], dropped, better))
    return found


def check(case: Case, found: list[Pools]) -> None:
    expected = brute(case)
    place = 0
    for pools in found:
        assert pools.first == place
        for row in range(len(pools.rows)):
            kept, dropped, better = expected[place]
            size = pools.sizes[row]
            numbers = pools.rows[row, :size].tolist()
            scores = pools.scores[row, :size].tolist()
            assert list(zip(numbers, scores, strict=True)) == kept
            assert (pools.rows[row, size:] == -1).all()
            assert np.isnan(pools.scores[row, size:]).all()
            assert pools.dropped[row].tolist() == dropped
            assert pools.better[row] == better
            assert sum(dropped) + size == len(case["candidates"])
            place += 1
    assert place == len(expected)


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets the side of blocks, whatever the memory, and how many are asked for at first."""
    made = module._Search.__init__

    def let(side: int, ask: int = 1, at_once: int = 64) -> None:
        def begin(self: Any, *args: Any) -> None:
            made(self, *args)
            self._ask = ask

        room = at_once * 4200
        cut = Blocks(side, side + 1, side, room, taken_bytes=at_once * 50, pair_bytes=200)
        monkeypatch.setattr(module, "blocks", lambda *_: cut)
        monkeypatch.setattr(module._Search, "__init__", begin)

    monkeypatch.setattr(module, "_within", lambda exact, size: size)
    return let


def test_plain_as_brute_force(few: Any) -> None:
    for seed in range(1500):
        few((1, 2, 3, 5, 100)[seed % 5])
        case = a_case(seed)
        check(case, list(search(**case, how=PLAIN)))


def test_faiss_as_brute_force(few: Any) -> None:
    """It asks for few at first, so that every doubt comes up: ties, lines, pools not full."""
    for seed in range(2000):
        few((2, 3, 5, 100)[seed % 4], ask=1 + seed % 9, at_once=(1, 3, 64)[seed % 3])
        case = a_case(seed)
        check(case, list(search(**case, how=FLAT)))


def test_ivf_that_looks_everywhere_as_brute_force(few: Any) -> None:
    for seed in range(250):
        few((2, 5, 100)[seed % 3], ask=100)
        case = a_case(seed)
        found = list(search(**case, how=replace(IVF, cells=1, probes=9)))
        check(case, found)
        hits, of = (sum(p.recalled[i] for p in found) for i in (0, 1))
        assert hits == of == sum(p.sizes.sum() for p in found)


def test_a_search_goes_on_from_any_query(few: Any) -> None:
    for seed in range(300):
        few((2, 3)[seed % 2])
        case = a_case(seed)
        start = min(seed % 5, len(case["own"]))
        rest = list(search(**case, how=FLAT, start=start))
        check(case, [*_cut(list(search(**case, how=PLAIN)), start), *rest])


def _cut(found: list[Pools], stop: int) -> list[Pools]:
    """Pools of the queries before `stop`, one by one."""
    names = ("rows", "scores", "own", "better", "dropped")
    singles = [
        Pools(p.first + i, **{name: getattr(p, name)[i : i + 1] for name in names})
        for p in found
        for i in range(len(p.own))
    ]
    return singles[:stop]


def unit(count: int, width: int, seed: int) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(count, width))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors.astype(np.float32)


def joined(found: list[Pools]) -> list[np.ndarray]:
    names = ("rows", "scores", "own", "better", "dropped")
    return [np.concatenate([getattr(p, name) for p in found]) for name in names]


def pairs(count: int, others: int, width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images near their captions, some captions twice, and some very near others."""
    queries, candidates = unit(count, width, 1), unit(others, width, 2)
    candidates[100:150] = candidates[:50]  # ties
    candidates[150:200] = candidates[:50] + 1e-8  # nearly ties, in the last bits of a score
    own = np.random.default_rng(3).permutation(others)[:count]
    queries += candidates[own]
    return queries, candidates, own


def test_real_vectors_whatever_the_memory_and_the_method() -> None:
    queries, candidates, own = pairs(300, 1200, 33)
    wide = joined(list(search(queries, candidates, own, how=PLAIN)))
    for how in (
        replace(PLAIN, memory_bytes=900_000),
        FLAT,
        replace(FLAT, memory_bytes=900_000),
        replace(IVF, cells=3, probes=3),
        replace(IVF, cells=3, probes=3, memory_bytes=900_000),
    ):
        for a, b in zip(wide, joined(list(search(queries, candidates, own, how=how))), strict=True):
            np.testing.assert_array_equal(a, b)
    scores = queries.astype(float) @ candidates.astype(float).T
    for query in range(300):
        line = 0.95 * scores[query, own[query]].astype(np.float32).astype(float)
        rounded = scores[query].astype(np.float32)
        kept = [c for c in range(1200) if rounded[c] <= line and c != own[query]]
        kept.sort(key=lambda c: (-rounded[c], c))
        np.testing.assert_array_equal(wide[0][query, : len(kept)], kept[:100])


def test_faiss_alone_would_be_wrong_here() -> None:
    """Scores whose order float32 sums cannot tell: the case that needs scoring anew."""
    import faiss

    queries, candidates, _ = pairs(300, 1200, 33)
    scores = queries.astype(float) @ candidates.astype(float).T
    order = np.argsort(-scores.astype(np.float32), axis=1, kind="stable")[:, :100]
    _, near = faiss.knn(queries, candidates, 100, metric=faiss.METRIC_INNER_PRODUCT)
    assert (near != order).any()


def test_few_cells_miss_some_and_it_is_counted() -> None:
    queries, candidates, own = pairs(300, 1200, 33)
    truth = list(search(queries, candidates, own, how=PLAIN, pool=20))
    found = list(search(queries, candidates, own, how=replace(IVF, probes=2), pool=20))
    sampled = module.SAMPLE
    hits, of = (sum(p.recalled[i] for p in found) for i in (0, 1))
    assert of == sampled * 20
    right = [np.isin(a, b).sum() for a, b in zip(truth[0].rows, found[0].rows, strict=True)]
    assert 0.1 < hits / of < 0.95
    assert abs(hits / of - sum(right) / (300 * 20)) < 0.05


class OnDisk:
    """Vectors of which every read is a copy, as from a file."""

    def __init__(self, vectors: np.ndarray) -> None:
        self._vectors, self.shape = vectors, vectors.shape

    def __getitem__(self, numbers: Any) -> np.ndarray:
        return self._vectors[numbers].copy()


@pytest.mark.parametrize("how", [PLAIN, FLAT, IVF], ids=lambda how: how.method)
def test_the_ceiling_holds(how: How) -> None:
    queries, candidates = unit(150, 32, 1), unit(5000, 32, 2)
    given = 1_000_000
    how = replace(how, memory_bytes=given)
    cut = blocks(given, 32, 100, how.method)
    assert cut.queries < 75 and cut.candidates < 4000  # so that it matters
    list(search(queries[:10], candidates, np.arange(10), how=how))  # what is imported once
    tracemalloc.start()
    for _ in search(OnDisk(queries), OnDisk(candidates), np.arange(150), how=how):
        pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < given + 60 * 5150


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("which", ["query", "candidate"])
@pytest.mark.parametrize("how", [PLAIN, FLAT], ids=lambda how: how.method)
def test_what_is_no_number_is_refused(how: How, value: float, which: str) -> None:
    queries, candidates = unit(5, 4, 1), unit(6, 4, 2)
    (queries if which == "query" else candidates)[3, 2] = value
    with pytest.raises(DataError, match=f"the vector of {which} 3 is not finite"):
        next(search(queries, candidates, np.arange(5), how=how))


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"epsilon": 0.0}, UsageError, "epsilon is 0.0"),
        ({"epsilon": float("nan")}, UsageError, "epsilon is nan"),
        ({"epsilon": 1.01}, UsageError, "epsilon is 1.01"),
        ({"pool": 0}, UsageError, "the pool is 0"),
        ({"how": How(memory_bytes=1000)}, UsageError, "give at least 1 MB"),
        ({"own": np.array([0, 1, 2, 3, 6])}, DataError, "candidate 6 is named"),
        ({"own": np.array([0, 1, 2, 3, -1])}, DataError, "0 or more"),
        ({"own": np.arange(4)}, DataError, "each query needs"),
        ({"images": np.arange(4)}, DataError, "one image number per query"),
        ({"candidates": np.zeros((6, 3), np.float32)}, DataError, "do not fit"),
    ],
)
def test_refused(changes: Case, error: type[Exception], says: str) -> None:
    case = {"queries": unit(5, 4, 1), "candidates": unit(6, 4, 2), "own": np.arange(5)}
    with pytest.raises(error, match=says):
        search(**{**case, **changes})
    with pytest.raises(UsageError, match="probes is 0"):
        How(probes=0)


@pytest.mark.parametrize("how", [PLAIN, FLAT], ids=lambda how: how.method)
def test_a_zero_from_below_is_a_zero(how: How) -> None:
    queries = np.array([[1e-30]], dtype=np.float32)
    candidates = np.array([[1e30], [-1e-30], [1e-30]], dtype=np.float32)
    (pools,) = search(queries, candidates, np.array([0]), pool=2, how=how)
    assert pools.rows.tolist() == [[1, 2]]  # -1e-60 and 1e-60, both 0 as float32: a tie


def test_the_smallest_memory_that_is_named_is_enough() -> None:
    for width in (8, 256, 3584):
        with pytest.raises(UsageError, match="give at least") as raised:
            blocks(1000, width, 100, Method.FLAT)
        least = int(str(raised.value).split()[-2])
        assert blocks(least * 10**6, width, 100, Method.FLAT).side >= 16


def test_without_faiss(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_method(Method.AUTO) is Method.FLAT
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert resolve_method(Method.AUTO) is Method.PLAIN
    with pytest.raises(MissingExtraError, match=r"pip install 'abc-embed\[mine\]'"):
        resolve_method(Method.IVF)
