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
from collections import ChainMap
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, TypeVar

import torch
import torch.distributed as dist
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object, reduce
from torch import Tensor, nn

from abc_embed.data import Rejected
from abc_embed.errors import AbcError, ConfigError, TrainingError
from abc_embed.train.batches import TrainBatch, split_queries
from abc_embed.train.config import GatherMode
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


BatchInfo = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class GlobalBatch:
    """What each process brings to one step; the same on all of them but for `rank`."""

    rank: int
    texts: tuple[tuple[str, ...], ...]
    """The candidates of each process, in its own order; a text may be with several."""
    group_sizes: tuple[tuple[int, ...], ...]
    """The number of queries of each image of each process."""
    query_chunks: tuple[int, ...]
    """In how many chunks each process passes its queries through the model."""
    rejected: tuple[Rejected, ...] = ()
    """Groups of any process that were left out."""
    answers: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """What is asked, of any process -> the right texts, where there are several."""
    tokens: Mapping[str, int] = field(default_factory=dict)
    """Of each text of all processes."""

    @classmethod
    def single(cls, batch: TrainBatch) -> "GlobalBatch":
        """Of a process that is alone."""
        return cls.merge(0, [_batch_info(batch, 1)])

    @classmethod
    def merge(cls, rank: int, infos: Iterable[BatchInfo]) -> "GlobalBatch":
        """Of the `_batch_info` of each process, as process `rank` sees it."""
        texts, group_sizes, query_chunks, rejected, answers, tokens = zip(*infos, strict=True)
        right: dict[str, set[str]] = {}
        for asked, text in chain.from_iterable(answers):
            right.setdefault(asked, set()).add(text)
        return cls(
            rank,
            texts,
            group_sizes,
            query_chunks,
            tuple(chain.from_iterable(rejected)),
            {asked: frozenset(some) for asked, some in right.items() if len(some) > 1},
            dict(ChainMap(*tokens)),
        )

    @property
    def query_count(self) -> int:
        """Queries of all processes."""
        return sum(map(sum, self.group_sizes))

    def candidate_numbers(self) -> dict[str, int]:
        """The `C` distinct texts of all processes, numbered in the order of first mention."""
        distinct = dict.fromkeys(text for texts in self.texts for text in texts)
        return {text: number for number, text in enumerate(distinct)}

    def positives(self, batch: TrainBatch) -> Tensor:
        """`(Q,)` int64: the `candidate_numbers` of the right answers of this process's queries."""
        if len(self.texts) == 1:
            return batch.positives
        numbers = self.candidate_numbers()
        return torch.tensor([numbers[batch.texts[i]] for i in batch.positives.tolist()])

    def excluded(self, batch: TrainBatch) -> Tensor | None:
        """`(Q, C)` bool: candidates that are no negatives of this process's queries, though not
        the answer that was drawn; None where there is none."""
        if not self.answers and not any(batch.also_right):
            return None
        numbers = self.candidate_numbers()
        mask = torch.zeros(len(batch.asked), len(numbers), dtype=torch.bool)
        for row, (asked, others) in enumerate(zip(batch.asked, batch.also_right, strict=True)):
            right = {*self.answers.get(asked, ()), *others} & numbers.keys()
            mask[row, [numbers[text] for text in right]] = True
        mask[torch.arange(len(mask)), self.positives(batch)] = False
        return mask if bool(mask.any()) else None

    def loss_weight(self, queries: int) -> float:
        """What a mean over `queries` of this process counts for, so that the mean over processes
        is the mean over all queries; 1 where all processes have equally many."""
        return len(self.texts) * queries / self.query_count

    def new_texts(self, known: Container[str]) -> list[list[str]]:
        """For each process the texts that are not `known` and that it is the first to name."""
        seen: set[str] = set()
        new: list[list[str]] = []
        for texts in self.texts:
            new.append([text for text in texts if text not in known and text not in seen])
            seen.update(texts)
        return new


def exchange_batch_info(
    process_group: ProcessGroup, batch: TrainBatch, chunk_size: int, chunk_tokens: int = 0
) -> GlobalBatch:
    """Tell the others what this process brings, and hear what they do."""
    chunks = len(split_queries(batch, chunk_size, chunk_tokens))
    infos = process_group.all_gather_object(_batch_info(batch, chunks))
    return GlobalBatch.merge(process_group.rank, infos)


def _batch_info(batch: TrainBatch, chunks: int) -> BatchInfo:
    """What of a batch all processes know; of each query what it asks, and its right text."""
    right = (batch.texts[number] for number in batch.positives.tolist())
    answers = list(zip(batch.asked, right, strict=True)) if batch.asked else []
    tokens = {
        text: features.tokens for text, features in zip(batch.texts, batch.candidates, strict=True)
    }
    return batch.texts, batch.group_sizes, chunks, batch.rejected, answers, tokens


def gather_candidates(own: Tensor, global_batch: GlobalBatch, mode: GatherMode) -> Tensor:
    """`own` `(c, D)` of this process -> `(C, D)`, in the order of `candidate_numbers`.

    A text that several processes embedded is taken from the first of them; without gradient through
    the gather, from this process if it has it: what is its own keeps its gradient.
    """
    if len(global_batch.texts) == 1:
        return own
    lengths = [len(texts) for texts in global_batch.texts]
    rows = gather_rows(own, lengths, mode)
    processes = list(range(len(lengths)))
    if mode == "published":
        processes.insert(0, processes.pop(global_batch.rank))
    row_of: dict[str, int] = {}
    for process in processes:
        for row, text in enumerate(global_batch.texts[process], sum(lengths[:process])):
            row_of.setdefault(text, row)
    order = [row_of[text] for text in global_batch.candidate_numbers()]
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
