"""The composed model: unit float32 vectors, one vector per item whatever the company, routing."""

import dataclasses

import golden_parts
import pytest
import torch
from golden_parts import small

from abc_embed import adapters
from abc_embed.errors import TrainingError
from abc_embed.inputs import Item
from abc_embed.model import AbcModel

MIXED = [
    Item(text="a dog"),
    small(shade=3),
    small("what is on the left?", shade=3),
    Item(text="! a longer text, with ! in it !"),
    small("what is on the right?", shade=90, size=(84, 56)),
    small(shade=90, size=(84, 56)),
    small("what is in the middle?", shade=3),  # the first image again, after the second
]


def close(a: torch.Tensor, b: torch.Tensor, tolerance: float = 1e-5) -> bool:
    return bool((a - b).abs().max() < tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_vectors_are_float32_of_unit_length_in_every_number_format(dtype: torch.dtype) -> None:
    vectors = golden_parts.vectors(golden_parts.published(dtype=dtype), MIXED, tiny=True)
    assert vectors.dtype == torch.float32
    assert vectors.shape == (len(MIXED), 64)
    assert close(vectors.norm(dim=1), torch.ones(len(MIXED)))
    reference = golden_parts.vectors(golden_parts.shared(), MIXED, tiny=True)
    assert (vectors * reference).sum(dim=1).min() > 0.99


def test_an_item_has_one_vector_alone_and_in_any_order() -> None:
    loaded = golden_parts.shared()
    alone = torch.cat([golden_parts.vectors(loaded, [item], tiny=True) for item in MIXED])
    together = golden_parts.vectors(loaded, MIXED, tiny=True)
    backwards = golden_parts.vectors(loaded, MIXED[::-1], tiny=True).flip(0)
    assert close(alone, together)
    assert close(alone, backwards)


def test_the_adapter_is_on_for_an_instruction_and_off_for_the_rest() -> None:
    full, processor = golden_parts.shared()
    stage1, _ = golden_parts.published(instruct=False)
    batch = golden_parts.batch(processor, MIXED, tiny=True)
    with torch.no_grad():
        routed, plain = full(batch), stage1(batch)
        with full.adapter_off():
            off = full.embed(
                dataclasses.replace(batch, instructed=torch.zeros_like(batch.instructed)),
                full.encode_images(batch),
            )
    instructed = batch.instructed
    assert close(routed[~instructed], plain[~instructed])
    assert (routed[instructed] - plain[instructed]).abs().amax(dim=1).min() > 1e-3
    assert close(off, plain)


def test_visual_tokens_may_be_kept_and_an_image_shown_twice() -> None:
    model, processor = golden_parts.shared()
    batch = golden_parts.batch(processor, MIXED, tiny=True)
    assert batch.image_grid_thw is not None
    assert len(batch.image_grid_thw) == 2, "five rows show two images"
    with torch.no_grad():
        visual = model.encode_images(batch)
        assert visual is not None
        assert len(visual) == int(model.backbone.visual_lengths(batch.image_grid_thw).sum())
        kept = dataclasses.replace(batch, pixels=None)
        assert torch.equal(model.embed(kept, visual), model(batch))


def test_texts_alone_never_touch_the_vision_encoder() -> None:
    model, processor = golden_parts.shared()
    batch = golden_parts.batch(processor, [Item(text="a"), Item(text="b")])
    assert model.encode_images(batch) is None
    with torch.no_grad():
        assert model.embed(batch, None).shape == (2, 64)


def test_the_adapter_is_on_again_after_a_forward_pass_and_after_an_error() -> None:
    model, processor = golden_parts.published()
    golden_parts.vectors((model, processor), MIXED, tiny=True)
    assert not any(layer.disable_adapters for layer in model.instruct_layers())
    with pytest.raises(RuntimeError, match="on purpose"), model.adapter_off():
        assert all(layer.disable_adapters for layer in model.instruct_layers())
        raise RuntimeError("on purpose")
    assert not any(layer.disable_adapters for layer in model.instruct_layers())


def test_switching_off_keeps_what_trains() -> None:
    model, _ = golden_parts.published()
    before = {name: p.requires_grad for name, p in model.named_parameters()}
    with model.adapter_off():
        pass
    assert {name: p.requires_grad for name, p in model.named_parameters()} == before
    adapters.set_trainable(model, "instruct")
    with model.adapter_off(), model.adapter_off():
        pass
    assert sum(p.requires_grad for p in model.parameters()) == 42


def _gradients(model: AbcModel, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    loss.backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


@pytest.mark.parametrize("checkpointing", [False, True])
def test_in_stage_2_a_mixed_batch_gives_the_gradients_of_its_instructed_rows(
    checkpointing: bool,
) -> None:
    model, processor = golden_parts.published(instruct=False)
    adapters.attach_stage2(model, r=4, alpha=8, dropout=0.0)
    trained = adapters.set_trainable(model, "instruct")
    with torch.no_grad():
        for parameter in trained:
            parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(0))
    model.train()
    direction = torch.randn(64, generator=torch.Generator().manual_seed(1))
    instructed = [item for item in MIXED if item.instruction]
    alone = model(golden_parts.batch(processor, instructed, tiny=True))
    reference = _gradients(model, (alone @ direction).sum())
    model.backbone.set_gradient_checkpointing(checkpointing)
    mixed = model(golden_parts.batch(processor, MIXED, tiny=True))
    assert mixed[2].requires_grad
    found = _gradients(model, (mixed @ direction).sum())
    assert found.keys() == reference.keys()
    assert len(found) == 42
    for name, gradient in reference.items():
        assert torch.allclose(found[name], gradient, rtol=1e-3, atol=1e-6), name


def test_rows_without_the_adapter_refuse_to_train_under_checkpointing() -> None:
    model, processor = golden_parts.published()
    adapters.set_trainable(model, "all")
    model.train()
    model.backbone.set_gradient_checkpointing(True)
    batch = golden_parts.batch(processor, [Item(text="a dog")])
    with pytest.raises(TrainingError, match="gradient checkpointing"):
        model(batch)
    model.backbone.set_gradient_checkpointing(False)
    assert model(batch).requires_grad


def test_it_says_where_and_what_it_is() -> None:
    model, _ = golden_parts.published(dtype=torch.bfloat16)
    assert (model.dim, model.dtype, model.device.type) == (64, torch.bfloat16, "cpu")
    assert model.head.linear1.weight.dtype == torch.float32
    assert model.source == {
        "base": "base",
        "pretrain": "pretrain_adapter",
        "instruct": "instruct_adapter",
    }
