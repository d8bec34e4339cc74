"""The run itself: data, gradients, step, log, checkpoint, until done. Read it from top to bottom.

One plain loop on accelerate (device, autocast, backward, clipping). With several processes each
runs this loop on its share of every step; the main one writes.

A run is a function of its configuration: learning rate, data and dropout of a step follow from the
step number and the seed. So a killed run, started again with the same command, gives the same loss
curve to the last bit on a CPU in float32, and on a GPU as far as its kernels are deterministic.
"""

import logging
import math
import time
from collections.abc import Iterator, Sized
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch.autograd.profiler import record_function

from abc_embed import checkpoint
from abc_embed.bench.tables import chance_warnings
from abc_embed.errors import TrainingError
from abc_embed.model import AbcModel
from abc_embed.processor import Processor
from abc_embed.runtime import resolve_device, seed_everything
from abc_embed.storage.files import make_folder
from abc_embed.train.batches import (
    GroupSampler,
    TrainBatch,
    detect_killed_workers,
    load_batches,
)
from abc_embed.train.checkpoints import (
    CheckpointManager,
    RunState,
    clear_leftovers,
    find_resumable,
    lock_run,
)
from abc_embed.train.config import ModelConfig, TrainConfig
from abc_embed.train.metrics_logger import (
    MetricsLogger,
    StepRecord,
    append_lines,
    drop_lines_after,
    open_tracker,
)
from abc_embed.train.processes import GlobalBatch, ProcessGroup, check_batch_size
from abc_embed.train.provenance import Fingerprint
from abc_embed.train.rejects import RejectLog
from abc_embed.train.sharding import fsdp_requested
from abc_embed.train.stages import STAGES, Stage
from abc_embed.train.validation import VALIDATION_FILE, ValidationSet, Validator
from abc_embed.train.zero import hide_deepspeed, zero_settings
from abc_embed.vectors import VectorFacts

logger = logging.getLogger(__name__)


def run_stage(
    config: TrainConfig,
    sampler: GroupSampler,
    model: AbcModel,
    processor: Processor,
    out_dir: str | Path,
    *,
    resume: bool = True,
    fingerprint: Fingerprint | None = None,
    moved: bool = False,
    validation: ValidationSet | None = None,
) -> AbcModel:
    """Train `model` in place, by the stage that the configuration names (paper sections 4 and 5).

    Started again with the same arguments, a broken run goes on and a finished one only saves again,
    or goes on where `train.steps` has become more: by the schedule of a run of so many steps.
    With several processes all of them call this, with the same arguments.

    Args:
        model: For stage 1 a vision-language model with head, without adapters; for stage 2 what
            stage 1 returned or saved. Where weights are split over processes it is used up.
        out_dir: Folder of the run; the trained model lies in `out_dir/model`.
        resume: False refuses a folder that holds a run.
        fingerprint: What it learns from, by content; a run goes on with the same alone.
        moved: That may lie somewhere else than when the run began.
        validation: What the model is asked every `validation.every` steps.

    Returns:
        The model, with stage 1 merged or the adapter of stage 2 attached.
    """
    out_dir = Path(out_dir)
    process_group = ProcessGroup(make_accelerator(config.model))
    with process_group.detect_lost_processes(), detect_killed_workers(), ExitStack() as stack:
        with process_group.propagate_errors():
            check_batch_size(config.train.batch_size, process_group.world_size)
        last = process_group.broadcast_from_main(lambda: _take_up(out_dir, resume, stack))
        seed_everything(config.train.seed)
        earlier = list(model.provenance)
        stage = STAGES[config.stage](config, model, processor, process_group)
        run = _Run(
            stage=stage,
            checkpoints=CheckpointManager(
                out_dir / "checkpoints", stage, fingerprint or Fingerprint(), moved, earlier
            ),
            out_dir=out_dir,
            validator=Validator(validation, stage, processor) if validation else None,
        )
        state = RunState(step=0)
        with process_group.propagate_errors():
            if last:
                state = run.checkpoints.load(last)
                if process_group.is_main:
                    logger.info(_resumption(config, state, out_dir))
        rank, world_size = process_group.rank, process_group.world_size
        batches = load_batches(sampler, processor, config, state.step, rank, world_size)
        with ExitStack() as logs:
            with process_group.propagate_errors():
                if process_group.is_main:
                    run.open_logs(state.step, sampler, logs)
            state = run.loop(batches, state)
        stage.finish()
        stage.model.provenance = run.checkpoints.provenance(state.step)
        stage.model.vector_facts = VectorFacts(matryoshka=config.train.matryoshka)
        with process_group.propagate_errors():
            if process_group.is_main:
                checkpoint.save(stage.model, processor, out_dir / "model")
    return stage.model


