"""Evidence: it adds up, in every family; nothing is left changed; it points to the right place."""

import numpy as np
import pytest
import tiny_families
import torch
from golden_parts import small
from PIL import Image
from tiny_families import with_instruct_adapter

from abc_embed import Embedder, Item
from abc_embed.errors import UsageError
from abc_embed.explain import Evidence, TokenProbe, explain, on_grid
from abc_embed.head import l2_normalize
from abc_embed.inputs import open_image
from abc_embed.scenes.layout import make_scene
from abc_embed.scenes.questions import questions
from abc_embed.scenes.render import box, render

ASKED = small("what is on the left?", shade=3, size=(128, 192))
SEED = 7999  # no world that training sees


@pytest.fixture(scope="module")
def bundled() -> Embedder:
    return Embedder.from_pretrained("bundled", device="cpu")


@pytest.mark.parametrize("item", [ASKED, small(shade=3, size=(128, 192))], ids=["asked", "alone"])
@pytest.mark.parametrize("family", tiny_families.ALL)
def test_the_map_adds_up_in_every_family(family: str, item: Item) -> None:
    """Integrated gradients: contributions sum to the cosine gained over a picture of mean tokens.

    The one-step rule is the first of the same sums, so it is held to a wider bound.
    """
    model, processor = with_instruct_adapter(family)
    text = torch.from_numpy(Embedder(model, processor).embed("a dog"))
    evidence = explain(model, processor, item, text, method="integrated")
    batch = processor.collate([processor.features(item)])
    visual = model.encode_images(batch)
    assert visual is not None
    with torch.no_grad():
        mean = visual.mean(dim=0, keepdim=True).expand_as(visual)
        whole, blank = (float(model.embed(batch, tokens)[0] @ text) for tokens in (visual, mean))
    gained = whole - blank
    assert abs(gained) > 1e-3  # else the next line could not fail
    assert evidence.contributions.sum() == pytest.approx(gained, abs=0.03 * abs(gained) + 1e-4)
    assert np.abs(evidence.map).max() == pytest.approx(1.0)
    width, height = open_image(item.image).size  # type: ignore[arg-type]
    rows, columns = evidence.map.shape
    assert (columns > rows) == (width > height)


def test_two_points_go_together_and_count_alike() -> None:
    model, processor = with_instruct_adapter("qwen2_vl")
    text = torch.from_numpy(Embedder(model, processor).embed("a dog"))
    found = explain(model, processor, ASKED, text, method="two_point").contributions
    with TokenProbe.of(model, processor, ASKED, text) as probe:
        way = probe.visual - probe.mean
        one, other = (probe.gradient(probe.mean + way * share) for share in (0.211325, 0.788675))
    expected = ((one + other) / 2 * way).sum(dim=-1)
    assert np.abs(found.ravel() - expected.numpy()).max() <= 1e-5
    assert not torch.allclose(one, other, rtol=0.01)


def test_occlusion_is_what_hiding_each_token_costs() -> None:
    model, processor = with_instruct_adapter("qwen2_vl")
    text = torch.from_numpy(Embedder(model, processor).embed("a dog"))
    evidence = explain(model, processor, ASKED, text, method="occlusion")
    batch = processor.collate([processor.features(ASKED)])
    visual = model.encode_images(batch)
    assert visual is not None
    expected = []
    with torch.no_grad():
        cosine = float(model.embed(batch, visual)[0] @ text)
    for number in range(len(visual)):
        hidden = visual.clone()
        hidden[number] = visual.mean(dim=0)
        with torch.no_grad():
            expected.append(cosine - float(model.embed(batch, hidden)[0] @ text))
    assert np.abs(evidence.contributions.ravel() - expected).max() <= 1e-5
    assert np.abs(expected).max() > 1e-4


