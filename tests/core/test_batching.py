"""What goes together: by kind, picture and cost; nothing lost or doubled."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from abc_embed.inputs import Kind, group_by_image
from abc_embed.pipeline import plan_batches
from abc_embed.processor import Features


def features(kind: Kind, tokens: int, image: str | None = None) -> Features:
    return Features(kind, torch.zeros(tokens, dtype=torch.int64), None, None, image)


def any_features() -> st.SearchStrategy[Features]:
    texts = st.builds(features, st.just(Kind.TEXT), st.integers(1, 50))
    shown = st.sampled_from([Kind.IMAGE, Kind.INSTRUCTED])
    return texts | st.builds(features, shown, st.integers(1, 50), st.sampled_from("abcde"))


@given(st.lists(any_features(), max_size=60), st.integers(1, 9), st.integers(1, 300))
def test_a_plan_is_a_partition_within_its_limits(
    items: list[Features], batch_size: int, max_tokens: int
) -> None:
    batches = plan_batches(items, batch_size, max_tokens)
    assert sorted(index for batch in batches for index in batch) == list(range(len(items)))
    for batch in batches:
        assert 0 < len(batch) <= batch_size
        assert len({items[index].kind for index in batch}) == 1
        padded = len(batch) * max(items[index].tokens for index in batch)
        assert padded <= max_tokens or len(batch) == 1


@given(st.lists(any_features(), max_size=60), st.integers(1, 9))
def test_batches_are_as_full_as_they_can_be(items: list[Features], batch_size: int) -> None:
    batches = plan_batches(items, batch_size, max_tokens=10**9)
    for kind in Kind:
        sizes = [len(batch) for batch in batches if items[batch[0]].kind is kind]
        assert all(size == batch_size for size in sizes[:-1])


def test_a_budget_of_tokens_alone_fills_batches() -> None:
    items = [features(Kind.TEXT, 10) for _ in range(25)]
    assert [len(batch) for batch in plan_batches(items, None, 100)] == [10, 10, 5]


def test_by_the_budget_long_and_short_items_part() -> None:
    items = [features(Kind.TEXT, tokens) for tokens in (50, 50, 49, 20, 19, 18)]
    assert plan_batches(items, None, 400) == [[0, 1, 2], [3, 4, 5]]
    assert plan_batches(items, 6, 400) == [[0, 1, 2, 3, 4, 5]]
    few = [features(Kind.TEXT, tokens) for tokens in (50, 20, 19)]
    assert plan_batches(few, None, 1000) == [[0, 1, 2]]  # too few to part


def test_texts_come_dearest_first() -> None:
    items = [features(Kind.TEXT, tokens) for tokens in (3, 9, 1, 7, 5)]
    assert plan_batches(items, 2) == [[1, 3], [4, 0], [2]]


def test_the_instructions_of_a_picture_follow_each_other() -> None:
    tokens = [("a", 20), ("b", 90), ("a", 80), ("b", 21), ("c", 85), ("a", 22)]
    items = [features(Kind.INSTRUCTED, cost, image) for image, cost in tokens]
    assert plan_batches(items, 2) == [[1, 3], [4, 2], [5, 0]]


def test_grouped_keeps_each_picture_together() -> None:
    assert group_by_image(["a", None, "b", "a", None, "c", "b"]) == [0, 3, 1, 4, 2, 6, 5]
    assert group_by_image([]) == []