def _take_up(out_dir: Path, resume: bool, stack: ExitStack) -> Path | None:
    """Make the folder of a run ours until `stack` ends; the checkpoint to go on from, if any."""
    stack.callback(lock_run(make_folder(out_dir)).release)
    clear_leftovers(out_dir)
    return find_resumable(out_dir, resume)


def _resumption(config: TrainConfig, state: RunState, out_dir: Path) -> str:
    step, steps = state.step, config.train.steps
    if step == steps:
        return f"{out_dir}: all {steps:,} steps are done; the model is saved again"
    if step < state.planned_steps or not state.planned_steps:
        return f"{out_dir}: going on from step {step:,} of {steps:,}"
    first, last = (learning_rate_factor(at, config) for at in (step, steps - 1))
    rate = config.optim.learning_rate
    return (
        f"{out_dir}: a finished run of {step:,} steps goes on to {steps:,}; the learning rate "
        f"begins at {first * rate:.2e} and ends at {last * rate:.2e}, as in the second part of a "
        f"run that was planned for {steps:,}"
    )


@dataclass(kw_only=True)
class _Run:
    """The parts of one run, and its loop over them."""

    stage: Stage
    checkpoints: CheckpointManager
    out_dir: Path
    validator: Validator | None
    metrics_logger: MetricsLogger | None = None
    """The main process writes the logs; of the others this and `rejects` are None."""
    rejects: RejectLog | None = None

    def open_logs(self, first_step: int, sampler: GroupSampler, stack: ExitStack) -> None:
        """Go on with the logs of the folder after a step; `stack` closes them."""
        config = self.stage.config
        self.rejects = RejectLog(
            self.out_dir,
            first_step=first_step,
            max_share=config.data.max_bad_share,
            rows=len(sampler) if isinstance(sampler, Sized) else None,
            unreadable=getattr(sampler, "unreadable", ()),
        )
        metrics_logger = MetricsLogger(
            self.out_dir / "metrics.jsonl",
            first_step=first_step,
            steps=config.train.steps,
            every=config.train.log_every,
            tracker=open_tracker(config, self.out_dir, first_step),
        )
        self.metrics_logger = stack.enter_context(metrics_logger)
        if self.validator is not None:
            drop_lines_after(self.out_dir / VALIDATION_FILE, first_step)

    def loop(self, batches: Iterator[TrainBatch], state: RunState) -> RunState:
        """From `state` to the last step, or to the one that validation says is enough."""
        config, process_group = self.stage.config, self.stage.process_group
        train = config.train
        if state.step == 0:
            state = self.run_validation(state)
        for step in range(state.step, train.steps):
            if self.is_enough(state):
                break
            start = time.perf_counter()
            with process_group.propagate_errors():
                own = next(batches)
            waited_s = time.perf_counter() - start
            batch = GlobalBatch.gather(process_group, own, train)
            with process_group.propagate_errors():
                if self.rejects:
                    self.rejects.add(step + 1, (step + 1) * train.batch_size, batch.rejected)
            rate = config.optim.learning_rate * learning_rate_factor(step, config)
            record = take_step(self.stage, batch, step=step, learning_rate=rate)
            with process_group.propagate_errors():
                if self.metrics_logger:
                    self.metrics_logger.log(record, waited_s)
                state = _watch_temperature(self.stage, record, state)
            state = self.run_validation(state)
            is_last = state.step == train.steps or self.is_enough(state)
            if state.step % train.checkpoint_every == 0 or is_last:
                self.checkpoints.save(state)
        return state

    def run_validation(self, state: RunState) -> RunState:
        """Ask the model when it is due, and keep the best."""
        config = self.stage.config
        is_last = state.step == config.train.steps
        if self.validator is None or (state.step % config.validation.every and not is_last):
            return state
        record = self.validator.measure(state.step)
        better = record.better_than(state.best)
        state = replace(
            state,
            best=record if better else state.best,
            not_better=0 if better else state.not_better + 1,
        )
        with self.stage.process_group.propagate_errors():
            if self.metrics_logger:
                append_lines(self.out_dir / VALIDATION_FILE, [asdict(record)])
                self.metrics_logger.track(record.numbers(), record.step)
                logger.info(record.sentence(better))
                if self.is_enough(state):
                    logger.info(
                        f"stopped early at step {state.step:,}: {state.not_better} validations in "
                        "a row were not better than that of step "
                        f"{state.best.step if state.best else 0:,}"
                    )
                if self.is_enough(state) or is_last:
                    for sentence in chance_warnings(record.kinds):
                        logger.warning("validation: %s", sentence)
        if better and state.step:
            self.checkpoints.save(state, name="best")
        return state

    def is_enough(self, state: RunState) -> bool:
        """Whether validation says that more steps bring nothing."""
        patience = self.stage.config.validation.patience
        return self.validator is not None and 0 < patience <= state.not_better


