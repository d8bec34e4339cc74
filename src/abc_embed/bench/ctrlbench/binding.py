"""Tier B, binding: the instruction selects one of K objects of one kind by place, relation or size.

Does: choose scenes of three things of one kind, each with its mirror, and questions that have all
three as answers equally often, in the scene and in the mirror. Does not: draw them (drafts.py).

All captions of a picture name things of one kind, so the words of a question point to none of them:
the picture alone is right in 1 of K at most, and adding an image vector and a text vector gains
nothing. A question that says a word of its answer is not asked.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from abc_embed.bench.ctrlbench.drafts import KNOWN, NOVEL, Asked, Draft, Shown
from abc_embed.bench.ctrlbench.grid import filled, least_used, of_kind
from abc_embed.bench.ctrlbench.validate import leaks
from abc_embed.scenes.layout import Scene, make_scene
from abc_embed.scenes.questions import Question, questions
from abc_embed.scenes.things import THINGS

SEED = 7003
OBJECTS = 3
"""`K`."""
EACH = 2
"""Questions of a picture that have one object as their answer."""
KINDS = ("animal", "food", "object", "tool", "clothing", "vehicle")
"""Kinds with things enough that none is a good guess."""
_ASKED = ("place", "relation", "size")


@dataclass(frozen=True, slots=True)
class _Both:
    """A question of a scene and the same of its mirror."""

    straight: Question
    mirrored: Question

    @property
    def flips(self) -> bool:
        return self.straight.answer != self.mirrored.answer

    @property
    def leaks(self) -> bool:
        return any(leaks(q.instruction, q.answer) for q in (self.straight, self.mirrored))


def draft(scenes: int = 250, seed: int = SEED) -> Draft:
    """`scenes` scenes and their mirrors, `OBJECTS * EACH` questions of each picture."""
    rng = np.random.default_rng((seed, 23))
    things, used = Counter(t.name for t in THINGS), Counter[str]()
    shown: list[Shown] = []
    asked: list[Asked] = []
    index = 0
    while len(shown) < 2 * scenes:
        layout = make_scene(seed, index)
        index += 1
        if len(layout.placed) != OBJECTS:
            continue
        number = len(shown) // 2
        kind, novel = KINDS[number // 2 % len(KINDS)], bool(number % 2)
        scene = filled(layout, least_used(rng, [of_kind(kind)] * OBJECTS, things, novel=novel))
        chosen = _choose(rng, scene, used)
        if chosen is None:
            continue
        things.update(placed.thing.name for placed in scene.placed)
        used.update(both.straight.kind for both in chosen)
        answers = tuple(placed.thing.phrase for placed in scene.placed)
        first, group = len(shown), NOVEL if novel else KNOWN
        shown.append(Shown(scene, group, answers, mirror=first + 1))
        shown.append(Shown(scene.mirrored(), group, answers, mirror=first))
        asked += [_asked(first, both.straight) for both in chosen]
        asked += [_asked(first + 1, both.mirrored) for both in chosen]
    how = (
        f"{scenes} scenes of {OBJECTS} things of one kind ({', '.join(KINDS)}), and their mirrors; "
        f"{OBJECTS * EACH} questions by place, relation or size of each, the same of a scene and "
        f"its mirror; each thing is the answer of {EACH}; every second scene holds two things that "
        "no training scene has together"
    )
    return Draft("ctrlbench-B", seed, shown, asked, how)


def _asked(image: int, question: Question) -> Asked:
    words = (question.instruction, question.answer, question.paraphrases)
    return Asked(image, "B", f"{question.kind}:{_which(question.instruction)}", *words)


def _which(instruction: str) -> str:
    """The word that selects: left, above, smallest, …"""
    found = re.search(r"\b(top left|top right|bottom left|bottom right)\b", instruction)
    found = found or re.search(
        r"\b(left|right|top|bottom|above|below|smallest|largest)\b", instruction
    )
    return found[1] if found else "other"


def _choose(rng: np.random.Generator, scene: Scene, used: Counter[str]) -> Sequence[_Both] | None:
    """Questions with every object as the answer of `EACH`, in the scene and in its mirror.

    Kinds of question that came least so far are preferred. At least one is about size, and at
    least two have another answer in the mirror. None where the scene has no such questions.
    """
    mirrored = {q.instruction: q for q in questions(scene.mirrored())}
    pool = [
        _Both(q, mirrored[q.instruction])
        for q in questions(scene)
        if q.kind in _ASKED and q.instruction in mirrored
    ]
    pool = [
        b for b in pool if not any(leaks(q.instruction, q.answer) for q in (b.straight, b.mirrored))
    ]
    order = [pool[int(i)] for i in rng.permutation(len(pool))]
    order.sort(key=lambda both: used[both.straight.kind])  # stable: else as drawn
    seen: set[tuple[str, str]] = set()
    different = []
    for both in order:  # "on the left" is asked once, be it for a thing or for an animal
        what = _asked(0, both.straight)
        key = (what.aspect, what.instruction if both.straight.kind == "relation" else "")
        if key not in seen:
            seen.add(key)
            different.append(both)
    if not any(both.straight.kind == "size" for both in different):
        return None  # sooner than to try them all
    for found in _balanced(different, [], Counter(), Counter()):
        about_size = any(both.straight.kind == "size" for both in found)
        if about_size and sum(both.flips for both in found) >= 2:
            return found
    return None


def _balanced(
    pool: Sequence[_Both], taken: list[_Both], straight: Counter[str], mirrored: Counter[str]
) -> Iterator[list[_Both]]:
    """Each choice with each object right `EACH` times on both sides; preferred ones first."""
    if len(taken) == OBJECTS * EACH:
        yield list(taken)
        return
    for number, both in enumerate(pool):
        one, other = both.straight.answer, both.mirrored.answer
        if straight[one] < EACH and mirrored[other] < EACH:
            straight[one] += 1
            mirrored[other] += 1
            taken.append(both)
            yield from _balanced(pool[number + 1 :], taken, straight, mirrored)
            taken.pop()
            straight[one] -= 1
            mirrored[other] -= 1
