"""Measure what looking again with an instruction gives, on generated scenes.

    python tools/bench_ask.py --out results/search/ask.json

"Which image has a dog on the left?" over images that were embedded alone. Methods: the best by
their image vectors; the same with a quarter of the budget at random (as `search --ask` does, to
estimate its share); and a ridge map towards the identity, fitted in four rounds to what was looked
at. The joint vectors of all images are the direct answer.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from abc_embed import Embedder, Item
from abc_embed.scenes import THINGS, Scene, make_scene, render

SEED, TEXTS = 990, 60
INSTRUCTIONS = {"what is on the left?": "x", "what is at the top?": "y"}
BUDGETS = (0.05, 0.1, 0.2, 0.5)


def looked_at(method: str, images: Any, joint: Any, text: Any, passes: int) -> list[int]:
    """Numbers of the images that a method looks at."""
    rng = np.random.default_rng(0)
    share = {"closest": 0.0, "closest, a quarter at random": 0.25, "ridge map": 0.15}[method]
    seen = rng.permutation(len(images))[: round(share * passes)].tolist()
    rounds = 4 if method == "ridge map" else 1
    for turn in range(rounds):
        guesses = (mapped(images, joint, seen) if method == "ridge map" else images) @ text
        guesses[seen] = -np.inf
        step = -(-(passes - len(seen)) // (rounds - turn))
        seen += np.argsort(-guesses)[:step].tolist()
    return seen


def mapped(images: Any, joint: Any, seen: Sequence[int], ridge: float = 5.0) -> Any:
    """Guesses of joint vectors, by a ridge map towards the identity."""
    if not seen:
        return images.copy()
    known = images[seen]
    gram = known @ known.T + ridge * np.eye(len(seen))
    guesses = images + (images @ known.T) @ np.linalg.solve(gram, joint[seen] - known)
    return guesses / np.linalg.norm(guesses, axis=1, keepdims=True)


def average_precision(ranking: Sequence[int], relevant: set[int]) -> float:
    """Of a ranking that may leave out some of the relevant."""
    hits, total = 0, 0.0
    for rank, number in enumerate(ranking, 1):
        if number in relevant:
            hits += 1
            total += hits / rank
    return total / len(relevant)


def answers(scenes: Sequence[Scene], axis: str) -> dict[str, set[int]]:
    """Thing -> the images in which it is the first along an axis."""
    found: dict[str, set[int]] = {}
    for number, scene in enumerate(scenes):
        first = min(scene.placed, key=lambda placed: getattr(placed, axis))
        found.setdefault(first.thing.phrase, set()).add(number)
    return dict(list(found.items())[:TEXTS])


def main() -> None:
    """Embed, look, write the record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--images", type=int, default=400)
    options = parser.parse_args()
    embedder = Embedder.from_pretrained("bundled", device="cpu")
    scenes = [make_scene(SEED, number) for number in range(options.images)]
    pictures = [render(scene) for scene in scenes]
    images = embedder.embed([Item(image=picture) for picture in pictures])
    names = embedder.embed([thing.phrase for thing in THINGS])
    texts = dict(zip((thing.phrase for thing in THINGS), names, strict=True))
    results: dict[str, list[tuple[float, float]]] = {}
    direct: list[float] = []
    for instruction, axis in INSTRUCTIONS.items():
        items = [Item(image=picture, instruction=instruction) for picture in pictures]
        joint = embedder.embed(items)
        for phrase, relevant in answers(scenes, axis).items():
            scores, text = joint @ texts[phrase], texts[phrase]
            ranking = np.argsort(-scores).tolist()
            direct.append(average_precision(ranking, relevant))
            alone = np.argsort(-(images @ text)).tolist()
            results.setdefault("images alone, no pass", []).append(
                (average_precision(alone, relevant), 0.0)
            )
            for method in ("closest", "closest, a quarter at random", "ridge map"):
                for budget in BUDGETS:
                    seen = looked_at(method, images, joint, text, round(budget * len(images)))
                    order = sorted(seen, key=lambda number: -scores[number])
                    top = len(set(ranking[:10]) & set(seen)) / 10
                    pair = (average_precision(order, relevant), top)
                    results.setdefault(f"{method}, {budget:g}", []).append(pair)
    table = {
        name: {
            "map": round(float(np.mean([ap for ap, _ in pairs])), 4),
            "of_direct_map": round(float(np.mean([ap for ap, _ in pairs]) / np.mean(direct)), 4),
            "direct_top_10_looked_at": round(float(np.mean([top for _, top in pairs])), 4),
        }
        for name, pairs in results.items()
    }
    record = {
        "model": embedder.fingerprint,
        "images": options.images,
        "questions": len(direct),
        "direct_map": round(float(np.mean(direct)), 4),
        "methods": table,
    }
    options.out.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(record, indent=2))


if __name__ == "__main__":
    main()