def test_the_last_layer_adds_up_exactly() -> None:
    """Over all tokens, words too, the shares are the gradient times the pooled state."""
    model, processor = with_instruct_adapter("qwen2_vl")
    text = torch.from_numpy(Embedder(model, processor).embed("a dog"))
    evidence = explain(model, processor, ASKED, text, method="last_layer")
    batch = processor.collate([processor.features(ASKED)])
    with torch.no_grad():
        hidden = model.backbone.language(
            batch.input_ids, batch.attention_mask, batch.position_ids, model.encode_images(batch)
        )[0]
    pooled = hidden.mean(dim=0, keepdim=True).requires_grad_(True)
    (gradient,) = torch.autograd.grad((l2_normalize(model.head(pooled)) @ text).sum(), [pooled])
    shares = (hidden @ gradient[0]) / len(hidden)
    visual = batch.input_ids[0] == processor.image_token_id
    assert np.abs(evidence.contributions.ravel() - shares[visual].numpy()).max() <= 1e-6
    assert float(shares.sum()) == pytest.approx(float(gradient[0] @ pooled[0].detach()), abs=1e-6)


def test_tiles_are_laid_out_as_they_were_cut() -> None:
    tiles = np.arange(2 * 3 * 4, dtype=np.float32)  # 2 x 3 tiles of 2 x 2 tokens
    grid = on_grid(tiles, 6, (112, 168), 28)
    assert grid.shape == (4, 6)
    assert grid[:2, :2].ravel().tolist() == [0, 1, 2, 3]
    assert grid[2:, 4:].ravel().tolist() == [20, 21, 22, 23]
    with_whole = on_grid(np.append(tiles, [6.0] * 4).astype(np.float32), 7, (112, 168), 28)
    assert np.abs(with_whole - grid - 1.0).max() <= 1e-6  # 6, spread over six tiles


def test_nothing_is_left_changed(bundled: Embedder) -> None:
    items = [ASKED, small(shade=3), Item(text="a dog")]
    before = bundled.embed(items)
    flags = [p.requires_grad for p in bundled.model.parameters()]
    for method in ("midpoint", "occlusion", "last_layer"):
        for item in items[:2]:
            bundled.explain(item, "a dog", method=method)
    assert (bundled.embed(items) == before).all()
    assert [p.requires_grad for p in bundled.model.parameters()] == flags
    assert all(p.grad is None for p in bundled.model.parameters())
    assert not bundled.model.training


def test_the_peak_follows_the_instruction(bundled: Embedder) -> None:
    """Twenty scenes, two questions each; measured in full by `abc-embed bench evidence`."""
    hits = asked = 0
    for number in range(20):
        scene = make_scene(SEED, number)
        picture = render(scene, 224)
        for question in [q for q in questions(scene) if q.kind in ("place", "relation")][:2]:
            if question.region is None:
                continue
            item = Item(image=picture, instruction=question.instruction)
            x, y = (224 * share for share in bundled.explain(item, question.answer).peak)
            left, top, width, height = box(scene.placed[question.region], 224, 224)
            hits += left - 15 <= x <= left + width + 15 and top - 15 <= y <= top + height + 15
            asked += 1
    assert asked >= 35
    assert hits / asked >= 0.85


def test_what_is_shown() -> None:
    contributions = np.zeros((3, 4), dtype=np.float32)
    contributions[1, 2], contributions[2, 0] = 0.4, -0.8
    evidence = Evidence(contributions, "midpoint")
    assert evidence.map[2, 0] == -1.0 and evidence.map[1, 2] == 0.5
    assert evidence.peak == pytest.approx((2.5 / 4, 1.5 / 3))
    picture = Image.new("RGB", (120, 90), (20, 160, 60))
    shown = np.asarray(evidence.overlay(picture)).astype(int)
    assert shown.shape == (90, 120, 3)
    red, green, blue = shown[45, 75]
    assert red > max(green, blue)  # for the text
    red, green, blue = shown[75, 15]
    assert blue > max(red, green)  # against it
    assert len(set(shown[5, 60])) == 1  # grey where nothing speaks
    nothing = Evidence(np.zeros((2, 2), dtype=np.float32), "midpoint")
    assert nothing.map.tolist() == [[0, 0], [0, 0]]
    assert nothing.peak == (0.25, 0.25)


def test_what_is_refused(bundled: Embedder) -> None:
    with pytest.raises(UsageError, match="with a picture"):
        bundled.explain("a dog", "a cat")
    with pytest.raises(UsageError, match="use one of: midpoint"):
        bundled.explain(ASKED, "a cat", method="rollout")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"give \(256,\)"):
        bundled.explain(ASKED, np.ones(8, dtype=np.float32))
