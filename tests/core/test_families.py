"""What every backbone family must do, on a tiny random model of each, made on the spot."""

import dataclasses
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import golden_parts
import pytest
import tiny_families
import torch
from accelerate import Accelerator
from golden_parts import small
from safetensors.torch import save_file
from tiny_families import wake_adapter, with_instruct_adapter
from torch import nn

from abc_embed import backbone as backbone_module
from abc_embed import checkpoint, lean, weights
from abc_embed.adapters import attach_stage1, attach_stage2, merge_stage1
from abc_embed.backbone import LAZY_REGISTRY, parse_config
from abc_embed.errors import CheckpointError
from abc_embed.inputs import Item
from abc_embed.train.batches import caption_group, instruction_group, make_batch
from abc_embed.train.config import AdapterConfig, RunConfig, StageName, TrainConfig
from abc_embed.train.dry_run import base_model
from abc_embed.train.processes import GlobalBatch, ProcessGroup
from abc_embed.train.stages import Instruct, Pretrain

REGISTRY = tiny_families.ALL
each_family = pytest.mark.parametrize("family", REGISTRY)
each_attention = pytest.mark.parametrize("attn", ["sdpa", "eager"])

ITEMS = [
    Item(text="a dog"),
    small(shade=3, size=(128, 192)),
    small("what is on the left?", shade=3, size=(128, 192)),
    Item(text="! a longer text, with ! in it !"),
    small("what is on the right?", shade=90, size=(192, 96)),
    small(shade=90, size=(192, 96)),
    small("what is in the middle?", shade=3, size=(128, 192)),  # the first image again
]


def test_every_family_has_a_tiny_configuration_here() -> None:
    assert set(tiny_families.CONFIGS) == set(REGISTRY) >= {"qwen2_vl", *LAZY_REGISTRY}


def test_a_family_is_imported_when_it_is_asked_for() -> None:
    code = (
        "import sys\n"
        "from abc_embed.backbone import LAZY_REGISTRY, family_of\n"
        "assert not sys.modules.keys() & set(LAZY_REGISTRY.values())\n"
        "for model_type, module in LAZY_REGISTRY.items():\n"
        "    assert family_of(model_type).config_class.model_type == model_type\n"
        "    assert module in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_unknown_family_is_named_with_those_not_yet_imported() -> None:
    with pytest.raises(CheckpointError, match=", ".join(REGISTRY)):
        parse_config({"model_type": "llava"})


NEW_FAMILY = """
from transformers import Qwen2VLConfig

from abc_embed.backbone import Qwen2VLBackbone, register


class NewConfig(Qwen2VLConfig):
    model_type = "new_vl"


@register("new_vl")
class NewBackbone(Qwen2VLBackbone):
    config_class = NewConfig

    @classmethod
    def read_budget(cls, settings, config):
        return super().read_budget(settings, config).limited(16 * 28 * 28)

    @classmethod
    def chat_template(cls, template):
        return template if "Look: " in template else template.replace("<|vision_start|>", "Look: ")
"""


def test_a_new_family_is_one_file_and_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "new_vl_file.py").write_text(NEW_FAMILY)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(backbone_module, "REGISTRY", dict(backbone_module.REGISTRY))
    monkeypatch.setitem(LAZY_REGISTRY, "new_vl", "new_vl_file")

    folder = tmp_path / "base"
    shutil.copytree(golden_parts.BASE, folder, copy_function=shutil.copyfile)
    folder.chmod(0o755)
    config = json.loads((folder / "config.json").read_text()) | {"model_type": "new_vl"}
    (folder / "config.json").write_text(json.dumps(config))
    model, processor = checkpoint.load_base(str(folder), head_width=96)
    assert type(model.backbone).__name__ == "NewBackbone"
    assert processor.image.max_visual_tokens == 16
    assert "Look: " in processor.chat.render(ITEMS[1])
    checkpoint.save(model, processor, tmp_path / "saved")
    loaded = checkpoint.load(str(tmp_path / "saved"))
    first = golden_parts.vectors((model, processor), ITEMS)
    assert torch.equal(golden_parts.vectors(loaded, ITEMS), first)
    planned, _ = base_model(str(folder), head_width=96)
    assert planned.backbone.vision_shape() == model.backbone.vision_shape()


