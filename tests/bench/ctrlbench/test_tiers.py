"""Tiers G and B keep their promises, and the frozen versions are what their hashes say."""

import json
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path

import pytest

from abc_embed.bench.ctrlbench import binding, grid, tiers
from abc_embed.bench.ctrlbench.scene_benchmark import (
    KNOWN,
    NOVEL,
    SceneBenchmark,
    write_scene_benchmark,
)
from abc_embed.bench.ctrlbench.schema import Benchmark, Query, TextQuery
from abc_embed.bench.ctrlbench.validate import (
    content_words,
    image_bound,
    leaks,
    text_bound,
    validate,
)
from abc_embed.errors import DataError, UsageError
from abc_embed.scenes.layout import TRAINING_WORLDS
from abc_embed.scenes.questions import questions
from abc_embed.scenes.things import THINGS, kept_apart

SIDE = 32
BY_PHRASE = {thing.phrase: thing for thing in THINGS}


@pytest.fixture(scope="module")
def large() -> dict[str, SceneBenchmark]:
    return {"G": grid.generate(120), "B": binding.generate(36)}


@pytest.mark.parametrize("tier", ["G", "B"])
def test_the_world_is_unseen_and_half_is_around_unseen_pairs(
    large: dict[str, SceneBenchmark], tier: str
) -> None:
    assert {grid.SEED, binding.SEED}.isdisjoint(TRAINING_WORLDS)
    groups = Counter(shown.group for shown in large[tier].images)
    assert groups[NOVEL] == groups[KNOWN]
    for shown in large[tier].images:
        things = [placed.thing for placed in shown.scene.placed]
        apart = any(kept_apart(a, b) for i, a in enumerate(things) for b in things[:i])
        assert apart is (shown.group == NOVEL)


@pytest.mark.parametrize("tier", ["G", "B"])
def test_answers_are_right(large: dict[str, SceneBenchmark], tier: str) -> None:
    for asked in large[tier].queries:
        shown = large[tier].images[asked.image]
        (match,) = (q for q in questions(shown.scene) if q.instruction == asked.instruction)
        assert (match.answer, match.paraphrases) == (asked.answer, asked.paraphrases)
        assert asked.answer in shown.captions


def test_the_grid_has_five_answers_a_picture_and_they_are_balanced(
    large: dict[str, SceneBenchmark],
) -> None:
    by_image, by_words = defaultdict(list), defaultdict(Counter)
    for asked in large["G"].queries:
        by_image[asked.image].append(asked)
        by_words[asked.instruction][asked.answer] += 1
    for its in by_image.values():
        assert len({a.aspect for a in its}) == len({a.answer for a in its}) == len(its) == 5
    assert len(by_words) == 7  # the shared bank
    for answers in by_words.values():
        assert max(answers.values()) - min(answers.values()) <= 2
    assert max(by_words["what colour is the background?"].values()) <= 120 / 12 + 1


def test_binding_asks_for_each_object_twice_on_both_sides(
    large: dict[str, SceneBenchmark],
) -> None:
    draft = large["B"]
    by_image: dict[int, list[TextQuery]] = defaultdict(list)
    for asked in draft.queries:
        by_image[asked.image].append(asked)
    for image, its in by_image.items():
        shown, mirror = draft.images[image], draft.images[image].mirror
        assert len({BY_PHRASE[answer].kind for answer in shown.captions}) == 1
        assert Counter(a.answer for a in its) == dict.fromkeys(shown.captions, 2)
        assert mirror is not None and draft.images[mirror].mirror == image
        if image < mirror:  # back again, a place may differ by rounding
            assert draft.images[mirror].scene == shown.scene.mirrored()
        answers = {a.instruction: a.answer for a in its}
        mirrored = {a.instruction: a.answer for a in by_image[mirror]}
        assert answers.keys() == mirrored.keys()
        assert sum(answers[words] != mirrored[words] for words in answers) >= 2
        assert {a.aspect.partition(":")[0] for a in its} >= {"size"}
        for asked in its:
            assert not leaks(asked.instruction, asked.answer)


@pytest.mark.parametrize("tier", ["G", "B"])
def test_bounds_by_brute_force(folders: dict[str, Benchmark], tier: str) -> None:
    benchmark = folders[tier]
    corpus = {caption.cap_id: caption.text for caption in benchmark.corpus}
    by_image, by_words = defaultdict(Counter), defaultdict(Counter)
    for query in benchmark.queries:
        words = query.instruction
        for name in sorted(t.removeprefix("a ").removeprefix("an ") for t in corpus.values()):
            if words.endswith(f" the {name}?"):
                words = words.replace(name, "…")
        by_image[query.image_id][query.positives] += 1
        by_words[words][query.positives] += 1
    found = validate(benchmark, tier)
    total = len(benchmark.queries)
    assert found["image"] == sum(max(c.values()) for c in by_image.values()) / total
    assert found["image"] == pytest.approx(1 / 5 if tier == "G" else 1 / 3)
    assert found["text"] == sum(max(c.values()) for c in by_words.values()) / total
    assert found["random"] == pytest.approx(1 / len(corpus))
    assert found["leaks"] == (12 if tier == "G" else 0)  # "what colour is the background?"


