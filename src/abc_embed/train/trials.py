"""What a few steps tell before a run begins: which learning rate, and where the time goes.

Steps are real ones, on the model and the data of the run. Its folder is neither read nor written.
"""

import csv
import io
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch.autograd.profiler import record_function
from torch.profiler import ProfilerActivity, profile

from abc_embed.errors import TrainingError, UsageError
from abc_embed.figures import new_figure, save_figure
from abc_embed.progress import ProgressCallback
from abc_embed.runtime import seed_everything
from abc_embed.storage.files import atomic_write, make_folder
from abc_embed.train.batches import load_batches
from abc_embed.train.config import TrainConfig
from abc_embed.train.loop import make_accelerator, take_step
from abc_embed.train.processes import GlobalBatch, ProcessGroup
from abc_embed.train.run import load_for_training
from abc_embed.train.sampler import RecordSampler
from abc_embed.train.stages import STAGES

LOWEST, HIGHEST = 1e-6, 1e-1
"""Learning rates between which the sweep rises, by the same factor each step."""
SWEEP_STEPS = 100
SMOOTHING = 0.9
"""Share of the running mean of the loss that stays from step to step."""
SETTLED = 10
"""Steps from which on the running mean counts."""
DIVERGED = 3.0
"""The sweep ends where the smoothed loss is so many times its lowest."""
FALLEN = 0.98
"""Share of its value at step `SETTLED` that the loss must fall below, or nothing is suggested."""


class Trial:
    """A stage set up as a run sets it up, whose steps leave nothing behind.

    Raises:
        UsageError: several processes train.
    """

    def __init__(self, config: TrainConfig, steps: int) -> None:
        config = replace(config, train=replace(config.train, steps=steps))
        process_group = ProcessGroup(make_accelerator(config.model))
        if process_group.world_size > 1:
            raise UsageError("this tries a few steps in one process; start it without a launcher")
        sampler = RecordSampler(config.data.records, config.stage, config.data)
        model, processor = load_for_training(config)
        seed_everything(config.train.seed)
        self.stage = STAGES[config.stage](config, model, processor, process_group)
        self._batches = load_batches(sampler, processor, config, 0)

    def step(self, number: int, learning_rate: float) -> float:
        """Take step `number`, counted from 0; its loss, of before the weights moved.

        Where loss or gradient are not finite the weights stay as they are.
        """
        with record_function("data"):
            own = next(self._batches)
        try:
            batch = GlobalBatch.single(own)
            return take_step(self.stage, batch, step=number, learning_rate=learning_rate).loss
        except TrainingError:
            return math.nan


# -- learning rates --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LearningRates:
    """What a sweep found."""

    rows: list[dict[str, float]]
    """`step`, `learning_rate`, `loss` and `smoothed` of each step taken."""
    suggestion: float | None
    """A tenth of the learning rate at which the smoothed loss is lowest; None where it never fell.
    At the lowest point itself the loss is about to rise (Smith 2017, arXiv 1506.01186)."""
    diverged: bool
    """Whether the loss rose again before the sweep came to its end."""


def find_learning_rate(
    config: TrainConfig, out: Path, on_progress: ProgressCallback = lambda done, total=None: None
) -> LearningRates:
    """Raise the learning rate from step to step, and see at which the loss falls.

    `optim.learning_rate` and `train.steps` do not count. `learning_rates.csv` and
    `learning_rates.png` are in the folder `out` then.
    """
    figure = new_figure(7, 4)
    make_folder(out)
    trial = Trial(config, SWEEP_STEPS)
    rows: list[dict[str, float]] = []
    mean, lowest, diverged = 0.0, math.inf, False
    for step in range(SWEEP_STEPS):
        rate = LOWEST * (HIGHEST / LOWEST) ** (step / (SWEEP_STEPS - 1))
        loss = trial.step(step, rate)
        mean = SMOOTHING * mean + (1 - SMOOTHING) * loss
        smoothed = mean / (1 - SMOOTHING ** (step + 1))
        diverged = not smoothed <= DIVERGED * lowest  # true of what is no number, too
        if math.isfinite(loss):
            rows.append(
                {"step": step + 1, "learning_rate": rate, "loss": loss, "smoothed": smoothed}
            )
        on_progress(step + 1, SWEEP_STEPS)
        if diverged:
            break
        if step + 1 >= SETTLED:
            lowest = min(lowest, smoothed)
    found = LearningRates(rows, _suggestion(rows), diverged)
    _write_csv(out / "learning_rates.csv", rows)
    _draw(figure, found)
    save_figure(figure, out / "learning_rates.png", dpi=150)
    return found


