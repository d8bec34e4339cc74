"""Which items go through the model together: by kind, by picture, by cost.

Does: cut an endless stream into windows (`windows`) and a window into batches (`plan`), as index
lists, so that order is restored by writing each result to its index. Does not: touch a tensor.
Why by kind: the three kinds need different adapters and have different lengths. Why by picture:
the instructions asked of one picture then follow each other and share its visual tokens. Why by
cost, dearest first: little padding, and a batch too large for the device fails at the start.
"""

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import TypeVar

from abc_embed.inputs import Kind
from abc_embed.processor import Features

MAX_BATCH_TOKENS = 32_768
"""Most tokens of a batch, padding included: 32 pictures at 1024 visual tokens."""

T = TypeVar("T")


def plan(
    features: Sequence[Features], batch_size: int, max_tokens: int = MAX_BATCH_TOKENS
) -> list[list[int]]:
    """Indices into ``features``, batch by batch; every index comes once.

    A batch has one kind, at most ``batch_size`` items and at most ``max_tokens`` tokens with its
    padding, unless one item alone has more.
    """
    dearest: dict[str | None, int] = {}
    for item in features:
        dearest[item.image_key] = max(item.tokens, dearest.get(item.image_key, 0))

    def cost(index: int) -> tuple[int, str, int]:
        item = features[index]
        if item.image_key is None:
            return (-item.tokens, "", 0)
        return (-dearest[item.image_key], item.image_key, -item.tokens)

    batches: list[list[int]] = []
    for kind in Kind:
        batch: list[int] = []
        longest = 0
        for index in sorted((i for i, f in enumerate(features) if f.kind is kind), key=cost):
            longest = max(longest, features[index].tokens)
            full = len(batch) == batch_size or longest * (len(batch) + 1) > max_tokens
            if batch and full:
                batches.append(batch)
                batch, longest = [], features[index].tokens
            batch.append(index)
        if batch:
            batches.append(batch)
    return batches


def windows(
    values: Iterable[T],
    *,
    max_items: int,
    max_images: int,
    image_of: Callable[[T], Hashable | None],
) -> Iterator[list[T]]:
    """Consecutive pieces of any iterable, read only as far as each piece needs.

    A window ends after ``max_items`` values, or before the one that would bring in one different
    picture more than ``max_images``; ``image_of`` says which picture a value shows (None: none).
    """
    window: list[T] = []
    images: set[Hashable] = set()
    for value in values:
        image = image_of(value)
        is_new = image is not None and image not in images
        if window and is_new and len(images) == max_images:
            yield window
            window, images = [], set()
        window.append(value)
        if image is not None:
            images.add(image)
        if len(window) == max_items:  # at once: the next value may be long in coming
            yield window
            window, images = [], set()
    if window:
        yield window


def grouped(images: Sequence[Hashable | None]) -> list[int]:
    """Indices in an order in which those of one picture follow each other; texts likewise."""
    groups: dict[Hashable | None, list[int]] = {}
    for index, image in enumerate(images):
        groups.setdefault(image, []).append(index)
    return [index for group in groups.values() for index in group]