def test_no_other_file_names_a_family() -> None:
    names = re.compile("|".join(f"{name}|{name.replace('_', '')}" for name in LAZY_REGISTRY), re.I)
    package = Path(backbone_module.__file__).parent
    found = {
        path.relative_to(package): line.strip()
        for path in sorted(package.rglob("*.py"))
        if "families" not in path.parts
        for line in path.read_text().splitlines()
        if names.search(line)
    }
    assert not found


@each_family
def test_sizes_are_read_off_both_encoders(family: str) -> None:
    vlm = tiny_families.backbone(family)
    vision, language = vlm.vision_shape(), vlm.language_shape()
    values = tiny_families.CONFIGS[family]
    sizes = values.get("text_config", values)
    assert (language.layers, language.width, language.inner) == (
        *(sizes["num_hidden_layers"], sizes["hidden_size"], sizes["intermediate_size"]),
    )
    depth = values["vision_config"].get("depth") or values["vision_config"]["num_hidden_layers"]
    blocks = tiny_families.vision_blocks(vlm)
    linear = [m for m in blocks[0].modules() if isinstance(m, nn.Linear)]
    assert vision.layers == depth == len(blocks)
    assert vision.inner == max(m.in_features for m in linear)
    assert vision.width == vision.heads == min(m.in_features for m in linear)


# -- attention -------------------------------------------------------------------------------------


@each_attention
@each_family
def test_the_first_token_of_a_lone_unpadded_item_sees_the_last(family: str, attn: str) -> None:
    backbone = tiny_families.backbone(family, attn)
    ids = torch.arange(9).unsqueeze(0) + 30
    mask, positions = torch.ones_like(ids, dtype=torch.bool), torch.arange(9).expand(3, 1, 9)
    changed = ids.clone()
    changed[0, -1] = 7
    with torch.no_grad():
        before = backbone.language(ids, mask, positions, None)
        after = backbone.language(changed, mask, positions, None)
    assert (before[0, 0] - after[0, 0]).abs().max() > 1e-4


@each_attention
@each_family
def test_the_vision_encoder_computes_what_transformers_computes(family: str, attn: str) -> None:
    """`reference` has eager attention and gets nothing precomputed: one call per image or window,
    images in the order in which they come."""
    ours, reference = tiny_families.backbone(family, attn), tiny_families.backbone(family, "eager")
    pixels, grid = tiny_families.patches(family)
    with torch.no_grad():
        found = ours.encode_images(pixels, grid)
        expected = seen_by_transformers(family, reference.vlm, pixels, grid)
    assert found.shape == (sum(ours.visual_lengths(grid)), expected.shape[1])
    assert (found - expected).abs().max() < 1e-5


def seen_by_transformers(
    family: str, vlm: Any, pixels: torch.Tensor, grid: torch.Tensor
) -> torch.Tensor:
    if family in tiny_families.TILED:
        tiles = [tiny_families.pictures(p) for p in pixels.split(grid.prod(dim=1).tolist())]
        tokens: torch.Tensor = torch.cat(
            [
                vlm.get_image_features(
                    t, vision_feature_layer=-1, vision_feature_select_strategy="default"
                ).pooler_output.flatten(0, 1)
                for t in tiles
            ]
        )
        return tokens
    output = vlm.visual(pixels, grid_thw=grid)
    further = getattr(output, "deepstack_features", None) or []
    return torch.cat([output.pooler_output, *further], dim=-1)


@each_family
def test_images_in_one_call_are_as_each_alone(family: str) -> None:
    backbone = tiny_families.backbone(family)
    pixels, grid = tiny_families.patches(family)
    parts = torch.split(pixels, grid.prod(dim=1).tolist())
    with torch.no_grad():
        together = backbone.encode_images(pixels, grid)
        alone = [
            backbone.encode_images(part, row.unsqueeze(0))
            for part, row in zip(parts, grid, strict=True)
        ]
    assert [len(part) for part in alone] == backbone.visual_lengths(grid).tolist()
    assert (together - torch.cat(alone)).abs().max() < 1e-5


