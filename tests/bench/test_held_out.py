"""What is asked: unseen, even over kinds, and not to be had from the picture alone."""

from collections import Counter

import pytest

from abc_embed.bench.ctrlbench.held_out import SEED, HeldOut, build
from abc_embed.errors import UsageError
from abc_embed.scenes import make_scene, questions
from abc_embed.scenes.layout import TRAINING_WORLDS
from abc_embed.scenes.questions import KINDS
from abc_embed.scenes.things import kept_apart


@pytest.fixture(scope="module")
def large() -> HeldOut:
    return build(queries=700, pairs=100)


def test_a_seed_makes_one_benchmark(held: HeldOut, small: dict[str, int]) -> None:
    assert build(**small) == held
    assert build(**(small | {"seed": 9001})).queries != held.queries


def test_the_world_is_not_one_of_training(large: HeldOut) -> None:
    assert SEED not in TRAINING_WORLDS
    trained = {make_scene(seed, i).placed for seed in TRAINING_WORLDS for i in range(20)}
    assert not {scene.placed for scene in large.scenes} & trained
    for seed in (1, 20, -1):
        with pytest.raises(UsageError, match="give one above 20"):
            build(10, 5, seed)
    for numbers in ((0, 5), (5, 0)):
        with pytest.raises(UsageError, match="at least 1"):
            build(*numbers)


def test_half_of_the_scenes_hold_a_pair_unseen_in_training(large: HeldOut) -> None:
    assert sum(large.novel) * 2 == len(large.scenes) == len(large.novel)
    for scene, novel in zip(large.scenes, large.novel, strict=True):
        assert kept_apart(scene.placed[0].thing, scene.placed[1].thing) is novel


def test_there_are_as_many_as_asked_for_and_the_kinds_are_even(large: HeldOut) -> None:
    assert 700 <= len(large.queries) < 710
    kinds = Counter(q.kind for q in large.queries)
    assert set(kinds) == set(KINDS)
    assert max(kinds.values()) - min(kinds.values()) <= 0.03 * len(large.queries)


def test_answers_are_right_and_each_comes_once_for_a_picture(large: HeldOut) -> None:
    assert len({(q.image, q.answer) for q in large.queries}) == len(large.queries)
    paraphrased = 0
    for query in large.queries:
        (match,) = (
            q
            for q in questions(large.scenes[query.image])
            if query.instruction in (q.instruction, *q.paraphrases)
        )
        assert (match.answer, match.kind) == (query.answer, query.kind)
        paraphrased += query.instruction != match.instruction
    assert paraphrased > 0.7 * len(large.queries)


def test_candidates_are_all_answers_each_once(large: HeldOut) -> None:
    every = {q.answer for scene in large.scenes for q in questions(scene)}
    assert sorted(every) == list(large.candidates)
    assert {q.answer for q in large.queries} <= every
    for pair in large.pairs:
        assert {pair.answer, pair.mirrored_answer} <= every


def test_the_bound_of_the_picture_alone(large: HeldOut) -> None:
    """Whoever ignores the instruction answers all questions of a picture alike."""
    right = 0
    for image in range(len(large.scenes)):
        answers = [q.answer for q in large.queries if q.image == image]
        right += max((answers.count(a) for a in answers), default=0)
    assert large.image_bound == pytest.approx(right / len(large.queries))
    assert large.image_bound < 0.35


def test_mirrored_pairs_have_two_right_answers_that_differ(large: HeldOut) -> None:
    assert len({pair.image for pair in large.pairs}) == len(large.pairs) == 100
    for pair in large.pairs:
        scene = large.scenes[pair.image]
        for each, answer in ((scene, pair.answer), (scene.mirrored(), pair.mirrored_answer)):
            (match,) = (
                q for q in questions(each) if pair.instruction in (q.instruction, *q.paraphrases)
            )
            assert match.answer == answer
        assert pair.answer != pair.mirrored_answer
