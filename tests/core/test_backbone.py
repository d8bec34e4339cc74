"""Attention both ways for one lone item, images in one attention call, families, checkpointing."""

import json
from collections.abc import Iterator
from unittest import mock

import golden_parts
import pytest
import torch
from torch import nn

from abc_embed import lean
from abc_embed.backbone import (
    Backbone,
    build_backbone,
    parse_config,
)
from abc_embed.errors import CheckpointError, ConfigError

GRIDS = [(1, 4, 6), (1, 8, 4), (1, 6, 4), (1, 4, 6), (1, 4, 8), (1, 2, 2)]


def fresh(attn: str = "sdpa", seed: int = 0) -> Backbone:
    torch.manual_seed(seed)
    config = parse_config(json.loads((golden_parts.BASE / "config.json").read_text()))
    return build_backbone(config, attn=attn).eval()


def pictures() -> tuple[torch.Tensor, torch.Tensor]:
    grid = torch.tensor(GRIDS)
    patches = int(grid.prod(dim=1).sum())
    return torch.randn(patches, 1176, generator=torch.Generator().manual_seed(0)), grid


def language_inputs(length: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    ids = torch.arange(length).unsqueeze(0) + 30
    return ids, torch.ones_like(ids, dtype=torch.bool), torch.arange(length).expand(3, 1, length)


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
def test_the_first_token_of_a_lone_unpadded_item_sees_the_last(attn: str) -> None:
    backbone = fresh(attn)
    ids, mask, positions = language_inputs(9)
    changed = ids.clone()
    changed[0, -1] = 7
    with torch.no_grad():
        before = backbone.language(ids, mask, positions, None)
        after = backbone.language(changed, mask, positions, None)
    assert (before[0, 0] - after[0, 0]).abs().max() > 1e-4


def test_the_test_above_can_fail() -> None:
    """With both flags as Qwen2-VL has them, a token sees nothing of what follows it."""
    backbone = fresh("sdpa")
    text = backbone.vlm.language_model
    text.config.is_causal = True
    for layer in text.layers:
        layer.self_attn.is_causal = True
    ids, mask, positions = language_inputs(9)
    changed = ids.clone()
    changed[0, -1] = 7
    with torch.no_grad():
        before = backbone.language(ids, mask, positions, None)
        after = backbone.language(changed, mask, positions, None)
    assert torch.equal(before[0, 0], after[0, 0])


@pytest.mark.parametrize("asked", ["config", "module"])
def test_whichever_flag_transformers_asks_says_both_ways(asked: str) -> None:
    """Releases differ in which flag reaches the attention call; either must do alone."""
    text = fresh("sdpa").vlm.language_model
    if asked == "config":
        assert text.config.is_causal is False
    else:
        flags = [m.is_causal for m in text.modules() if hasattr(m, "is_causal")]
        assert flags == [False] * len(text.layers)


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
def test_padding_does_not_change_the_real_tokens(attn: str) -> None:
    backbone = fresh(attn)
    ids, mask, positions = language_inputs(9)
    wide = [nn.functional.pad(x, (0, 4)) for x in (ids, mask, positions)]
    with torch.no_grad():
        alone = backbone.language(ids, mask, positions, None)
        padded = backbone.language(*wide, None)
    assert (alone - padded[:, :9]).abs().max() < 1e-5


def test_positions_matter_and_are_those_given() -> None:
    backbone = fresh()
    ids, mask, positions = language_inputs(9)
    with torch.no_grad():
        plain = backbone.language(ids, mask, positions, None)
        stretched = backbone.language(ids, mask, positions * 3, None)
        shifted = backbone.language(ids, mask, positions + 100, None)
    assert (plain - stretched).abs().max() > 1e-3
    assert (plain - shifted).abs().max() < 1e-4  # rotary positions are relative


def test_images_in_one_call_are_as_each_alone() -> None:
    backbone = fresh()
    pixels, grid = pictures()
    parts = torch.split(pixels, grid.prod(dim=1).tolist())
    with torch.no_grad():
        together = backbone.encode_images(pixels, grid)
        alone = [
            backbone.encode_images(part, row.unsqueeze(0))
            for part, row in zip(parts, grid, strict=True)
        ]
    assert [len(part) for part in alone] == backbone.visual_lengths(grid).tolist()
    assert (together - torch.cat(alone)).abs().max() < 1e-5


@pytest.mark.parametrize("mode", ["eager", "plain sdpa"])
def test_grouped_attention_equals_the_loop_of_transformers(mode: str) -> None:
    grouped, plain = fresh(), fresh("eager")
    plain.load_state_dict(grouped.state_dict())
    if mode == "plain sdpa":
        plain.vlm.set_attn_implementation("sdpa")
    pixels, grid = pictures()
    with torch.no_grad():
        ours = grouped.encode_images(pixels, grid)
        reference = plain.vlm.visual(pixels, grid_thw=grid).pooler_output
    assert (ours - reference).abs().max() < 1e-5


@pytest.fixture
def attention_calls() -> Iterator[mock.Mock]:
    real = lean.sdpa_attention_forward
    with mock.patch.object(lean, "sdpa_attention_forward", side_effect=real) as calls:
        yield calls


def test_there_is_one_attention_call_per_size_and_layer(attention_calls: mock.Mock) -> None:
    backbone = fresh()
    pixels, grid = pictures()
    with torch.no_grad():
        backbone.encode_images(pixels, grid)
    sizes = {h * w for _, h, w in GRIDS}
    assert attention_calls.call_count == len(sizes) * len(backbone.vlm.visual.blocks)
    # 1 image of 4 patches, 3 of 24, 2 of 32
    assert [call.args[1].shape[0] for call in attention_calls.call_args_list[:3]] == [1, 3, 2]


def test_visual_tokens_stand_where_the_placeholders_are() -> None:
    backbone = fresh()
    ids, mask, positions = language_inputs(9)
    token = backbone.vlm.config.image_token_id
    ids[0, 3:5] = token
    visual = torch.randn(2, backbone.hidden_size, generator=torch.Generator().manual_seed(0))
    seen: list[torch.Tensor] = []
    backbone.vlm.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["inputs_embeds"]), with_kwargs=True
    )
    with torch.no_grad():
        backbone.language(ids, mask, positions, visual)
    assert torch.equal(seen[0][0, 3:5], visual)
    assert not torch.equal(seen[0][0, 2], visual[0])
    with pytest.raises(ValueError, match="2 image placeholders but 1 visual tokens"):
        backbone.language(ids, mask, positions, visual[:1])