def _suggestion(rows: list[dict[str, float]]) -> float | None:
    settled = rows[SETTLED - 1 :]  # before that the mean is of a few losses, and any may be low
    if not settled:
        return None
    best = min(settled, key=lambda row: row["smoothed"])
    fell = best["smoothed"] < FALLEN * settled[0]["smoothed"]
    return best["learning_rate"] / 10 if fell else None


def _draw(figure: Any, found: LearningRates) -> None:
    axes = figure.add_subplot()
    rates = [row["learning_rate"] for row in found.rows]
    for name, alpha, width in (("loss", 0.25, 0.8), ("smoothed", 1.0, 1.8)):
        values = [row[name] for row in found.rows]
        axes.plot(rates, values, color="#1f5fb0", alpha=alpha, linewidth=width)
    if found.suggestion is not None:
        axes.axvline(found.suggestion, color="#c9571c", linestyle="--", linewidth=1.2)
        axes.annotate(
            f" suggested: {found.suggestion:.1e}",
            (found.suggestion, axes.get_ylim()[1]),
            va="top",
            color="#c9571c",
        )
    axes.set_xscale("log")
    axes.set_xlabel("learning rate")
    axes.set_ylabel("loss (strong: running mean)")
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)


# -- where the time goes ---------------------------------------------------------------------------

PROFILE_STEPS = 3
"""Steps that are looked at, after one that is not: the first one is slow on any machine."""
_PARTS = ("data", "vectors and gradients", "update")
_BACKWARD = "autograd::engine::evaluate_function"


@dataclass(frozen=True, slots=True)
class Profile:
    """Where the time of a step goes, in milliseconds."""

    parts: dict[str, float]
    """Of each part of a step as the processor sees it; on a GPU, which works on, that is when it
    was told to begin."""
    operations: list[dict[str, Any]]
    """`operation`, `calls` and `ms` of a step, without what it calls itself; the slowest first,
    on a GPU by the GPU's time."""


def profile_steps(
    config: TrainConfig, out: Path, on_progress: ProgressCallback = lambda done, total=None: None
) -> Profile:
    """Look at a few steps with torch's profiler.

    The folder `out` has `trace.json`, which chrome://tracing and Perfetto show, and
    `operations.csv` then.
    """
    make_folder(out)
    trial = Trial(config, PROFILE_STEPS + 1)
    rate, on_gpu = config.optim.learning_rate, trial.stage.model.device.type == "cuda"
    trial.step(0, rate)
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=kinds) as profiler:
        for number in range(PROFILE_STEPS):
            trial.step(number + 1, rate)
            on_progress(number + 1, PROFILE_STEPS)
    profiler.export_chrome_trace(str(out / "trace.json"))
    events = list(profiler.key_averages())
    total = {event.key: _ms(event.cpu_time_total) for event in events}
    backward = sum(ms for name, ms in total.items() if name.startswith(_BACKWARD))
    parts = {name: total[name] for name in _PARTS}
    forward = {"forward passes": parts.pop(_PARTS[1]) - backward, "backward passes": backward}
    own = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    operations = [
        {"operation": e.key, "calls": e.count // PROFILE_STEPS, "ms": _ms(getattr(e, own))}
        for e in events
        if e.key not in _PARTS
    ]
    operations.sort(key=lambda row: -row["ms"])
    _write_csv(out / "operations.csv", operations)
    return Profile({"data": parts["data"], **forward, "update": parts["update"]}, operations)


def _ms(microseconds: float) -> float:
    """Of one step."""
    return round(microseconds / 1000 / PROFILE_STEPS, 3)


def _write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0] if rows else (), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    with atomic_write(path) as file:
        file.write(text.getvalue().encode())
