"""The processes of one run: what they agree on, what they average, whose candidates they score.

Split weights are in `sharding`, split AdamW state in `zero`; accelerate's launcher, torchrun or
Slurm start the processes.

Why no DistributedDataParallel wrapper: it hooks one forward call per step, and a step here is many
(GradCache, two kinds of rows, the vision encoder apart). Averaging the gradients once, after the
last backward pass, is one message over the few trained weights.

Each process embeds its own candidates, and every query is scored against all of them:

    "gradient"    what another process's queries say about my candidates comes back to me: the loss
                  and the gradients are those of one process with the whole batch
    "published"   candidates of other processes are constants, as in the published training code:
                  half of what a negative could teach is lost, and the more so the more processes

Shapes: `C` distinct candidates of all processes, `c` of one, `D` width, `Q` queries of one process.
"""

import atexit
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import TypeVar

import torch
import torch.distributed as dist
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object, reduce
from torch import Tensor, nn

from abc_embed.data import Rejected
from abc_embed.errors import AbcError, ConfigError, TrainingError
from abc_embed.train.batches import TrainBatch, split_queries
from abc_embed.train.config import GatherMode, RunConfig
from abc_embed.train.sharding import fsdp_requested, is_sharded

try:
    from torch.distributed._functional_collectives import all_gather_single_autograd
except ImportError:  # its name before torch 2.13
    from torch.distributed._functional_collectives import (
        all_gather_tensor_autograd as all_gather_single_autograd,
    )

T = TypeVar("T")

_LOST = ("Connection closed", "Connection reset", "Connection refused", "Broken pipe", "NCCL")
"""What a collective operation says when another process is gone."""


class ProcessGroup:
    """The processes of a run, seen from one of them.

    All of them make the same calls in the same order; with one process each of these does nothing.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        """Raises `ConfigError` for a way of splitting weights that is not built."""
        self.accelerator = accelerator
        self.rank: int = accelerator.process_index
        self.world_size: int = accelerator.num_processes
        self.sharded = self.world_size > 1 and fsdp_requested()
        """Whether weights are split, so that every process must make the same passes."""
        if self.world_size > 1:
            atexit.register(lambda: dist.is_initialized() and dist.destroy_process_group())

    @property
    def is_main(self) -> bool:
        """Whether this is the one that writes files and shows progress."""
        return self.rank == 0

    @contextmanager
    def propagate_errors(self) -> Iterator[None]:
        """What fails inside on one process fails on all, and one of them prints it.

        No process waits for one that has failed. Nothing inside may itself wait for the others.

        Raises:
            TrainingError: another process failed; with its sentence.
        """
        error: Exception | None = None
        try:
            yield
        except Exception as caught:  # noqa: BLE001  (raised again below, once all know)
            error = caught
        sentences = self.all_gather_object(error and (str(error) or type(error).__name__))
        failed = [rank for rank, sentence in enumerate(sentences) if sentence is not None]
        if not failed:
            return
        if error is None:
            sentence = sentences[failed[0]]
            error = TrainingError(f"process {failed[0]} of {self.world_size} stopped: {sentence}")
        if isinstance(error, AbcError):
            error.reported_elsewhere = self.rank != failed[0]
        raise error

    @contextmanager
    def detect_lost_processes(self) -> Iterator[None]:
        """Turns the end of another process, seen from this one, into a `TrainingError`."""
        try:
            yield
        except RuntimeError as error:
            lost = isinstance(error, dist.DistError) or any(word in str(error) for word in _LOST)
            if self.world_size == 1 or not lost:
                raise
            raise TrainingError(
                "another process of this run has ended, and its own message says why if it could; "
                "start all of them again: the run goes on from its last checkpoint"
            ) from error

    def all_gather_object(self, value: T) -> list[T]:
        """Everyone's value, by process. Values must pickle."""
        values: list[T] = gather_object([value])
        return values

    def broadcast_from_main(self, choose: Callable[[], T]) -> T:
        """What the main process chooses, for all."""
        with self.propagate_errors():
            chosen = [choose() if self.is_main else None]
        value: T = broadcast_object_list(chosen)[0]
        return value

    def mean(self, values: Tensor) -> Tensor:
        """The mean over the processes, without gradient."""
        mean: Tensor = reduce(values.detach(), "mean")
        return mean

    @torch.no_grad()
    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Put the mean over the processes into every gradient, in one message.

        FSDP2 has averaged those of split weights already.
        """
        if self.world_size == 1:
            return
        averaged = [p for p in parameters if not is_sharded(p)]
        if not averaged:
            return
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in averaged]
        mean = self.mean(torch.cat([grad.flatten() for grad in grads]))
        parts = mean.split([p.numel() for p in averaged])
        for parameter, part in zip(averaged, parts, strict=True):
            parameter.grad = part.view_as(parameter)

    @torch.no_grad()
    def broadcast_parameters(self, parameters: Iterable[nn.Parameter]) -> None:
        """Give every process the first weights of the main one."""
        if self.world_size > 1 and not self.sharded:
            for parameter in parameters:
                dist.broadcast(parameter, src=0)


def check_batch_size(batch_size: int, world_size: int) -> None:
    """Raises `ConfigError` when there are fewer images in a step than processes."""
    if batch_size < world_size:
        raise ConfigError(
            f"train.batch_size is {batch_size}, for all processes together, and there are "
            f"{world_size}: each needs an image; raise it or start fewer processes"
        )


@dataclass(frozen=True, slots=True)
class BatchInfo:
    """What all processes know of the batch that one of them brings to a step."""

    tokens: dict[str, int]
    """Of each of its candidates, in its own order; a text may be with several processes."""
    answers: tuple[tuple[str, str], ...]
    """Of each of its queries what it asks, and its right text."""
    query_chunks: int
    """In how many chunks it passes its queries through the model."""
    rejected: tuple[Rejected, ...] = ()
    """Groups that were left out of it."""

    @classmethod
    def of(cls, batch: TrainBatch, query_chunks: int = 1) -> "BatchInfo":
        """Of a batch whose queries pass through the model in so many chunks."""
        return cls(
            tokens={text: features.tokens for text, features in batch.texts.items()},
            answers=tuple((query.asks, query.answer) for query in batch.queries),
            query_chunks=query_chunks,
            rejected=batch.rejected,
        )


@dataclass(frozen=True)
class GlobalBatch:
    """A step of all processes, seen from one of them."""

    own: TrainBatch
    """What this process brings."""
    infos: Sequence[BatchInfo]
    """What each brings, by process."""
    rank: int = 0

    @classmethod
    def single(cls, batch: TrainBatch) -> "GlobalBatch":
        """Of a process that is alone."""
        return cls(batch, [BatchInfo.of(batch)])

    @classmethod
    def gather(
        cls, process_group: ProcessGroup, batch: TrainBatch, train: RunConfig
    ) -> "GlobalBatch":
        """Tell the others what this process brings, and hear what they do."""
        info = BatchInfo.of(batch, len(split_queries(batch, train)))
        return cls(batch, process_group.all_gather_object(info), process_group.rank)

    @property
    def query_count(self) -> int:
        """Queries of all processes."""
        return sum(len(info.answers) for info in self.infos)

    @property
    def rejected(self) -> list[Rejected]:
        """Groups of any process that were left out."""
        return [rejected for info in self.infos for rejected in info.rejected]

    @property
    def loss_weight(self) -> float:
        """What a mean over the queries of this process counts for, so that the mean over processes
        is the mean over all queries; 1 where all processes have equally many."""
        return len(self.infos) * len(self.infos[self.rank].answers) / self.query_count

    @cached_property
    def tokens(self) -> dict[str, int]:
        """Of each of the `C` distinct texts of all processes, in the order of first mention."""
        return {text: count for info in self.infos for text, count in info.tokens.items()}

    @cached_property
    def numbers(self) -> dict[str, int]:
        """The `C` texts, numbered in that order."""
        return {text: number for number, text in enumerate(self.tokens)}

    def positives(self) -> Tensor:
        """`(Q,)` int64: the numbers of the right answers of this process's queries."""
        numbers = [self.numbers[query.answer] for query in self.own.queries]
        return torch.tensor(numbers, dtype=torch.int64)

    def excluded(self) -> Tensor | None:
        """`(Q, C)` bool: candidates that are no negatives of this process's queries, though not
        the answer that was drawn; None where there is none."""
        right: dict[str, set[str]] = {}
        for asks, text in chain.from_iterable(info.answers for info in self.infos):
            right.setdefault(asks, set()).add(text)
        queries = self.own.queries
        mask = torch.zeros(len(queries), len(self.numbers), dtype=torch.bool)
        for row, query in enumerate(queries):
            others = {*right[query.asks], *query.also_right} - {query.answer}
            mask[row, [self.numbers[text] for text in others & self.numbers.keys()]] = True
        return mask if bool(mask.any()) else None

    def new_texts(self, known: Container[str]) -> list[list[str]]:
        """For each process the texts that are not `known` and that it is the first to name."""
        seen: set[str] = set()
        new: list[list[str]] = []
        for info in self.infos:
            new.append([text for text in info.tokens if text not in known and text not in seen])
            seen.update(info.tokens)
        return new


