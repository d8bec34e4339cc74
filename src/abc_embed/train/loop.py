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
from abc_embed.train.config import ModelConfig, OptimConfig, TrainConfig
from abc_embed.train.metrics_logger import (
    MetricsLogger,
    StepRecord,
    append_lines,
    drop_lines_after,
    open_tracker,
)
from abc_embed.train.optimizer import AdamW
from abc_embed.train.processes import (
    GlobalBatch,
    ProcessGroup,
    check_batch_size,
    exchange_batch_info,
)
from abc_embed.train.provenance import Fingerprint
from abc_embed.train.rejects import RejectLog
from abc_embed.train.sharding import fsdp_requested
from abc_embed.train.stages import STAGES, Stage
from abc_embed.train.validation import VALIDATION_FILE, ValidationSet, Validator
from abc_embed.train.zero import Optimizer, ZeroAdamW, hide_deepspeed, zero_settings
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
        checkpoints = CheckpointManager(
            out_dir / "checkpoints",
            config,
            process_group,
            fingerprint or Fingerprint(),
            moved,
            list(model.provenance),
        )
        last = process_group.broadcast_from_main(lambda: _take_up(out_dir, resume, stack))
        seed_everything(config.train.seed)
        stage = STAGES[config.stage](config, model, processor, process_group)
        run = _Run(
            config=config,
            sampler=sampler,
            stage=stage,
            process_group=process_group,
            optimizer=make_optimizer(stage, config.optim),
            checkpoints=checkpoints,
            out_dir=out_dir,
            validator=Validator(config, validation, stage, processor) if validation else None,
        )
        state = RunState(step=0)
        with process_group.propagate_errors():
            if last:
                state = checkpoints.load(last, stage, run.optimizer)
                if process_group.is_main:
                    logger.info(_resumption(config, state, out_dir))
        rank, world_size = process_group.rank, process_group.world_size
        batches = load_batches(sampler, processor, config, state.step, rank, world_size)
        state = _loop(run, batches, state)
        run.optimizer.close()
        stage.finish()
        stage.model.provenance = checkpoints.provenance(state.step)
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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Run:
    """The parts of one run, made once."""

    config: TrainConfig
    sampler: GroupSampler
    stage: Stage
    process_group: ProcessGroup
    optimizer: Optimizer
    checkpoints: CheckpointManager
    out_dir: Path
    validator: Validator | None


def _loop(run: _Run, batches: Iterator[TrainBatch], state: RunState) -> RunState:
    """From `state` to the last step, or to the one that validation says is enough."""
    train, stage, process_group = run.config.train, run.stage, run.process_group
    with ExitStack() as stack:
        with process_group.propagate_errors():
            metrics_logger = rejects = None
            if process_group.is_main:
                rejects = RejectLog(
                    run.out_dir,
                    first_step=state.step,
                    max_share=run.config.data.max_bad_share,
                    rows=len(run.sampler) if isinstance(run.sampler, Sized) else None,
                    unreadable=getattr(run.sampler, "unreadable", ()),
                )
                opened = MetricsLogger(
                    run.out_dir / "metrics.jsonl",
                    first_step=state.step,
                    steps=train.steps,
                    every=train.log_every,
                    tracker=open_tracker(run.config, run.out_dir, state.step),
                )
                metrics_logger = stack.enter_context(opened)
        validate = _Validation(run, state.step, metrics_logger)
        if state.step == 0:
            state = validate(state)
        for step in range(state.step, train.steps):
            if validate.enough(state):
                break
            start = time.perf_counter()
            with process_group.propagate_errors():
                batch = next(batches)
            waited_s = time.perf_counter() - start
            global_batch = exchange_batch_info(
                process_group, batch, train.chunk_size, train.chunk_tokens
            )
            with process_group.propagate_errors():
                if rejects:
                    rejects.add(step + 1, (step + 1) * train.batch_size, global_batch.rejected)
            rate = run.config.optim.learning_rate * learning_rate_factor(step, run.config)
            record = take_step(
                run.config, stage, run.optimizer, batch, global_batch, step=step, learning_rate=rate
            )
            with process_group.propagate_errors():
                if metrics_logger:
                    metrics_logger.log(record, waited_s)
                state = _watch_temperature(run, record, state)
            state = validate(state)
            last = state.step == train.steps or validate.enough(state)
            if state.step % train.checkpoint_every == 0 or last:
                run.checkpoints.save(state, stage, run.optimizer)
    return state