@each_family
def test_the_whole_is_what_transformers_computes(family: str) -> None:
    """The forward of the whole VLM, two images in two rows, the same positions."""
    tiled = family in tiny_families.TILED
    model, processor = tiny_families.loaded(family, positions="sequential" if tiled else "mrope")
    batch = golden_parts.batch(processor, [ITEMS[2], ITEMS[4]])
    assert batch.pixels is not None
    patches = batch.pixels.patches()
    both_frames = patches.view(len(patches), 3, 1, -1).expand(-1, -1, 2, -1).flatten(1)
    shown: dict[str, Any] = (
        {"pixel_values": tiny_families.pictures(patches)}
        if tiled
        else {"pixel_values": both_frames, "image_grid_thw": batch.image_grid_thw}
    )
    with torch.no_grad():
        ours = model.backbone.language(
            batch.input_ids,
            batch.attention_mask,
            batch.position_ids,
            model.backbone.encode_images(patches, batch.image_grid_thw),
        )
        theirs = tiny_families.backbone(family, "eager").vlm(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            position_ids=batch.position_ids[0] if tiled else batch.position_ids,
            **shown,
        )
    real = batch.attention_mask
    assert (ours[real] - theirs.last_hidden_state[real]).abs().max() < 1e-5


@pytest.mark.parametrize("family", tiny_families.NATIVE)
def test_positions_inside_images_are_those_of_the_family(family: str) -> None:
    model, processor = tiny_families.loaded(family, positions="mrope")
    batch = golden_parts.batch(processor, [ITEMS[2], ITEMS[4]])
    theirs, _ = model.backbone.vlm.get_rope_index(
        input_ids=batch.input_ids,
        mm_token_type_ids=(batch.input_ids == processor.image_token_id).int(),
        image_grid_thw=batch.image_grid_thw,
        attention_mask=batch.attention_mask.long(),
    )
    real = batch.attention_mask
    assert torch.equal(batch.position_ids[:, real], theirs[:, real])


def test_windows_of_qwen2_5_vl_share_attention_calls() -> None:
    backbone = tiny_families.backbone("qwen2_5_vl")
    grids = [(1, 10, 14)]  # 5 x 7 tokens in windows of 2 x 2: six whole, six cut off, in 3 sizes
    pixels = torch.randn(140, 1176, generator=torch.Generator().manual_seed(0))
    real = lean.sdpa_attention_forward
    with (
        mock.patch.object(lean, "sdpa_attention_forward", side_effect=real) as calls,
        torch.no_grad(),
    ):
        backbone.encode_images(pixels, torch.tensor(grids))
    # Number of windows or images, and patches of each.
    shapes = [tuple(call.args[1].shape[i] for i in (0, 2)) for call in calls.call_args_list]
    windowed, whole = [(1, 4), (5, 8), (6, 16)], [(1, 140)]
    assert backbone.vlm.visual.fullatt_block_indexes == [1, 3]
    assert shapes == 2 * (windowed + whole)


# -- the composed model ----------------------------------------------------------------------------


@each_attention
@each_family
def test_an_item_has_one_vector_alone_and_in_any_order(family: str, attn: str) -> None:
    loaded = with_instruct_adapter(family, attn)
    alone = torch.cat([golden_parts.vectors(loaded, [item]) for item in ITEMS])
    together = golden_parts.vectors(loaded, ITEMS)
    backwards = golden_parts.vectors(loaded, ITEMS[::-1]).flip(0)
    assert (alone - together).abs().max() <= 1e-5
    assert (alone - backwards).abs().max() <= 1e-5
    assert (alone[1] - alone[5]).abs().max() > 1e-3  # different images, different vectors


@each_family
def test_the_adapter_changes_instructed_rows_alone(family: str) -> None:
    model, processor = with_instruct_adapter(family)
    batch = golden_parts.batch(processor, ITEMS)
    nothing = dataclasses.replace(batch, instructed=torch.zeros_like(batch.instructed))
    with torch.no_grad():
        routed, off = model(batch), model(nothing)
    moved = (routed - off).abs().amax(dim=1)
    assert (moved[batch.instructed] > 1e-4).all()
    assert (moved[~batch.instructed] <= 1e-6).all()