def gather_candidates(own: Tensor, global_batch: GlobalBatch, mode: GatherMode) -> Tensor:
    """`own` `(c, D)` of this process -> `(C, D)`, in the order of `GlobalBatch.numbers`.

    A text that several processes embedded is taken from the first of them; without gradient through
    the gather, from this process if it has it: what is its own keeps its gradient.
    """
    if len(global_batch.infos) == 1:
        return own
    texts = [list(info.tokens) for info in global_batch.infos]
    lengths = list(map(len, texts))
    rows = gather_rows(own, lengths, mode)
    processes = list(range(len(lengths)))
    if mode == "published":
        processes.insert(0, processes.pop(global_batch.rank))
    row_of: dict[str, int] = {}
    for process in processes:
        for row, text in enumerate(texts[process], sum(lengths[:process])):
            row_of.setdefault(text, row)
    order = [row_of[text] for text in global_batch.numbers]
    return rows[torch.tensor(order, device=rows.device)]


def gather_rows(own: Tensor, lengths: Sequence[int], mode: GatherMode) -> Tensor:
    """The rows `(c, D)` of all processes one after the other; `lengths` has each one's c.

    Rows are padded to the longest for the message, and cut again after it.
    """
    longest = max(lengths)
    padded = F.pad(own, (0, 0, 0, longest - len(own)))
    sent = padded if mode == "gradient" else padded.detach()
    world = dist.group.WORLD
    rows: Tensor = all_gather_single_autograd(sent, 0, world)  # type: ignore[arg-type]  # exists
    if mode == "published":
        start = dist.get_rank() * longest
        rows = torch.cat([rows[:start], padded, rows[start + longest :]])
    kept = [p * longest + i for p, length in enumerate(lengths) for i in range(length)]
    return rows[torch.tensor(kept, device=rows.device)]
