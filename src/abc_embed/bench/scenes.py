"""The scene benchmark: image + instruction against every answer, beside what each alone can do.

Does: embed unseen scenes with and without their instructions, rank all answers, and put the five
numbers that only mean something together into one record: both, image alone, instruction alone, the
two vectors added, mirrored pairs both right. Does not: choose the questions (held_out.py), print,
or write (report.py).

Texts are embedded once each, and a picture is encoded once, however many questions are asked of it.

Shapes: `D` width, `Q` queries, `K` candidates, `P` mirrored pairs, `I` images.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from abc_embed.bench import metrics
from abc_embed.bench.held_out import SEED, HeldOut, build
from abc_embed.errors import UsageError
from abc_embed.inputs import Item
from abc_embed.scenes.dataset import SMALLEST_SIDE
from abc_embed.scenes.render import render

Vectors = NDArray[np.float32]
Progress = Callable[[int, int], None]

CONTROLS = ("image", "instruction", "added")
"""What the same model does with less; `both` has to beat the best of them."""
TARGETS = (
    ("both", "at least", 0.80),
    ("image", "at most", 0.35),
    ("instruction", "at most", 0.15),
    ("added", "at most", 0.45),
    ("mirrored", "at least", 0.70),
)
"""What the bundled model is to reach: R@1, and the share of mirrored pairs both right."""
SCENES_AT_ONCE = 64
"""Scenes whose pictures are in memory together."""


class Encoder(Protocol):
    """What is measured: an `Embedder`, or anything that embeds the same items."""

    def embed(
        self, items: Iterable[str | Item], *, max_pixels: int | None = None, batch_size: int = 32
    ) -> Vectors:
        """`N` items -> `(N, D)`."""
        ...


@dataclass(slots=True)
class _Seen:
    """What the pictures gave: vectors in the order of images, of queries, and of pairs."""

    image: list[Vectors] = field(default_factory=list)
    both: list[Vectors] = field(default_factory=list)
    straight: list[Vectors] = field(default_factory=list)
    mirrored: list[Vectors] = field(default_factory=list)


def run(
    model: Encoder,
    *,
    queries: int = 2000,
    pairs: int = 500,
    seed: int = SEED,
    side: int = 112,
    max_pixels: int | None = None,
    batch_size: int = 32,
    draws: int = 2000,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Measure a model; returns what was found as JSON values (`report.record` adds by whom).

    Args:
        model: an `Embedder`.
        queries: at least so many; the questions of a scene stay together.
        pairs: at most so many mirrored pairs.
        seed: the world, above those that training uses.
        side: of the square pictures, in pixels.
        max_pixels: as in `Embedder.embed`.
        batch_size: as in `Embedder.embed`.
        draws: bootstrap resamples for the 95 % intervals.
        progress: called with the number of scenes done and of all.

    Raises:
        UsageError: an argument is out of range.
        NotFiniteError: the model gave a vector that is not finite.
    """
    if side < SMALLEST_SIDE:
        raise UsageError(f"side is {side}; give at least {SMALLEST_SIDE} pixels")
    began = time.perf_counter()
    held = build(queries, pairs, seed)

    def embed(items: Sequence[str | Item]) -> Vectors:
        return model.embed(items, max_pixels=max_pixels, batch_size=batch_size)

    digest = hashlib.sha256(_canonical(held, side))
    candidates = embed(held.candidates)
    words = sorted({q.instruction for q in held.queries})
    seen = _look(held, side, embed, digest.update, progress or (lambda done, of: None))
    vectors = _compose(held, seen, dict(zip(words, embed(words), strict=True)))
    ranked = _ranks(held, vectors, candidates)
    return {
        "benchmark": "scenes",
        "benchmark_hash": digest.hexdigest(),
        "settings": {"seed": seed, "side": side, "max_pixels": max_pixels, "draws": draws},
        "sizes": {
            "queries": len(held.queries),
            "images": len(held.scenes),
            "candidates": len(held.candidates),
            "mirrored_pairs": len(held.pairs),
        },
        **_findings(held, ranked, draws),
        "seconds": round(time.perf_counter() - began, 1),
    }


