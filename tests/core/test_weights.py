"""Pinned names, bases in every layout and number format, and files that do not fit."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import golden_parts
import pytest
import torch
from golden_parts import BASE, INSTRUCT, PRETRAIN, small
from safetensors.torch import load_file, save_file
from torch import Tensor

from abc_embed import adapters, checkpoint, weights
from abc_embed.backbone import Qwen2VLBackbone
from abc_embed.errors import CheckpointError
from abc_embed.inputs import Item

ITEMS = [Item(text="a dog!"), small(shade=3), small("what is on the left?", shade=3)]


def vectors(loaded: checkpoint.Loaded) -> torch.Tensor:
    return golden_parts.vectors(loaded, ITEMS, tiny=True)


# -- names -----------------------------------------------------------------------------------------

PINNED = {
    "model.embed_tokens.weight": "language_model.embed_tokens.weight",
    "model.layers.27.self_attn.q_proj.bias": "language_model.layers.27.self_attn.q_proj.bias",
    "model.layers.0.mlp.down_proj.lora_A.weight": (
        "language_model.layers.0.mlp.down_proj.lora_A.weight"
    ),
    "model.norm.weight": "language_model.norm.weight",
    "visual.blocks.3.attn.qkv.weight": "visual.blocks.3.attn.qkv.weight",
    "visual.merger.mlp.0.weight": "visual.merger.mlp.0.weight",
    "visual.patch_embed.proj.weight": "visual.patch_embed.proj.weight",
}


@pytest.mark.parametrize("old", PINNED)
def test_names_of_the_published_layout_are_pinned_both_ways(old: str) -> None:
    assert weights.our_name(Qwen2VLBackbone, old) == PINNED[old]
    assert weights.published_name(Qwen2VLBackbone, PINNED[old]) == old


@pytest.mark.parametrize("ours", PINNED.values())
def test_names_of_newer_layouts_are_known_too(ours: str) -> None:
    assert weights.our_name(Qwen2VLBackbone, ours) == ours
    assert weights.our_name(Qwen2VLBackbone, f"model.{ours}") == ours


@pytest.mark.parametrize("name", ["lm_head.weight", "layers.0.x", "vision.blocks.0.x", ""])
def test_other_names_have_no_home(name: str) -> None:
    assert weights.our_name(Qwen2VLBackbone, name) is None


# -- bases -----------------------------------------------------------------------------------------


def rewritten(
    tmp_path: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor] | None]
) -> str:
    """A copy of the golden base with its tensors changed."""
    folder = tmp_path / "base"
    shutil.copytree(BASE, folder)
    tensors = load_file(folder / "model.safetensors")
    tensors = change(tensors) or tensors
    save_file(tensors, folder / "model.safetensors")
    return str(folder)


def renamed(prefix: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    def change(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        tensors.pop("lm_head.weight")
        return {
            prefix + str(weights.our_name(Qwen2VLBackbone, key)): value
            for key, value in tensors.items()
        }

    return change


@pytest.mark.parametrize("prefix", ["", "model."])
def test_newer_layouts_of_a_base_load_alike(prefix: str, tmp_path: Path) -> None:
    base = rewritten(tmp_path, renamed(prefix))
    loaded = checkpoint.load_published(base, str(PRETRAIN), str(INSTRUCT))
    assert torch.equal(vectors(loaded), vectors(golden_parts.shared()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_half_base_is_computed_in_float32_if_asked(dtype: torch.dtype, tmp_path: Path) -> None:
    def halve(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {key: value.to(dtype) for key, value in tensors.items()}

    loaded = checkpoint.load_published(rewritten(tmp_path, halve), str(PRETRAIN), str(INSTRUCT))
    assert loaded[0].dtype == torch.float32
    assert (vectors(loaded) * vectors(golden_parts.shared())).sum(dim=1).min() > 0.999


def shard(folder: Path) -> dict[str, str]:
    """Split a folder's model.safetensors in two; returns the weight map."""
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    places = {}
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        file = f"model-0000{number}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, folder / file)
        places |= dict.fromkeys(part, file)
    (folder / "model.safetensors").unlink()
    write_index(folder, places)
    return places


def write_index(folder: Path, places: dict[str, str]) -> None:
    content = json.dumps({"metadata": {}, "weight_map": places})
    (folder / "model.safetensors.index.json").write_text(content)


def test_a_sharded_base_loads_alike(tmp_path: Path) -> None:
    base = Path(rewritten(tmp_path, lambda tensors: None))
    shard(base)
    loaded = checkpoint.load_published(str(base), str(PRETRAIN), str(INSTRUCT))
    assert torch.equal(vectors(loaded), vectors(golden_parts.shared()))


