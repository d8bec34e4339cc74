"""Every answer in every wording, checked against the geometry by an independent reader of English.

The reader below knows nothing of how questions are made: it takes the words apart, and finds who
is meant from the coordinates, by brute force.
"""

import re
from itertools import pairwise

import numpy as np
import pytest

from abc_embed.scenes.layout import Placed, Scene, make_scene
from abc_embed.scenes.questions import (
    KINDS,
    Question,
    all_answers,
    caption,
    hard_captions,
    questions,
    same_meaning,
    unanswerable,
)
from abc_embed.scenes.things import KIND_WORDS, THINGS

SCENES = [make_scene(99, index, held_out=held) for index in range(120) for held in (False, True)]
MARGIN = 0.12

RELATION = re.compile(
    r"(left of|right of|above|over|higher than|below|under|lower than) the (.+?)\??$"
)
AXES = {
    "left": lambda p: -p.x,
    "right": lambda p: p.x,
    "top": lambda p: -p.y,
    "bottom": lambda p: p.y,
}
SIDES = {
    "left": ("left",),
    "right": ("right",),
    "top": ("top", "upper", "highest", "above", "over", "higher"),
    "bottom": ("bottom", "lower", "lowest", "below", "under"),
}
KIND_OF = {word: kind for kind, word in KIND_WORDS.items()}


def sides(words: str) -> list[str]:
    return [side for side, names in SIDES.items() if set(names) & set(re.split(r"\W+", words))]


def only(found: list[Placed]) -> Placed:
    assert len(found) == 1, "the question does not say which one"
    return found[0]


def furthest(members: list[Placed], side: str) -> Placed:
    """The one furthest to a side, beyond doubt."""
    *_, second, first = sorted(members, key=AXES[side])
    assert AXES[side](first) - AXES[side](second) >= MARGIN - 1e-12
    return first


def answer(scene: Scene, text: str) -> str:
    """Who is meant, by brute force."""
    words = text.rstrip("?")
    things = list(scene.placed)
    if "background" in words or "colour" in words:
        return f"{'an' if scene.background[0] in 'aeiou' else 'a'} {scene.background} background"
    if relation := RELATION.search(text):
        other = only([p for p in things if p.thing.name == relation[2]])
        (side,) = sides(relation[1])
        ahead = only([p for p in things if AXES[side](p) > AXES[side](other)])
        assert AXES[side](ahead) - AXES[side](other) >= MARGIN
        return ahead.thing.phrase
    if size := re.search(r"smallest|smaller|largest|biggest", words):
        ranked = sorted(things, key=lambda p: p.size, reverse=size[0] in ("largest", "biggest"))
        low, high = sorted((ranked[0].size, ranked[1].size))
        assert high / low >= 1.2
        assert len(things) == 2 or size[0] != "smaller"
        return ranked[0].thing.phrase
    kind = next((KIND_OF[w] for w in KIND_OF if re.search(rf"\b{w}\b", words)), None)
    members = [p for p in things if kind is None or p.thing.kind == kind]
    where = sides(words)
    if not where:
        return only(members).thing.phrase
    found = {furthest(members, side).thing.phrase for side in where}
    assert len(found) == 1
    return found.pop()


def wordings(question: Question) -> tuple[str, ...]:
    return (question.instruction, *question.paraphrases)


def test_every_wording_of_every_question_has_its_answer() -> None:
    asked = 0
    for scene in SCENES:
        for question in questions(scene):
            for text in wordings(question):
                assert answer(scene, text) == question.answer, (text, caption(scene))
                asked += 1
    assert asked > 20_000


def test_the_reader_can_disagree() -> None:
    scene = next(s for s in SCENES if any(q.kind == "relation" for q in questions(s)))
    question = next(q for q in questions(scene) if q.kind == "relation")
    others = [s for s in SCENES[:40] if s is not scene]
    wrong = 0
    for other in others:
        try:
            wrong += answer(other, question.instruction) != question.answer
        except AssertionError:
            wrong += 1
    assert wrong == len(others)


@pytest.mark.parametrize("scene", SCENES[::8])
def test_questions_are_plain(scene: Scene) -> None:
    found = questions(scene)
    assert [q.kind for q in found].count("background") == 1
    assert len({q.instruction for q in found}) == len(found)
    texts = [text for q in found for text in wordings(q)]
    assert len(set(texts)) == len(texts), "one wording, two questions"
    for question in found:
        assert question.kind in KINDS
        assert len(question.paraphrases) >= 3
        assert question.answer not in question.instruction
        if question.region is None:
            assert question.kind == "background"
        else:
            assert scene.placed[question.region].thing.phrase == question.answer
        assert question.answer in all_answers()


def test_every_kind_is_asked_often() -> None:
    kinds = [q.kind for scene in SCENES for q in questions(scene)]
    assert all(kinds.count(kind) >= 100 for kind in KINDS)


