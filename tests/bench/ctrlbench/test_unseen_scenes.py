"""Tier S: unseen, even over kinds, and not to be had from the picture alone."""

from collections import Counter
from itertools import pairwise

import pytest

from abc_embed.bench.ctrlbench.scene_benchmark import KNOWN, NOVEL, SceneBenchmark
from abc_embed.bench.ctrlbench.schema import PAIR_TIER
from abc_embed.bench.ctrlbench.unseen_scenes import SEED, generate, split_mirrors
from abc_embed.errors import UsageError
from abc_embed.scenes.layout import TRAINING_WORLDS, make_scene
from abc_embed.scenes.questions import KINDS, questions
from abc_embed.scenes.things import kept_apart


@pytest.fixture(scope="module")
def large() -> SceneBenchmark:
    return generate(700, pairs=100)


def test_a_seed_makes_one_benchmark(
    specs: dict[str, SceneBenchmark], small: dict[str, int]
) -> None:
    assert generate(**small) == specs["S"]
    assert generate(**(small | {"seed": 9001})).queries != specs["S"].queries


def test_the_world_is_not_one_of_training(large: SceneBenchmark) -> None:
    assert SEED not in TRAINING_WORLDS
    trained = {make_scene(seed, i).placed for seed in TRAINING_WORLDS for i in range(20)}
    assert not {image.scene.placed for image in large.images} & trained
    for seed in (1, 20, -1):
        with pytest.raises(UsageError, match="give one above 20"):
            generate(10, 5, seed)
    for numbers in ((0, 5), (5, 0)):
        with pytest.raises(UsageError, match="at least 1"):
            generate(*numbers)


def test_half_of_the_scenes_hold_a_pair_unseen_in_training(large: SceneBenchmark) -> None:
    images, _ = split_mirrors(large)
    groups = Counter(image.group for image in images)
    assert groups[NOVEL] == groups[KNOWN] == len(images) / 2
    for image in images:
        first, second, *_ = (placed.thing for placed in image.scene.placed)
        assert kept_apart(first, second) is (image.group == NOVEL)


def test_there_are_as_many_as_asked_for_and_the_kinds_are_even(large: SceneBenchmark) -> None:
    _, queries = split_mirrors(large)
    assert 700 <= len(queries) < 710
    kinds = Counter(query.aspect for query in queries)
    assert set(kinds) == set(KINDS)
    assert max(kinds.values()) - min(kinds.values()) <= 0.03 * len(queries)


def test_answers_are_right_and_each_comes_once_for_a_picture(large: SceneBenchmark) -> None:
    _, queries = split_mirrors(large)
    assert len({(query.image, query.answer) for query in queries}) == len(queries)
    paraphrased = 0
    for query in queries:
        (match,) = (
            q
            for q in questions(large.images[query.image].scene)
            if query.instruction in (q.instruction, *q.paraphrases)
        )
        assert (match.answer, match.kind) == (query.answer, query.aspect)
        paraphrased += query.instruction != match.instruction
    assert paraphrased > 0.7 * len(queries)


def test_candidates_are_all_answers_each_once(large: SceneBenchmark) -> None:
    images, _ = split_mirrors(large)
    every = {q.answer for image in images for q in questions(image.scene)}
    assert large.candidates == sorted(every)
    assert {query.answer for query in large.queries} <= every


def test_the_picture_alone_has_one_of_its_questions(large: SceneBenchmark) -> None:
    """Whoever ignores the instruction answers all questions of a picture alike."""
    images, queries = split_mirrors(large)
    right = 0
    for number in range(len(images)):
        answers = [query.answer for query in queries if query.image == number]
        right += max((answers.count(answer) for answer in answers), default=0)
    assert right / len(queries) < 0.35


def test_mirrored_pairs_have_two_right_answers_that_differ(large: SceneBenchmark) -> None:
    asked = [query for query in large.queries if query.tier == PAIR_TIER]
    pairs = list(pairwise(asked))[::2]
    assert len({first.image for first, _ in pairs}) == len(pairs) == 100
    for first, second in pairs:
        assert first.instruction == second.instruction and first.answer != second.answer
        assert large.images[first.image].mirror == second.image
        for query in (first, second):
            (match,) = (
                q
                for q in questions(large.images[query.image].scene)
                if query.instruction in (q.instruction, *q.paraphrases)
            )
            assert match.answer == query.answer
