"""Training data: from a sampler, by step number, to the features of one step, worked ahead.

Nothing is remembered between steps: a step's data follow from its number and the seed alone, so a
resumed run sees what an unbroken one would.

Choices that differ from a plain loader:

* *What is right is no negative*: where a picture comes twice, the answers of one row are no
  negatives of the other, nor are further captions of its own (`GlobalBatch.excluded`).
* *Equal texts are one candidate*: when two images of a batch share a caption, the second is not
  wrong for the first, as it would be if it stood there twice.
* *Short ones come first*, images as well as texts, so that chunks of them hold little padding; the
  loss is a mean over the queries and a sum over the candidates, so it does not see the order.
* *A step is shared among the workers*, not given to one of them: the first step comes sooner, and
  workers hold parts of about two steps instead of two steps each (a batch of 512 pictures is
  gigabytes of pixels).
* *A worker's share travels as one tensor*: one by one, the thousands of small tensors of a batch
  use up the file handles of a process.

Shapes: `Q` queries, `C` candidates (distinct texts).
"""

import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, Protocol, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from abc_embed.data import Rejected
from abc_embed.errors import AbcError, DataError, InputError, TrainingError
from abc_embed.inputs import ImageInput, Item
from abc_embed.processor import Features, Processor
from abc_embed.storage.pickled import pickle_tensors
from abc_embed.train.config import RunConfig, TrainConfig

T = TypeVar("T")


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """One image, what is asked of it, and which texts are wrong for it."""

    image: ImageInput
    pairs: tuple[tuple[str | None, str], ...]
    """(instruction, right answer). Instruction None: the image alone is the query, as in stage 1,
    and the answer is its caption."""
    negatives: tuple[str, ...] = ()
    """Further texts to put among the candidates of the whole batch: mined captions, or more
    answers."""
    also_right: tuple[str, ...] = ()
    """Texts that would be right as well, like the other captions of the image: never negatives."""
    place: str = ""
    """Where it stands: file and line, row or member. What has a place can be left out by
    `data.on_error`; without one an image that cannot be opened ends the run."""


def caption_group(
    image: ImageInput,
    caption: str,
    negatives: Sequence[str] = (),
    *,
    also_right: Sequence[str] = (),
    place: str = "",
) -> Group:
    """What stage 1 learns from: an image, its caption and captions that are nearly right."""
    return Group(image, ((None, caption),), tuple(negatives), tuple(also_right), place)


def instruction_group(
    image: ImageInput,
    pairs: Sequence[tuple[str, str]],
    negatives: Sequence[str] = (),
    *,
    place: str = "",
) -> Group:
    """What stage 2 learns from: an image and several (instruction, answer) pairs about it."""
    return Group(image, tuple(pairs), tuple(negatives), place=place)


class GroupSampler(Protocol):
    """Anything that yields training groups by number. It must give the same for the same arguments,
    in any process, and with `data.workers` it must survive pickling."""

    def groups(self, step: int, count: int, seed: int) -> Sequence[Group | Rejected]:
        """The `count` groups of a step (0 is the first), from `seed` alone; in the place of one
        that cannot be made and is to be left out, why.

        Where a group takes time to make, give `LazyGroups`: workers then share a step's work.
        """


class LazyGroups(Sequence[T]):
    """Groups that are made when they are taken, by their number in the step."""

    def __init__(self, count: int, make: Callable[[int], T]) -> None:
        self._count = count
        self._make = make

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: Any) -> Any:
        numbers = range(self._count)[index]
        return self._make(numbers) if isinstance(numbers, int) else [*map(self._make, numbers)]


@dataclass(frozen=True, slots=True, eq=False)
class Query:
    """One question of a batch, and what is right for it."""

    features: Features
    answer: str
    """The right text."""
    asks: str
    """Equal for equal pictures and equal words."""
    also_right: tuple[str, ...] = ()
    """Texts that must not count against it, besides those that are right for another query that
    asks the same."""


@dataclass(frozen=True, slots=True, eq=False)
class TrainBatch:
    """The features of one step, or of a shard of it, before they are cut into chunks."""

    groups: tuple[tuple[Query, ...], ...]
    """The `Q` queries, those of one image together."""
    texts: dict[str, Features]
    """The `C` candidates: all answers and negatives, each once."""
    rejected: tuple[Rejected, ...] = ()
    """Groups of the sampler that were left out."""

    @property
    def queries(self) -> tuple[Query, ...]:
        """All `Q`, one group after the other."""
        return tuple(chain.from_iterable(self.groups))

    @property
    def features(self) -> tuple[Features, ...]:
        """Of all `Q` queries, then of all `C` candidates."""
        return (*(query.features for query in self.queries), *self.texts.values())