@pytest.mark.parametrize(
    ("instruction", "answer", "found"),
    [
        ("what is on the left?", "a dog", set()),
        ("what is left of the fire engine?", "a fire extinguisher", {"fire"}),
        ("the ball on the left", "Tennis balls", {"ball"}),
        ("what is the thing?", "the thing.", {"thing"}),
    ],
)
def test_words_given_away(instruction: str, answer: str, found: set[str]) -> None:
    assert leaks(instruction, answer) == found
    assert content_words("a of the") == set()


def changed(benchmark: Benchmark, number: int, **values: object) -> Benchmark:
    queries = list(benchmark.queries)
    queries[number] = replace(queries[number], **values)
    return replace(benchmark, queries=tuple(queries))


def test_the_gate_refuses_a_broken_promise(folders: dict[str, Benchmark]) -> None:
    binds, grids = folders["B"], folders["G"]
    corpus = {caption.cap_id: caption.text for caption in binds.corpus}
    said = corpus[binds.queries[0].positives[0]].split()[-1]
    with pytest.raises(DataError, match=f"question 'q00000': it says '{said}', a word of its"):
        validate(changed(binds, 0, instruction=f"where is the {said}?"), "B")
    one, two = binds.queries[:2]
    with pytest.raises(DataError, match=r"one answer is right in 3 of 6, more than 1 in 3"):
        number = 0 if one.positives != two.positives else 1
        other = next(q for q in binds.queries[:6] if q.positives != one.positives)
        validate(changed(binds, number, positives=other.positives), "B")
    with pytest.raises(DataError, match="its picture has one caption"):
        validate(changed(binds, 0, same_image=one.positives), "B")
    with pytest.raises(DataError, match="another question of its picture has the same answer"):
        validate(changed(grids, 0, positives=grids.queries[1].positives), "G")
    with pytest.raises(DataError, match="ask each aspect once of every picture"):
        validate(changed(grids, 0, aspect=grids.queries[1].aspect), "G")


def test_the_gate_refuses_words_that_answer_themselves(folders: dict[str, Benchmark]) -> None:
    grids = folders["G"]
    caps = [caption.cap_id for caption in grids.corpus][:5]
    queries = [
        Query(
            query_id=f"{image} {aspect}",
            image_id="i00000",
            tier="G",
            aspect=f"{aspect}",
            instruction=f"what is the {aspect}?",
            positives=(cap,),
            same_image=tuple(caps),
        )
        for image in range(120)
        for aspect, cap in enumerate(caps)
    ]
    queries = [replace(q, image_id=f"i{n // 5:05}") for n, q in enumerate(queries)]
    assert text_bound(queries, {c.cap_id: c.text for c in grids.corpus}) == 1.0
    assert image_bound(queries) == 0.2
    with pytest.raises(DataError, match="right in 100%, more than the picture alone"):
        validate(replace(grids, queries=tuple(queries)), "G")


def test_a_draft_makes_the_same_bytes(tmp_path: Path) -> None:
    spec = grid.generate(3)
    one, again = (write_scene_benchmark(spec, tmp_path / name, side=SIDE) for name in "ab")
    assert one.content_hash() == again.content_hash()
    assert (one.folder / one.images[0].file).suffix == ".bmp"
    with pytest.raises(UsageError, match="side is 8; give at least 32"):
        write_scene_benchmark(grid.generate(1), tmp_path / "c", side=8)


@pytest.mark.parametrize("tier", list(tiers.TIERS))
def test_the_frozen_tiers_are_what_their_hashes_say(tier: str, tmp_path: Path) -> None:
    made = tiers.build(tier, tmp_path)  # raises where the hash is another
    sizes = made.card["counts"]
    assert sizes["images"] >= 500
    assert sizes["queries"] >= (2500 if tier in "GB" else 2000)
    assert tiers.TIERS[tier].version == 1


def test_another_content_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ABC_EMBED_CACHE", str(tmp_path))
    small = replace(tiers.TIERS["G"], generate=lambda: grid.generate(4))
    monkeypatch.setitem(tiers.TIERS, "G", small)
    with pytest.raises(DataError, match=r"is not tier G version 1: its hash is \w+, not ba6bb448"):
        tiers.load("G")
    made = tmp_path / "ctrlbench" / "G-1"
    digest = json.loads((made / "card.json").read_text())["content_hash"]
    monkeypatch.setitem(tiers.TIERS, "G", replace(small, content_hash=digest))
    seen = (made / "card.json").stat().st_mtime_ns
    assert tiers.load("G").content_hash() == digest
    assert (made / "card.json").stat().st_mtime_ns == seen  # read, not drawn again
    (made / "images" / "00000.bmp").unlink()
    with pytest.raises(DataError, match=r"has lost images/00000\.bmp; delete the folder"):
        tiers.load("G")
    with pytest.raises(UsageError, match="there is no tier 'X' to draw; choose G, B, S"):
        tiers.load("X")