def test_shards_that_do_not_match_their_index_are_an_error(tmp_path: Path) -> None:
    base = Path(rewritten(tmp_path, lambda tensors: None))
    places = shard(base)
    first = sorted(places)[0]
    write_index(base, {k: v for k, v in places.items() if k != first})
    with pytest.raises(CheckpointError, match=re.escape(repr(first))):
        checkpoint.load_base(str(base))
    write_index(base, places | {"model.extra.weight": places[first]})
    with pytest.raises(CheckpointError, match=r"model\.extra\.weight"):
        checkpoint.load_base(str(base))
    write_index(base, places | {first: "../elsewhere.safetensors"})
    with pytest.raises(CheckpointError, match="outside of its folder"):
        checkpoint.load_base(str(base))
    write_index(base, places)
    (base / places[first]).unlink()
    with pytest.raises(CheckpointError, match=r"model-00001-of-00002\.safetensors is missing"):
        checkpoint.load_base(str(base))


NORM = "visual.blocks.0.norm1.weight"


def without(name: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda tensors: {key: value for key, value in tensors.items() if key != name}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (without(NORM), f"'{NORM}' is missing"),
        (without("model.norm.weight"), "'model.norm.weight' is missing"),
        (lambda t: t.update({"model.layers.3.x": torch.zeros(1)}), "'model.layers.3.x' has no"),
        (lambda t: t.update({"head.weight": torch.zeros(1)}), "'head.weight' has no place"),
        (lambda t: t.update({NORM: torch.zeros(65)}), f"'{NORM}' has shape (65,)"),
        (
            lambda t: t.update({"language_model.norm.weight": torch.zeros(64)}),
            "'language_model.norm.weight' and 'model.norm.weight' are the same",
        ),
    ],
    ids=["missing", "missing in the language model", "extra", "strange", "misshapen", "twice"],
)
def test_a_base_that_does_not_fit_is_an_error_that_names_the_tensor(
    change: Callable[[dict[str, Tensor]], Any], named: str, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=re.escape(named)):
        checkpoint.load_base(rewritten(tmp_path, change))


def test_the_output_layer_is_left_out_knowingly() -> None:
    model, _ = golden_parts.base()
    assert "lm_head.weight" in load_file(BASE / "model.safetensors")
    assert not any("lm_head" in name for name, _ in model.named_parameters())
    assert not any(p.is_meta for p in [*model.parameters(), *model.buffers()])


def test_a_plain_base_starts_training_with_a_fresh_head() -> None:
    model, processor = checkpoint.load_base(str(BASE), positions="mrope", head_width=16)
    assert processor.positions == "mrope"
    assert torch.equal(model.head.linear1.weight, torch.eye(16, 64))
    assert not model.has_instruct_adapter
    assert model.source == {"base": "base"}
    adapters.attach_stage1(model)
    assert adapters.set_trainable(model, "pretrain")


def test_a_published_model_has_the_published_positions_and_pixels(tmp_path: Path) -> None:
    """The real base allows 4 to 16,384 visual tokens; the published model sees 256 to 1,024."""
    folder = tmp_path / "base"
    shutil.copytree(BASE, folder)
    path = folder / "preprocessor_config.json"
    found = json.loads(path.read_text()) | {"min_pixels": 3136, "max_pixels": 12845056}
    path.write_text(json.dumps(found))
    _, processor = checkpoint.load_published(str(folder), str(PRETRAIN))
    assert processor.positions == "sequential"
    assert processor.image.min_pixels == 256 * 28 * 28
    assert processor.image.max_pixels == 1024 * 28 * 28


# -- damaged files ---------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["truncated", "empty", "rubbish", "header"])
@pytest.mark.parametrize("part", ["base/model", "pretrain/adapter_model", "instruct/adapter_model"])
def test_a_damaged_safetensors_file_is_one_plain_sentence(
    damage: str, part: str, tmp_path: Path
) -> None:
    for name, source in (("base", BASE), ("pretrain", PRETRAIN), ("instruct", INSTRUCT)):
        shutil.copytree(source, tmp_path / name)
    path = tmp_path / f"{part}.safetensors"
    content = path.read_bytes()
    path.write_bytes(
        {
            "truncated": content[: len(content) // 2],
            "empty": b"",
            "rubbish": b"not a safetensors file" * 100,
            "header": b"\xff" * 8 + content[8:],
        }[damage]
    )
    parts = [str(tmp_path / name) for name in ("base", "pretrain", "instruct")]
    with pytest.raises(CheckpointError, match="damaged") as caught:
        checkpoint.load_published(*parts)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("content", [None, "{", "[]"])
def test_a_missing_or_damaged_config_is_an_error_that_names_it(
    content: str | None, tmp_path: Path
) -> None:
    folder = tmp_path / "base"
    shutil.copytree(BASE, folder)
    path = folder / "config.json"
    path.unlink()
    if content is not None:
        path.write_text(content)
    with pytest.raises(CheckpointError, match=re.escape(str(path))):
        checkpoint.load_base(str(folder))