def test_gradient_checkpointing_recomputes_both_encoders_and_changes_no_gradient() -> None:
    pixels, grid = pictures()
    gradients, calls = [], []
    for enabled in (False, True):
        backbone = fresh().train()
        backbone.set_gradient_checkpointing(enabled)
        counts = {"vision": 0, "language": 0}

        def count(name: str, counts: dict[str, int] = counts) -> None:
            counts[name] += 1

        # A submodule, not the layer: the layer's own hooks stay outside of the recomputation.
        backbone.vlm.visual.blocks[0].attn.register_forward_pre_hook(lambda *_: count("vision"))
        backbone.vlm.language_model.layers[0].self_attn.register_forward_pre_hook(
            lambda *_: count("language")
        )
        visual = backbone.encode_images(pixels, grid)
        ids, mask, positions = language_inputs(len(visual) + 4)
        ids[0, 2:-2] = backbone.vlm.config.image_token_id
        backbone.language(ids, mask, positions, visual).pow(2).mean().backward()
        gradients.append({n: p.grad for n, p in backbone.named_parameters() if p.grad is not None})
        calls.append(counts)
    assert calls == [{"vision": 1, "language": 1}, {"vision": 2, "language": 2}]
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        assert torch.allclose(gradient, gradients[1][name], rtol=1e-4, atol=1e-7), name


def test_gradient_checkpointing_can_be_switched_off_again() -> None:
    backbone = fresh().train()
    backbone.set_gradient_checkpointing(True)
    backbone.set_gradient_checkpointing(False)
    assert not backbone.gradient_checkpointing
    assert not any(getattr(m, "gradient_checkpointing", False) for m in backbone.vlm.modules())


def test_the_callers_configuration_is_left_alone() -> None:
    config = parse_config(json.loads((golden_parts.BASE / "config.json").read_text()))
    before = config.to_dict()
    build_backbone(config)
    assert config.to_dict() == before


def test_an_unknown_family_is_named_with_the_known_ones() -> None:
    with pytest.raises(CheckpointError, match=r"'llava' is not known.*qwen2_vl"):
        parse_config({"model_type": "llava"})


def test_an_unknown_attention_is_an_error_that_lists_the_known_ones() -> None:
    config = parse_config(json.loads((golden_parts.BASE / "config.json").read_text()))
    with pytest.raises(ConfigError, match=r"'fast'.*sdpa, eager"):
        build_backbone(config, attn="fast")


def test_an_attention_whose_package_is_missing_says_so() -> None:
    config = parse_config(json.loads((golden_parts.BASE / "config.json").read_text()))
    with pytest.raises(ConfigError, match="not installed; use attn='sdpa'"):
        build_backbone(config, attn="flash_attention_2")


@pytest.mark.parametrize("change", [{"hidden_size": "wide"}, {"num_attention_heads": 5}])
def test_a_configuration_that_cannot_be_is_one_plain_sentence(change: dict[str, object]) -> None:
    values = json.loads((golden_parts.BASE / "config.json").read_text()) | change
    with pytest.raises(CheckpointError, match=r"^[^\n]*config\.json[^\n]*$"):
        build_backbone(parse_config(values))


def test_a_configuration_of_the_real_base_is_read() -> None:
    """As Qwen/Qwen2-VL-7B-Instruct has it: flat, old names, `mrope` as the type of its rope."""
    values = json.loads((golden_parts.BASE / "config.json").read_text())
    values["rope_scaling"] = {"type": "mrope", "mrope_section": [2, 3, 3]}
    backbone = build_backbone(parse_config(values))
    assert backbone.vlm.language_model.rotary_emb.mrope_section == [2, 3, 3]
