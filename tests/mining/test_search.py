"""Pools equal brute force, whatever the method, the format, the ties, edges, repeats and blocks."""

import importlib.util
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch

from abc_embed.errors import DataError, MissingExtraError, UsageError
from abc_embed.mining.pools import RULES, Pools, Truth, recall
from abc_embed.mining.search import Lanes, search
from abc_embed.mining.settings import Blocks, Method, MiningSettings, share_memory

Case = dict[str, Any]
FLAT, PLAIN, IVF = (MiningSettings(method=m) for m in (Method.FLAT, Method.PLAIN, Method.IVF))
FORMATS = (torch.float32, torch.bfloat16)


def a_case(seed: int) -> Case:
    """Small whole numbers, so that every score is exact, and ties and edges are everywhere."""
    random = np.random.default_rng(seed)
    width, count, asked = random.integers(1, [4, 50, 24])
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


def some_blocks(seed: int) -> Blocks:
    """From one of everything to all at once."""
    side = (1, 3, 7, 16, 100)[seed % 5]
    tile = (32, 64)[seed % 2]
    return Blocks(2 * side, 3 * side + 1, side, tile, pair_bytes=(64, 1000, 10**6)[seed % 3])


def find(
    queries: Any,
    candidates: Any,
    own: np.ndarray,
    *,
    images: np.ndarray | None = None,
    settings: MiningSettings = FLAT,
    blocks: Blocks | None = None,
    product_dtype: torch.dtype | None = None,
    start: int = 0,
    **rules: Any,
) -> list[Pools]:
    """All pools; `rules` are those of the settings."""
    return list(
        search(
            queries,
            candidates,
            Truth(own, images),
            replace(settings, **rules),
            blocks=blocks,
            product_dtype=product_dtype,
            start=start,
        )
    )


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


def test_flat_as_brute_force() -> None:
    for seed in range(70):
        case = a_case(seed)
        for dtype in FORMATS:
            check(case, find(**case, blocks=some_blocks(seed), product_dtype=dtype))


def test_plain_as_brute_force() -> None:
    for seed in range(60):
        case = a_case(seed)
        check(case, find(**case, settings=PLAIN, blocks=some_blocks(seed)))


def test_ivf_that_looks_everywhere_as_brute_force() -> None:
    settings = replace(IVF, nlist=1, nprobe=9)
    for seed in range(30):
        case = a_case(seed)
        pools = find(**case, settings=settings, blocks=Blocks(30, 40, 10, 32, 10**6))
        check(case, pools)


def test_several_devices_as_one() -> None:
    settings = MiningSettings(devices=("cpu",) * 3)
    for seed in range(20):
        case, steps = a_case(seed), []
        truth = Truth(case.pop("own"), case.pop("images"))
        vectors = case.pop("queries"), case.pop("candidates")
        pools = search(
            *vectors,
            truth,
            replace(settings, **case),
            blocks=some_blocks(seed),
            on_progress=steps.append,
        )
        check(a_case(seed), list(pools))
        assert steps == sorted(steps)
        assert steps[-1] == len(truth.own)


def test_a_search_goes_on_from_any_query() -> None:
    for seed in range(25):
        case = a_case(seed)
        start = min(seed % 5, len(case["own"]))
        rest = find(**case, blocks=some_blocks(seed), start=start)
        assert not rest or rest[0].first == start
        check(case, [*_cut(find(**case, settings=PLAIN), start), *rest])


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


def equal(expected: list[np.ndarray], pools: list[Pools]) -> None:
    for a, b in zip(expected, joined(pools), strict=True):
        np.testing.assert_array_equal(a, b)


