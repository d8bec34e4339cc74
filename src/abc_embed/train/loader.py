"""Batches ahead of the model: worker processes open, resize and tokenize while it computes.

Does: share each step among the workers, bring their portions back as few tensors, put them together
in the order of the steps. Does not: say what a batch is (``batches``).

Two things that a plain loader gets wrong here. *A step is shared*, not given to one worker whole:
the first step comes sooner, and workers hold parts of about two steps instead of two steps each (a
batch of 512 pictures is gigabytes of pixels). *A portion travels as two tensors*: one by one, the
thousands of small ones of a batch use up the file handles of a process.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from abc_embed.errors import AbcError, DataError, TrainingError
from abc_embed.inputs import Kind
from abc_embed.processor import Features, Processor
from abc_embed.train.batches import BatchShard, Source, TrainBatch, merge, prepare
from abc_embed.train.config import TrainConfig


def batches(
    source: Source,
    processor: Processor,
    config: TrainConfig,
    first_step: int,
    share: tuple[int, int] = (0, 1),
) -> Iterator[TrainBatch]:
    """The batches of steps `first_step` to `train.steps - 1`, prepared ahead by `data.workers`.

    `share` is (number of this process of the run, how many there are): its batches hold the groups
    of its share of each step, and no others are opened. They are the same for any number of
    workers. Raises what reading a group raised, in the order of the steps, and `TrainingError` when
    a worker was killed.
    """
    parts = max(1, config.data.workers)
    loader = DataLoader(
        _Portions(source, processor, config, parts, share),
        batch_size=None,
        sampler=range(first_step * parts, config.train.steps * parts),
        num_workers=config.data.workers,
        # A generator of its own: starting the loader must not move the random state of training.
        generator=torch.Generator(),
    )
    waiting: list[BatchShard] = []
    for number, part in enumerate(_alive(iter(loader)), 1):
        if isinstance(part, AbcError):
            raise part
        waiting += [part.unpack()] if part else []
        if number % parts == 0:
            yield merge(waiting)
            waiting = []


def _alive(parts: "Iterator[Packed | AbcError | None]") -> "Iterator[Packed | AbcError | None]":
    """The same, with one sentence for a worker that is gone."""
    try:
        yield from parts
    except RuntimeError as problem:
        if "DataLoader worker" not in str(problem):
            raise
        raise TrainingError(
            "a process that prepares data was killed, most likely for want of memory (main memory, "
            "or shared memory, which containers keep small); lower data.workers or "
            "train.batch_size, or give the container more shared memory"
        ) from problem


class _Portions(Dataset["Packed | AbcError | None"]):
    """Portions by number, `parts` to a step; None for an empty one. An error is handed over as a
    value: torch would turn it, on its way out of a worker, into a page of traceback."""

    def __init__(
        self,
        source: Source,
        processor: Processor,
        config: TrainConfig,
        parts: int,
        share: tuple[int, int],
    ) -> None:
        self._source = source
        self._processor = processor
        self._config = config
        self._parts = parts
        self._process, self._processes = share

    def __getitem__(self, number: int) -> "Packed | AbcError | None":
        train = self._config.train
        step, part = divmod(number, self._parts)
        try:
            groups = self._source.groups(step, train.batch_size, train.seed)
            if not groups:
                raise DataError("the source gave a step without groups")
            if len(groups) < self._processes:
                raise DataError(
                    f"the source gave {len(groups)} images for step {step + 1}, fewer than the "
                    f"{self._processes} processes; start fewer of them"
                )
            first, parts = self._process * self._parts + part, self._processes * self._parts
            start, end = (len(groups) * p // parts for p in (first, first + 1))
            mine = [groups[i] for i in range(start, end)]
            pixels = self._config.data.max_pixels
            return pack(prepare(mine, self._processor, pixels)) if mine else None
        except AbcError as error:
            return error


Row = tuple[Kind, int, tuple[int, int, int] | None, str | None, int | None]
"""Features but for their tensors: kind, T, grid, image key, and which block of pixels is theirs."""


@dataclass(frozen=True, slots=True, eq=False)
class Packed:
    """A portion with all tensors of one sort in one."""

    sizes: tuple[int, ...]
    """Queries of each group."""
    answers: tuple[tuple[str, ...], ...]
    others: tuple[str, ...]
    texts: tuple[str, ...]
    rows: tuple[Row, ...]
    """The queries, then the texts."""
    ids: Tensor
    """`(sum T,)` int64."""
    pixels: Tensor
    """`(sum P, C)` float32 of the distinct pictures; `(0, 0)` if there is none."""
    blocks: tuple[int, ...]
    """P of each distinct picture."""

    def unpack(self) -> BatchShard:
        """The portion; its tensors are views of the two."""
        ids = self.ids.split([length for _, length, *_ in self.rows])
        pixels = self.pixels.split(list(self.blocks)) if self.blocks else ()
        made = [
            Features(kind, own, None if block is None else pixels[block], grid, key)
            for (kind, _, grid, key, block), own in zip(self.rows, ids, strict=True)
        ]
        queries, start = [], 0
        for size in self.sizes:
            queries.append(tuple(made[start : start + size]))
            start += size
        return BatchShard(
            queries=tuple(queries),
            answers=self.answers,
            others=self.others,
            texts=dict(zip(self.texts, made[start:], strict=True)),
        )


def pack(portion: BatchShard) -> Packed:
    """A portion for its way from one process to another."""
    features = [f for group in portion.queries for f in group] + list(portion.texts.values())
    blocks: dict[int, tuple[int, Tensor]] = {}  # by identity: the asks of a group share a tensor
    rows: list[Row] = []
    for f in features:
        block = None
        if f.pixel_values is not None:
            block, _ = blocks.setdefault(id(f.pixel_values), (len(blocks), f.pixel_values))
        rows.append((f.kind, f.tokens, f.grid_thw, f.image_key, block))
    pixels = [values for _, values in blocks.values()]
    return Packed(
        sizes=tuple(len(group) for group in portion.queries),
        answers=portion.answers,
        others=portion.others,
        texts=tuple(portion.texts),
        rows=tuple(rows),
        ids=torch.cat([f.input_ids for f in features]),
        pixels=torch.cat(pixels) if pixels else torch.empty(0, 0),
        blocks=tuple(len(values) for values in pixels),
    )