@each_family
def test_the_vision_encoder_runs_once_per_image(family: str) -> None:
    model, processor = with_instruct_adapter(family)
    batch = golden_parts.batch(processor, ITEMS)  # five rows show two images
    seen: list[int] = []
    encoder = tiny_families.vision_encoder(model.backbone)
    encoder.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(len(args[0] if args else kwargs["pixel_values"])),
        with_kwargs=True,
    )
    with torch.no_grad():
        model(batch)
    assert batch.image_grid_thw is not None and len(batch.image_grid_thw) == 2
    pieces = batch.image_grid_thw.prod(dim=1).sum()  # patches, or tiles of 4 x 4 patches
    assert seen == [pieces // 16 if family in tiny_families.TILED else pieces]


@each_family
def test_a_saved_model_gives_the_same_vectors_to_the_last_bit(family: str, tmp_path: Path) -> None:
    loaded = with_instruct_adapter(family)
    checkpoint.save(*loaded, tmp_path / "mine")
    again = checkpoint.load(str(tmp_path / "mine"))
    assert again[0].backbone.vlm.config.model_type == family
    assert torch.equal(golden_parts.vectors(loaded, ITEMS), golden_parts.vectors(again, ITEMS))


@each_family
def test_a_base_with_published_names_and_an_output_layer_is_read(
    family: str, tmp_path: Path
) -> None:
    backbone = tiny_families.backbone(family)
    kind = type(backbone)
    state = {weights.published_name(kind, k): v for k, v in backbone.vlm.state_dict().items()}
    state["lm_head.weight"] = torch.zeros(576, 64)
    save_file(state, tmp_path / "model.safetensors")
    read = weights.load_backbone(
        weights.open_weights(tmp_path),
        parse_config(tiny_families.CONFIGS[family]),
        dtype=torch.float32,
        device="cpu",
        attn="sdpa",
    )
    pixels, grid = tiny_families.patches(family)
    with torch.no_grad():
        assert torch.equal(read.encode_images(pixels, grid), backbone.encode_images(pixels, grid))


@each_family
def test_every_layer_of_both_encoders_takes_lora(family: str) -> None:
    """Attention and MLP (paper, section 2), whatever the family calls them."""
    model, _ = tiny_families.loaded(family)
    layers = ("language_model.layers.", "visual.blocks.", "vision_tower.encoder.")
    linear = {
        name
        for name, module in model.backbone.vlm.named_modules()
        if isinstance(module, nn.Linear) and name.startswith(layers)
    }
    assert set(attach_stage1(model, r=2, alpha=4)) == linear
    merge_stage1(model)
    assert set(attach_stage2(model, r=2, alpha=4)) == {n for n in linear if "language" in n}


# -- training --------------------------------------------------------------------------------------


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", ["pretrain", "instruct"])
@each_family
def test_one_step_gives_gradients_exactly_to_what_the_stage_trains(
    family: str, name: StageName, checkpointing: bool
) -> None:
    model, processor = tiny_families.loaded(family)
    config = TrainConfig(
        stage=name,
        adapter=AdapterConfig(rank=4, alpha=8, dropout=0.0),
        train=RunConfig(steps=1, batch_size=2, gradient_checkpointing=checkpointing),
    )
    kind = Pretrain if name == "pretrain" else Instruct
    stage = kind(config, model, processor, ProcessGroup(Accelerator(cpu=True)))
    wake_adapter(model)
    images = [ITEMS[1].image, ITEMS[5].image]
    pairs = [("what is on top?", "red"), ("what is below?", "a blue one")]
    made = [
        caption_group(image, f"caption {i}")
        if name == "pretrain"
        else instruction_group(image, pairs)
        for i, image in enumerate(images)
        if image is not None
    ]
    loss, _ = stage.backward(GlobalBatch.single(make_batch(made, processor)))
    assert torch.isfinite(loss)

    reached = {n for n, p in model.named_parameters() if p.grad is not None and p.grad.norm() > 0}
    expected = {n for n, _ in model.named_parameters() if "lora_" in n}
    if name == "pretrain":
        expected |= {n for n, _ in model.named_parameters() if n.startswith(("head", "temp"))}
    assert reached == expected == set(stage.parameters)
    seeing = any(".visual." in n or ".vision_tower." in n for n in reached)
    assert seeing == (name == "pretrain")
    assert any(".language_model." in n for n in reached)
