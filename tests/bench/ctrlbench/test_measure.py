"""CtrlBench: solvable, not to be fooled, and every number what it says."""

import json
import shutil
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from abc_embed.bench.ctrlbench import measure as ctrlbench
from abc_embed.bench.ctrlbench.measure import CONDITIONS, GENERIC, condition_parts, measure
from abc_embed.bench.ctrlbench.scene_benchmark import SceneBenchmark, unanswerable_queries
from abc_embed.bench.ctrlbench.schema import Benchmark, Query, read_benchmark, select_queries
from abc_embed.bench.ctrlbench.unseen_scenes import split_mirrors
from abc_embed.bench.encoders.base import item_key
from abc_embed.bench.records import unpack
from abc_embed.errors import DataError, NotFiniteError, UsageError
from abc_embed.inputs import Kind

Folders = dict[str, Benchmark]
Measure = Callable[..., dict[str, Any]]


@pytest.fixture
def run(fake: Any, folders: Folders) -> Measure:
    """Findings of a fake on a small tier, by their names."""
    return lambda name, tier, **how: measure(fake(name), folders[tier], tier, **how)


def r1(found: dict[str, Any]) -> dict[str, float]:
    return {way: score["r1"] for way, score in found["scores"].items()}


@pytest.mark.parametrize("tier", ["G", "B", "S"])
def test_who_understands_everything_is_right_everywhere(run: Measure, tier: str) -> None:
    found = run("Oracle", tier)
    joint = found["scores"]["joint"]
    assert (joint["r1"], joint["r1_interval"], joint["mrr"]) == (1.0, (1.0, 1.0), 1.0)
    said = {name: figure["value"] for name, figure in found["joint"].items()}
    if tier == "G":
        assert said.pop("mirror_accuracy") is None  # it has no mirrors
    assert set(said.values()) == {1.0}
    assert r1(found)["image"] <= found["bounds"]["image"] + 1e-9
    assert r1(found)["shuffled"] == 0.0  # right for the other question, so never for this
    assert found["composition_gap"]["value"] > 0.5
    assert all(check["reached"] for check in found["checks"])
    assert bool(found["checks"]) is (tier == "S")
    for split in ("by_aspect", "by_group"):
        assert {part["value"] for part in found[split].values()} == {1.0}
        assert sum(part["of"] for part in found[split].values()) == found["sizes"]["queries"]


def test_what_cannot_be_answered_scores_lower(
    run: Measure, specs: dict[str, SceneBenchmark]
) -> None:
    """Who understands answers with a caption, and shows the picture where there is no answer."""
    questions = unanswerable_queries(specs["S"])
    found = run("Oracle", "S", unanswerable=questions)
    figure = found["joint"]["answerable_auc"]
    assert (figure["value"], figure["of"]) == (1.0, found["sizes"]["images"])
    assert [c["reached"] for c in found["checks"] if c["name"] == "answerable_auc"] == [True]
    blind = run("Blind", "S", unanswerable=questions)["joint"]["answerable_auc"]
    low, high = blind["interval"]
    assert low <= blind["value"] <= high and abs(blind["value"] - 0.5) < 0.1
    assert "answerable_auc" not in run("Oracle", "S")["joint"]


@pytest.mark.parametrize("tier", ["G", "B", "S"])
def test_adding_two_vectors_has_no_composition_gap(run: Measure, tier: str) -> None:
    found = run("LateFusion", tier)
    # its joint vector *is* the sum, so it cannot be better than the control
    assert r1(found)["joint"] == pytest.approx(r1(found)["late"], abs=0.02)
    assert found["composition_gap"]["value"] <= 0.02
    assert found["composition_gap"]["interval"][0] <= 0


def test_late_fusion_gains_nothing_on_tier_b(run: Measure) -> None:
    """Its captions name things of one kind, so the words of a question point to none of them."""
    found = run("LateFusion", "B")
    assert r1(found)["late"] <= found["bounds"]["image"] + 0.05
    assert found["joint"]["mirror_accuracy"]["value"] < 0.2


@pytest.mark.parametrize("tier", ["G", "B", "S"])
def test_who_ignores_the_instruction_stays_below_the_bound(run: Measure, tier: str) -> None:
    found = run("Blind", tier)
    rates = r1(found)
    assert rates["joint"] == rates["image"] == rates["generic"] <= found["bounds"]["image"] + 1e-9
    assert found["joint"]["flip_rate"]["value"] == 0
    assert found["joint"]["group_accuracy"]["value"] == 0
    assert not found["joint"]["mirror_accuracy"]["value"]
    assert found["composition_gap"]["value"] <= 0


def test_a_constant_is_always_wrong(run: Measure, folders: Folders) -> None:
    found = run("Constant", "G")
    assert {value for way, value in r1(found).items() if way != "random"} == {0.0}
    assert found["scores"]["joint"]["mrr"] == pytest.approx(1 / len(folders["G"].corpus))
    assert found["joint"]["aspect_accuracy"]["value"] == 0
    assert found["joint"]["image_accuracy"]["value"] == 0


