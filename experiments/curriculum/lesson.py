"""One lesson: the plain training loop that the four share, with a checkpoint a minute.

A lesson is a module, an endless stream of batches that can begin at any step, and a loss. Step
number and seed decide data and noise, so that a broken lesson goes on as if nothing had happened.
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from abc_embed.runtime import seed_everything
from abc_embed.storage.files import atomic_write
from abc_embed.train.metrics_logger import MetricsLogger, StepRecord

CHECKPOINT_EVERY_S = 60.0
CLIP_NORM = 1.0


class Stream(Protocol):
    """Batches by step number, from a seed alone."""

    def make(self, step: int) -> Any:
        """The batch of a step; 0 is the first."""


class _Endless(IterableDataset[Any]):
    """A stream from a step on, for a worker process."""

    def __init__(self, stream: Stream, first: int) -> None:
        self._stream = stream
        self._first = first

    def __iter__(self) -> Iterator[Any]:
        torch.set_num_threads(1)
        step = self._first
        while True:
            yield self._stream.make(step)
            step += 1


def learn(
    model: nn.Module,
    out: Path,
    *,
    steps: int,
    stream: Stream,
    loss_of: Callable[[Any], tuple[Tensor, Tensor, int]],
    rate_at: Callable[[int], float],
    tau: Callable[[], float] = lambda: 1.0,
) -> Path:
    """Train `model` for `steps` batches and write its weights to `out`.

    `loss_of` takes a batch and gives loss, accuracy (scalars) and the number of items; `rate_at`
    gives the learning rate of a step. Called again, a broken lesson goes on.
    """
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=rate_at(0), betas=(0.9, 0.98), weight_decay=0.02
    )
    last, first = out.with_suffix(".last"), 0
    if last.exists():
        state = torch.load(last)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
    loader = DataLoader(_Endless(stream, first), batch_size=None, num_workers=1, prefetch_factor=4)
    feed, saved = iter(loader), time.monotonic()
    log = out.with_name(f"{out.stem}.metrics.jsonl")
    with MetricsLogger(log, first_step=first, steps=steps, every=25) as logger:
        for step in range(first, steps):
            start = time.perf_counter()
            batch = next(feed)
            waited_s = time.perf_counter() - start
            seed_everything(step)
            rate, tau_now = rate_at(step), tau()
            for group in optimizer.param_groups:
                group["lr"] = rate
            loss, accuracy, items = loss_of(batch)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            norm = float(nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM))
            optimizer.step()
            logger.log(
                StepRecord(
                    step=step + 1,
                    loss=loss.item(),
                    accuracy=accuracy.item(),
                    tau=tau_now,
                    grad_norm=norm,
                    learning_rate=rate,
                    queries=items,
                    candidates=0,
                ),
                waited_s,
            )
            if time.monotonic() - saved > CHECKPOINT_EVERY_S:
                saved = time.monotonic()
                state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
                _write(state | {"step": step + 1}, last)
    _write(model.state_dict(), out)
    with contextlib.suppress(FileNotFoundError):
        last.unlink()
    return out


def _write(state: dict[str, Any], path: Path) -> None:
    """A killed run leaves the last whole file."""
    with atomic_write(path) as file:
        torch.save(state, file)
