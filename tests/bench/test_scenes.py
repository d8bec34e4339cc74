"""The scene benchmark: solvable, not to be fooled, and each number what it says."""

import json
from collections import Counter
from typing import Any

import golden_parts
import numpy as np
import pytest

from abc_embed import Embedder
from abc_embed.bench.held_out import HeldOut, build
from abc_embed.bench.scenes import run
from abc_embed.errors import NotFiniteError, UsageError
from abc_embed.inputs import Item

SIDE = 56


@pytest.fixture
def measure(fake: Any, small: dict[str, Any]) -> Any:
    """Findings of a fake, by its name."""
    return lambda name, **changes: run(fake(name), **(small | {"side": SIDE} | changes))


def r1(findings: dict[str, Any]) -> dict[str, float]:
    return {way: score["r1"] for way, score in findings["scores"].items()}


def reached(findings: dict[str, Any]) -> dict[str, bool]:
    return {check["name"]: check["reached"] for check in findings["checks"]}


def test_who_understands_everything_is_right_everywhere(measure: Any, held: HeldOut) -> None:
    found = measure("Oracle")
    both = found["scores"]["both"]
    assert both == {"r1": 1.0, "r1_interval": (1.0, 1.0), "r5": 1.0, "r10": 1.0, "mrr": 1.0}
    assert found["mirrored"]["value"] == found["flip_rate"] == found["group_accuracy"] == 1.0
    assert r1(found)["image"] <= found["bounds"]["image"] == held.image_bound
    assert r1(found)["random"] < 0.1
    assert found["composition_gap"]["value"] > 0.5
    assert all(reached(found).values())
    for split in ("by_kind", "by_things", "by_pairing"):
        assert {part["value"] for part in found[split].values()} == {1.0}
        assert sum(part["of"] for part in found[split].values()) == len(held.queries)


def test_adding_two_vectors_has_no_composition_gap(measure: Any) -> None:
    found = measure("LateFusion")
    # its joint vector *is* the sum, so it cannot be better than the control
    assert r1(found)["both"] == pytest.approx(r1(found)["added"], abs=0.03)
    assert found["composition_gap"]["value"] <= 0.03
    assert found["composition_gap"]["interval"][0] <= 0
    assert found["mirrored"]["value"] < 0.2
    assert not reached(found)["both"] and not reached(found)["mirrored"]


def test_who_ignores_the_instruction_stays_below_the_bound(measure: Any) -> None:
    found = measure("Blind")
    assert r1(found)["both"] == r1(found)["image"] <= found["bounds"]["image"]
    assert found["flip_rate"] == found["mirrored"]["value"] == found["group_accuracy"] == 0
    assert not reached(found)["both"] and reached(found)["image"]


def test_a_constant_is_always_wrong(measure: Any, held: HeldOut) -> None:
    found = measure("Constant")
    assert {v for way, v in r1(found).items() if way != "random"} == {0.0}
    assert found["scores"]["both"]["mrr"] == pytest.approx(1 / len(held.candidates))
    assert not reached(found)["both"]


def test_a_vector_that_is_not_finite_is_an_error(measure: Any) -> None:
    with pytest.raises(NotFiniteError, match="not a finite number"):
        measure("Broken")