def test_a_vector_that_is_not_finite_is_an_error(run: Measure) -> None:
    with pytest.raises(NotFiniteError, match="not a finite number"):
        run("Broken", "B")


@pytest.mark.parametrize("tier", ["B", "S"])
def test_each_number_by_brute_force(fake: Any, folders: Folders, tier: str) -> None:
    model, folder = fake("LateFusion"), folders[tier]
    found = measure(model, folder, tier)
    texts = {c.cap_id: model.text(c.text) for c in folder.corpus}
    scenes = {p.image_id: model.scenes[p.sha256] for p in folder.images}
    queries = [q for q in folder.queries if q.tier == tier]

    def rank(vector: np.ndarray, query: Query) -> int:
        (gold,) = query.positives
        own = texts[gold] @ vector
        return 1 + sum(texts[cap] @ vector >= own for cap in texts if cap != gold)

    asked = {q.query_id: model.shown(scenes[q.image_id], q.instruction) for q in queries}
    firsts = {
        name: max(texts, key=lambda cap: float(texts[cap] @ vector))
        for name, vector in asked.items()
    }

    def joint(query: Query) -> np.ndarray:
        return np.asarray(asked[query.query_id])

    def first(query: Query) -> str:
        return firsts[query.query_id]

    by_condition: dict[str, list[int]] = defaultdict(list)
    by_image: dict[str, list[Query]] = defaultdict(list)
    for q in queries:
        image, words = model.shown(scenes[q.image_id], None), model.text(q.instruction)
        by_condition["joint"].append(rank(joint(q), q))
        by_condition["image"].append(rank(image, q))
        by_condition["generic"].append(rank(model.shown(scenes[q.image_id], GENERIC), q))
        by_condition["text"].append(rank(words, q))
        by_condition["late"].append(rank(image + words, q))
        by_image[q.image_id].append(q)
    for way, ranks in by_condition.items():
        assert unpack(found["ranks"][way]).tolist() == ranks, way
        score = found["scores"][way]
        for k, name in ((1, "r1"), (5, "r5"), (10, "r10")):
            assert score[name] == pytest.approx(np.mean([rank <= k for rank in ranks]))
        assert score["mrr"] == pytest.approx(np.mean([1 / rank for rank in ranks]))
        assert score["r1_interval"][0] <= score["r1"] <= score["r1_interval"][1]
    own = [
        max(q.same_image, key=lambda c: float(texts[c] @ joint(q))) in q.positives for q in queries
    ]
    assert found["joint"]["aspect_accuracy"]["value"] == pytest.approx(np.mean(own))
    home = [first(q) in q.same_image for q in queries]
    assert found["joint"]["image_accuracy"]["value"] == pytest.approx(np.mean(home))
    several = [its for its in by_image.values() if len(its) > 1]
    flips = [len({first(q) for q in its}) > 1 for its in several]
    assert found["joint"]["flip_rate"]["value"] == pytest.approx(np.mean(flips))
    whole = [all(rank(joint(q), q) == 1 for q in its) for its in several]
    assert found["joint"]["group_accuracy"]["value"] == pytest.approx(np.mean(whole))
    best = max(np.mean(np.array(by_condition[name]) == 1) for name in ("image", "text", "late"))
    gap = np.mean(np.array(by_condition["joint"]) == 1) - best
    assert found["composition_gap"]["value"] == pytest.approx(gap)
    tops = unpack(found["top"])
    assert [folder.corpus[row[0]].cap_id for row in tops] == [first(q) for q in queries]


def test_mirrored_pairs_by_brute_force(fake: Any, folders: Folders) -> None:
    model, folder = fake("LateFusion"), folders["B"]
    mirrors = {p.image_id: p.mirror for p in folder.images}
    pairs = [
        (one, other)
        for one in folder.queries
        for other in folder.queries
        if mirrors[one.image_id] == other.image_id
        and one.instruction == other.instruction
        and one.positives != other.positives
        and one.image_id < other.image_id
    ]
    asked = select_queries(folder, "B")
    found = asked.mirrored_pairs()
    assert {(asked.all[a].query_id, asked.all[b].query_id) for a, b in found} == {
        (a.query_id, b.query_id) for a, b in pairs
    }
    assert measure(model, folder, "B")["sizes"]["mirrored_pairs"] == len(pairs) > 10
    clusters = asked.clusters()
    for a, b in found:
        assert clusters[a] == clusters[b]  # a picture and its mirror are drawn together


def test_pairs_of_tier_s_count_in_no_other_score(
    run: Measure, specs: dict[str, SceneBenchmark]
) -> None:
    found = run("Oracle", "S")
    images, queries = split_mirrors(specs["S"])
    assert found["sizes"]["queries"] == len(queries) < len(specs["S"].queries)
    assert found["sizes"]["mirrored_pairs"] == len(specs["S"].images) - len(images) == 10
    assert found["sizes"]["images"] == len(images)
    assert found["sizes"]["candidates"] == len(specs["S"].candidates)
    # of a picture's questions no two have one answer, so the picture alone answers one of each
    assert found["bounds"]["image"] == pytest.approx(len(images) / len(queries))


