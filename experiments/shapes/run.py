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

from abc_embed import Embedder, Item, figures, runtime
from abc_embed.bench.metrics import best_ranks, by_kind
from abc_embed.data import Row, open_dataset
from abc_embed.hub import fingerprint
from abc_embed.storage.json_files import atomic_write_json, read_json
from abc_embed.train import load_config, train
from experiments.shapes.world import ANSWERS, write_shapes

SETS = {"train": (1600, 1), "test": (300, 2), "validation": (100, 3)}
"""Pictures and seed of each set."""
PROBED = (1000, 300)
"""Pictures that the probe learns from, and that it is asked about."""
COLOURS = {
    "shape, R@1 of 11": figures.BLUE,
    "colour, R@1 of 11": "#c9571c",
    "shape, by the probe": "#9ab8dc",
    "colour, by the probe": "#e0b98a",
}
RIDGES = (1.0, 10.0, 100.0, 1000.0, 10000.0)
STAGE1, STAGE2 = "configs/pretrain-small.toml", "configs/instruct-small.toml"


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One way to train, stage after stage, from the bundled model."""

    name: str
    stages: tuple[tuple[str, ...], ...] = ()
    """A recipe and what is set in it, for each stage."""


ARMS = (
    Arm(name="bundled model, not trained"),
    Arm(name="stage 1 on captions, then stage 2", stages=((STAGE1,), (STAGE2,))),
    Arm(name="stage 2 alone", stages=((STAGE2,),)),
    Arm(
        name="both, 16 images a step in stage 1, as many in all",
        stages=((STAGE1, "train.batch_size=16", "train.steps=800"), (STAGE2,)),
    ),
)


def run(out: Path, results: Path) -> list[dict[str, Any]]:
    """Everything that `results` does not hold yet, in the order of the arms.

    Raises:
        AbcError: as training; finished arms are kept.
    """
    for name, (count, seed) in SETS.items():
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
        if recipe == STAGE2:
            names |= {"validation.records": str(data / "validation")}
            settings.append("validation.every=50")
        places = [f"{field}={json.dumps(value)}" for field, value in names.items()]
        train(load_config(recipe, [*settings, *places]))
        base = str(folder / "model")
    minutes = (time.process_time() - began) / 60
    model = Embedder.from_pretrained(base, device="cpu")
    return {
        "name": arm.name,
        "kinds": measure(model, data / "test"),
        "probe": probe(model, data),
        "cpu_minutes": round(minutes, 1) if arm.stages else None,
    }


def measure(model: Embedder, test: Path) -> dict[str, Any]:
    """R@1 by kind of question among all eleven answers."""
    texts = [text for answers in ANSWERS.values() for text in answers]
    rows = open_dataset(test)
    asked = [(row.image, ask) for row in rows for ask in row.record.instructions]
    items = [Item(image=image, instruction=ask.instruction) for image, ask in asked]
    scores = model.embed(items) @ model.embed(texts).T
    golds = [[texts.index(ask.answer)] for _, ask in asked]
    right = best_ranks(scores, golds) == 1
    images = [number // len(ANSWERS) for number in range(len(asked))]
    return by_kind(right, golds, [ask.kind for _, ask in asked], images)


def probe(model: Embedder, data: Path) -> dict[str, float]:
    """Share of test pictures that the probe names rightly, by kind."""
    rows = [list(islice(open_dataset(data / name), n))
            for name, n in zip(("train", "test"), PROBED, strict=True)]  # fmt: skip
    tokens = [np.concatenate([*_mean_tokens(model, some)]) for some in rows]
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
def _mean_tokens(model: Embedder, rows: list[Row]) -> Iterator[NDArray[np.float32]]:
    """The mean visual token `(B, D)` of each picture, 50 at a time."""
    for first in range(0, len(rows), 50):
        items = [Item(image=row.image) for row in rows[first : first + 50]]
        features = [model.processor.features(item) for item in items]
        tokens = model.model.encode_images(model.processor.collate(features))
        if tokens is not None:  # all pictures are of one size
            yield tokens.reshape(len(items), -1, tokens.shape[-1]).mean(dim=1).float().numpy()


def draw(arms: list[dict[str, Any]], path: Path) -> None:
    """Bars of R@1 and of the probe, by kind."""
    figure = figures.new_figure(7.5, 1.6 + 1.1 * len(arms))
    axes = figure.subplots()
    figures.score_axes(axes, [arm["name"] for arm in arms])
    for row, arm in enumerate(arms):
        bars = {f"{kind}, R@1 of 11": arm["kinds"][kind] for kind in ANSWERS}
        for kind, value in arm["probe"].items():
            bars[f"{kind}, by the probe"] = {"value": value, "interval": (value, value)}
        figures.score_bars(axes, row, bars, COLOURS, fontsize=8)
    figures.legend_below(figure, columns=4, fontsize=9)
    figures.save_figure(figure, path, dpi=130)


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
