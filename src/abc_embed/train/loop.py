"""The run itself: data, gradients, step, log, checkpoint, until done. Read it from top to bottom.

Does: one plain loop on accelerate (device, autocast, backward, clipping), resume, watch over loss
and τ, save the trained model as a folder of ours. With several processes each runs this loop on its
share of every step; the main one writes. Does not: know what a stage trains (``stages``), how
gradients fit into memory (``gradcache``) or how processes agree (``processes``).

A run is a function of its configuration: learning rate, data and dropout of a step follow from the
step number and the seed. So a killed run, started again with the same command, gives the same loss
curve to the last bit on a CPU in float32, and on a GPU as far as its kernels are deterministic.
"""

import math
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator

from abc_embed import checkpoint
from abc_embed.errors import ConfigError, OutputError, TrainingError
from abc_embed.model import AbcModel
from abc_embed.processor import Processor
from abc_embed.runtime import resolve_device, seed_everything
from abc_embed.train.batches import Source, TrainBatch
from abc_embed.train.checkpoints import CheckpointManager, Progress
from abc_embed.train.config import ModelConfig, OptimConfig, TrainConfig
from abc_embed.train.gather import exchange_batch_info
from abc_embed.train.loader import batches
from abc_embed.train.metrics_logger import MetricsLogger, StepRecord
from abc_embed.train.optimizer import AdamW, Optimizer
from abc_embed.train.processes import ProcessGroup, check_share
from abc_embed.train.sharding import wants_sharding
from abc_embed.train.stages import Instruct, Pretrain, Stage
from abc_embed.train.trackers import open_tracker
from abc_embed.train.zero import ZeroAdamW, hidden_from_accelerate, wants_zero


def run_stage1(
    config: TrainConfig,
    source: Source,
    model: AbcModel,
    processor: Processor,
    out_dir: str | Path,
    *,
    resume: bool = True,
) -> AbcModel:
    """Train `model` from image to caption (paper section 4), in place.

    `model` is a vision-language model with head, without adapters. It comes back with stage 1
    merged, and lies in `out_dir/model`. Started again with the same arguments, a broken run goes on
    and a finished one only saves again; `resume=False` refuses a folder that holds a run.

    With several processes all of them call this, with the same arguments. Where the weights are
    split over them, `model` is used up and the trained one is what is returned.

    Raises `ConfigError`, `DataError`, `InputError`, `OutputError` or `TrainingError`.
    """
    if config.stage != "pretrain":
        raise ConfigError(f"stage is {config.stage!r}; stage 1 needs 'pretrain'")
    return _run(Pretrain, config, source, model, processor, Path(out_dir), resume)


def run_stage2(
    config: TrainConfig,
    source: Source,
    model: AbcModel,
    processor: Processor,
    out_dir: str | Path,
    *,
    resume: bool = True,
) -> AbcModel:
    """Train `model` from image and instruction to answer (paper section 5), in place.

    `model` is what stage 1 returned or saved. It comes back with the stage-2 adapter attached, and
    lies in `out_dir/model`. Resuming and errors are as in `run_stage1`.
    """
    if config.stage != "instruct":
        raise ConfigError(f"stage is {config.stage!r}; stage 2 needs 'instruct'")
    return _run(Instruct, config, source, model, processor, Path(out_dir), resume)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Run:
    """The parts of one run, made once."""

    config: TrainConfig
    stage: Stage
    team: ProcessGroup
    optimizer: Optimizer
    checkpoints: CheckpointManager
    out_dir: Path


def _run(
    kind: type[Stage],
    config: TrainConfig,
    source: Source,
    model: AbcModel,
    processor: Processor,
    out_dir: Path,
    resume: bool,
) -> AbcModel:
    accelerator = _accelerator(config.model)
    team = ProcessGroup(accelerator)
    with team.in_contact():
        with team.propagate_errors():
            check_share(team, config.train.batch_size)
        checkpoints = CheckpointManager(out_dir / "checkpoints", config, team)
        last = team.broadcast_from_main(lambda: _last_checkpoint(checkpoints, out_dir, resume))
        seed_everything(config.train.seed)
        stage = kind(config, model, processor, accelerator)
        run = _Run(
            config=config,
            stage=stage,
            team=team,
            optimizer=_optimizer(stage, config.optim, accelerator),
            checkpoints=checkpoints,
            out_dir=out_dir,
        )
        progress = Progress(step=0)
        with team.propagate_errors():
            if last:
                progress, memory = checkpoints.load(last, stage.parameters, run.optimizer)
                stage.remember(memory)
        share = (team.rank, team.count)
        _loop(run, batches(source, processor, config, progress.step, share), progress)
        run.optimizer.close()
        stage.finish()
        with team.propagate_errors():
            if team.main:
                checkpoint.save(stage.model, processor, out_dir / "model")
    return stage.model


def _last_checkpoint(checkpoints: CheckpointManager, out_dir: Path, resume: bool) -> Path | None:
    """The newest checkpoint; makes the folder of the run if there is none."""
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make the folder {out_dir}: {error.strerror}") from error
    last = checkpoints.latest()
    if last and not resume:
        raise TrainingError(f"{out_dir} holds a run already ({last.name}); choose another folder")
    return last


