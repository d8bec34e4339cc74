"""The bundled model from nothing: four lessons, then the paper's two stages; every part resumes.

Ends with `out/model`, a model folder in float16. How long it took is in docs/bundled.md.
"""

import json
import logging
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer

from abc_embed import checkpoint
from abc_embed.train.config import (
    AdapterConfig,
    ModelConfig,
    OptimConfig,
    RunConfig,
    TemperatureConfig,
    TrainConfig,
)
from abc_embed.train.loop import run_stage1, run_stage2
from experiments.curriculum.assemble import assemble
from experiments.curriculum.joint import learn_to_look
from experiments.curriculum.language import learn_to_answer
from experiments.curriculum.source import SceneSource
from experiments.curriculum.vision import learn_to_see
from experiments.curriculum.words import make_tokenizer

logger = logging.getLogger(__name__)

BATCH_SIZES = (64, 32)
"""Images of a step in stage 1 and in stage 2."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """Optimizer steps of each part; `scaled` shortens or lengthens them all alike."""

    things: int = 640
    places: int = 1720
    asking: int = 1078
    looking: int = 450
    stage1: int = 50
    stage2: int = 200

    def scaled(self, factor: float) -> "Lengths":
        return Lengths(
            **{name: max(2, round(getattr(self, name) * factor)) for name in self.__slots__}
        )


def run(out: Path, *, lengths: Lengths | None = None) -> Path:
    """Train everything that `out` does not hold yet; the folder of the finished model."""
    steps = lengths or Lengths()
    out.mkdir(parents=True, exist_ok=True)
    words, things, places = out / "tokenizer.json", out / "things.pt", out / "places.pt"
    if not words.exists():
        make_tokenizer().save(str(words))
    tokenizer = Tokenizer.from_file(str(words))
    if not things.exists():
        learn_to_see(things, steps.things, singles=True, start=None, batch=128, rate=4e-4, seed=1)
    if not places.exists():
        learn_to_see(places, steps.places, singles=False, start=things, batch=64, rate=4e-4, seed=2)
    asking, looking = out / "asking.pt", out / "looking.pt"
    if not asking.exists():
        learn_to_answer(asking, tokenizer, steps.asking)
    if not looking.exists():
        learn_to_look(looking, tokenizer, places, asking, steps.looking)
    if not (out / "base").exists():
        assemble(out / "base", words, places, looking)
    return stages(out, steps)


def stages(out: Path, steps: Lengths) -> Path:
    """Stages 1 and 2 of the paper on `out/base`, by the same code as for any other backbone."""
    model, processor = checkpoint.load(str(out / "base"))
    run_stage1(
        pretrain_config(out, steps.stage1),
        SceneSource("pretrain", negatives=3),
        model,
        processor,
        out / "stage1",
    )
    model, processor = checkpoint.load(str(out / "stage1" / "model"))
    run_stage2(
        instruct_config(out, steps.stage2),
        SceneSource("instruct", negatives=4),
        model,
        processor,
        out / "stage2",
    )
    model, processor = checkpoint.load(str(out / "stage2" / "model"))
    checkpoint.save(model, processor, out / "model", dtype=torch.float16)
    (out / "steps.json").write_text(
        json.dumps({n: getattr(steps, n) for n in steps.__slots__}) + "\n"
    )
    logger.info("the model is in %s", out / "model")
    return out / "model"


def pretrain_config(out: Path, steps: int) -> TrainConfig:
    """Stage 1: the paper's adapter; a higher rate, since the model is small and the run short."""
    return TrainConfig(
        stage="pretrain",
        out=str(out / "stage1"),
        adapter=AdapterConfig(rank=64, alpha=128),
        train=RunConfig(
            steps=steps,
            batch_size=BATCH_SIZES[0],
            label_smoothing=0.1,
            seed=5,
            checkpoint_every=20,
            log_every=5,
        ),
        model=ModelConfig(base=str(out / "base"), device="cpu", precision="float32"),
        temperature=TemperatureConfig(start=0.05, learn=True, floor=0.02),
        optim=OptimConfig(learning_rate=2e-4),
    )


def instruct_config(out: Path, steps: int) -> TrainConfig:
    """Stage 2: the paper's adapter; four instructions of each image in one batch."""
    return TrainConfig(
        stage="instruct",
        out=str(out / "stage2"),
        adapter=AdapterConfig(rank=16, alpha=32),
        train=RunConfig(
            steps=steps,
            batch_size=BATCH_SIZES[1],
            label_smoothing=0.1,
            seed=6,
            checkpoint_every=20,
            log_every=5,
        ),
        model=ModelConfig(base=str(out / "stage1" / "model"), device="cpu", precision="float32"),
        optim=OptimConfig(learning_rate=1e-3),
    )