def test_all_answers_are_different() -> None:
    assert len(set(all_answers())) == len(all_answers()) == len(THINGS) + 12


SWAP = {"left": "right", "right": "left"}


def swapped(text: str) -> str:
    return re.sub(r"\b(left|right)\b", lambda m: SWAP[m[0]], text)


def test_a_mirror_answers_left_as_right() -> None:
    changed = 0
    for scene in SCENES:
        straight = {q.instruction: q.answer for q in questions(scene)}
        mirrored = {q.instruction: q.answer for q in questions(scene.mirrored())}
        assert mirrored == {swapped(text): found for text, found in straight.items()}
        changed += any(mirrored.get(text, found) != found for text, found in straight.items())
    assert changed > len(SCENES) / 2


def scene_of(*places: tuple[float, float, float]) -> Scene:
    """Things of different kinds at (x, y, size), on white."""
    kinds = ("animal", "vehicle", "food", "tool")
    chosen = [next(t for t in THINGS if t.kind == kind) for kind in kinds]
    placed = [Placed(t, x, y, s) for t, (x, y, s) in zip(chosen, places, strict=False)]
    return Scene(tuple(placed), "white", (255, 255, 255))


@pytest.mark.parametrize(("gap", "asked"), [(MARGIN - 0.01, False), (MARGIN + 0.01, True)])
def test_below_the_margin_nobody_asks_for_a_place(gap: float, asked: bool) -> None:
    scene = scene_of((0.5 - gap / 2, 0.2, 0.3), (0.5 + gap / 2, 0.8, 0.3))
    texts = [q.instruction for q in questions(scene)]
    assert any("left" in text for text in texts) is asked
    assert any("top" in text for text in texts)


@pytest.mark.parametrize(("ratio", "asked"), [(1.19, False), (1.21, True)])
def test_nearly_equal_sizes_are_not_compared(ratio: float, asked: bool) -> None:
    scene = scene_of((0.2, 0.5, 0.3), (0.8, 0.5, 0.3 * ratio))
    assert any(q.kind == "size" for q in questions(scene)) is asked


def test_who_is_between_is_neither_left_nor_right_of_both() -> None:
    scene = scene_of((0.2, 0.5, 0.25), (0.5, 0.5, 0.25), (0.8, 0.5, 0.25))
    names = [p.thing.name for p in scene.placed]
    answers = {q.instruction: q.answer for q in questions(scene) if q.kind == "relation"}
    assert answers == {
        f"what is left of the {names[1]}?": scene.placed[0].thing.phrase,
        f"what is right of the {names[1]}?": scene.placed[2].thing.phrase,
    }


# -- captions --------------------------------------------------------------------------------------


def test_a_caption_names_everything_with_its_place() -> None:
    scene = scene_of((0.2, 0.2, 0.3), (0.8, 0.5, 0.3), (0.5, 0.9, 0.2))
    first, second, third = (p.thing.phrase for p in scene.placed)
    assert caption(scene) == (
        f"{first} at the top left, {second} on the right and {third} at the bottom, "
        "on a white background"
    )


def test_hard_captions_are_not_the_caption() -> None:
    same = 0
    for number, scene in enumerate(SCENES):
        true = caption(scene)
        wrong = hard_captions(scene, np.random.default_rng(number), 6)
        assert len(wrong) == 6 and true not in wrong
        assert wrong == hard_captions(scene, np.random.default_rng(number), 6)
        same += sum(same_meaning(text, true) for text in wrong)
        for text in wrong:  # almost right: most words are
            assert len(set(text.split()) & set(true.split())) >= len(set(true.split())) / 2
    assert same == 0


def test_the_same_meaning_in_another_order() -> None:
    one = "a dog on the left, a cat on the left and a cow on the right, on a red background"
    assert same_meaning(one, one)
    assert same_meaning(
        one, "a cat on the left, a cow on the right and a dog on the left, on a red background"
    )
    for other in (
        "a cow on the left, a cat on the left and a dog on the right, on a red background",
        "a dog on the left, a cat on the left and a cow on the right, on a blue background",
    ):
        assert not same_meaning(one, other)
    assert all(not same_meaning(a, b) for a, b in pairwise(map(caption, SCENES)))


def test_an_unanswerable_question_names_what_is_not_there() -> None:
    words = {word: kind for kind, word in KIND_WORDS.items()}
    for number, scene in enumerate(SCENES):
        question = unanswerable(scene, np.random.default_rng(number))
        assert question.answer not in all_answers()
        here = {p.thing.kind for p in scene.placed}, {p.thing.name for p in scene.placed}
        for text in (question.instruction, *question.paraphrases):
            relation = RELATION.search(text)
            if relation:
                assert relation.group(2) not in here[1]
                continue
            named = [kind for word, kind in words.items() if re.search(rf"\b{word}\b", text)]
            assert named
            assert not here[0] & set(named)