class _Validation:
    """Asks the model when it is due, keeps the best, and says when more steps bring nothing."""

    def __init__(self, run: _Run, first_step: int, metrics_logger: MetricsLogger | None) -> None:
        self._run, self._metrics_logger = run, metrics_logger
        self._path = run.out_dir / VALIDATION_FILE
        if run.validator is not None and metrics_logger:
            drop_lines_after(self._path, first_step)

    def __call__(self, state: RunState) -> RunState:
        run, config = self._run, self._run.config
        due = state.step % config.validation.every == 0 or state.step == config.train.steps
        if run.validator is None or not due:
            return state
        record = run.validator.measure(state.step)
        better = record.better_than(state.best)
        state = replace(
            state,
            best=record if better else state.best,
            not_better=0 if better else state.not_better + 1,
        )
        with run.process_group.propagate_errors():
            if self._metrics_logger:
                append_lines(self._path, [asdict(record)])
                self._metrics_logger.track(record.numbers(), record.step)
                logger.info(record.sentence(better))
                if self.enough(state):
                    logger.info(
                        f"stopped early at step {state.step:,}: {state.not_better} validations in "
                        "a row were not better than that of step "
                        f"{state.best.step if state.best else 0:,}"
                    )
                if self.enough(state) or state.step == config.train.steps:
                    for sentence in chance_warnings(record.kinds):
                        logger.warning("validation: %s", sentence)
        if better and state.step:
            run.checkpoints.save(state, run.stage, run.optimizer, name="best")
        return state

    def enough(self, state: RunState) -> bool:
        patience = self._run.config.validation.patience
        return self._run.validator is not None and 0 < patience <= state.not_better


def take_step(
    config: TrainConfig,
    stage: Stage,
    optimizer: Optimizer,
    batch: TrainBatch,
    global_batch: GlobalBatch,
    *,
    step: int,
    learning_rate: float,
) -> StepRecord:
    """One step of the optimizer; `step` counts from 0.

    Raises:
        TrainingError: loss or gradient are not finite; the weights stay as they are.
    """
    process_group = stage.process_group
    seed_everything(step_seed(config.train.seed, step, process_group.rank))
    optimizer.set_learning_rate(learning_rate)
    tau = stage.model.temperature.value
    with record_function("vectors and gradients"), optimizer.grad_sync():
        loss, accuracy = stage.backward(batch, global_batch)
    with record_function("update"):
        grad_norm = optimizer.clip_grad_norm(config.optim.clip_norm)
        record = StepRecord(
            step=step + 1,
            loss=loss.item(),
            accuracy=accuracy.item(),
            tau=tau,
            grad_norm=grad_norm,
            learning_rate=learning_rate,
            queries=global_batch.query_count,
            candidates=len(global_batch.candidate_numbers()),
            rejected=len(global_batch.rejected),
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


def _watch_temperature(run: _Run, record: StepRecord, state: RunState) -> RunState:
    """Count the steps that τ lay at its floor; stop when it has collapsed."""
    floor, temperature = run.config.temperature.floor, run.stage.model.temperature
    # The floor is a double, τ float32 and so perhaps a hair above it.
    low = temperature.temp.requires_grad and temperature.value <= floor * (1 + 1e-6)
    state = replace(state, step=record.step, at_floor=state.at_floor + 1 if low else 0)
    if state.at_floor >= run.config.temperature.patience:
        raise TrainingError(
            f"stopped at step {record.step}: τ has collapsed, it lay at its floor of {floor} for "
            f"{state.at_floor} steps (loss {record.loss:.4g}, accuracy {record.accuracy:.3f}); "
            "the negatives are too easy: mine harder ones (data.negatives), or keep τ fixed with "
            "temperature.learn = false"
        )
    return state


def make_optimizer(stage: Stage, config: OptimConfig) -> Optimizer:
    """AdamW for a stage, its state split where accelerate's launcher was told so."""
    zero = zero_settings()
    if zero and stage.process_group.world_size > 1:
        return ZeroAdamW(stage.parameters, config, stage.process_group, zero)
    return AdamW(list(stage.parameters.values()), config, stage.process_group)


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