@pytest.mark.parametrize("tier", ["G", "B"])
def test_controls_ask_what_they_say(folders: Folders, tier: str) -> None:
    asked = select_queries(folders[tier], tier)
    by_words: dict[str, list[Query]] = defaultdict(list)
    mirrors = {p.image_id: p.mirror for p in folders[tier].images}
    for query in asked.scored:
        by_words[query.instruction].append(query)
    ids = {folders[tier].folder / p.file: p.image_id for p in folders[tier].images}
    controls = (condition_parts(asked, name) for name in ("shuffled", "other"))
    for query, (shuffled,), (other,) in zip(asked.scored, *controls, strict=True):
        assert ids[Path(str(shuffled.image))] == query.image_id
        (twin,) = [q for q in by_words[str(shuffled.instruction)] if q.image_id == query.image_id]
        assert twin.positives != query.positives
        assert other.instruction == query.instruction
        assert ids[Path(str(other.image))] not in (query.image_id, mirrors[query.image_id])


def test_no_more_than_so_many_are_embedded_to_show_another_image(
    folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ctrlbench, "MAX_OTHERS", 3)
    asked = select_queries(folders["B"], "B")
    joint, parts = (condition_parts(asked, name) for name in ("joint", "other"))
    others = [item_key(item) for part in parts for item in part]
    known = {item_key(item) for part in joint for item in part}
    assert len([key for key in others if key not in known]) == 3
    assert len(others) < len(asked.scored)


@pytest.mark.parametrize("tier", ["G", "B", "S"])
def test_nothing_is_embedded_twice_and_a_picture_is_in_one_call(
    fake: Any, folders: Folders, tier: str
) -> None:
    model = fake("Oracle")
    found = measure(model, folders[tier], tier)
    items = [(str(i.image), i.instruction, i.text) for call in model.calls for i in call]
    captions = {c.text for c in folders[tier].corpus}
    seen = [item for item in items if item[2] not in captions]
    assert len(set(seen)) == len(seen)
    assert len(items) == found["cost"]["items"] > found["cost"]["items_of_joint_alone"]
    shown: dict[str, set[int]] = defaultdict(set)
    for number, call in enumerate(model.calls):
        for item in call:
            if item.image is not None:
                shown[str(item.image)].add(number)
    assert len(shown) == len(folders[tier].images)
    assert all(len(calls) == 1 for calls in shown.values())


def test_who_takes_no_instruction_is_measured_with_what_it_takes(run: Measure) -> None:
    found = run("Reader", "B")
    assert set(found["scores"]) == {"image", "text", "late", "random"}
    assert found["composition_gap"] is None and found["joint"] is None
    assert found["settings"]["ways"] == list(found["scores"])


def test_who_takes_no_text_cannot_be_measured(fake: Any, folders: Folders) -> None:
    model = fake("Oracle")
    model.supported_kinds = frozenset({Kind.IMAGE})
    with pytest.raises(UsageError, match="Oracle takes no texts"):
        measure(model, folders["G"], "G")


def test_missing_pictures_are_named_and_the_score_says_what_it_stands_on(
    fake: Any, folders: Folders, tmp_path: Path
) -> None:
    folder = tmp_path / "partly"
    shutil.copytree(folders["B"].folder, folder)
    (folder / "images" / "00003.bmp").unlink()
    found = measure(fake("Oracle"), read_benchmark(folder), "B")
    assert found["missing"] == ["images/00003.bmp"]
    whole = len(folders["B"].queries)
    assert found["sizes"]["queries"] == whole - 6 == found["scores"]["joint"]["of"]
    assert found["sizes"]["queries_left_out"] == 6
    shutil.rmtree(folder / "images")
    with pytest.raises(DataError, match=r"no picture of tier B is there, images/00000\.bmp"):
        measure(fake("Oracle"), read_benchmark(folder), "B")


def test_a_limit_is_of_images_and_candidates_stay_all(run: Measure, folders: Folders) -> None:
    found = run("Oracle", "B", limit=4)
    assert (found["sizes"]["images"], found["sizes"]["queries"]) == (4, 24)
    assert found["sizes"]["candidates"] == len(folders["B"].corpus)
    assert found["settings"]["limit"] == 4
    assert run("Oracle", "S", limit=5)["sizes"]["images"] == 5


def test_json_and_fewer_conditions(run: Measure) -> None:
    found = run("Oracle", "G")
    assert json.loads(json.dumps(found, allow_nan=False))["benchmark"] == "ctrlbench-G"
    assert list(found["scores"]) == list(CONDITIONS)
    for conditions in (("joint",), ("late",)):
        assert tuple(run("Oracle", "G", conditions=conditions)["scores"]) == conditions


def test_a_tier_that_is_not_there(fake: Any, folders: Folders) -> None:
    with pytest.raises(DataError, match="no question of tier 'R'; its tiers are G"):
        measure(fake("Oracle"), folders["G"], "R")
