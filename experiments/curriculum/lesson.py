"""One lesson: the plain training loop that the four share, with a checkpoint a minute.

Step number and seed decide data and noise, so that a broken lesson goes on as if nothing had
happened.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from abc_embed.runtime import seed_everything
from abc_embed.storage.files import atomic_write
from abc_embed.train.metrics_logger import MetricsLogger, StepRecord

T = TypeVar("T")

CHECKPOINT_EVERY_S = 60.0
CLIP_NORM = 1.0


class Stream(Protocol):
    """Batches by step number, from a seed alone."""

    def make(self, step: int) -> Any:
        """The batch of a step; 0 is the first."""


@dataclass(frozen=True, slots=True)
class _StepDataset(Dataset[Any]):
    stream: Stream

    def __getitem__(self, step: int) -> Any:
        torch.set_num_threads(1)  # in a worker process
        return self.stream.make(step)


def _loader(stream: Stream, first: int, steps: int, workers: int) -> DataLoader[Any]:
    return DataLoader(
        _StepDataset(stream),
        batch_size=None,
        sampler=range(first, steps),
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        collate_fn=_unchanged,
    )


def learn(
    model: nn.Module,
    out: Path,
    *,
    steps: int,
    stream: Stream,
    loss_of: Callable[[Any], tuple[Tensor, Tensor, int]],
    rate_at: Callable[[int], float],
    tau: Callable[[], float] = lambda: 1.0,
    workers: int = 1,
) -> Path:
    """Train `model`, on the device where it is, and write its weights to `out`.

    Args:
        model: What learns. Called again, a broken lesson goes on.
        out: A `.pt` file.
        steps: How many batches.
        stream: Makes the batches.
        loss_of: Takes a batch and gives loss, accuracy (scalars) and the number of items.
        rate_at: The learning rate of a step.
        tau: The temperature now, for the log.
        workers: Processes that make batches ahead.
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
    batches = iter(_loader(stream, first, steps, workers))
    saved_s = time.monotonic()
    log = out.with_name(f"{out.stem}.metrics.jsonl")
    with MetricsLogger(log, first_step=first, steps=steps, every=25) as logger:
        for step in range(first, steps):
            start = time.perf_counter()
            batch = next(batches)
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
            record = StepRecord(
                step=step + 1,
                loss=loss.item(),
                accuracy=accuracy.item(),
                tau=tau_now,
                grad_norm=norm,
                learning_rate=rate,
                queries=items,
                candidates=0,
            )
            logger.log(record, waited_s)
            if time.monotonic() - saved_s > CHECKPOINT_EVERY_S:
                saved_s = time.monotonic()
                state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
                save_state(state | {"step": step + 1}, last)
    save_state(model.state_dict(), out)
    last.unlink(missing_ok=True)
    return out


def to_device(batch: T, device: str) -> T:
    """A dataclass with its tensors on the device."""
    values = {field.name: getattr(batch, field.name) for field in fields(batch)}  # type: ignore[arg-type]
    moved = {name: value.to(device) for name, value in values.items() if isinstance(value, Tensor)}
    return replace(batch, **moved)  # type: ignore[type-var]


def _unchanged(batch: Any) -> Any:
    return batch  # a batch as it was made


def save_state(state: dict[str, Any], path: Path) -> None:
    """Write what a lesson has learnt, whole or not at all."""
    with atomic_write(path) as file:
        torch.save(state, file)