def take_step(stage: Stage, batch: GlobalBatch, *, step: int, learning_rate: float) -> StepRecord:
    """One step of the optimizer; `step` counts from 0.

    Raises:
        TrainingError: loss or gradient are not finite; the weights stay as they are.
    """
    config, process_group, optimizer = stage.config, stage.process_group, stage.optimizer
    seed_everything(step_seed(config.train.seed, step, process_group.rank))
    optimizer.set_learning_rate(learning_rate)
    tau = stage.model.temperature.value
    with record_function("vectors and gradients"), optimizer.grad_sync():
        loss, accuracy = stage.backward(batch)
    with record_function("update"):
        grad_norm = optimizer.clip_grad_norm(config.optim.clip_norm)
        record = StepRecord(
            step=step + 1,
            loss=loss.item(),
            accuracy=accuracy.item(),
            tau=tau,
            grad_norm=grad_norm,
            learning_rate=learning_rate,
            queries=batch.query_count,
            candidates=len(batch.numbers),
            rejected=len(batch.rejected),
        )
        with process_group.propagate_errors():
            _check_finite(record)  # before the step: the weights stay those of the last good one
        optimizer.step()
        stage.after_update()
    return record


def learning_rate_factor(step: int, config: TrainConfig) -> float:
    """Learning rate of a step, counted from 0, as a factor of the highest.

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


def _watch_temperature(stage: Stage, record: StepRecord, state: RunState) -> RunState:
    """Count the steps that τ lay at its floor; stop when it has collapsed."""
    settings, temperature = stage.config.temperature, stage.model.temperature
    # The floor is a double, τ float32 and so perhaps a hair above it.
    low = temperature.temp.requires_grad and temperature.value <= settings.floor * (1 + 1e-6)
    state = replace(state, step=record.step, at_floor=state.at_floor + 1 if low else 0)
    if state.at_floor >= settings.patience:
        raise TrainingError(
            f"stopped at step {record.step}: τ has collapsed, it lay at its floor of "
            f"{settings.floor} for {state.at_floor} steps (loss {record.loss:.4g}, accuracy "
            f"{record.accuracy:.3f}); the negatives are too easy: mine harder ones "
            "(data.negatives), or keep τ fixed with temperature.learn = false"
        )
    return state


def autocast_dtype(config: ModelConfig) -> torch.dtype | None:
    """The number format of training, or None for plain float32."""
    on_gpu = config.device != "cpu" and resolve_device("auto").type == "cuda"
    if config.precision == "bfloat16" or (config.precision == "auto" and on_gpu):
        return torch.bfloat16
    return None


def make_accelerator(config: ModelConfig) -> Accelerator:
    """Where and in which numbers this process trains, and with which others."""
    fsdp_requested()  # both refuse what is not built before accelerate begins it
    zero_settings()
    try:
        with hide_deepspeed():
            return Accelerator(
                cpu=config.device == "cpu",
                mixed_precision="bf16" if autocast_dtype(config) else "no",
            )
    except ValueError as error:  # accelerate fixes device and precision once per process
        raise TrainingError(
            "this process has trained at another precision or on another device already; "
            "start a new one"
        ) from error


def step_seed(seed: int, step: int, rank: int) -> int:
    """A seed for the dropout of one step, unlike that of any other step, process or run."""
    entropy = [seed, 2, step, rank] if rank else [seed, 2, step]
    return int(np.random.SeedSequence(entropy).generate_state(1)[0])