def test_each_number_by_brute_force(fake: Any, held: HeldOut, small: dict[str, Any]) -> None:
    model = fake("LateFusion")
    found = run(model, **small, side=SIDE)
    names = {text: model.text(text) for text in held.candidates}

    def best(vector: np.ndarray) -> str:
        return max(names, key=lambda text: float(names[text] @ vector))

    right: dict[str, list[bool]] = {"both": [], "image": [], "instruction": [], "added": []}
    kinds = Counter[str]()
    first: dict[int, set[str]] = {}
    for q in held.queries:
        scene = held.scenes[q.image]
        choice = best(model.shown(scene, q.instruction))
        right["both"].append(choice == q.answer)
        right["image"].append(best(model.shown(scene, None)) == q.answer)
        right["instruction"].append(best(model.text(q.instruction)) == q.answer)
        added = model.shown(scene, None) + model.text(q.instruction)
        right["added"].append(best(added) == q.answer)
        kinds[q.kind] += choice == q.answer
        first.setdefault(q.image, set()).add(choice)
    for way, values in right.items():
        assert found["scores"][way]["r1"] == pytest.approx(np.mean(values)), way
        low, high = found["scores"][way]["r1_interval"]
        assert low <= np.mean(values) <= high
    assert np.mean(right["added"]) > np.mean(right["image"]), "the fake cannot tell them apart"
    for kind, part in found["by_kind"].items():
        assert part["value"] * part["of"] == pytest.approx(kinds[kind])
    asked = Counter(q.image for q in held.queries)
    flips = [len(first[image]) > 1 for image in first if asked[image] > 1]
    assert found["flip_rate"] == pytest.approx(np.mean(flips))
    gap = np.mean(right["both"]) - max(np.mean(right[way]) for way in right if way != "both")
    assert found["composition_gap"]["value"] == pytest.approx(gap)


def test_texts_and_pictures_are_handed_over_once(
    fake: Any, held: HeldOut, small: dict[str, Any]
) -> None:
    model = fake("Oracle")
    run(model, **small, side=SIDE, batch_size=7, max_pixels=5000)
    texts = [item for call in model.calls for item in call if isinstance(item, str)]
    words = {q.instruction for q in held.queries}
    assert len(texts) == len(held.candidates) + len(words)
    shown: dict[bytes, set[int]] = {}
    for number, call in enumerate(model.calls):
        for item in call:
            if isinstance(item, Item):
                shown.setdefault(item.image.tobytes(), set()).add(number)  # type: ignore[union-attr]
    assert len(shown) == len(held.scenes) + len(held.pairs)
    assert all(len(calls) == 1 for calls in shown.values())
    assert set(model.options) == {(5000, 7)}


def test_the_same_questions_have_the_same_hash(measure: Any) -> None:
    one, again = measure("Oracle"), measure("Blind")
    assert one["benchmark_hash"] == again["benchmark_hash"]
    others = [{"pairs": 5}, {"queries": 40}]
    hashes = {measure("Constant", **other)["benchmark_hash"] for other in others}
    assert len(hashes | {one["benchmark_hash"]}) == 3


def test_progress_and_settings(measure: Any, held: HeldOut) -> None:
    seen: list[tuple[int, int]] = []
    found = measure("Constant", progress=lambda done, of: seen.append((done, of)), draws=20)
    assert seen[-1] == (len(held.scenes), len(held.scenes))
    assert found["settings"] == {"seed": 9000, "side": SIDE, "max_pixels": None, "draws": 20}
    assert found["sizes"]["queries"] == len(held.queries)
    assert found["sizes"]["mirrored_pairs"] == len(held.pairs) == 10
    assert json.loads(json.dumps(found, allow_nan=False))["benchmark"] == "scenes"


def test_arguments_out_of_range(measure: Any) -> None:
    with pytest.raises(UsageError, match="side is 8; give at least 32"):
        measure("Constant", side=8)
    with pytest.raises(UsageError, match="seed is 3"):
        measure("Constant", seed=3)


def test_a_random_model_is_near_chance_and_sees_a_picture_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = Embedder(*golden_parts.shared())
    held = build(12, 3, 9000)
    seen = []
    encode = model.model.backbone.encode_images

    def counting(pixel_values: Any, grid_thw: Any) -> Any:
        seen.append(len(grid_thw))
        return encode(pixel_values, grid_thw)

    monkeypatch.setattr(model.model.backbone, "encode_images", counting)
    found = run(model, queries=12, pairs=3, seed=9000, side=SIDE, max_pixels=6 * 28 * 28, draws=50)
    assert sum(seen) == len(held.scenes) + len(held.pairs)
    assert r1(found)["both"] <= 0.5
    assert not reached(found)["both"]
    json.dumps(found, allow_nan=False)