def _canonical(held: HeldOut, side: int) -> bytes:
    """What is asked, as bytes; the pixels are hashed as they are drawn."""
    rows = {
        "side": side,
        "candidates": held.candidates,
        "queries": [(q.image, q.instruction, q.answer) for q in held.queries],
        "pairs": [(p.image, p.instruction, p.answer, p.mirrored_answer) for p in held.pairs],
    }
    return json.dumps(rows, sort_keys=True).encode()


# -- embedding -------------------------------------------------------------------------------------


def _look(
    held: HeldOut,
    side: int,
    embed: Callable[[Sequence[Item]], Vectors],
    hash_pixels: Callable[[bytes], None],
    progress: Progress,
) -> _Seen:
    """All that shows a picture, some scenes at a time; all items of a picture in one call."""
    seen = _Seen()
    for first in range(0, len(held.scenes), SCENES_AT_ONCE):
        images = range(first, min(first + SCENES_AT_ONCE, len(held.scenes)))
        straight = {image: render(held.scenes[image], side) for image in images}
        pairs = [p for p in held.pairs if p.image in images]
        mirrors = {p.image: render(held.scenes[p.image].mirrored(), side) for p in pairs}
        for picture in (*straight.values(), *mirrors.values()):
            hash_pixels(picture.tobytes())
        queries = [q for q in held.queries if q.image in images]
        parts: list[tuple[list[Vectors], list[tuple[Image.Image, str | None]]]] = [
            (seen.image, [(straight[image], None) for image in images]),
            (seen.both, [(straight[q.image], q.instruction) for q in queries]),
            (seen.straight, [(straight[p.image], p.instruction) for p in pairs]),
            (seen.mirrored, [(mirrors[p.image], p.instruction) for p in pairs]),
        ]
        vectors = iter(embed([_item(*show) for _, shows in parts for show in shows]))
        for found, shows in parts:
            found += [next(vectors) for _ in shows]
        progress(images.stop, len(held.scenes))
    return seen


def _item(picture: Image.Image, instruction: str | None) -> Item:
    return Item(image=picture, instruction=instruction)


def _compose(held: HeldOut, seen: _Seen, words: dict[str, Vectors]) -> dict[str, Vectors]:
    """Name of a way to ask -> its query vectors `(Q, D)`, or `(P, D)` for the mirrored pairs."""
    image = np.stack([seen.image[q.image] for q in held.queries])
    instruction = np.stack([words[q.instruction] for q in held.queries])
    width = image.shape[1]
    return {
        "both": np.stack(seen.both),
        "image": image,
        "instruction": instruction,
        "added": image + instruction,  # unit vectors, so neither outweighs the other
        "straight": np.array(seen.straight, dtype=np.float32).reshape(-1, width),
        "mirrored": np.array(seen.mirrored, dtype=np.float32).reshape(-1, width),
    }


# -- ranking ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Ranked:
    """Ranks of the right answer `(Q,)` or `(P,)` by way of asking, and the first choices."""

    ranks: dict[str, NDArray[np.int64]]
    first: NDArray[np.int64]
    """`(Q,)`: the candidate that image + instruction puts first."""


def _ranks(held: HeldOut, vectors: dict[str, Vectors], candidates: Vectors) -> _Ranked:
    number = {text: place for place, text in enumerate(held.candidates)}
    gold = [number[q.answer] for q in held.queries]
    golds = dict.fromkeys(("both", *CONTROLS), gold)
    golds["straight"] = [number[p.answer] for p in held.pairs]
    golds["mirrored"] = [number[p.mirrored_answer] for p in held.pairs]
    found = {way: metrics.ranks(vectors[way] @ candidates.T, golds[way]) for way in golds}
    chance = np.random.default_rng((held.seed, 21)).random((len(gold), len(candidates)))
    found["random"] = metrics.ranks(chance, gold)
    return _Ranked(found, (vectors["both"] @ candidates.T).argmax(axis=1))


