"""The processes of one run: who they are, what they agree on, what they add up.

Does: tell this process its place, make an error of one an error of all, average gradients and
numbers, take every process's word where they must agree. Does not: gather candidates (``gather``),
split weights (``sharding``) or AdamW's means (``zero``), or start processes (accelerate's launcher,
torchrun or Slurm do).

Why no DistributedDataParallel wrapper: it hooks one forward call per step, and a step here is many
(GradCache, two kinds of rows, the vision encoder apart). What it does is one average of the
gradients after the last backward pass, and that is one line here, over the few trained weights.
"""

import atexit
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor, nn

from abc_embed.errors import AbcError, ConfigError, TrainingError
from abc_embed.train.sharding import is_sharded, wants_sharding

T = TypeVar("T")

_LOST = ("Connection closed", "Connection reset", "Connection refused", "Broken pipe", "NCCL")
"""What a collective operation says when another process is gone."""


class ProcessGroup:
    """The processes of a run, seen from one of them. All of them make the same calls in the same
    order; with one process each of these does nothing."""

    def __init__(self, accelerator: Accelerator) -> None:
        """Raises `ConfigError` for a way of splitting weights that is not built."""
        self.rank: int = accelerator.process_index
        self.count: int = accelerator.num_processes
        self.sharded = self.count > 1 and wants_sharding()
        """Whether weights are split, so that every process must make the same passes."""
        self._device = accelerator.device
        self._in_zero: set[nn.Parameter] = set()
        if self.count > 1:
            atexit.register(_leave)

    @property
    def main(self) -> bool:
        """Whether this is the one that writes files and shows progress."""
        return self.rank == 0

    # -- agreeing ----------------------------------------------------------------------------------

    @contextmanager
    def propagate_errors(self) -> Iterator[None]:
        """What fails inside on one process fails on all, and one of them says it.

        No process waits for one that has failed. Nothing inside may itself wait for the others.
        Raises the error of this process, or `TrainingError` with the sentence of another one.
        """
        failed: Exception | None = None
        try:
            yield
        except Exception as error:  # noqa: BLE001  (raised again below, once all know)
            failed = error
        if self.count > 1 and self._any(failed is not None):
            self._fail_together(failed)
        if failed is not None:
            raise failed

    def _fail_together(self, failed: Exception | None) -> None:
        sentence = None if failed is None else str(failed) or type(failed).__name__
        sentences = self.all_gather_object(sentence)
        first = next(rank for rank, sentence in enumerate(sentences) if sentence is not None)
        if failed is None:
            failed = TrainingError(f"process {first} of {self.count} stopped: {sentences[first]}")
        if isinstance(failed, AbcError):
            failed.said_elsewhere = self.rank != first
        raise failed

    @contextmanager
    def in_contact(self) -> Iterator[None]:
        """Turns the end of another process, seen from this one, into a `TrainingError`."""
        try:
            yield
        except RuntimeError as problem:
            lost = isinstance(problem, dist.DistError) or any(w in str(problem) for w in _LOST)
            if self.count == 1 or not lost:
                raise
            raise TrainingError(
                "another process of this run has ended, and its own message says why if it could; "
                "start all of them again: the run goes on from its last checkpoint"
            ) from problem

    def all_gather_object(self, mine: T) -> list[T]:
        """Everyone's value, by process. Values must pickle."""
        told: list[T | None] = [None] * self.count
        if self.count == 1:
            return [mine]
        dist.all_gather_object(told, mine)
        return told  # type: ignore[return-value]  # filled by now

    def broadcast_from_main(self, choose: Callable[[], T]) -> T:
        """What the main process chooses, for all."""
        with self.propagate_errors():
            chosen = [choose() if self.main else None]
        if self.count > 1:
            dist.broadcast_object_list(chosen, src=0)
        return chosen[0]  # type: ignore[return-value]  # from the main process, who chose

    def _any(self, mine: bool) -> bool:
        flag = torch.tensor(int(mine), device=self._device)
        dist.all_reduce(flag, dist.ReduceOp.MAX)
        return bool(flag)

    # -- adding up ---------------------------------------------------------------------------------

    def share_of(self, mine: int, all_of_them: int) -> float:
        """What a mean over `mine` rows counts for, so that the mean over the processes is the mean
        over `all_of_them`; 1 where all processes have equally many."""
        return self.count * mine / all_of_them

    def mean(self, values: Tensor) -> Tensor:
        """The mean over the processes, without gradient."""
        if self.count > 1:
            values = values.detach().clone()
            dist.all_reduce(values)
            values /= self.count
        return values

    @torch.no_grad()
    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Put the mean over the processes into every gradient, in one message.

        Those of split weights are left: they have been averaged on the way; and those of ZeRO,
        which does both at once.
        """
        if self.count == 1:
            return
        whole = [p for p in parameters if not is_sharded(p) and p not in self._in_zero]
        if not whole:
            return
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in whole]
        mean = self.mean(torch.cat([grad.flatten() for grad in grads]))
        parts = mean.split([p.numel() for p in whole])
        for parameter, part in zip(whole, parts, strict=True):
            parameter.grad = part.view_as(parameter)

    def leave_to_zero(self, parameters: Iterable[nn.Parameter]) -> None:
        """From now on something else averages and splits the gradients of these."""
        self._in_zero.update(parameters)

    @torch.no_grad()
    def broadcast_parameters(self, parameters: Iterable[nn.Parameter]) -> None:
        """Give every process the first weights of the main one."""
        if self.count > 1 and not self.sharded:
            for parameter in parameters:
                dist.broadcast(parameter, src=0)


def check_share(team: ProcessGroup, batch_size: int) -> None:
    """Raises `ConfigError` when there are fewer images in a step than processes."""
    if batch_size < team.count:
        raise ConfigError(
            f"train.batch_size is {batch_size}, for all processes together, and there are "
            f"{team.count}: each needs an image; raise it or start fewer processes"
        )


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()
