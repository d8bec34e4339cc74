"""Each arm: what is trained, what comes of it by kind of question, and what a probe can read.

The probe is a linear classifier (ridge regression) of the mean visual token: what the vision
encoder tells without any language model. Killed and started again, finished arms are kept and a
broken one goes on from its last checkpoint.
"""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from abc_embed import Embedder, Item, runtime
from abc_embed.bench.metrics import best_ranks, by_kind
from abc_embed.data import Row, open_dataset
from abc_embed.hub import fingerprint
from abc_embed.storage.json_files import atomic_write_json, read_json
from abc_embed.train import load_config, train
from experiments.shapes.world import ANSWERS, write_shapes

TRAINING, TEST = (4000, 1), (300, 2)
"""Pictures and seed of each set."""
PROBED = (1000, 300)
"""Pictures that the probe learns from, and that it is asked about."""
RIDGES = (1.0, 10.0, 100.0, 1000.0, 10000.0)
STAGE1 = ("configs/pretrain-tiny.toml", "data.negatives=0", "adapter.rank=64", "adapter.alpha=128")
STAGE2 = ("configs/instruct-tiny.toml", "data.instructions=2", "adapter.rank=16",
          "adapter.alpha=32")  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One way to train, stage after stage, from the bundled model."""

    name: str
    stages: tuple[tuple[str, ...], ...] = ()
    """A recipe and what is set in it, for each stage."""
    max_pixels: int = 0
    """Of a picture; 0 is the model's own budget, 112 x 112."""


ARMS = (
    Arm(name="bundled model, not trained"),
    Arm(name="the same at 224 px", max_pixels=224 * 224),
    Arm(name="stage 2, 40 steps (instruct-tiny)", stages=((*STAGE2, "train.steps=40"),)),
    Arm(name="stage 2, 300 steps", stages=((*STAGE2, "train.steps=300"),)),
    Arm(
        name="stage 1 on captions, 200 steps, then stage 2, 100",
        stages=((*STAGE1, "train.steps=200"), (*STAGE2, "train.steps=100")),
    ),
)


def run(out: Path, results: Path) -> list[dict[str, Any]]:
    """Everything that `results` does not hold yet, in the order of the arms.

    Raises:
        AbcError: as training; finished arms are kept.
    """
    for name, (count, seed) in (("train", TRAINING), ("test", TEST)):
        if not (out / name / "records.jsonl").exists():
            write_shapes(out / name, count, seed)
    bundled = fingerprint("bundled")
    found = read_json(results)["arms"] if results.exists() else []
    found = [arm for arm in found if arm["weights"] == bundled]
    for number, arm in enumerate(ARMS):
        if arm.name not in {one["name"] for one in found}:
            found.append({"weights": bundled, **run_arm(arm, out, out / f"arm-{number}")})
            about = {"versions": runtime.versions(), "hardware": runtime.hardware()}
            atomic_write_json(results, {"arms": found, **about})
    return found


def run_arm(arm: Arm, data: Path, out: Path) -> dict[str, Any]:
    """Train, measure and probe; what is reported of an arm."""
    base, began = "bundled", time.process_time()
    for number, (recipe, *settings) in enumerate(arm.stages, 1):
        folder = out / f"stage-{number}"
        names = {"model.base": base, "data.records": str(data / "train"), "out": str(folder)}
        places = [f"{field}={json.dumps(value)}" for field, value in names.items()]
        train(load_config(recipe, [*settings, *places]))
        base = str(folder / "model")
    minutes = (time.process_time() - began) / 60
    model = Embedder.from_pretrained(base, device="cpu")
    return {
        "name": arm.name,
        "kinds": measure(model, data / "test", arm.max_pixels or None),
        "probe": probe(model, data, arm.max_pixels or None),
        "cpu_minutes": round(minutes, 1) if arm.stages else None,
    }


def measure(model: Embedder, test: Path, max_pixels: int | None) -> dict[str, Any]:
    """R@1 by kind of question among all eleven answers."""
    texts = [text for answers in ANSWERS.values() for text in answers]
    rows = islice(open_dataset(test), TEST[0])
    asked = [(row.image, ask) for row in rows for ask in row.record.instructions]
    items = [Item(image=image, instruction=ask.instruction) for image, ask in asked]
    scores = model.embed(items, max_pixels=max_pixels) @ model.embed(texts).T
    golds = [[texts.index(ask.answer)] for _, ask in asked]
    right = best_ranks(scores, golds) == 1
    images = [number // len(ANSWERS) for number in range(len(asked))]
    return by_kind(right, golds, [ask.kind for _, ask in asked], images)


def probe(model: Embedder, data: Path, max_pixels: int | None) -> dict[str, float]:
    """Share of test pictures that the probe names rightly, by kind."""
    rows = [list(islice(open_dataset(data / name), n))
            for name, n in zip(("train", "test"), PROBED, strict=True)]  # fmt: skip
    tokens = [np.concatenate([*_mean_tokens(model, some, max_pixels)]) for some in rows]
    centre, spread = tokens[0].mean(axis=0), tokens[0].std(axis=0) + 1e-6
    x, x_test = (np.c_[(part - centre) / spread, np.ones(len(part))] for part in tokens)
    found = {}
    for kind, answers in ANSWERS.items():
        y, y_test = (np.array([_answer(row, kind, answers) for row in some]) for some in rows)
        shares = []
        for ridge in RIDGES:
            weights = np.linalg.solve(
                x.T @ x + ridge * np.eye(x.shape[1]), x.T @ np.eye(len(answers))[y]
            )
            shares.append(float(((x_test @ weights).argmax(axis=1) == y_test).mean()))
        found[kind] = round(max(shares), 3)
    return found


def _answer(row: Row, kind: str, answers: list[str]) -> int:
    return next(answers.index(ask.answer) for ask in row.record.instructions if ask.kind == kind)


@torch.no_grad()
def _mean_tokens(
    model: Embedder, rows: list[Row], max_pixels: int | None
) -> Iterator[NDArray[np.float32]]:
    """The mean visual token `(B, D)` of each picture, 50 at a time."""
    for first in range(0, len(rows), 50):
        items = [Item(image=row.image) for row in rows[first : first + 50]]
        features = [model.processor.features(item, max_pixels=max_pixels) for item in items]
        tokens = model.model.encode_images(model.processor.collate(features))
        if tokens is not None:  # all pictures are of one size
            yield tokens.reshape(len(items), -1, tokens.shape[-1]).mean(dim=1).float().numpy()


def table(arms: list[dict[str, Any]]) -> str:
    """Markdown: a line for each arm."""
    head = ("arm", *(f"{kind}, R@1 of 11" for kind in ANSWERS),
            *(f"{kind}, by the probe" for kind in ANSWERS), "CPU minutes")  # fmt: skip
    lines = [head, ("---",) * len(head)]
    for arm in arms:
        scores = [arm["kinds"][kind] for kind in ANSWERS]
        cells = [
            f"{s['value']:.2f} ({s['interval'][0]:.2f}–{s['interval'][1]:.2f})" for s in scores
        ]
        probes = [f"{arm['probe'][kind]:.2f}" for kind in ANSWERS]
        lines.append((arm["name"], *cells, *probes, str(arm["cpu_minutes"] or "–")))
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