def _findings(held: HeldOut, ranked: _Ranked, draws: int) -> dict[str, Any]:
    """Every number of the record, with 95 % intervals by image."""
    image = np.array([q.image for q in held.queries])
    ways = ("both", *CONTROLS, "random")
    hits = np.stack([ranked.ranks[way] == 1 for way in ways], axis=1).astype(np.float64)
    means = metrics.resampled_means(hits, image, draws=draws)
    scores = {way: _score(ranked.ranks[way], means[:, i]) for i, way in enumerate(ways)}
    others = range(1, 1 + len(CONTROLS))
    gap = hits[:, 0].mean() - max(hits[:, i].mean() for i in others)
    both = (ranked.ranks["straight"] == 1) & (ranked.ranks["mirrored"] == 1)
    of_pairs = np.array([p.image for p in held.pairs])
    novel, count = np.array(held.novel), np.array([len(s.placed) for s in held.scenes])
    right = hits[:, 0]
    findings: dict[str, Any] = {
        "scores": scores,
        "mirrored": _share(both.astype(np.float64), of_pairs, draws),
        "composition_gap": {
            "value": float(gap),
            "interval": metrics.interval(means[:, 0] - means[:, list(others)].max(axis=1)),
        },
        "by_kind": _split(right, [q.kind for q in held.queries], image, draws),
        "by_things": _split(right, count[image].astype(str), image, draws),
        "by_pairing": _split(right, np.where(novel[image], "novel", "known"), image, draws),
        **_per_image(image, ranked.first, right),
        "bounds": {"image": held.image_bound, "random": 1.0 / len(held.candidates)},
    }
    return {**findings, "checks": list(_checks(findings))}


def _score(of: NDArray[np.int64], means: NDArray[np.float64]) -> dict[str, Any]:
    return {
        "r1": metrics.recall_at(1, of),
        "r1_interval": metrics.interval(means),
        "r5": metrics.recall_at(5, of),
        "r10": metrics.recall_at(10, of),
        "mrr": metrics.mean_reciprocal_rank(of),
    }


def _share(right: NDArray[np.float64], image: NDArray[np.int64], draws: int) -> dict[str, Any]:
    """A share of rights `(N,)` with its interval and how many it is of; None of none."""
    if not len(right):
        return {"value": None, "interval": None, "of": 0}
    means = metrics.resampled_means(right[:, None], image, draws=draws)[:, 0]
    return {"value": float(right.mean()), "interval": metrics.interval(means), "of": len(right)}


def _split(
    right: NDArray[np.float64], names: Sequence[str] | NDArray[Any], image: Any, draws: int
) -> dict[str, Any]:
    """R@1 of the queries of each name."""
    named = np.asarray(names)
    return {
        str(name): _share(right[named == name], image[named == name], draws)
        for name in np.unique(named)
    }


def _per_image(
    image: NDArray[np.int64], first: NDArray[np.int64], right: NDArray[np.float64]
) -> dict[str, Any]:
    """Of pictures asked more than once: first choices that change, and all questions right."""
    several = [image == i for i in np.unique(image) if (image == i).sum() > 1]
    if not several:
        return {"flip_rate": None, "group_accuracy": None}
    return {
        "flip_rate": float(np.mean([len(np.unique(first[its])) > 1 for its in several])),
        "group_accuracy": float(np.mean([right[its].all() for its in several])),
    }


def _checks(findings: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Each target beside what was found."""
    for name, bound, target in TARGETS:
        shares = findings["mirrored"] if name == "mirrored" else findings["scores"][name]
        value = shares["value"] if name == "mirrored" else shares["r1"]
        over = value is not None and value >= target
        under = value is not None and value <= target
        reached = over if bound == "at least" else under
        yield {"name": name, "value": value, "bound": bound, "target": target, "reached": reached}
