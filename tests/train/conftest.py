"""A tiny random Qwen2-VL to train, and data small enough to learn by heart."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from abc_embed import checkpoint
from abc_embed.model import AbcModel
from abc_embed.processor import Processor
from abc_embed.train.batches import Group, caption_group, instruction_group
from abc_embed.train.config import AdapterConfig, OptimConfig, RunConfig, StageName, TrainConfig
from abc_embed.train.processes import ProcessGroup
from abc_embed.train.stages import Instruct, Pretrain, Stage

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 60), "blue": (40, 60, 220), "white": (250,) * 3}
NAMES = list(COLOURS)


def picture(top: str, bottom: str) -> np.ndarray:
    """56 x 56: one colour above, one below; four visual tokens."""
    pixels = np.empty((56, 56, 3), dtype=np.uint8)
    pixels[:28], pixels[28:] = COLOURS[top], COLOURS[bottom]
    return pixels


@dataclass(frozen=True)
class Pictures:
    """A sampler: two-coloured pictures, whichever stage asks. Module level, so that it pickles."""

    stage: StageName
    count: int = 12
    stop_before: int | None = None
    """Step at which it dies, as if the process had been killed."""

    def groups(self, step: int, count: int, seed: int) -> Sequence[Group]:
        if step == self.stop_before:
            raise KeyboardInterrupt
        random = np.random.default_rng([seed, step])
        order = random.permutation(self.count)[:count]
        return [self._group(int(i)) for i in order]

    def _group(self, i: int) -> Group:
        # 12 ordered pairs of different colours
        top, offset = divmod(i, 3)
        bottom = (top + 1 + offset) % 4
        above, below = NAMES[top], NAMES[bottom]
        if self.stage == "pretrain":
            caption = f"{above} above {below}"
            return caption_group(picture(above, below), caption, [f"{below} above {above}"])
        pairs = [("what is on top?", above), ("what is below?", f"a {below} one")]
        return instruction_group(picture(above, below), pairs)


@pytest.fixture
def tiny(golden: Path) -> Callable[[], tuple[AbcModel, Processor]]:
    """Makes the same tiny model again and again: D = 64, three layers, vision depth two."""

    def make() -> tuple[AbcModel, Processor]:
        return checkpoint.load_base(
            str(golden / "base"), pixels=(28 * 28, 56 * 56), head_width=96, positions="sequential"
        )

    return make


def make_config(
    stage: StageName, *, dropout: float = 0.0, optim: dict[str, Any] | None = None, **train: Any
) -> TrainConfig:
    """A configuration for the tiny model."""
    defaults = {"steps": 6, "batch_size": 4, "checkpoint_every": 2, "label_smoothing": 0.1}
    return TrainConfig(
        stage=stage,
        adapter=AdapterConfig(rank=4, alpha=8, dropout=dropout),
        train=RunConfig(**(defaults | train)),
        optim=OptimConfig(**({"learning_rate": 1e-3} | (optim or {}))),
    )


@pytest.fixture
def config() -> Callable[..., TrainConfig]:
    return make_config


@pytest.fixture
def pictures() -> type[Pictures]:
    return Pictures


@pytest.fixture
def make_stage(tiny: Callable[[], tuple[AbcModel, Processor]]) -> Callable[[TrainConfig], Stage]:
    """A tiny model set up for a stage, adapters not at zero, so that every gradient is alive."""

    def make(config: TrainConfig) -> Stage:
        model, processor = tiny()
        torch.manual_seed(1)
        kind = Pretrain if config.stage == "pretrain" else Instruct
        stage = kind(config, model, processor, ProcessGroup(Accelerator(cpu=True)))
        with torch.no_grad():
            for name, parameter in stage.parameters.items():
                if "lora_B" in name:
                    parameter.normal_(std=0.05)
        return stage

    return make


@pytest.fixture
def batch_of(tiny: Callable[[], tuple[AbcModel, Processor]]) -> Callable[..., Any]:
    """The training batch of step 0."""
    from abc_embed.train.batches import make_batch

    _, processor = tiny()

    def make(stage: StageName, count: int = 4) -> Any:
        return make_batch(Pictures(stage).groups(0, count, 0), processor)

    return make


def with_train(config: TrainConfig, **changes: Any) -> TrainConfig:
    return replace(config, train=replace(config.train, **changes))
