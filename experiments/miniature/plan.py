"""What is compared with what: conditions, sizes, and the training configuration of each run.

One condition, `REFERENCE`, has everything as the paper recommends; each other one differs from it
in one thing. Every run has a key by which its result is found again.
"""

from collections.abc import Iterator
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass
from typing import Any, Literal

from abc_embed.storage.hashing import sha256_json
from abc_embed.train.config import (
    AdapterConfig,
    DataConfig,
    ModelConfig,
    OptimConfig,
    RunConfig,
    StageName,
    TemperatureConfig,
    TrainConfig,
)

Precision = Literal["float32", "bfloat16"]

INSTRUCTIONS = 4
"""Of each image in stage 2 (paper section 5)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """How large everything is; the same for all conditions."""

    seeds: tuple[int, ...] = (1, 2, 3)
    world: int = 11
    """Of the training scenes, one of `TRAINING_WORLDS`."""
    images: int = 2048
    """Training images, mirrors included."""
    side: int = 112
    """Of a picture, in pixels: 16 visual tokens."""
    layers: tuple[int, ...] = (0, 2)
    """Language layers of the bundled model that the base keeps."""
    steps: int = 100
    batch: int = 8
    """Images of a step of stage 1."""
    rate: float = 1e-3
    """Far above the paper's 4e-5: the model is small and the run short."""
    rank: int = 64
    mining_steps: int = 60
    pool: int = 100
    drawn: int = 20
    """Mined captions kept for each image; a step draws its few from these."""
    instruct_steps: int = 100
    instruct_images: int = 8
    instruct_rate: float = 1e-3
    measured_world: int = 7101
    captions: int = 500
    """Unseen images, mirrors included, whose captions are told apart."""
    queries: int = 500
    """Instructions about unseen images."""
    precision: Precision = "bfloat16"


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """One way to train. The defaults are the reference."""

    name: str
    stage: StageName = "pretrain"
    negatives: int = 6
    """Mined captions of each image."""
    tau_start: float = 0.07
    tau_learnt: bool = True
    batch_factor: int = 1
    steps_factor: int = 1
    label_smoothing: float = 0.1
    whole_groups: bool = True
    """Stage 2: all instructions of an image in one batch."""
    cost: float = 1.0
    """Time it takes, the reference being 1: for the time left, nothing else."""


START = Condition(name="start", cost=0.2)
"""The base as it is: measured, not trained."""
REFERENCE = Condition(name="mined-6")
WHOLE = Condition(name="stage2-whole", stage="instruct", cost=0.9)
CONDITIONS = (
    REFERENCE,
    Condition(name="mined-0", negatives=0, cost=0.4),
    WHOLE,
    Condition(name="mined-3", negatives=3, cost=0.7),
    Condition(name="stage2-shuffled", stage="instruct", whole_groups=False, cost=1.1),
    Condition(name="tau-fixed", tau_learnt=False),
    Condition(name="tau-from-0.01", tau_start=0.01),
    Condition(name="batch-x4", batch_factor=4, cost=3.6),
    Condition(name="long-mined-0", negatives=0, steps_factor=3, cost=1.0),
    Condition(
        name="long-mined-0-sharp", negatives=0, steps_factor=3, label_smoothing=0.0, cost=1.0
    ),
    Condition(name="long-mined-6", steps_factor=3, cost=2.7),
    Condition(name="long-mined-6-sharp", steps_factor=3, label_smoothing=0.0, cost=2.7),
)
"""In the order in which they run. Stage 2 goes on from the reference of the same seed."""


@dataclass(frozen=True, slots=True)
class Job:
    """One run: a condition and a seed."""

    condition: Condition
    seed: int

    @property
    def name(self) -> str:
        return f"{self.condition.name}-seed{self.seed}"

    @property
    def needs(self) -> "Job | None":
        """The run whose model this one begins with."""
        return Job(REFERENCE, self.seed) if self.condition.stage == "instruct" else None


def jobs(sizes: Sizes) -> Iterator[Job]:
    """Every run; one seed of each condition first, so that a broken-off work has all rows."""
    yield Job(START, 0)
    for seed in sizes.seeds:
        for condition in CONDITIONS:
            yield Job(condition, seed)


def job_config(job: Job, sizes: Sizes, steps: int = 0) -> TrainConfig:
    """The configuration of a run, without folders: those are no part of what is learnt.

    `steps` stands in for those of stage 1.
    """
    condition = job.condition
    instruct = condition.stage == "instruct"
    rank = 16 if instruct else sizes.rank
    # A floor far below, so that τ may go where it will.
    temperature = TemperatureConfig(
        start=condition.tau_start, learn=condition.tau_learnt, floor=1e-3
    )
    pretrain_data = DataConfig(negatives=condition.negatives)
    pretrain_steps = steps or sizes.steps * condition.steps_factor
    batch = sizes.instruct_images if instruct else sizes.batch * condition.batch_factor
    if instruct and not condition.whole_groups:
        batch *= INSTRUCTIONS  # as many queries, each of any image
    return TrainConfig(
        stage=condition.stage,
        adapter=AdapterConfig(rank=rank, alpha=2 * rank),
        train=RunConfig(
            steps=sizes.instruct_steps if instruct else pretrain_steps,
            batch_size=batch,
            label_smoothing=condition.label_smoothing,
            seed=job.seed,
            checkpoint_every=25,
            keep_checkpoints=1,
        ),
        # Plain attention: the fused kernel's backward pass is slow on CPUs (docs/bundled.md).
        model=ModelConfig(device="cpu", precision=sizes.precision, attention="eager"),
        data=DataConfig(instructions=INSTRUCTIONS) if instruct else pretrain_data,
        temperature=TemperatureConfig() if instruct else temperature,
        optim=OptimConfig(learning_rate=sizes.instruct_rate if instruct else sizes.rate),
    )


def shared_key(sizes: Sizes, bundled: str) -> str:
    """Of what all runs share; `bundled` is the fingerprint of the weights they come from."""
    values = asdict(sizes)
    del values["seeds"]
    return sha256_json({"sizes": values, "bundled": bundled})[:16]


def key(job: Job, sizes: Sizes, bundled: str) -> str:
    """Of a run: the same for the same configuration, data and first weights."""
    condition = _non_defaults(job.condition)
    condition.pop("cost", None)
    config = _non_defaults(job_config(job, sizes))
    return sha256_json([shared_key(sizes, bundled), condition, job.seed, config])[:16]


def _non_defaults(settings: Any) -> dict[str, Any]:
    """Fields that are not at their default: a field that is new tomorrow changes no key."""
    values: dict[str, Any] = {}
    for field in fields(settings):
        value = getattr(settings, field.name)
        made = field.default_factory
        default = field.default if made is MISSING else made()
        if is_dataclass(value) and field.name != "validation":  # newer than the first keys
            values[field.name] = _non_defaults(value)
        elif value != default:
            values[field.name] = value
    return values
