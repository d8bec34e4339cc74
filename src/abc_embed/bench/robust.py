"""How much may change before the answer does? Scenes asked again in other words and other pictures.

Every question about a scene is asked once as it is, and again under each condition: worded as
training never does, compressed, larger or smaller, darker or brighter, turned, on a ground of any
colour, and with vectors cut or rounded. Beside R@1 stands how often the first choice stays.
Questions about things that are not there measure whether a low best score says so.

Shapes: `Q` questions, `K` answers, `D` width.
"""

import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance

from abc_embed import vectors
from abc_embed.bench.metrics import auc, share
from abc_embed.bench.tables import score_cell
from abc_embed.figures import BLUE, GREY, draw_shares
from abc_embed.inputs import Item
from abc_embed.scenes.layout import Scene, make_scene
from abc_embed.scenes.questions import Question, all_answers, questions, unanswerable
from abc_embed.scenes.render import render
from abc_embed.storage.hashing import sha256_json

if TYPE_CHECKING:
    from abc_embed.embedder import Embedder

SEED = 7005
"""World of the scenes; training never sees it."""
SIDE = 224
"""Pixels of a scene's side where no condition says otherwise."""
QUESTIONS_OF_A_SCENE = 3
PLAIN = "as drawn"
LABELS = {"r1": "R@1", "kept": "first choice kept"}
"""Inches of a row of the figure."""
HEAD = ("", *LABELS.values())
COLOURS = dict(zip(LABELS.values(), (BLUE, GREY), strict=True))

# Sentences around what is asked for; none of their words around it are in training's wordings.
_AROUND_A_PLACE = (
    "I wonder what stands {}",
    "could you identify whatever is {}?",
    "somebody put something {}; do you recognise it?",
)
_AROUND_A_THING = (
    "could you identify {}?",
    "I am looking for {}",
    "do you recognise {}?",
    "my question concerns {}",
)
_GROUND = (
    "of which hue is everything painted behind?",
    "the wall behind all this has which shade?",
)


@dataclass(frozen=True, slots=True)
class Asked:
    """A question about scene number `number`."""

    number: int
    scene: Scene
    question: Question


Change = Callable[[Asked], Item]
"""A question -> the item that asks it under a condition."""


def in_other_words(question: Question, number: int) -> str:
    """The question in words that training never uses; `number` chooses among them."""
    if question.kind == "background":
        return _GROUND[number % len(_GROUND)]
    core = re.sub(r"^(what|which|name|tell me)( is)? |\?$", "", question.instruction)
    frames = _AROUND_A_THING if core.startswith("the ") else _AROUND_A_PLACE
    return frames[number % len(frames)].format(core)


def sample_questions(scenes: int) -> list[Asked]:
    """Up to `QUESTIONS_OF_A_SCENE` questions of different kinds about each of `scenes` scenes."""
    asked = []
    for number in range(scenes):
        scene = make_scene(SEED, number)
        rng = np.random.default_rng([SEED, number])
        pool = questions(scene)
        by_kind = {pool[i].kind: pool[i] for i in rng.permutation(len(pool))}
        kinds = rng.permutation(sorted(by_kind))[:QUESTIONS_OF_A_SCENE]
        asked += [Asked(number, scene, by_kind[str(kind)]) for kind in kinds]
    return asked


def _item(asked: Asked, picture: Image.Image | None = None, words: str | None = None) -> Item:
    """The question as it is, but for its picture or its words."""
    shown = np.asarray(render(asked.scene, SIDE) if picture is None else picture)
    return Item(image=shown, instruction=words or asked.question.instruction)


def _compressed(asked: Asked, quality: int) -> Item:
    buffer = io.BytesIO()
    render(asked.scene, SIDE).save(buffer, "JPEG", quality=quality)
    return _item(asked, Image.open(buffer).convert("RGB"))


def _scaled(asked: Asked, side: int) -> Item:
    return _item(asked, render(asked.scene, side))


def _lit(asked: Asked, factor: float) -> Item:
    return _item(asked, ImageEnhance.Brightness(render(asked.scene, SIDE)).enhance(factor))


def _turned(asked: Asked, degrees: float) -> Item:
    picture, tint = render(asked.scene, SIDE), asked.scene.tint
    return _item(asked, picture.rotate(degrees, Image.Resampling.BICUBIC, fillcolor=tint))


