"""Training data: from a source, by step number, to the features that one step eats.

Does: say what a source is (`Source`), open and tokenize its groups, merge equal texts, cut chunks.
Does not: work ahead in other processes (``loader``), embed, or remember anything between steps: a
step's data follow from its number and the seed alone, so a resumed run sees what an unbroken one
would.

Two choices that differ from a plain loader. *Equal texts are one candidate*: when two images of a
batch share a caption, the second is not wrong for the first, as it would be if it stood there
twice. *Short ones come first*, images as well as texts, so that chunks of them hold little padding;
the loss is a mean over the queries and a sum over the candidates, so it does not see the order.

Shapes: `Q` queries, `C` candidates (distinct texts).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar, overload

import torch
from torch import Tensor

from abc_embed.errors import DataError
from abc_embed.inputs import ImageInput, Item
from abc_embed.processor import Features, Processor

T = TypeVar("T")


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """One image, what is asked of it, and which texts are wrong for it."""

    image: ImageInput
    asks: tuple[tuple[str | None, str], ...]
    """(instruction, right answer) pairs. Instruction None: the image alone is the query, as in
    stage 1, and the answer is its caption."""
    negatives: tuple[str, ...] = ()
    """Further texts to put among the candidates of the whole batch: mined captions, or more
    answers."""


def captioned(image: ImageInput, caption: str, negatives: Sequence[str] = ()) -> Group:
    """What stage 1 learns from: an image, its caption and captions that are nearly right."""
    return Group(image, ((None, caption),), tuple(negatives))


def instructed(
    image: ImageInput, pairs: Sequence[tuple[str, str]], negatives: Sequence[str] = ()
) -> Group:
    """What stage 2 learns from: an image and several (instruction, answer) pairs about it."""
    return Group(image, tuple(pairs), tuple(negatives))


class Source(Protocol):
    """Anything that yields training groups by number. It must give the same for the same arguments,
    in any process, and with `data.workers` it must survive pickling."""

    def groups(self, step: int, count: int, seed: int) -> Sequence[Group]:
        """The `count` groups of a step (0 is the first), from `seed` alone.

        Where a group takes time to make, give `LazyGroups`: workers then share a step's work.
        """


class LazyGroups(Sequence[Group]):
    """Groups that are made when they are taken, by their number in the step."""

    def __init__(self, count: int, make: Callable[[int], Group]) -> None:
        self._count = count
        self._make = make

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> Group: ...
    @overload
    def __getitem__(self, index: slice) -> list[Group]: ...
    def __getitem__(self, index: int | slice) -> Group | list[Group]:
        numbers = range(self._count)[index]
        return self._make(numbers) if isinstance(numbers, int) else [*map(self._make, numbers)]


@dataclass(frozen=True, slots=True, eq=False)
class TrainBatch:
    """What one step eats, before it is cut into chunks."""

    queries: tuple[Features, ...]
    """`Q`, whole groups one after the other, those with few tokens first."""
    group_sizes: tuple[int, ...]
    """Number of queries of each image; sums to `Q`."""
    candidates: tuple[Features, ...]
    """`C` distinct texts, short ones first."""
    texts: tuple[str, ...]
    """The `C` texts themselves: keys under which stage 2 remembers their vectors."""
    positives: Tensor
    """`(Q,)` int64: the right candidate of each query."""


@dataclass(frozen=True, slots=True, eq=False)
class BatchShard:
    """Some groups of a step as features, not yet merged with the others."""

    queries: tuple[tuple[Features, ...], ...]
    """The queries of each group."""
    answers: tuple[tuple[str, ...], ...]
    """The right text of each of them."""
    others: tuple[str, ...]
    """Further texts."""
    texts: dict[str, Features]
    """Features of every text above."""


def make_batch(groups: Sequence[Group], processor: Processor, max_pixels: int = 0) -> TrainBatch:
    """Open, resize and tokenize the groups of one step.

    `max_pixels` 0 keeps the processor's own budget. Raises `DataError` for groups without a query,
    `InputError` for an image or a text that cannot be used.
    """
    return merge([prepare(groups, processor, max_pixels)])


def prepare(groups: Sequence[Group], processor: Processor, max_pixels: int = 0) -> BatchShard:
    """The costly part of `make_batch`, which may be done apart for parts of a step."""
    if not groups or any(not group.asks for group in groups):
        raise DataError("the source gave a step without groups, or a group without a query")
    answers = tuple(tuple(answer for _, answer in group.asks) for group in groups)
    others = tuple(text for group in groups for text in group.negatives)
    wanted = dict.fromkeys([*(text for texts in answers for text in texts), *others])
    return BatchShard(
        queries=tuple(_queries(group, processor, max_pixels or None) for group in groups),
        answers=answers,
        others=others,
        texts={text: processor.features(Item(text=text)) for text in wanted},
    )


def merge(portions: Sequence[BatchShard]) -> TrainBatch:
    """The portions of one step, in their order, as the batch that `make_batch` makes of it all."""
    queries = [group for portion in portions for group in portion.queries]
    answers = [group for portion in portions for group in portion.answers]
    known = {text: features for p in portions for text, features in p.texts.items()}
    # Answers before others: texts of one length keep this order, so it must not follow the cut.
    wanted = dict.fromkeys([*(t for texts in answers for t in texts), *_others(portions)])
    texts = sorted(wanted, key=lambda text: known[text].tokens)
    place = {text: i for i, text in enumerate(texts)}
    order = sorted(range(len(queries)), key=lambda i: max(f.tokens for f in queries[i]))
    right = [place[answer] for i in order for answer in answers[i]]
    return TrainBatch(
        queries=tuple(features for i in order for features in queries[i]),
        group_sizes=tuple(len(queries[i]) for i in order),
        candidates=tuple(known[text] for text in texts),
        texts=tuple(texts),
        positives=torch.tensor(right, dtype=torch.int64),
    )


def _others(portions: Sequence[BatchShard]) -> list[str]:
    return [text for portion in portions for text in portion.others]


def _queries(group: Group, processor: Processor, max_pixels: int | None) -> tuple[Features, ...]:
    """The features of each ask, with one tensor of pixels for all of them."""
    patches = processor.patches(group.image, max_pixels=max_pixels)
    items = [Item(image=group.image, instruction=instruction) for instruction, _ in group.asks]
    made = [processor.features(item, max_pixels=max_pixels, patches=patches) for item in items]
    # The same tensor, not an equal one: on the way out of a worker process it then travels once.
    return tuple(replace(features, pixel_values=made[0].pixel_values) for features in made)


def split_queries(batch: TrainBatch, chunk_size: int) -> list[tuple[Features, ...]]:
    """Cut queries into chunks of at most `chunk_size` rows (0: one chunk), never through a group.

    So no image is encoded twice; a group larger than `chunk_size` is a chunk of its own.
    """
    chunks: list[tuple[Features, ...]] = []
    start = end = 0
    for size in batch.group_sizes:
        if chunk_size and end > start and end + size - start > chunk_size:
            chunks.append(batch.queries[start:end])
            start = end
        end += size
    return [*chunks, batch.queries[start:end]]


def split_texts(texts: Sequence[T], chunk_size: int) -> list[tuple[T, ...]]:
    """Cut texts, or their numbers, into chunks of at most `chunk_size` (0: one chunk)."""
    size = chunk_size or max(len(texts), 1)
    return [tuple(texts[i : i + size]) for i in range(0, len(texts), size)]