def make_batch(
    groups: Sequence[Group | Rejected], processor: Processor, max_pixels: int = 0
) -> TrainBatch:
    """Open, resize and tokenize the groups of one step.

    Args:
        max_pixels: Of each image after resizing; 0 keeps the processor's own budget.

    Raises:
        DataError: there is no group, or one without a query.
        InputError: an image or a text cannot be used.
    """
    return merge_shards([make_shard(groups, processor, max_pixels)])


def make_shard(
    groups: Sequence[Group | Rejected],
    processor: Processor,
    max_pixels: int = 0,
    *,
    skip: bool = False,
) -> TrainBatch:
    """The costly part of `make_batch`, which may be done apart for parts of a step.

    With `skip` a group that has a place and cannot be used is left out, and is in `rejected`; of
    its negatives only those are left out that cannot be used.

    Returns:
        The groups in their order, for `merge_shards`.
    """
    made: list[tuple[Query, ...]] = []
    texts: dict[str, Features] = {}
    rejected: list[Rejected] = []
    if not groups:
        raise DataError("the sampler gave a step without groups")
    for group in groups:
        if isinstance(group, Rejected):
            rejected.append(group)
            continue
        if not group.pairs:
            raise DataError("the sampler gave a group without a query")
        try:
            queries = _queries(group, processor, max_pixels or None)
            right = {
                text: texts.get(text) or processor.features(Item(text)) for _, text in group.pairs
            }
            wrong, unusable = _negatives(group, processor, texts, skip)
        except InputError as error:
            if not group.place:
                raise
            if not skip:
                raise type(error)(f"{group.place}: {error}") from error
            rejected.append(Rejected(group.place, str(error)))
            continue
        made.append(queries)
        texts |= right | wrong
        rejected += unusable
    return TrainBatch(tuple(made), texts, tuple(rejected))


def _negatives(
    group: Group, processor: Processor, known: Mapping[str, Features], skip: bool
) -> tuple[dict[str, Features], list[Rejected]]:
    """The features of a group's negatives, and of those that are left out, why."""
    usable: dict[str, Features] = {}
    rejected: list[Rejected] = []
    for text in group.negatives:
        try:
            usable[text] = known.get(text) or processor.features(Item(text=text))
        except InputError as error:
            if not skip or not group.place:
                raise
            rejected.append(Rejected(group.place, f"a negative is left out: {error}"))
    return usable, rejected


def _queries(group: Group, processor: Processor, max_pixels: int | None) -> tuple[Query, ...]:
    """A query of each pair, with one tensor of pixels for all of them."""
    pixels = processor.pixels(group.image, max_pixels=max_pixels)
    queries: list[Query] = []
    for words, answer in group.pairs:
        item = Item(image=group.image, instruction=words)
        features = processor.features(item, max_pixels=max_pixels, pixels=pixels)
        # The same tensor, not an equal one: out of a worker process it then travels once.
        shared = queries[0].features.pixels if queries else features.pixels
        features = replace(features, pixels=shared)
        queries.append(Query(features, answer, f"{features.image_key} {words}", group.also_right))
    return tuple(queries)


def merge_shards(shards: Sequence[TrainBatch]) -> TrainBatch:
    """The shards of one step, in their order, as the batch that `make_batch` makes of it all.

    Groups and texts with few tokens come first.
    """
    groups = [group for shard in shards for group in shard.groups]
    features = {text: value for shard in shards for text, value in shard.texts.items()}
    # Answers before negatives: texts of one length keep this order, so it must not follow the cut.
    answers = [query.answer for group in groups for query in group]
    texts = sorted(dict.fromkeys([*answers, *features]), key=lambda text: features[text].tokens)
    return TrainBatch(
        groups=tuple(sorted(groups, key=_longest)),
        texts={text: features[text] for text in texts},
        rejected=tuple(chain.from_iterable(shard.rejected for shard in shards)),
    )


def split_queries(batch: TrainBatch, train: RunConfig) -> list[tuple[Features, ...]]:
    """Cut queries into chunks as `split_chunks` does, never through a group.

    So no image is encoded twice; a group larger than a chunk is a chunk of its own.
    """
    chunks = split_chunks(batch.groups, train, _longest, rows_of=len)
    return [tuple(query.features for group in chunk for query in group) for chunk in chunks]


def _longest(group: Sequence[Query]) -> int:
    """Tokens of the longest query."""
    return max(query.features.tokens for query in group)


def split_chunks(
    items: Sequence[T],
    train: RunConfig,
    tokens_of: Callable[[T], int],
    rows_of: Callable[[T], int] = lambda _: 1,
) -> list[list[T]]:
    """Cut texts, groups, or what stands for them, into chunks of at most `train.chunk_size` rows,
    and of at most `train.chunk_tokens` with their padding (0: any number)."""
    chunks: list[list[T]] = []
    rows = longest = 0
    for item in items:
        rows, longest = rows + rows_of(item), max(longest, tokens_of(item))
        too_many = 0 < train.chunk_size < rows
        if not chunks or too_many or 0 < train.chunk_tokens < rows * longest:
            chunks.append([])
            rows, longest = rows_of(item), tokens_of(item)
        chunks[-1].append(item)
    return chunks


