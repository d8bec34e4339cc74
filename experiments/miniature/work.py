"""One run: from its configuration to a line of the results.

Does: train by the same code as any other model, measure, say what came of it. Does not: choose
what runs when (run.py). A killed run goes on from its last checkpoint.
"""

import shutil
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from abc_embed import runtime
from abc_embed.embedder import Embedder
from abc_embed.train.loop import run_stage1, run_stage2
from abc_embed.train.metrics_logger import read_metrics
from abc_embed.train.sampler import RecordSampler
from experiments.miniature.ground import Ground, load
from experiments.miniature.measure import measure
from experiments.miniature.plan import REFERENCE, START, Job, configure, key
from experiments.miniature.source import PairSource

CURVE = 20
"""Steps whose loss, accuracy and τ a line of the results keeps, evenly spread."""


def do(job: Job, out: Path, ground: Ground) -> dict[str, Any]:
    """Train and measure; the line of the results, as JSON values."""
    began = time.perf_counter()
    folder = out / job.name
    curve: list[dict[str, float]] = []
    if job.condition.name == START.name:
        model, processor = load(ground.base)
    else:
        _train(job, folder, out, ground)
        model, processor = load(folder / "model")
        curve = _curve(read_metrics(folder / "metrics.jsonl"))
    line = {
        "key": key(job, ground.sizes, ground.bundled),
        "condition": job.condition.name,
        "seed": job.seed,
        "weights": ground.bundled,
        "scores": measure(Embedder(model, processor), ground.sizes),
        "tau": model.temperature.value,
        "curve": curve,
        "seconds": round(time.perf_counter() - began, 1),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": runtime.versions(),
        "hardware": runtime.hardware(),
    }
    if job.condition.name == REFERENCE.name:
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)  # stage 2 needs the model
    else:
        shutil.rmtree(folder, ignore_errors=True)
    return line


def _train(job: Job, folder: Path, out: Path, ground: Ground) -> None:
    config = configure(job, ground.sizes)
    before = out / job.needs.name / "model" if job.needs else ground.base
    model, processor = load(before, config.model.attention)
    if config.stage == "pretrain":
        source = RecordSampler(ground.records, "pretrain", config.data)
        run_stage1(config, source, model, processor, folder)
    else:
        sizes = ground.sizes
        images = sizes.instruct_steps * sizes.instruct_images
        pairs = PairSource(ground.records, images, whole=job.condition.whole_groups)
        run_stage2(config, pairs, model, processor, folder)


def _curve(steps: list[dict[str, float]]) -> list[dict[str, float]]:
    """A few steps of all, the last one among them."""
    every = max(1, len(steps) // CURVE)
    names = ("step", "loss", "accuracy", "tau")
    return [{name: step[name] for name in names} for step in steps[every - 1 :: every]]
