"""What goes together: by kind, picture and cost; nothing lost, doubled, or read too early."""

from collections.abc import Iterator

import torch
from hypothesis import given
from hypothesis import strategies as st

from abc_embed.inputs import Kind
from abc_embed.pipeline import group_by_image, plan, windows
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
    batches = plan(items, batch_size, max_tokens)
    assert sorted(index for batch in batches for index in batch) == list(range(len(items)))
    for batch in batches:
        assert 0 < len(batch) <= batch_size
        assert len({items[index].kind for index in batch}) == 1
        padded = len(batch) * max(items[index].tokens for index in batch)
        assert padded <= max_tokens or len(batch) == 1


@given(st.lists(any_features(), max_size=60), st.integers(1, 9))
def test_batches_are_as_full_as_they_can_be(items: list[Features], batch_size: int) -> None:
    batches = plan(items, batch_size, max_tokens=10**9)
    for kind in Kind:
        sizes = [len(batch) for batch in batches if items[batch[0]].kind is kind]
        assert all(size == batch_size for size in sizes[:-1])


def test_texts_come_dearest_first() -> None:
    items = [features(Kind.TEXT, tokens) for tokens in (3, 9, 1, 7, 5)]
    assert plan(items, 2) == [[1, 3], [4, 0], [2]]


def test_the_instructions_of_a_picture_follow_each_other() -> None:
    tokens = [("a", 20), ("b", 90), ("a", 80), ("b", 21), ("c", 85), ("a", 22)]
    items = [features(Kind.INSTRUCTED, cost, image) for image, cost in tokens]
    assert plan(items, 2) == [[1, 3], [4, 2], [5, 0]]


def image_of(value: str) -> str | None:
    return None if value == "-" else value


@given(st.text("-abcdef", max_size=80), st.integers(1, 9), st.integers(1, 4))
def test_windows_are_consecutive_and_within_their_limits(
    values: str, max_items: int, max_images: int
) -> None:
    cut = list(windows(values, max_items=max_items, max_images=max_images, image_of=image_of))
    assert "".join("".join(window) for window in cut) == values
    for window in cut:
        assert 0 < len(window) <= max_items
        assert len(set(window) - {"-"}) <= max_images


def test_a_full_window_does_not_wait_for_the_next_value() -> None:
    def values() -> Iterator[str]:
        yield from "aab"
        raise AssertionError("read too far")

    cut = windows(values(), max_items=3, max_images=9, image_of=image_of)
    assert next(cut) == ["a", "a", "b"]


def test_grouped_keeps_each_picture_together() -> None:
    assert group_by_image(["a", None, "b", "a", None, "c", "b"]) == [0, 3, 1, 4, 2, 6, 5]
    assert group_by_image([]) == []
