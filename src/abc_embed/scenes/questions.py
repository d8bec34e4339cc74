"""What can be asked of a scene, and the answers; captions, right and almost right.

A question is asked only where the answer is beyond doubt: a margin in place or size separates the
thing meant from every other. Answers are the phrases of things ("a dog") or of the background ("a
blue background").
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from itertools import product

import numpy as np

from abc_embed.scenes.layout import Placed, Scene
from abc_embed.scenes.things import BACKGROUNDS, KIND_WORDS, THINGS

KINDS = ("place", "relation", "kind", "size", "background")
"""The kinds of questions."""
MARGIN = 0.12
"""Of the picture's side: below it, "left" and "right" are matters of opinion."""
SIZE_RATIO = 1.2
"""Larger by less than this is not plainly larger."""

NO_ANSWER = ""
"""The answer of an unanswerable question."""

_PLACES = {
    "left": ("on the left", "on the left side", "on the left-hand side", "at the left"),
    "right": ("on the right", "on the right side", "on the right-hand side", "at the right"),
    "top": ("at the top", "in the upper part", "on top", "highest up"),
    "bottom": ("at the bottom", "in the lower part", "at the very bottom", "lowest down"),
}
_CORNERS = {
    ("left", "top"): "in the top left corner",
    ("right", "top"): "in the top right corner",
    ("left", "bottom"): "in the bottom left corner",
    ("right", "bottom"): "in the bottom right corner",
}
_RELATIONS = {
    "left": ("left of", "to the left of", "on the left of"),
    "right": ("right of", "to the right of", "on the right of"),
    "top": ("above", "over", "higher than"),
    "bottom": ("below", "under", "lower than"),
}
_ASK_PLACE = (
    "what is {where}?",
    "what is the {word} {where}?",
    "which {word} is {where}?",
    "the {word} {where}",
    "name the {word} {where}",
)
_ASK_RELATION = (
    "what is {relation} the {other}?",
    "which thing is {relation} the {other}?",
    "the object {relation} the {other}",
    "what do you see {relation} the {other}?",
)
_ASK_KIND = (
    "what is the {word}?",
    "which {word} is shown?",
    "the {word}",
    "what {word} is in the picture?",
)
_ASK_SIZE = (
    "what is the {size} thing?",
    "which object is the {size}?",
    "the {size} object",
    "name the {size} thing",
)
_ASK_BACKGROUND = (
    "what colour is the background?",
    "describe the background",
    "the background",
    "which colour is behind the things?",
)
_THING_WORDS = ("thing", "object")


@dataclass(frozen=True, slots=True)
class Question:
    """An instruction with its answer.

    `region` is the answering thing's number in the scene, None for the ground; `paraphrases` ask
    the same in other words; `kind` is one of `KINDS`, or "unanswerable".
    """

    instruction: str
    answer: str
    kind: str
    region: int | None
    paraphrases: tuple[str, ...] = ()


def questions(scene: Scene) -> list[Question]:
    """Everything that can be asked of the scene without doubt, in a fixed order."""
    return [*_places(scene), *_relations(scene), *_kinds(scene), *_sizes(scene), _ground(scene)]


def unanswerable(scene: Scene, rng: np.random.Generator) -> Question:
    """A question about something that is not in the scene; its answer is `NO_ANSWER`."""
    here = {placed.thing.kind for placed in scene.placed}
    word = _choice(rng, [word for kind, word in KIND_WORDS.items() if kind not in here])
    draw = rng.random()
    if draw < 0.4:
        forms = _forms(_ASK_KIND, word=(word,))
    elif draw < 0.75:
        wheres = _PLACES[_choice(rng, list(_PLACES))]
        forms = _forms(_ASK_PLACE[1:], where=wheres, word=(word,))
    else:
        names = {placed.thing.name for placed in scene.placed}
        other = _choice(rng, [thing.name for thing in THINGS if thing.name not in names])
        relations = _RELATIONS[_choice(rng, list(_RELATIONS))]
        forms = _forms(_ASK_RELATION, relation=relations, other=(other,))
    return Question(forms[0], NO_ANSWER, "unanswerable", None, forms[1:])


def _choice(rng: np.random.Generator, options: list[str]) -> str:
    return options[int(rng.integers(len(options)))]


def _side(placed: Placed, axis: str) -> float:
    """The coordinate that decides `axis`, larger meaning further that way."""
    return {"left": -placed.x, "right": placed.x, "top": -placed.y, "bottom": placed.y}[axis]


def _furthest(members: list[tuple[int, Placed]], axis: str) -> int | None:
    """Number of the thing furthest towards `axis`; None when another comes within the margin."""
    ranked = sorted(members, key=lambda m: _side(m[1], axis), reverse=True)
    if len(ranked) > 1 and _side(ranked[0][1], axis) - _side(ranked[1][1], axis) < MARGIN:
        return None
    return ranked[0][0]


@cache
def _forms(patterns: tuple[str, ...], **words: tuple[str, ...]) -> tuple[str, ...]:
    """Every pattern with every choice of words, each text once."""
    choices = product(patterns, *words.values())
    texts = (
        pattern.format(**dict(zip(words, chosen, strict=True))) for pattern, *chosen in choices
    )
    return tuple(dict.fromkeys(texts))


def _about(scene: Scene, region: int, kind: str, forms: tuple[str, ...]) -> Question:
    return Question(forms[0], scene.placed[region].thing.phrase, kind, region, forms[1:])


