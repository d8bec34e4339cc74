"""Candidates of all processes: each embeds its own, every query is scored against all of them.

Does: say what every process brings to a step (`GlobalBatch`), bring its vectors to the others with
or without gradient, merge equal texts. Does not: embed, or know of the loss.

    "gradient"    what another process's queries say about my candidates comes back to me: the loss
                  and the gradients are those of one process with the whole batch
    "published"   candidates of other processes are constants, as in the published training code:
                  half of what a negative could teach is lost, and the more so the more processes

Nothing must be equal on all processes: rows are filled up for the way and cut off again after it.

Shapes: `C` candidates of all processes, `c` of one, `m` the most that any has, `D` width,
`W` processes.
"""

from collections.abc import Container, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from abc_embed.train.batches import TrainBatch, split_queries
from abc_embed.train.config import GatherName
from abc_embed.train.processes import ProcessGroup


@dataclass(frozen=True, slots=True)
class GlobalBatch:
    """What each process brings to one step; the same on all of them but for `rank`."""

    rank: int
    texts: tuple[tuple[str, ...], ...]
    """The candidates of each process, in its own order; a text may be with several."""
    sizes: tuple[tuple[int, ...], ...]
    """The number of queries of each image of each process."""
    query_chunks: tuple[int, ...]
    """In how many chunks each process passes its queries through the model."""

    @classmethod
    def of_one(cls, batch: TrainBatch) -> "GlobalBatch":
        """Of a process that is alone."""
        return cls(0, (batch.texts,), (batch.group_sizes,), (1,))

    @property
    def queries(self) -> int:
        """Queries of all processes."""
        return sum(map(sum, self.sizes))

    def numbers(self) -> dict[str, int]:
        """The `C` distinct texts of all processes, numbered as they are first named."""
        named = dict.fromkeys(text for texts in self.texts for text in texts)
        return {text: number for number, text in enumerate(named)}

    def positives(self, batch: TrainBatch) -> Tensor:
        """`(Q,)` int64: the right candidate of each query of this process, by `numbers`."""
        if len(self.texts) == 1:
            return batch.positives
        numbers = self.numbers()
        return torch.tensor([numbers[batch.texts[place]] for place in batch.positives.tolist()])

    def new_texts(self, known: Container[str]) -> list[list[str]]:
        """For each process the texts that are not `known` and that it is the first to name."""
        seen: set[str] = set()
        new: list[list[str]] = []
        for texts in self.texts:
            new.append([text for text in texts if text not in known and text not in seen])
            seen.update(texts)
        return new


def exchange_batch_info(team: ProcessGroup, batch: TrainBatch, chunk_size: int) -> GlobalBatch:
    """Tell the others what this process brings, and hear what they do."""
    chunks = len(split_queries(batch, chunk_size))
    told = team.all_gather_object((batch.texts, batch.group_sizes, chunks))
    return GlobalBatch(
        rank=team.rank,
        texts=tuple(texts for texts, _, _ in told),
        sizes=tuple(sizes for _, sizes, _ in told),
        query_chunks=tuple(chunks for _, _, chunks in told),
    )


def gather_candidates(own: Tensor, shares: GlobalBatch, how: GatherName) -> Tensor:
    """`own` `(c, D)`, in the order of this process's texts -> `(C, D)` in the order of `numbers`.

    A text that several processes embedded is taken from the first of them; without gradient through
    the gather, from this process if it has it: what is its own keeps its gradient.
    """
    if len(shares.texts) == 1:
        return own
    rows = gather_rows(own, [len(texts) for texts in shares.texts], how)
    order = list(range(len(shares.texts)))
    if how == "published":
        order.insert(0, order.pop(shares.rank))
    starts = torch.tensor([0, *(len(texts) for texts in shares.texts)]).cumsum(0).tolist()
    found: dict[str, int] = {}
    for process in order:
        for place, text in enumerate(shares.texts[process], starts[process]):
            found.setdefault(text, place)
    return rows[torch.tensor([found[text] for text in shares.numbers()], device=rows.device)]


def gather_rows(own: Tensor, lengths: Sequence[int], how: GatherName) -> Tensor:
    """The rows `(c, D)` of all processes one after the other; `lengths` has each one's c."""
    most = max(lengths)
    padded = F.pad(own, (0, 0, 0, most - len(own)))  # (m, D)
    rank = dist.get_rank()
    if how == "gradient":
        rows: Tensor = _AllGather.apply(padded)  # type: ignore[no-untyped-call]
        parts = list(rows.split(most))
    else:
        with torch.no_grad():
            parts = list(_all_gather(padded).split(most))
        parts[rank] = padded
    return torch.cat([part[:length] for part, length in zip(parts, lengths, strict=True)])


class _AllGather(torch.autograd.Function):
    """`(m, D)` of each process -> `(W m, D)`; the way back adds up what all of them say."""

    @staticmethod
    def forward(ctx: Any, own: Tensor) -> Tensor:
        return _all_gather(own)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total.chunk(dist.get_world_size())[dist.get_rank()]


def _all_gather(own: Tensor) -> Tensor:
    parts = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, own.contiguous())
    return torch.cat(parts)
