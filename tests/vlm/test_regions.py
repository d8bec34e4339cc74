"""The settings of regions is as the paper's: not the largest, at random, and distinct."""

from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from abc_embed.data.records import Record, Region
from abc_embed.errors import UsageError
from abc_embed.vlm.regions import (
    RegionSettings,
    choose_regions,
    first_distinct,
    iou,
    vector_similarity,
    word_similarity,
)


def scene(*regions: tuple[str, tuple[float, float, float, float]], name: str = "x") -> Record:
    rows = tuple(Region(phrase=phrase, box=box) for phrase, box in regions)
    return Record(id=name, image="x.png", width=1000, height=1000, regions=rows)


def grid(count: int, name: str = "x") -> Record:
    """Regions that do not overlap, the later the larger, each with a word of its own."""
    words = [f"thing{i} {i}" for i in range(count)]
    rows = [(w, (40 * (i % 20), 40 * (i // 20), 1 + i, 30)) for i, w in enumerate(words)]
    return scene(*rows, name=name)  # type: ignore[arg-type]


def test_the_largest_are_dropped_and_four_are_drawn() -> None:
    chosen = choose_regions(grid(20), RegionSettings())
    assert chosen.largest == (19, 18, 17, 16, 15)
    assert len(chosen.regions) == 4
    assert max(chosen.regions) < 15
    assert chosen.regions == tuple(sorted(chosen.regions))
    assert chosen.candidates == 15


def test_equal_areas_drop_the_first() -> None:
    record = scene(*((f"thing{i}", (50.0 * i, 0, 10, 10)) for i in range(6)))
    assert choose_regions(record, RegionSettings(drop_largest=2, choose=1)).largest == (0, 1)


def test_large_means_area() -> None:
    record = scene(("thin", (0, 0, 90, 2)), ("tall", (0, 9, 20, 80)), ("wide", (50, 9, 40, 30)))
    assert choose_regions(record, RegionSettings(drop_largest=2, choose=1)).largest == (1, 2)


def test_nine_regions_are_enough_and_eight_are_not() -> None:
    assert choose_regions(grid(9), RegionSettings()).regions == (0, 1, 2, 3)
    assert choose_regions(grid(8), RegionSettings()).regions == ()


def test_the_draw_is_even_and_follows_from_seed_and_name() -> None:
    drawn = [choose_regions(grid(13, name=str(i)), RegionSettings()).regions for i in range(600)]
    again = [choose_regions(grid(13, name=str(i)), RegionSettings()).regions for i in range(600)]
    assert drawn == again
    counts = np.bincount([i for regions in drawn for i in regions], minlength=8)
    assert counts.min() > 240  # of 300 expected, with a deviation of 12
    other = [
        choose_regions(grid(13, name=str(i)), RegionSettings(seed=1)).regions for i in range(600)
    ]
    assert other != drawn


def test_equal_phrases_and_overlapping_boxes_are_never_both_chosen() -> None:
    record = scene(
        ("a red hat", (0, 0, 100, 100)),
        ("The red hat!", (200, 0, 100, 100)),
        ("a dog", (10, 10, 100, 100)),
        ("a cat", (400, 0, 100, 100)),
    )
    for name in range(30):
        one = replace(record, id=str(name))
        loose = RegionSettings(drop_largest=0, choose=2, max_iou=1, max_similarity=1)
        assert set(choose_regions(one, loose).regions) != {0, 1}
        assert set(choose_regions(one, RegionSettings(drop_largest=0, choose=2)).regions) != {0, 2}
        assert choose_regions(one, RegionSettings(drop_largest=0, choose=3)).regions == (1, 2, 3)


def test_phrases_without_meaning_are_told() -> None:
    record = scene(("it is on the", (0, 0, 9, 9)), ("dog", (50, 0, 9, 9)), ("...", (90, 0, 9, 9)))
    chosen = choose_regions(record, RegionSettings(drop_largest=0, choose=1))
    assert (chosen.regions, chosen.wordless) == ((1,), (0, 2))


@given(st.integers(0, 9), st.integers(1, 4), st.randoms(use_true_random=False))
def test_distinct_regions_are_found_where_there_are_some(
    count: int, wanted: int, random: Any
) -> None:
    together = {pair for pair in combinations(range(count), 2) if random.random() < 0.6}

    def apart(i: int, j: int) -> bool:
        return (i, j) not in together

    valid = [c for c in combinations(range(count), wanted) if not together & {*combinations(c, 2)}]
    assert first_distinct(count, wanted, apart) == (valid[0] if valid else ())


boxes = st.tuples(*[st.integers(0, 20)] * 2, *[st.integers(1, 20)] * 2)


@given(boxes, boxes)
def test_overlap_agrees_with_counting_pixels(
    one: tuple[int, int, int, int], other: tuple[int, int, int, int]
) -> None:
    first, second = (np.zeros((60, 60), bool) for _ in range(2))
    for area, (x, y, width, height) in ((first, one), (second, other)):
        area[y : y + height, x : x + width] = True
    assert iou(one, other) == pytest.approx((first & second).sum() / (first | second).sum())


def test_alike_by_words() -> None:
    alike = word_similarity(
        ["a brown dog", "the dog, brown", "brown dogs running", "a cat", "of the"]
    )
    assert alike(0, 1) == 1
    assert alike(0, 2) == pytest.approx(2 / 3)
    assert alike(0, 3) == alike(0, 4) == alike(4, 4) == 0


def test_alike_by_vectors() -> None:
    class Words:
        def embed(self, texts: list[str]) -> np.ndarray:
            rows = [[float("dog" in t), float("cat" in t), 0.1] for t in texts]
            return np.array([np.array(r) / np.linalg.norm(r) for r in rows], np.float32)

    similarity = vector_similarity(Words())  # type: ignore[arg-type]
    record = scene(
        ("a dog", (0, 0, 9, 9)), ("hot dog stand", (50, 0, 9, 9)), ("cat", (99, 0, 9, 9))
    )
    settings = RegionSettings(drop_largest=0, choose=2, max_similarity=0.9)
    assert choose_regions(record, settings).regions  # by words all are apart
    assert set(choose_regions(record, settings, similarity).regions) != {0, 1}
    assert (
        choose_regions(record, RegionSettings(drop_largest=0, choose=3), similarity).regions == ()
    )
    assert choose_regions(scene(), settings, similarity).regions == ()


@pytest.mark.parametrize(
    "values", [{"choose": 0}, {"drop_largest": -1}, {"max_iou": 1.1}, {"max_similarity": -0.1}]
)
def test_settingss_that_cannot_be(values: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(values))):
        RegionSettings(**values)