def test_real_vectors_whatever_the_memory_and_the_method() -> None:
    queries, candidates, own = pairs(300, 1200, 33)
    expected = joined(find(queries, candidates, own, settings=PLAIN))
    memories = (10**9, 900_000, 600_000)
    for memory, dtype in product(memories, FORMATS):
        settings = replace(FLAT, memory_bytes=memory)
        pools = find(queries, candidates, own, settings=settings, product_dtype=dtype)
        equal(expected, pools)
    for memory in memories:
        settings = replace(IVF, nlist=3, nprobe=3, memory_bytes=memory)
        equal(expected, find(queries, candidates, own, settings=settings))
    scores = queries.astype(float) @ candidates.astype(float).T
    for query in range(300):
        line = 0.95 * scores[query, own[query]].astype(np.float32).astype(float)
        rounded = scores[query].astype(np.float32)
        inside = [c for c in range(1200) if rounded[c] <= line and c != own[query]]
        inside.sort(key=lambda c: (-rounded[c], c))
        np.testing.assert_array_equal(expected[0][query, : len(inside)], inside[:100])


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize(
    "kind", ["equal", "all above", "near 0", "none above", "negative", "rising"]
)
def test_vectors_that_are_hard_to_tell_apart(dtype: torch.dtype, kind: str) -> None:
    """What no bound can sort out is scored anew, however much it is."""
    queries, candidates, own = pairs(40, 900, 16)
    if kind == "equal":
        candidates[:] = candidates[0]
    elif kind == "all above":
        candidates[own] = -queries  # own captions score least
    elif kind == "near 0":  # half of all lie above the line, many of them next to it
        away = unit(40, 16, 4)
        candidates[own] = away - (away * queries).sum(1, keepdims=True) / 4 * queries
    elif kind == "none above":
        candidates *= 1e-3
        candidates[own] = queries
    elif kind == "negative":
        candidates = -np.abs(candidates)
        queries = np.abs(queries)
    else:  # each block of candidates is better than the one before
        candidates = candidates[np.argsort(candidates @ queries[0])]
    expected = joined(find(queries, candidates, own, settings=PLAIN, pool=20))
    for blocks in (None, Blocks(16, 128, 16, 32, 4000)):
        equal(
            expected,
            find(queries, candidates, own, pool=20, blocks=blocks, product_dtype=dtype),
        )


@pytest.mark.parametrize("dtype", FORMATS)
def test_fast_scores_alone_would_be_wrong_here(dtype: torch.dtype) -> None:
    """Scores whose order such products cannot tell: the case that needs scoring anew."""
    queries, candidates, _ = pairs(300, 1200, 33)
    scores = queries.astype(float) @ candidates.astype(float).T
    order = np.argsort(-scores.astype(np.float32), axis=1, kind="stable")[:, :100]
    left, right = (torch.from_numpy(v).to(dtype) for v in (queries, candidates))
    assert ((left @ right.T).float().topk(100).indices.numpy() != order).any()


def test_few_cells_miss_some_and_it_is_counted() -> None:
    queries, candidates, own = pairs(300, 1200, 33)
    truth, sample = Truth(own), np.arange(0, 300, 3)
    plain, few = (replace(s, pool=20, nprobe=2) for s in (PLAIN, IVF))
    exact = list(search(queries, candidates, truth, plain))
    blocks = Blocks(70, 1200, 64, 2048, 10**6)
    pools = list(search(queries, candidates, truth, few, blocks=blocks))
    some = list(search(queries[sample], candidates, truth[sample], plain))
    np.testing.assert_array_equal(joined(some)[0], joined(exact)[0][sample])
    right = [np.isin(a, b).sum() for a, b in zip(joined(exact)[0], joined(pools)[0], strict=True)]
    found = recall(pools, some, sample)
    assert found == np.array(right)[sample].sum() / (100 * 20)
    assert 0.1 < found < 0.95
    assert recall(exact, some, sample) == 1
    assert recall([], [], sample[:0]) is None


def test_what_is_true_of_some_queries_is_what_was_true_of_all() -> None:
    truth = Truth(np.array([4, 5, 6, 5]), np.array([7, 8, 7, 9]), np.array([[1, 2], [2, 0]]))
    expected = [[0, 4, 6], [2, 5], [0, 4, 6], [5]]
    for chosen in (slice(0, 4), slice(1, 3), np.array([3, 0, 0]), np.array([], dtype=int)):
        query, text = truth[chosen].pairs()
        places = np.arange(4)[chosen].tolist()
        found = [text[query == place].tolist() for place in range(len(places))]
        assert found == [expected[place] for place in places]
        assert truth[chosen].own.tolist() == [[4, 5, 6, 5][place] for place in places]


class OnDisk:
    """Vectors of which every read is a copy, as from a file."""

    def __init__(self, vectors: np.ndarray) -> None:
        self._vectors, self.shape = vectors, vectors.shape

    def __getitem__(self, numbers: Any) -> np.ndarray:
        return self._vectors[numbers].copy()


