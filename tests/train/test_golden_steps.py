"""One step of each stage against what the published training code gives (dropout off)."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from accelerate import Accelerator
from safetensors.torch import load_file
from torch import nn

from abc_embed import checkpoint
from abc_embed.adapters import load_adapter, set_trainable
from abc_embed.train.batches import Group, caption_group, instruction_group, make_batch
from abc_embed.train.config import AdapterConfig, RunConfig, TrainConfig
from abc_embed.train.processes import GlobalBatch, ProcessGroup
from abc_embed.train.stages import Instruct, Pretrain, Stage


@pytest.fixture(autouse=True)
def go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stages go on from the golden adapter, head and τ instead of fresh ones."""
    monkeypatch.setattr(
        "abc_embed.train.stages.attach_adapter",
        lambda model, config: set_trainable(model, config.stage),
    )


def published_name(name: str) -> str:
    """Our parameter name in the words of the published training code."""
    name = re.sub(r"\.(pretrain|instruct)\.weight$", ".weight", name)
    for ours, theirs in (
        ("backbone.vlm.language_model.", "model."),
        ("backbone.vlm.visual.", "visual."),
        ("head.linear", "mlp_head.modules_to_save.linear_layer"),
        ("temperature.", "temperature.modules_to_save."),
    ):
        name = name.replace(ours, theirs)
    return name


def groups_of(step: dict[str, Any], images: Path) -> list[Group]:
    texts = step["candidates"]
    if step["stage"] == "pretrain":
        first, second = (str(images / name) for name in step["queries"])
        return [caption_group(first, texts[0], texts[2:]), caption_group(second, texts[1])]
    pairs: dict[str, list[tuple[str, str]]] = {}
    for (image, instruction), answer in zip(step["queries"], texts, strict=True):
        pairs.setdefault(image, []).append((instruction, answer))
    return [instruction_group(str(images / image), asked) for image, asked in pairs.items()]


def load_unmerged(
    golden: Path, smoothing: float, chunk: int, checkpointing: bool, stage: str
) -> Stage:
    config = TrainConfig(
        stage="pretrain" if stage == "pretrain" else "instruct",
        adapter=AdapterConfig(rank=8, alpha=16),
        train=RunConfig(
            steps=1,
            batch_size=2,
            chunk_size=chunk,
            gradient_checkpointing=checkpointing,
            label_smoothing=smoothing,
        ),
    )
    base, pretrain = str(golden / "base"), golden / "pretrain_adapter"
    if stage == "pretrain":
        tensors = load_file(pretrain / "adapter_model.safetensors")
        width = len(tensors["base_model.model.mlp_head.linear_layer1.bias"])
        model, processor = checkpoint.load_base(
            base, positions="sequential", pixels=(256 * 784, 1024 * 784), head_width=width
        )
        load_adapter(model, "pretrain", pretrain)
        made: Stage = Pretrain(config, model, processor, ProcessGroup(Accelerator(cpu=True)))
    else:
        model, processor = checkpoint.load_published(
            base, str(pretrain), str(golden / "instruct_adapter")
        )
        made = Instruct(config, model, processor, ProcessGroup(Accelerator(cpu=True)))
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return made


@pytest.mark.parametrize(("chunk", "checkpointing"), [(0, False), (2, True)])
@pytest.mark.parametrize("number", [0, 1], ids=["stage 1", "stage 2"])
def test_one_step_is_the_published_one(
    golden: Path, number: int, chunk: int, checkpointing: bool
) -> None:
    step = json.loads((golden / "expected_training_steps.json").read_text())[number]
    stage = load_unmerged(golden, step["label_smoothing"], chunk, checkpointing, step["stage"])
    assert stage.model.temperature.value == pytest.approx(step["temperature"])

    batch = make_batch(groups_of(step, golden / "images"), stage._processor)
    loss, accuracy = stage.backward(GlobalBatch.single(batch))

    assert abs(loss.item() - step["loss"]) <= 1e-5
    assert accuracy.item() == step["accuracy"]
    norms = {
        published_name(name): parameter.grad.norm().item()
        for name, parameter in stage.parameters.items()
        if parameter.grad is not None
    }
    assert norms.keys() == step["grad_norm"].keys()
    for name, expected in step["grad_norm"].items():
        assert norms[name] == pytest.approx(expected, rel=1e-3), name
