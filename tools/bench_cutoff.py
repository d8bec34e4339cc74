"""Measure "nothing matches" on generated scenes: questions with and without an answer in an index.

    python tools/bench_cutoff.py --out results/search/nothing_matches.json

A part of the 346 things is taken out of the world: no image of the index shows one, and whoever
asks for one should be told that nothing matches. Three worlds, each with its own absent things. A
text is also asked without its own name, and half of all others, among the everyday things that it
is weighed against, since a user's words are not in that list; and images with instructions with
that half of the list.
"""

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from abc_embed import Embedder, Item
from abc_embed.scenes.layout import make_scene
from abc_embed.scenes.questions import questions
from abc_embed.scenes.render import render
from abc_embed.scenes.things import THINGS
from abc_embed.search import Index, cutoff

ABSENT, IMAGES, SEED = 150, 400, 977


def auc(present: Any, absent: Any) -> float:
    """How often a question with an answer scores above one without."""
    present, absent = np.asarray(present)[:, None], np.asarray(absent)[None]
    return float((present > absent).mean() + (present == absent).mean() / 2)


def scores(index: Index, vectors: Any, bank: Any, joint: bool) -> Any:
    """The best hit's score of each query."""
    found, temperature = index.nearest(vectors, cutoff.CANDIDATES), index.settings["temperature"]
    return np.array(
        [
            cutoff.score(vector, images, bank, temperature, joint=joint).max()
            for vector, (_, images) in zip(vectors, found, strict=True)
        ]
    )


def row(
    index: Index, vectors: Any, present: Any, bank: Any, line: float, *, joint: bool = False
) -> dict[str, float]:
    """AUC, and what the line does."""
    best = scores(index, vectors, bank, joint)
    present = np.asarray(present, bool)
    return {
        "with_answer": int(present.sum()),
        "without_answer": int((~present).sum()),
        "auc": round(auc(best[present], best[~present]), 4),
        "answered_though_absent": round(float((best[~present] > line).mean()), 4),
        "missed_though_present": round(float((best[present] <= line).mean()), 4),
    }


def ask_joint(embedder: Embedder, scenes: Sequence[Any], shown: set[str]) -> tuple[Any, list[bool]]:
    """Images with instructions, and whether the index shows the answer."""
    items, present = [], []
    for scene in scenes:
        for question in [q for q in questions(scene) if q.region is not None][:4]:
            items.append(Item(image=render(scene), instruction=question.instruction))
            present.append(question.answer in shown)
    return embedder.embed(items), present


def world(embedder: Embedder, seed: int, folder: Path) -> dict[str, Any]:
    """One index and all that is asked of it."""
    rng = np.random.default_rng(seed)
    absent = {THINGS[at].name for at in rng.permutation(len(THINGS))[:ABSENT]}
    inside, outside, number = [], [], 0
    while len(inside) < IMAGES or len(outside) < 100:
        scene = make_scene(SEED + seed, number)
        number += 1
        hidden = [placed.thing.name in absent for placed in scene.placed]
        if not any(hidden) and len(inside) < IMAGES:
            inside.append(scene)
        elif all(hidden):
            outside.append(scene)
    index = Index.create(folder / f"index-{seed}", embedder)
    images = embedder.embed([Item(image=render(scene)) for scene in inside])
    index.add_vectors([f"{at}.png" for at in range(len(inside))], images)
    shown = {placed.thing.phrase for scene in inside for placed in scene.placed}
    lines = index.settings["cutoffs"]
    texts = index.text_bank()
    present = np.array([thing.phrase in shown for thing in THINGS])
    half = rng.permutation(len(THINGS))
    known, unknown = half[: len(half) // 2], half[len(half) // 2 :]
    index._bank = texts[known]
    other_line = cutoff.calibrate(index)["text"]
    mirrored = embedder.embed([Item(image=render(scene.mirrored())) for scene in inside[:100]])
    others = embedder.embed([Item(image=render(scene)) for scene in outside[:100]])
    pictures, answered = np.vstack([mirrored, others]), [True] * 100 + [False] * 100
    near = [make_scene(SEED + 100 + seed, at) for at in range(60)]
    joint, joint_present = ask_joint(embedder, [*near, *outside[:60]], shown)
    cosine_line = cutoff.line(index, cutoff.halves(texts, cutoff.HALF_QUERIES), None)
    return {
        "text": row(index, texts, present, texts, lines["text"]),
        "text, by cosine alone": row(index, texts, present, None, cosine_line),
        "text, not among the everyday things": row(
            index, texts[unknown], present[unknown], texts[known], other_line
        ),
        "image": row(index, pictures, answered, None, lines["image"]),
        "image + instruction": row(index, joint, joint_present, texts, lines["text"], joint=True),
        "image + instruction, by cosine alone": row(index, joint, joint_present, None, cosine_line),
        "image + instruction, half of the everyday things": row(
            index, joint, joint_present, texts[known], other_line, joint=True
        ),
    }


def main() -> None:
    """Three worlds, their mean, the record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    embedder = Embedder.from_pretrained("bundled", device="cpu")
    with tempfile.TemporaryDirectory() as folder:
        worlds = [world(embedder, seed, Path(folder)) for seed in range(3)]
    mean = {
        kind: {
            key: round(float(np.mean([w[kind][key] for w in worlds])), 4) for key in worlds[0][kind]
        }
        for kind in worlds[0]
    }
    record = {"model": embedder.fingerprint, "images": IMAGES, "mean": mean, "worlds": worlds}
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(mean, indent=2))


if __name__ == "__main__":
    main()
