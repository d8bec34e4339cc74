"""Where adapters sit, what trains in which stage, merging, and strict adapter files."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import golden_parts
import pytest
import torch
from golden_parts import small
from safetensors.torch import load_file, save_file
from torch import Tensor

from abc_embed import adapters
from abc_embed.errors import CheckpointError, TrainingError
from abc_embed.inputs import Item

ITEMS = [Item(text="a dog"), small(shade=3), small("what is on the left?", shade=3)]
LANGUAGE = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
VISION = {"qkv", "proj", "fc1", "fc2"}


def test_stage_1_sits_on_both_encoders() -> None:
    model, _ = golden_parts.base()
    sites = adapters.attach_stage1(model)
    language = [site for site in sites if site.startswith("language_model.layers.")]
    vision = [site for site in sites if site.startswith("visual.blocks.")]
    assert len(language) + len(vision) == len(sites)
    assert len(language) == 7 * 3
    assert len(vision) == 4 * 2
    assert {site.rpartition(".")[2] for site in language} == LANGUAGE
    assert {site.rpartition(".")[2] for site in vision} == VISION
    assert model.backbone.vlm.peft_config["pretrain"].r == 64
    assert model.backbone.vlm.peft_config["pretrain"].lora_alpha == 128


def test_stage_2_sits_on_the_language_model_only() -> None:
    model, _ = golden_parts.published(instruct=False)
    sites = adapters.attach_stage2(model)
    assert len(sites) == 7 * 3
    assert all(site.startswith("language_model.layers.") for site in sites)
    assert model.backbone.vlm.peft_config["instruct"].r == 16
    assert model.backbone.vlm.peft_config["instruct"].lora_alpha == 32


@pytest.mark.parametrize(
    ("stage", "attach", "head_trains"),
    [("pretrain", adapters.attach_stage1, True), ("instruct", adapters.attach_stage2, False)],
)
def test_what_trains_in_a_stage(
    stage: Any, attach: Callable[[Any], list[str]], head_trains: bool
) -> None:
    model, _ = golden_parts.base(dtype=torch.bfloat16)
    sites = attach(model)
    trained = adapters.set_trainable(model, stage)
    names = {name for name, p in model.named_parameters() if p.requires_grad}
    lora = {name for name in names if ".lora_" in name}
    assert len(lora) == 2 * len(sites)
    rest = {*(f"head.linear{n}.{p}" for n in "12" for p in ("weight", "bias")), "temperature.temp"}
    assert names - lora == (rest if head_trains else set())
    assert {id(p) for p in trained} == {id(p) for p in model.parameters() if p.requires_grad}
    assert {p.dtype for p in trained} == {torch.float32}, "bfloat16 swallows small steps"


def test_all_trains_all_and_a_stage_needs_its_adapter() -> None:
    model, _ = golden_parts.base()
    assert len(adapters.set_trainable(model, "all")) == len(list(model.parameters()))
    assert all(p.requires_grad for p in model.parameters())
    with pytest.raises(TrainingError, match="'instruct' is not attached"):
        adapters.set_trainable(model, "instruct")


def test_a_fresh_adapter_changes_nothing_and_wakes_no_dropout() -> None:
    model, processor = golden_parts.base()
    before = golden_parts.vectors((model, processor), ITEMS, tiny=True)
    adapters.attach_stage1(model)
    assert not any(module.training for module in model.modules())
    assert torch.equal(golden_parts.vectors((model, processor), ITEMS, tiny=True), before)


def test_merging_keeps_the_vectors_and_leaves_no_trace() -> None:
    model, processor = golden_parts.base()
    plain = {name: type(module) for name, module in model.named_modules()}
    weights = model.state_dict().keys()
    adapters.load_adapter(model, "pretrain", golden_parts.PRETRAIN)
    before = golden_parts.vectors((model, processor), ITEMS, tiny=True)
    adapters.merge_stage1(model)
    after = golden_parts.vectors((model, processor), ITEMS, tiny=True)
    assert (before - after).abs().max() < 1e-5
    assert {name: type(module) for name, module in model.named_modules()} == plain
    assert model.state_dict().keys() == weights
    with pytest.raises(TrainingError, match="no stage-1 adapter to merge"):
        adapters.merge_stage1(model)


def test_two_adapters_at_once_are_refused() -> None:
    model, _ = golden_parts.base()
    adapters.attach_stage1(model)
    with pytest.raises(TrainingError, match="'pretrain' is attached already"):
        adapters.attach_stage2(model)


def test_adapter_off_is_the_stage_1_model() -> None:
    model, processor = golden_parts.published()
    stage1 = golden_parts.published(instruct=False)
    batch = golden_parts.batch(processor, ITEMS, tiny=True)
    with torch.no_grad(), model.adapter_off():
        off = model.backbone.language(batch.input_ids[:1], *_rest(batch))
    with torch.no_grad():
        plain = stage1[0].backbone.language(batch.input_ids[:1], *_rest(batch))
    assert (off - plain).abs().max() < 1e-5


def _rest(batch: Any) -> tuple[Tensor, Tensor, None]:
    return batch.attention_mask[:1], batch.position_ids[:, :1], None


# -- files -----------------------------------------------------------------------------------------

SITE = "base_model.model.model.layers.1.self_attn.q_proj"
VISION_SITE = "base_model.model.visual.blocks.0.attn.qkv"


def changed(tmp_path: Path, source: Path, change: Callable[[dict[str, Tensor]], None]) -> Path:
    """A copy of an adapter folder with its tensors changed."""
    folder = tmp_path / "adapter"
    shutil.copytree(source, folder)
    tensors = load_file(folder / "adapter_model.safetensors")
    change(tensors)
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def reconfigured(tmp_path: Path, source: Path, **changes: Any) -> Path:
    folder = tmp_path / "adapter"
    shutil.copytree(source, folder)
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


def drop(*keys: str) -> Callable[[dict[str, Tensor]], None]:
    def change(tensors: dict[str, Tensor]) -> None:
        for key in keys:
            del tensors[key]

    return change


def put(key: str, tensor: Tensor) -> Callable[[dict[str, Tensor]], None]:
    def change(tensors: dict[str, Tensor]) -> None:
        tensors[key] = tensor

    return change


STRICT = {
    "a missing half of a site": (drop(f"{SITE}.lora_B.weight"), f"{SITE}.lora_B.weight"),
    "an empty site": (
        drop(f"{SITE}.lora_A.weight", f"{SITE}.lora_B.weight"),
        f"{SITE}.lora_A.weight",
    ),
    "an empty site of the vision encoder": (
        drop(f"{VISION_SITE}.lora_A.weight", f"{VISION_SITE}.lora_B.weight"),
        f"{VISION_SITE}.lora_A.weight",
    ),
    "an extra site": (
        put("base_model.model.model.layers.9.mlp.up_proj.lora_A.weight", torch.zeros(8, 64)),
        "base_model.model.model.layers.9.mlp.up_proj.lora_A.weight",
    ),
    "a strange name": (put("something.else", torch.zeros(1)), "something.else"),
    "a misshapen tensor": (
        put(f"{SITE}.lora_A.weight", torch.zeros(8, 63)),
        f"{SITE}.lora_A.weight' has shape (8, 63), the model needs (8, 64)",
    ),
    "a head without a bias": (
        drop("base_model.model.mlp_head.linear_layer2.bias"),
        "base_model.model.mlp_head.linear_layer2.bias",
    ),
    "no temperature": (
        drop("base_model.model.temperature.temp"),
        "base_model.model.temperature.temp",
    ),
}


@pytest.mark.parametrize("case", STRICT)
def test_an_adapter_that_does_not_fit_is_an_error_that_names_the_key(
    case: str, tmp_path: Path
) -> None:
    change, named = STRICT[case]
    model, _ = golden_parts.base()
    folder = changed(tmp_path, golden_parts.PRETRAIN, change)
    with pytest.raises(CheckpointError, match=re.escape(named)):
        adapters.load_adapter(model, "pretrain", folder)


def test_a_head_in_a_stage_2_adapter_is_left_over() -> None:
    model, _ = golden_parts.published(instruct=False)
    with pytest.raises(CheckpointError, match="no place in this model"):
        adapters.load_adapter(model, "instruct", golden_parts.PRETRAIN)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"rank_pattern": {"q_proj": 4}}, "rank_pattern"),
        ({"bias": "all"}, "bias"),
        ({"peft_type": "LOHA"}, "peft_type"),
        ({"r": None}, "incomplete"),
        ({"target_modules": ["no_such_layer"]}, "target_modules"),
        ({"target_modules": ["self_attn.q_proj"]}, "no place"),
    ],
)
def test_settings_that_would_change_the_arithmetic_are_refused(
    changes: dict[str, Any], named: str, tmp_path: Path
) -> None:
    model, _ = golden_parts.published(instruct=False)
    folder = reconfigured(tmp_path, golden_parts.INSTRUCT, **changes)
    with pytest.raises(CheckpointError, match=named):
        adapters.load_adapter(model, "instruct", folder)


@pytest.mark.parametrize("targets", [r"model\.layers\.\d+\..*_proj", r"language_model\..*_proj"])
def test_target_modules_may_be_a_regular_expression_of_either_layout(
    targets: str, tmp_path: Path
) -> None:
    model, processor = golden_parts.published(instruct=False)
    folder = reconfigured(tmp_path, golden_parts.INSTRUCT, target_modules=targets)
    adapters.load_adapter(model, "instruct", folder)
    model.requires_grad_(False)
    expected = golden_parts.vectors(golden_parts.shared(), ITEMS, tiny=True)
    assert torch.equal(golden_parts.vectors((model, processor), ITEMS, tiny=True), expected)


def test_a_saved_stage_1_adapter_brings_its_head_and_temperature(tmp_path: Path) -> None:
    model, processor = golden_parts.base()
    adapters.load_adapter(model, "pretrain", golden_parts.PRETRAIN)
    adapters.save_adapter(model, "pretrain", tmp_path / "pretrain", None)
    other, _ = golden_parts.base()
    adapters.load_adapter(other, "pretrain", tmp_path / "pretrain")
    expected = golden_parts.vectors((model, processor), ITEMS, tiny=True)
    assert torch.equal(golden_parts.vectors((other, processor), ITEMS, tiny=True), expected)
    assert other.temperature.value == model.temperature.value


@pytest.mark.parametrize("fresh", [False, True])
def test_a_saved_adapter_is_one_of_pefts_own(fresh: bool, tmp_path: Path) -> None:
    from peft import LoraConfig
    from peft.utils import load_peft_weights

    if fresh:
        model, _ = golden_parts.published(instruct=False)
        adapters.attach_stage2(model)
    else:
        model, _ = golden_parts.published()
    folder = tmp_path / "instruct_adapter"
    adapters.save_adapter(model, "instruct", folder, None)
    config = LoraConfig.from_pretrained(folder)
    assert (config.r, config.lora_alpha) == ((16, 32) if fresh else (4, 8))
    saved = load_peft_weights(str(folder))
    assert len(saved) == 42
    other, _ = golden_parts.published(instruct=False)
    adapters.load_adapter(other, "instruct", folder)
    ours = dict(adapters.adapter_parameters(model, "instruct"))
    theirs = dict(adapters.adapter_parameters(other, "instruct"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