def _loop(run: _Run, feed: Iterator[TrainBatch], progress: Progress) -> None:
    """From `progress` to the last step."""
    train, team = run.config.train, run.team
    with ExitStack() as stack:
        with team.propagate_errors():
            logbook = stack.enter_context(_logbook(run, progress)) if team.main else None
        for step in range(progress.step, train.steps):
            began = time.perf_counter()
            with team.propagate_errors():
                batch = next(feed)
            waited = time.perf_counter() - began
            record = _step(run, batch, step)
            with team.propagate_errors():
                if logbook:
                    logbook.waited(waited)
                    logbook.write(record)
                progress = _watch(run, record, progress)
            if progress.step % train.checkpoint_every == 0 or progress.step == train.steps:
                stage = run.stage
                run.checkpoints.save(progress, stage.parameters, run.optimizer, stage.memory)


def _logbook(run: _Run, progress: Progress) -> MetricsLogger:
    train = run.config.train
    return MetricsLogger(
        run.out_dir / "metrics.jsonl",
        first_step=progress.step,
        steps=train.steps,
        every=train.log_every,
        tracker=open_tracker(run.config, run.out_dir, progress.step),
    )


def _step(run: _Run, batch: TrainBatch, step: int) -> StepRecord:
    """One step of the optimizer; `step` counts from 0."""
    stage, optim, train = run.stage, run.config.optim, run.config.train
    shares = exchange_batch_info(run.team, batch, train.chunk_size)
    seed_everything(_step_seed(train.seed, step, run.team.rank))
    rate = optim.learning_rate * learning_rate_share(step, run.config)
    run.optimizer.set_rate(rate)
    tau = stage.model.temperature.value
    with run.optimizer.gathering():
        loss, accuracy = stage.backward(batch, shares)
    norm = run.optimizer.clip(optim.clip_norm)
    record = StepRecord(
        step=step + 1,
        loss=loss.item(),
        accuracy=accuracy.item(),
        tau=tau,
        grad_norm=norm,
        learning_rate=rate,
        queries=shares.queries,
        candidates=len(shares.numbers()),
    )
    with run.team.propagate_errors():
        _check_finite(record)  # before the step: the weights stay those of the last good one
    run.optimizer.step()
    stage.after_update()
    return record


def learning_rate_share(step: int, config: TrainConfig) -> float:
    """Learning rate of a step, counted from 0, as a share of the highest.

    A line up over the first `optim.warmup_share` of the steps, whose first step is above 0, then
    half a cosine down, whose last step is above 0 (paper section 4).
    """
    steps = config.train.steps
    warmup = round(config.optim.warmup_share * steps)
    if step < warmup:
        return (step + 1) / warmup
    return (1 + math.cos(math.pi * (step - warmup) / (steps - warmup))) / 2


def _check_finite(record: StepRecord) -> None:
    if math.isfinite(record.loss) and math.isfinite(record.grad_norm):
        return
    raise TrainingError(
        f"stopped at step {record.step}: the loss is {record.loss:.4g} and the gradient norm "
        f"{record.grad_norm:.4g} (τ {record.tau:.4g}, learning rate {record.learning_rate:.3g}); "
        "lower optim.learning_rate, lengthen optim.warmup_share, or set model.precision to "
        "'float32' and begin again; the last good checkpoint is kept"
    )


def _watch(run: _Run, record: StepRecord, progress: Progress) -> Progress:
    """Count the steps that τ lay at its floor; stop when it has collapsed."""
    floor, temperature = run.config.temperature.floor, run.stage.model.temperature
    # The floor is a double, τ float32 and so perhaps a hair above it.
    low = temperature.temp.requires_grad and temperature.value <= floor * (1 + 1e-6)
    progress = replace(progress, step=record.step, at_floor=progress.at_floor + 1 if low else 0)
    if progress.at_floor >= run.config.temperature.patience:
        raise TrainingError(
            f"stopped at step {record.step}: τ has collapsed, it lay at its floor of {floor} for "
            f"{progress.at_floor} steps (loss {record.loss:.4g}, accuracy {record.accuracy:.3f}); "
            "the negatives are too easy: mine harder ones (data.negatives), or keep τ fixed with "
            "temperature.learn = false"
        )
    return progress


def _optimizer(stage: Stage, config: OptimConfig, accelerator: Accelerator) -> Optimizer:
    zero = wants_zero()
    if zero and stage.team.count > 1:
        return ZeroAdamW(stage.parameters, config, stage.team, accelerator, zero)
    return AdamW(list(stage.parameters.values()), config, accelerator)


def autocast_type(config: ModelConfig) -> torch.dtype | None:
    """The number format of training, or None for plain float32."""
    on_gpu = config.device != "cpu" and resolve_device("auto").type == "cuda"
    if config.precision == "bfloat16" or (config.precision == "auto" and on_gpu):
        return torch.bfloat16
    return None


def _accelerator(config: ModelConfig) -> Accelerator:
    """Where and in which numbers this process trains, and with which others."""
    wants_sharding()  # both refuse what is not built before accelerate begins it
    wants_zero()
    try:
        with hidden_from_accelerate():
            accelerator = Accelerator(
                cpu=config.device == "cpu",
                mixed_precision="bf16" if autocast_type(config) else "no",
            )
    except ValueError as error:  # accelerate fixes device and precision once per process
        raise TrainingError(
            "this process has trained at another precision or on another device already; "
            "start a new one"
        ) from error
    return accelerator


def _step_seed(seed: int, step: int, rank: int) -> int:
    """A seed for the dropout of one step, unlike that of any other step, process or run."""
    place = [seed, 2, step, rank] if rank else [seed, 2, step]
    return int(np.random.SeedSequence(place).generate_state(1)[0])
