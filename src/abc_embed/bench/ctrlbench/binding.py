"""Tier B, binding: the instruction selects one of K objects of one kind by place, relation or size.

A scene holds three things of one kind and has its mirror beside it; its questions have all three as
answers equally often, in the scene and in the mirror. All captions of a picture name things of one
kind, so the words of a question point to none of them: the picture alone is right in 1 of K at
most, and adding an image vector and a text vector gains nothing. A question that says a word of its
answer is not asked.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from abc_embed.bench.ctrlbench.grid import least_used, of_kind, with_things
from abc_embed.bench.ctrlbench.scene_benchmark import (
    KNOWN,
    NOVEL,
    MirroredQuestion,
    SceneBenchmark,
    SceneImage,
    mirrored_questions,
)
from abc_embed.bench.ctrlbench.schema import TextQuery
from abc_embed.bench.ctrlbench.validate import leaks
from abc_embed.scenes.layout import Scene, make_scene
from abc_embed.scenes.questions import Question
from abc_embed.scenes.things import THINGS

SEED = 7003
OBJECTS = 3
"""`K`."""
PER_OBJECT = 2
"""Questions of a picture that have one object as their answer."""
KINDS = ("animal", "food", "object", "tool", "clothing", "vehicle")
"""Kinds with things enough that none is a good guess."""
_QUESTION_KINDS = ("place", "relation", "size")
_SELECTOR = re.compile(
    r"\b(top left|top right|bottom left|bottom right"
    r"|left|right|top|bottom|above|below|smallest|largest)\b"
)
"""The word that selects; those of two words are looked for first."""


def generate(count: int = 250, seed: int = SEED) -> SceneBenchmark:
    """`count` scenes and their mirrors, `OBJECTS * PER_OBJECT` questions of each picture."""
    rng = np.random.default_rng((seed, 23))
    things, used = Counter(t.name for t in THINGS), Counter[str]()
    images: list[SceneImage] = []
    queries: list[TextQuery] = []
    index = 0
    while len(images) < 2 * count:
        layout = make_scene(seed, index)
        index += 1
        if len(layout.placed) != OBJECTS:
            continue
        number = len(images) // 2
        kind, novel = KINDS[number // 2 % len(KINDS)], bool(number % 2)
        pools = [of_kind(kind)] * OBJECTS
        scene = with_things(layout, least_used(rng, pools, things, novel=novel))
        chosen = _choose(rng, scene, used)
        if chosen is None:
            continue
        things.update(placed.thing.name for placed in scene.placed)
        used.update(straight.kind for straight, _ in chosen)
        captions = tuple(placed.thing.phrase for placed in scene.placed)
        first, group = len(images), NOVEL if novel else KNOWN
        images.append(SceneImage(scene, group, captions, mirror=first + 1))
        images.append(SceneImage(scene.mirrored(), group, captions, mirror=first))
        queries += [_query(first, straight) for straight, _ in chosen]
        queries += [_query(first + 1, mirrored) for _, mirrored in chosen]
    description = (
        f"{count} scenes of {OBJECTS} things of one kind ({', '.join(KINDS)}), and their mirrors; "
        f"{OBJECTS * PER_OBJECT} questions by place, relation or size of each, the same of a scene "
        f"and its mirror; each thing is the answer of {PER_OBJECT}; every second scene holds two "
        "things that no training scene has together"
    )
    return SceneBenchmark("ctrlbench-B", seed, images, queries, description)


def _query(image: int, question: Question) -> TextQuery:
    words = (question.instruction, question.answer, question.paraphrases)
    return TextQuery(image, "B", _aspect(question), *words)


def _aspect(question: Question) -> str:
    """Its kind, and the word that selects: left, above, smallest, …"""
    selector = _SELECTOR.search(question.instruction)
    return f"{question.kind}:{selector[1] if selector else 'other'}"


def _choose(
    rng: np.random.Generator, scene: Scene, used: Counter[str]
) -> Sequence[MirroredQuestion] | None:
    """Questions with every object as the answer of `PER_OBJECT`, in the scene and in its mirror.

    Kinds of question that came least so far are preferred. At least one is about size, and at
    least two have another answer in the mirror. None where the scene has no such questions.
    """
    pool = [pair for pair in mirrored_questions(scene) if pair[0].kind in _QUESTION_KINDS]
    pool = [pair for pair in pool if not any(leaks(q.instruction, q.answer) for q in pair)]
    order = [pool[int(i)] for i in rng.permutation(len(pool))]
    order.sort(key=lambda pair: used[pair[0].kind])  # stable: else as drawn
    different: dict[tuple[str, str], MirroredQuestion] = {}
    for question, twin in order:  # "on the left" is asked once, for a thing or for an animal
        relation = question.instruction if question.kind == "relation" else ""
        different.setdefault((_aspect(question), relation), (question, twin))
    if not any(question.kind == "size" for question, _ in different.values()):
        return None  # sooner than to try them all
    for choice in _balanced(list(different.values()), [], Counter(), Counter()):
        about_size = any(question.kind == "size" for question, _ in choice)
        if about_size and sum(question.answer != twin.answer for question, twin in choice) >= 2:
            return choice
    return None


def _balanced(
    pool: Sequence[MirroredQuestion],
    taken: list[MirroredQuestion],
    straight: Counter[str],
    mirrored: Counter[str],
) -> Iterator[list[MirroredQuestion]]:
    """Each choice with each object right `PER_OBJECT` times on both sides; preferred ones first."""
    if len(taken) == OBJECTS * PER_OBJECT:
        yield list(taken)
        return
    for number, pair in enumerate(pool):
        answer, mirrored_answer = (question.answer for question in pair)
        if straight[answer] < PER_OBJECT and mirrored[mirrored_answer] < PER_OBJECT:
            straight[answer] += 1
            mirrored[mirrored_answer] += 1
            taken.append(pair)
            yield from _balanced(pool[number + 1 :], taken, straight, mirrored)
            taken.pop()
            straight[answer] -= 1
            mirrored[mirrored_answer] -= 1