@pytest.fixture(params=[1, 2, 8])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """So many threads of torch."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("settings", [PLAIN, FLAT, IVF], ids=lambda settings: settings.method)
def test_the_ceiling_holds(settings: MiningSettings, threads: int) -> None:
    """Of what NumPy allocates; tools/bench_mining.py watches the whole process."""
    queries, candidates = unit(150, 32, 1), unit(5000, 32, 2)
    memory = 1_000_000
    settings = replace(settings, memory_bytes=memory)
    blocks = share_memory(memory, 32, 100)
    assert blocks.queries < 75 and blocks.candidates < 4000  # so that it matters
    find(queries[:10], candidates, np.arange(10), settings=settings)  # imports
    tracemalloc.start()
    for _ in search(OnDisk(queries), OnDisk(candidates), Truth(np.arange(150)), settings):
        pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < memory + 60 * 5150


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30])
@pytest.mark.parametrize("which", ["query", "candidate"])
@pytest.mark.parametrize("settings", [PLAIN, FLAT], ids=lambda settings: settings.method)
def test_what_is_no_number_is_refused(settings: MiningSettings, value: float, which: str) -> None:
    queries, candidates = unit(5, 4, 1), unit(6, 4, 2)
    (queries if which == "query" else candidates)[3, 2] = value
    with pytest.raises(DataError, match=f"the vector of {which} 3 is not finite"):
        find(queries, candidates, np.arange(5), settings=settings)


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
        ({"images": np.arange(4)}, DataError, "one image number per query"),
        ({"candidates": np.zeros((6, 3), np.float32)}, DataError, "do not fit"),
    ],
)
def test_refused(changes: Case, error: type[Exception], says: str) -> None:
    case = {"queries": unit(5, 4, 1), "candidates": unit(6, 4, 2), "own": np.arange(5)}
    with pytest.raises(error, match=says):
        find(**{**case, **changes})
    with pytest.raises(UsageError, match="probes is 0"):
        MiningSettings(nprobe=0)


@pytest.mark.parametrize("settings", [PLAIN, FLAT], ids=lambda settings: settings.method)
def test_a_zero_from_below_is_a_zero(settings: MiningSettings) -> None:
    queries = np.array([[1e-30]], dtype=np.float32)
    candidates = np.array([[1e15], [-1e-30], [1e-30]], dtype=np.float32)
    (pools,) = find(queries, candidates, np.array([0]), pool=2, settings=settings)
    assert pools.rows.tolist() == [[1, 2]]  # -1e-60 and 1e-60, both 0 as float32: a tie


def test_the_smallest_memory_that_is_named_is_enough() -> None:
    for width, device in product((8, 256, 3584), ("cpu", "cuda")):
        with pytest.raises(UsageError, match="give at least") as raised:
            share_memory(1000, width, 100, device=device)
        least = int(str(raised.value).split()[-2])
        assert share_memory(least * 10**6, width, 100, device=device).rows >= 16


def test_scores_that_are_not_held_bound_no_block() -> None:
    """Captions are cut by the room of their vectors alone; tiles have a room of their own."""
    for width in (1, 64, 1024):
        assert share_memory(10**9, width, 100, value_bytes=6).candidates == 10**9 // (12 * width)
    for lanes in (1, 4, 16):
        blocks = share_memory(50 * 10**6, 64, 100, lanes=lanes)
        assert blocks.rows * lanes * max(256 * 100, 8 * blocks.tile) <= 0.18 * 50 * 10**6
    small = share_memory(4 * 10**9, 64, 100, value_bytes=6, device="cuda")
    assert 8 * small.rows * small.tile <= 0.12 * 4 * 10**9


def test_the_published_set_on_large_cards() -> None:
    """2.25 million captions of width 3,584 are read once by a card of 80 GB."""
    blocks = share_memory(72 * 10**9, 3584, 100, value_bytes=6, device="cuda")
    assert blocks.candidates >= 2_250_000
    assert blocks.queries == 16384 and blocks.rows >= 512


def test_without_faiss(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    case = a_case(1)
    check(case, find(**case))
    with pytest.raises(MissingExtraError, match=r"pip install 'abc-embed\[mine\]'"):
        find(**case, settings=IVF)


def test_lanes_compute_alone_and_leave_later_threads_as_they_were() -> None:
    threads, seen = torch.get_num_threads(), []
    lanes = Lanes(torch.device("cpu"))
    lanes.run(lambda piece: seen.append((piece, torch.get_num_threads())), range(8))
    assert sorted(seen) == [(piece, 1) for piece in range(8)]
    with ThreadPoolExecutor(1) as later:
        assert later.submit(torch.get_num_threads).result() == threads
    assert torch.get_num_threads() == threads