def _any_ground(asked: Asked) -> Item:
    red, green, blue = np.random.default_rng([SEED, asked.number, 1]).integers(0, 256, 3).tolist()
    return _item(asked, render(replace(asked.scene, tint=(red, green, blue)), SIDE))


CONDITIONS: dict[str, Change] = {
    PLAIN: _item,
    "other words": lambda asked: _item(asked, words=in_other_words(asked.question, asked.number)),
    **{f"JPEG quality {q}": partial(_compressed, quality=q) for q in (95, 75, 50, 30)},
    **{f"{side} px": partial(_scaled, side=side) for side in (112, 160, 336, 448)},
    **{f"brightness × {factor}": partial(_lit, factor=factor) for factor in (0.6, 0.8, 1.3)},
    **{f"turned {degrees}°": partial(_turned, degrees=degrees) for degrees in (-6, -3, 3, 6)},
    "ground of any colour": _any_ground,
}
"""What changes of a question or its picture."""
WIDTHS = (128, 64, 32)


def measure(
    embedder: "Embedder",
    *,
    scenes: int = 300,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """R@1 among all answers of the world under each condition, with 95 % intervals by scene.

    Questions about the ground are not asked where the ground changes. `nothing_fits` is the area
    under the curve that tells answerable from unanswerable questions by their best cosine.

    Raises:
        OutOfMemoryError: the model could not compute a batch.
    """
    asked = sample_questions(scenes)
    answers = all_answers()
    candidates = embedder.embed(answers)
    gold = np.array([answers.index(a.question.answer) for a in asked])
    queries = {}
    for done, (name, change) in enumerate(CONDITIONS.items(), 1):
        queries[name] = embedder.embed([change(a) for a in asked])
        on_progress(done, len(CONDITIONS) + 1)
    first = {name: (query @ candidates.T).argmax(1) for name, query in queries.items()}
    first |= _cut(queries[PLAIN], candidates)
    clusters = np.array([a.number for a in asked])
    on_things = np.array([a.question.kind != "background" for a in asked])
    table = {}
    for name, choice in first.items():
        rows = on_things if name == "ground of any colour" else np.ones_like(on_things)
        table[name] = {
            "r1": share((choice == gold)[rows], clusters[rows]),
            "kept": share((choice == first[PLAIN])[rows], clusters[rows]),
        }
    nothing = embedder.embed([_asks_for_nothing(n) for n in range(scenes)])
    on_progress(len(CONDITIONS) + 1, len(CONDITIONS) + 1)
    best, best_nothing = ((q @ candidates.T).max(1) for q in (queries[PLAIN], nothing))
    settings = {"seed": SEED, "scenes": scenes, "side": SIDE}
    return {
        "benchmark": "robust",
        "benchmark_hash": sha256_json(settings | {"conditions": list(table)}),
        "settings": settings,
        "sizes": {"questions": len(asked), "unanswerable": scenes, "answers": len(answers)},
        "scores": table,
        "nothing_fits": {"auc": round(auc(best, best_nothing), 4)},
    }


def _asks_for_nothing(number: int) -> Item:
    scene = make_scene(SEED, number)
    rng = np.random.default_rng([SEED, number, 2])
    return _item(Asked(number, scene, unanswerable(scene, rng)))


def _cut(
    query: NDArray[np.float32], candidates: NDArray[np.float32]
) -> dict[str, NDArray[np.int64]]:
    """First choices with narrower vectors, and with int8 ones."""
    both = (query, candidates)
    compared = {
        f"width {width}": tuple(vectors.truncate(v, width) for v in both)
        for width in WIDTHS
        if width < query.shape[1]
    }
    ranges = vectors.ranges_at(candidates, [candidates.shape[1]])[candidates.shape[1]]
    compared["int8"] = tuple(
        vectors.dequantize(vectors.quantize(v, "int8", ranges), "int8", ranges) for v in both
    )
    return {name: (q @ c.T).argmax(1) for name, (q, c) in compared.items()}


def rows(record: Mapping[str, Any]) -> Sequence[tuple[str, str, str]]:
    """(condition, R@1, first choice kept) for a table."""
    return [
        (name, *(score_cell(row[key]) for key in LABELS)) for name, row in record["scores"].items()
    ]


def draw(record: Mapping[str, Any], path: Path) -> None:
    """Bars of every condition, with their intervals."""
    title = "What changes, and how many answers stay right"
    draw_shares(record["scores"], LABELS, COLOURS, title, path, row_height=0.42)
