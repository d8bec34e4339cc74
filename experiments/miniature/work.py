"""One run: trained by the same code as any other model, evaluated, and made a line of the results.

A killed run goes on from its last checkpoint.
"""

import shutil
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from abc_embed import runtime
from abc_embed.data.records import Instruction, Record, read_records
from abc_embed.embedder import Embedder
from abc_embed.errors import DataError
from abc_embed.train.batches import Group, instruction_group
from abc_embed.train.loop import run_stage
from abc_embed.train.metrics_logger import read_metrics
from abc_embed.train.sampler import RecordSampler
from experiments.miniature.evaluate import evaluate
from experiments.miniature.plan import INSTRUCTIONS, REFERENCE, START, Job, job_config, key
from experiments.miniature.shared import SharedInputs, load

CURVE_POINTS = 20
"""Steps whose loss, accuracy and τ a line of the results keeps, evenly spread."""


def run_job(job: Job, out: Path, shared: SharedInputs) -> dict[str, Any]:
    """Train and evaluate; the line of the results, as JSON values."""
    start = time.perf_counter()
    folder = out / job.name
    curve: list[dict[str, float]] = []
    if job.condition.name == START.name:
        model, processor = load(shared.base)
    else:
        _train(job, folder, out, shared)
        model, processor = load(folder / "model")
        curve = _curve(read_metrics(folder / "metrics.jsonl"))
    result = {
        "key": key(job, shared.sizes, shared.bundled),
        "condition": job.condition.name,
        "seed": job.seed,
        "weights": shared.bundled,
        "scores": evaluate(Embedder(model, processor), shared.sizes),
        "tau": model.temperature.value,
        "curve": curve,
        "seconds": round(time.perf_counter() - start, 1),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": runtime.versions(),
        "hardware": runtime.hardware(),
    }
    if job.condition.name == REFERENCE.name:
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)  # stage 2 needs the model
    else:
        shutil.rmtree(folder, ignore_errors=True)
    return result


def _train(job: Job, folder: Path, out: Path, shared: SharedInputs) -> None:
    config = job_config(job, shared.sizes)
    base = out / job.needs.name / "model" if job.needs else shared.base
    model, processor = load(base, config.model.attention)
    if config.stage == "pretrain":
        sampler = RecordSampler(shared.records, "pretrain", config.data)
        run_stage(config, sampler, model, processor, folder)
    else:
        sizes = shared.sizes
        images = sizes.instruct_steps * sizes.instruct_images
        pairs = PairSampler(shared.records, images, whole=job.condition.whole_groups)
        run_stage(config, pairs, model, processor, folder)


def _curve(steps: list[dict[str, float]]) -> list[dict[str, float]]:
    """A few steps of all, the last one among them."""
    every = max(1, len(steps) // CURVE_POINTS)
    names = ("step", "loss", "accuracy", "tau")
    return [{name: step[name] for name in names} for step in steps[every - 1 :: every]]


Pair = tuple[str, str]


class PairSampler:
    """Stage-2 groups of a run that sees `images` images once; which, follows from the seed.

    Either the four pairs of an image together, or the same pairs in other company: over a run both
    orders see the very same pairs, as often, with as many queries in each batch.
    """

    def __init__(self, records: Path, images: int, *, whole: bool) -> None:
        """Raises `DataError` when there are too few records with enough questions."""
        self._folder = records.parent
        self._whole = whole
        self._images = images
        self._records = [r for r in read_records(records) if len(r.instructions) >= INSTRUCTIONS]
        if len(self._records) < images:
            raise DataError(
                f"{records} has {len(self._records)} records with {INSTRUCTIONS} instructions; "
                f"{images} are needed, so make more scenes"
            )

    def groups(self, step: int, count: int, seed: int) -> Sequence[Group]:
        chosen = np.random.default_rng([seed, 0]).permutation(len(self._records))[: self._images]
        if self._whole:
            numbers = chosen[step * count : (step + 1) * count]
            return [self._group(int(number), seed) for number in numbers]
        order = np.random.default_rng([seed, 2]).permutation(len(chosen) * INSTRUCTIONS)
        singles = []
        for number in order[step * count : (step + 1) * count]:
            image, pair = divmod(int(number), INSTRUCTIONS)
            group = self._group(int(chosen[image]), seed)
            singles.append(Group(group.image, (group.pairs[pair],)))
        return singles

    def _group(self, number: int, seed: int) -> Group:
        record = self._records[number]
        pairs = sample_pairs(record, np.random.default_rng([seed, 1, number]))
        return instruction_group(self._folder / record.image, pairs)


def sample_pairs(record: Record, random: np.random.Generator) -> list[Pair]:
    """Four questions of a record in any of their wordings, with different answers if it has them.

    The paper chooses four different regions; a scene of two things has three answers.
    """
    order = random.permutation(len(record.instructions))
    seen, new, again = set[str](), list[Instruction](), list[Instruction]()
    for question in (record.instructions[int(i)] for i in order):
        (again if question.answer in seen else new).append(question)
        seen.add(question.answer)
    pairs = []
    for question in [*new, *again][:INSTRUCTIONS]:
        wordings = (question.instruction, *question.paraphrases)
        pairs.append((wordings[int(random.integers(len(wordings)))], question.answer))
    return pairs