# -- ahead of the model ----------------------------------------------------------------------------


def load_batches(
    sampler: GroupSampler,
    processor: Processor,
    config: TrainConfig,
    first_step: int,
    rank: int = 0,
    world_size: int = 1,
) -> Iterator[TrainBatch]:
    """The batches of steps `first_step` to `train.steps - 1`, prepared ahead by `data.workers`.

    The batches of process `rank` of `world_size` hold the groups of its share of each step, and no
    others are opened. They are the same for any number of workers.

    Raises:
        AbcError: what reading a group raised, in the order of the steps.
        RuntimeError: a worker was killed; `detect_killed_workers` makes a sentence of it.
    """
    shards = max(1, config.data.workers)
    loader = DataLoader(
        _ShardDataset(sampler, processor, config, shards, rank, world_size),
        batch_size=None,
        sampler=range(first_step * shards, config.train.steps * shards),
        num_workers=config.data.workers,
        # A generator of its own: starting the loader must not move the random state of training.
        generator=torch.Generator(),
    )
    waiting: list[TrainBatch] = []
    for number, packed in enumerate(loader, 1):
        if isinstance(packed, AbcError):
            raise packed
        waiting += [packed.unpack()] if packed else []
        if number % shards == 0:
            batch, waiting = merge_shards(waiting), []
            if not batch.groups:
                first = batch.rejected[0]
                raise DataError(
                    f"no row of step {first_step + number // shards} can be used; the first is "
                    f"{first.place}: {first.why}"
                )
            yield batch


@contextmanager
def detect_killed_workers() -> Iterator[None]:
    """One sentence for a worker that is gone. Torch raises from a signal handler, wherever the
    process is at that moment: in the model more often than in the loader."""
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise TrainingError(
            "a process that prepares data was killed, most likely for want of memory (main memory, "
            "or shared memory, which containers keep small); lower data.workers or "
            "train.batch_size, or give the container more shared memory"
        ) from None  # torch's own page says no more


@dataclass(frozen=True, slots=True)
class _ShardDataset(Dataset["PackedShard | AbcError | None"]):
    """Shards by number, so many to a step; None for an empty one. An error is handed over as a
    value: torch would turn it, on its way out of a worker, into a page of traceback."""

    sampler: GroupSampler
    processor: Processor
    config: TrainConfig
    shards: int
    """Of a step of one process."""
    rank: int
    world_size: int

    def __getitem__(self, number: int) -> "PackedShard | AbcError | None":
        train = self.config.train
        step, shard = divmod(number, self.shards)
        try:
            groups = self.sampler.groups(step, train.batch_size, train.seed)
            if not groups:
                raise DataError("the sampler gave a step without groups")
            if len(groups) < self.world_size:
                raise DataError(
                    f"the sampler gave {len(groups)} images for step {step + 1}, fewer than the "
                    f"{self.world_size} processes; start fewer of them"
                )
            first, shards = self.rank * self.shards + shard, self.world_size * self.shards
            start, end = (len(groups) * i // shards for i in (first, first + 1))
            own = [groups[i] for i in range(start, end)]
            if not own:
                return None
            data = self.config.data
            skip = data.on_error == "skip"
            return PackedShard.pack(make_shard(own, self.processor, data.max_pixels, skip=skip))
        except AbcError as error:
            return error


@dataclass(frozen=True, slots=True, eq=False)
class PackedShard:
    """A shard on its way from one process to another; a tensor that stands twice is one."""

    pickled: bytes
    """All of it but the content of its tensors."""
    sizes: tuple[int, ...]
    """Bytes of each tensor; each begins at a multiple of 8."""
    content: Tensor
    """Of all tensors, uint8: what torch moves between processes without a copy."""

    @classmethod
    def pack(cls, shard: TrainBatch) -> "PackedShard":
        """Copies the content of all tensors into one."""
        buffers: list[pickle.PickleBuffer] = []
        pickled = pickle_tensors(shard, buffers.append)
        parts = [torch.frombuffer(buffer, dtype=torch.uint8) for buffer in buffers]
        padded = [F.pad(part, (0, -len(part) % 8)) for part in parts]
        content = torch.cat([torch.empty(0, dtype=torch.uint8), *padded])
        return cls(pickled, tuple(map(len, parts)), content)

    def unpack(self) -> TrainBatch:
        """The shard; its tensors are views of `content`."""
        parts = self.content.split([size + -size % 8 for size in self.sizes])
        buffers = [part[:size].numpy() for part, size in zip(parts, self.sizes, strict=True)]
        shard: TrainBatch = pickle.loads(self.pickled, buffers=buffers)
        return shard
