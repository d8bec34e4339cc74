"""The measure of evidence: pairs really move, and a good map is told from a random one."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from abc_embed import Embedder
from abc_embed.bench import attention_maps, evidence
from abc_embed.explain import Evidence, TokenProbe
from abc_embed.inputs import Item
from abc_embed.scenes.layout import make_scene
from abc_embed.scenes.render import render


@pytest.fixture(scope="module")
def bundled() -> Embedder:
    return Embedder.from_pretrained("bundled", device="cpu")


def test_pairs_ask_for_two_things() -> None:
    asked = evidence.instruction_pairs(20)
    assert len(asked) >= 15
    for (scene, first), (again, second) in asked:
        assert scene is again
        assert first.region != second.region
    mirrored = evidence.mirrored_pairs(20)
    assert len(mirrored) >= 10
    for (scene, first), (mirror, second) in mirrored:
        assert scene.mirrored() == mirror
        assert first.instruction == second.instruction
        assert first.answer != second.answer


def at(x: float, y: float) -> Evidence:
    """Evidence at one place of the picture."""
    contributions = np.zeros((56, 56), dtype=np.float32)
    contributions[int(y * 56), int(x * 56)] = 1.0
    return Evidence(contributions, "midpoint")


def test_pointing_is_in_the_box_with_a_margin() -> None:
    scene = make_scene(evidence.SEED, 0)
    placed = scene.placed[0]
    assert evidence.points_to(at(placed.x, placed.y), scene, 0)
    other = scene.placed[1]
    assert not evidence.points_to(at(other.x, other.y), scene, 0)


@pytest.fixture
def probe(bundled: Embedder) -> Iterator[TokenProbe]:
    item = Item(image=np.asarray(render(make_scene(evidence.SEED, 1), 112)))
    text = torch.from_numpy(bundled.embed("a dog"))
    with TokenProbe.of(bundled.model, bundled.processor, item, text) as opened:
        yield opened


def test_deletion_ends_where_insertion_begins(probe: TokenProbe) -> None:
    count = len(probe.visual)
    order = torch.arange(count)
    deleted, inserted, whole = evidence.deletion_and_insertion(probe, order)
    backwards = evidence.deletion_and_insertion(probe, order.flip(0))
    # Hiding the first k of an order is showing the last V - k of it.
    assert deleted == pytest.approx(backwards[1], abs=1e-6)
    assert inserted == pytest.approx(backwards[0], abs=1e-6)
    assert whole == pytest.approx(float(probe.cosines(probe.visual)[0]), abs=1e-6)
    by_hand = []
    for hidden in range(count + 1):
        tokens = probe.visual.clone()
        tokens[:hidden] = probe.mean
        by_hand.append(float(probe.cosines(tokens)[0]))
    assert deleted == pytest.approx(np.mean(by_hand), abs=1e-6)


def test_a_good_map_beats_a_random_one(bundled: Embedder) -> None:
    steps: list[tuple[int, int]] = []
    found = evidence.measure(
        bundled,
        scenes=6,
        methods=("midpoint",),
        on_progress=lambda done, total: steps.append((done, total)),
    )
    total = 1 + len(attention_maps.METHODS) + 3  # the method, and the controls
    assert steps == [(n, total) for n in range(1, total + 1)]
    good, random = found["scores"]["midpoint"], found["scores"]["random map"]
    low, high = good["pointing"]["interval"]
    assert good["pointing"]["value"] > random["pointing"]["value"] + 0.3
    assert low <= good["pointing"]["value"] <= high
    assert good["deletion"] < random["deletion"] and good["insertion"] > random["insertion"]
    shuffled = found["scores"]["other instruction"]
    assert shuffled["pointing"]["value"] < good["pointing"]["value"]
    assert found["scores"]["random layers"]["cosine"] == good["cosine"]  # of the model itself


def test_maps_of_attention_leave_the_model_as_it_was(bundled: Embedder, probe: TokenProbe) -> None:
    before, kernel = probe.cosines(probe.visual), probe.language_model.config._attn_implementation
    found = {name: of(probe) for name, of in attention_maps.METHODS.items()}
    for values in found.values():
        assert values.shape == (len(probe.visual),) and bool((values >= 0).all())
        assert values.isfinite().all() and values.max() > 0
    assert found["attention rollout"].sum() < 1  # the rest went to the words
    assert torch.equal(probe.cosines(probe.visual), before)
    assert probe.language_model.config._attn_implementation == kernel
    assert not probe.language_model.layers[0].self_attn._forward_hooks
    item = Item(image=np.asarray(render(make_scene(evidence.SEED, 1), 112)))
    other = torch.from_numpy(bundled.embed("a car"))
    with TokenProbe.of(bundled.model, bundled.processor, item, other) as asked_otherwise:
        again = {name: of(asked_otherwise) for name, of in attention_maps.METHODS.items()}
    assert torch.allclose(again["attention rollout"], found["attention rollout"])  # knows no text
    for name in ("gradient x attention", "LeGrad"):
        assert not torch.allclose(again[name], found[name], rtol=0.01)