def _places(scene: Scene) -> Iterator[Question]:
    everyone = list(enumerate(scene.placed))
    for axis, wheres in _PLACES.items():
        region = _furthest(everyone, axis)
        if region is not None:
            forms = _forms(_ASK_PLACE, where=wheres, word=_THING_WORDS)
            yield _about(scene, region, "place", forms)
        for kind, word in KIND_WORDS.items():
            members = [m for m in everyone if m[1].thing.kind == kind]
            region = _furthest(members, axis) if len(members) > 1 else None
            if region is not None:
                forms = _forms(_ASK_PLACE[1:], where=wheres, word=(word,))
                yield _about(scene, region, "place", forms)
    for (across, down), where in _CORNERS.items():
        region = _furthest(everyone, across)
        if region is not None and region == _furthest(everyone, down):
            placed = scene.placed[region]
            if abs(placed.x - 0.5) > MARGIN and abs(placed.y - 0.5) > MARGIN:
                forms = _forms(_ASK_PLACE, where=(where,), word=_THING_WORDS)
                yield _about(scene, region, "place", forms)


def _relations(scene: Scene) -> Iterator[Question]:
    for other_index, other in enumerate(scene.placed):
        for axis, words in _RELATIONS.items():
            ahead = [
                (i, _side(p, axis) - _side(other, axis))
                for i, p in enumerate(scene.placed)
                if i != other_index and _side(p, axis) - _side(other, axis) > 0.0
            ]
            if len(ahead) == 1 and ahead[0][1] >= MARGIN:
                forms = _forms(_ASK_RELATION, relation=words, other=(other.thing.name,))
                yield _about(scene, ahead[0][0], "relation", forms)


def _kinds(scene: Scene) -> Iterator[Question]:
    for kind, word in KIND_WORDS.items():
        members = [i for i, p in enumerate(scene.placed) if p.thing.kind == kind]
        if len(members) == 1:
            yield _about(scene, members[0], "kind", _forms(_ASK_KIND, word=(word,)))


def _sizes(scene: Scene) -> Iterator[Question]:
    if len(scene.placed) < 2:
        return
    ranked = sorted(range(len(scene.placed)), key=lambda i: scene.placed[i].size)
    # "smaller" compares two; of more, one is only "smallest"
    small = ("smallest", "smaller") if len(ranked) == 2 else ("smallest",)
    for words, first, second in ((small, 0, 1), (("largest", "biggest"), -1, -2)):
        sizes = sorted((scene.placed[ranked[first]].size, scene.placed[ranked[second]].size))
        if sizes[1] / sizes[0] >= SIZE_RATIO:
            yield _about(scene, ranked[first], "size", _forms(_ASK_SIZE, size=words))


def _ground(scene: Scene) -> Question:
    answer = _ground_phrase(scene.background)
    return Question(_ASK_BACKGROUND[0], answer, "background", None, _ASK_BACKGROUND[1:])


def _ground_phrase(colour: str) -> str:
    return f"{'an' if colour == 'orange' else 'a'} {colour} background"


def all_answers() -> list[str]:
    """Every answer that any scene can have, each once."""
    return [t.phrase for t in THINGS] + [_ground_phrase(colour) for colour in BACKGROUNDS]


def _where(placed: Placed) -> str:
    """The thing's place in words."""
    low, high = 0.5 - MARGIN / 2, 0.5 + MARGIN / 2
    across = "left" if placed.x < low else "right" if placed.x > high else ""
    down = "top" if placed.y < low else "bottom" if placed.y > high else ""
    return {
        ("", ""): "in the middle",
        ("left", ""): "on the left",
        ("right", ""): "on the right",
        ("", "top"): "at the top",
        ("", "bottom"): "at the bottom",
    }.get((across, down), f"at the {down} {across}")


def caption(scene: Scene) -> str:
    """One sentence that names every thing with its place, and the background."""
    parts = [f"{p.thing.phrase} {_where(p)}" for p in scene.placed]
    return f"{', '.join(parts[:-1])} and {parts[-1]}, on {_ground(scene).answer}"


def hard_captions(scene: Scene, rng: np.random.Generator, count: int) -> list[str]:
    """`count` captions that are almost right: two things swapped, a thing or the ground replaced.

    None means the same as the right caption; some may come twice.
    """
    right, wrong = caption(scene), list[str]()
    while len(wrong) < count:
        text = caption(_corrupted(scene, rng))
        if not same_meaning(text, right):
            wrong.append(text)
    return wrong


def same_meaning(a: str, b: str) -> bool:
    """Whether two captions name the same things in the same places, in whatever order."""
    return sorted(re.split(", | and ", a)) == sorted(re.split(", | and ", b))


def _corrupted(scene: Scene, rng: np.random.Generator) -> Scene:
    placed = list(scene.placed)
    i, j = rng.choice(len(placed), 2, replace=False)
    move = rng.random()
    if move < 0.4:
        placed[i], placed[j] = (
            replace(placed[i], thing=placed[j].thing),
            replace(placed[j], thing=placed[i].thing),
        )
    elif move < 0.85:
        placed[i] = replace(placed[i], thing=THINGS[int(rng.integers(len(THINGS)))])
    else:
        return replace(scene, background=list(BACKGROUNDS)[int(rng.integers(len(BACKGROUNDS)))])
    return replace(scene, placed=tuple(placed))
