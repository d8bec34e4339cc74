"""Training data: from a source, by step number, to the features that one step eats.

Does: say what a source is (`Source`), merge equal texts, prepare batches ahead of the model in
worker processes. Does not: embed, or remember anything between steps: a step's data follow from its
number and the seed alone, so a resumed run sees what an unbroken one would.

Two choices that differ from a plain loader. *Equal texts are one candidate*: when two images of a
batch share a caption, the second is not wrong for the first, as it would be if it stood there
twice. *Candidates come short ones first*, so that chunks of them hold little padding.

Shapes: `Q` queries, `C` candidates (distinct texts).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from abc_embed.errors import AbcError, DataError
from abc_embed.inputs import ImageInput, Item
from abc_embed.processor import Features, Processor
from abc_embed.train.config import TrainConfig

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
        """The `count` groups of a step (0 is the first), from `seed` alone."""


@dataclass(frozen=True, slots=True, eq=False)
class TrainBatch:
    """What one step eats, before it is cut into chunks."""

    queries: tuple[Features, ...]
    """`Q`, whole groups one after the other."""
    group_sizes: tuple[int, ...]
    """Number of queries of each image; sums to `Q`."""
    candidates: tuple[Features, ...]
    """`C` distinct texts, short ones first."""
    texts: tuple[str, ...]
    """The `C` texts themselves: keys under which stage 2 remembers their vectors."""
    positives: Tensor
    """`(Q,)` int64: the right candidate of each query."""


def make_batch(groups: Sequence[Group], processor: Processor, max_pixels: int = 0) -> TrainBatch:
    """Open, resize and tokenize the groups of one step.

    `max_pixels` 0 keeps the processor's own budget. Raises `DataError` for groups without a query,
    `InputError` for an image or a text that cannot be used.
    """
    if not groups or any(not group.asks for group in groups):
        raise DataError("the source gave a step without groups, or a group without a query")
    queries = [f for group in groups for f in _queries(group, processor, max_pixels or None)]
    answers = [answer for group in groups for _, answer in group.asks]
    others = [text for group in groups for text in group.negatives]
    found = {text: processor.features(Item(text=text)) for text in dict.fromkeys(answers + others)}
    texts = sorted(found, key=lambda text: len(found[text].input_ids))  # stable: no ties by chance
    place = {text: i for i, text in enumerate(texts)}
    return TrainBatch(
        queries=tuple(queries),
        group_sizes=tuple(len(group.asks) for group in groups),
        candidates=tuple(found[text] for text in texts),
        texts=tuple(texts),
        positives=torch.tensor([place[answer] for answer in answers], dtype=torch.int64),
    )


def _queries(group: Group, processor: Processor, max_pixels: int | None) -> list[Features]:
    """The features of each ask, with one tensor of pixels for all of them."""
    patches = processor.patches(group.image, max_pixels=max_pixels)
    items = [Item(image=group.image, instruction=instruction) for instruction, _ in group.asks]
    made = [processor.features(item, max_pixels=max_pixels, patches=patches) for item in items]
    # The same tensor, not an equal one: on the way out of a worker process it then travels once.
    return [replace(features, pixel_values=made[0].pixel_values) for features in made]


class _Steps(Dataset[TrainBatch | AbcError]):
    """Batches by step number. An error is handed over as a value: torch would turn it, on its way
    out of a worker, into a page of traceback."""

    def __init__(self, source: Source, processor: Processor, config: TrainConfig) -> None:
        self._source = source
        self._processor = processor
        self._config = config

    def __getitem__(self, step: int) -> TrainBatch | AbcError:
        train = self._config.train
        try:
            groups = self._source.groups(step, train.batch_size, train.seed)
            return make_batch(groups, self._processor, self._config.data.max_pixels)
        except AbcError as error:
            return error


def batches(
    source: Source, processor: Processor, config: TrainConfig, first_step: int
) -> Iterator[TrainBatch]:
    """The batches of steps `first_step` to `train.steps - 1`, prepared ahead by `data.workers`.

    Raises what reading a group raised, in the order of the steps.
    """
    loader = DataLoader(
        _Steps(source, processor, config),
        batch_size=None,
        sampler=range(first_step, config.train.steps),
        num_workers=config.data.workers,
        # A generator of its own: starting the loader must not move the random state of training.
        generator=torch.Generator(),
    )
    for batch in loader:
        if isinstance(batch, AbcError):
            raise batch
        yield batch


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
