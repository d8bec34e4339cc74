"""What trains and what stays: adapters, head and τ; cached candidates; the vision encoder once."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

from abc_embed.errors import DataError
from abc_embed.train.batches import make_batch, split_chunks
from abc_embed.train.config import TrainConfig
from abc_embed.train.processes import GlobalBatch, ProcessGroup
from abc_embed.train.stages import Instruct, Stage

Config = Callable[..., TrainConfig]
MakeStage = Callable[[TrainConfig], Stage]


def kinds(stage: Stage) -> set[str]:
    """Trained parameters, coarsely: part of the model, and LoRA half or name."""
    found = set()
    for name in stage.parameters:
        part = "visual" if ".visual." in name else "language" if "language" in name else "top"
        found.add(f"{part} {name.split('.')[-3] if 'lora_' in name else name}")
    return found


def test_stage1_trains_adapters_head_and_temperature(config: Config, make_stage: MakeStage) -> None:
    lora = {f"{part} lora_{half}" for part in ("visual", "language") for half in "AB"}
    head = {f"top head.linear{i}.{what}" for i in (1, 2) for what in ("weight", "bias")}
    stage = make_stage(config("pretrain"))
    assert kinds(stage) == lora | head | {"top temperature.temp"}
    assert all(parameter.dtype == torch.float32 for parameter in stage.parameters.values())
    assert stage.model.temperature.value == pytest.approx(0.07)


def test_stage2_trains_the_language_adapter_alone(config: Config, make_stage: MakeStage) -> None:
    assert kinds(make_stage(config("instruct"))) == {"language lora_A", "language lora_B"}


@pytest.mark.parametrize("chunk_size", [0, 3])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", ["pretrain", "instruct"])
def test_nothing_frozen_gets_a_gradient_or_moves(
    name: str,
    checkpointing: bool,
    chunk_size: int,
    config: Config,
    make_stage: MakeStage,
    batch_of: Any,
) -> None:
    stage = make_stage(config(name, gradient_checkpointing=checkpointing, chunk_size=chunk_size))
    before = {n: v.clone() for n, v in stage.model.state_dict().items()}
    optimizer = torch.optim.AdamW(stage.model.parameters(), lr=0.01)
    for _ in range(2):
        stage.backward(GlobalBatch.single(batch_of(name)))
        for parameter_name, parameter in stage.model.named_parameters():
            trained = parameter_name in stage.parameters
            assert (parameter.grad is not None) == trained, parameter_name
            assert parameter.requires_grad == trained, parameter_name
        optimizer.step()
        optimizer.zero_grad()
    for key, value in stage.model.state_dict().items():
        assert torch.equal(value, before[key]) == (key not in stage.parameters), key


@pytest.mark.parametrize("name", ["pretrain", "instruct"])
def test_gradient_checkpointing_changes_no_gradient(
    name: str, config: Config, make_stage: MakeStage, batch_of: Any
) -> None:
    found = []
    for checkpointing in (False, True):
        stage = make_stage(config(name, gradient_checkpointing=checkpointing, dropout=0.2))
        torch.manual_seed(3)
        stage.backward(GlobalBatch.single(batch_of(name)))
        found.append({n: p.grad for n, p in stage.parameters.items()})
    for parameter, gradient in found[0].items():
        assert gradient is not None and gradient.norm() > 0, parameter
        torch.testing.assert_close(found[1][parameter], gradient, rtol=1e-5, atol=1e-7)


def test_temperature_may_stay_fixed_and_never_falls_below_its_floor(
    config: Config, make_stage: MakeStage, batch_of: Any
) -> None:
    from dataclasses import replace

    plain = config("pretrain")
    fixed = make_stage(
        replace(plain, temperature=replace(plain.temperature, learn=False, start=0.03))
    )
    assert "temperature.temp" not in fixed.parameters
    assert fixed.model.temperature.value == pytest.approx(0.03)
    fixed.backward(GlobalBatch.single(batch_of("pretrain")))
    assert fixed.model.temperature.temp.grad is None

    learnt = make_stage(plain)
    with torch.no_grad():
        learnt.model.temperature.temp.fill_(-1.0)
    learnt.after_update()
    assert learnt.model.temperature.value == pytest.approx(0.01)


@pytest.mark.parametrize("name", ["pretrain", "instruct"])
def test_chunks_by_tokens_give_the_gradients_of_the_whole_batch(
    name: str, config: Config, make_stage: MakeStage, batch_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = batch_of(name)
    longest = max(f.tokens for f in batch.features)
    found, rows = [], []
    for tokens in (0, 2 * longest):  # two queries of an image, or several short texts
        stage = make_stage(config(name, chunk_tokens=tokens))
        count = Counter(stage, monkeypatch)
        stage.backward(GlobalBatch.single(batch))
        found.append({n: p.grad for n, p in stage.parameters.items()})
        rows.append(count.rows)
    assert max(rows[1]) < max(rows[0]) and len(rows[1]) > len(rows[0])
    for parameter, gradient in found[0].items():
        assert gradient is not None and gradient.norm() > 0, parameter
        apart = (found[1][parameter] - gradient).abs().max()
        # Sums of float32 in another order, divided by τ: 1.01e-6 was seen on one processor.
        assert apart <= 3e-6 * gradient.abs().max().clamp(min=1), parameter


class Half(Accelerator):
    """In bfloat16: accelerate itself takes one number format per process."""

    def autocast(self, autocast_handler: Any = None) -> Any:
        return torch.autocast("cpu", torch.bfloat16)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_lora_multiplies_in_the_format_of_autocast_and_keeps_its_weights_in_float32(
    checkpointing: bool, config: Config, tiny: Any, batch_of: Any
) -> None:
    model, processor = tiny()
    model.backbone.to(torch.bfloat16)
    settings = config("instruct", dropout=0.1, gradient_checkpointing=checkpointing, chunk_size=2)
    stage = Instruct(settings, model, processor, ProcessGroup(Half(cpu=True)))
    formats: set[tuple[torch.dtype, torch.dtype]] = set()

    def seen(module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        formats.add((inputs[0].dtype, output.dtype))

    for module_name, module in model.named_modules():
        if module_name.endswith(("lora_A.instruct", "lora_B.instruct")):
            module.register_forward_hook(seen)
    stage.backward(GlobalBatch.single(batch_of("instruct")))
    assert formats == {(torch.bfloat16, torch.bfloat16)}
    for parameter in stage.parameters.values():
        assert parameter.dtype == torch.float32 and parameter.grad is not None
        assert parameter.grad.dtype == torch.float32
    with torch.no_grad():  # outside of the step, without autocast, as a validation would
        stage.model.embed(processor.collate([*batch_of("instruct").texts.values()]), None)


class Counter:
    """Counts what passes through the backbone of a model, by wrapping two bound methods."""

    def __init__(self, stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
        self.images = 0
        self.rows: list[int] = []
        self.with_dropout: list[bool] = []
        backbone = stage.model.backbone
        encode, language = backbone.encode_images, backbone.language

        def encode_images(pixels: Tensor, grids: Tensor) -> Tensor:
            self.images += len(grids)
            assert not torch.is_grad_enabled() or isinstance(stage, Instruct) is False
            return encode(pixels, grids)

        def read(ids: Tensor, *rest: Any) -> Tensor:
            self.rows.append(len(ids))
            self.with_dropout.append(stage.model.training)
            return language(ids, *rest)

        monkeypatch.setattr(backbone, "encode_images", encode_images)
        monkeypatch.setattr(backbone, "language", read)


@pytest.mark.parametrize("chunk_size", [0, 2, 3])
def test_stage2_sees_each_image_once_and_embeds_each_answer_once(
    chunk_size: int,
    config: Config,
    make_stage: MakeStage,
    batch_of: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stage = make_stage(config("instruct", chunk_size=chunk_size))
    batch = batch_of("instruct")
    count = Counter(stage, monkeypatch)
    stage.backward(GlobalBatch.single(batch))
    assert count.images == 4  # eight queries, and with chunks two passes
    passes = 1 if chunk_size == 0 else 2
    assert sum(count.rows) == len(batch.texts) + passes * len(batch.queries)
    calls = len(split_chunks([*batch.texts], stage.config.train, lambda _: 1))
    assert not any(count.with_dropout[:calls]) and all(count.with_dropout[calls:])

    count.rows.clear()
    stage.backward(GlobalBatch.single(batch))
    assert sum(count.rows) == passes * len(batch.queries)  # no text a second time


def test_stage2_candidates_are_those_of_the_frozen_model(
    config: Config, make_stage: MakeStage, batch_of: Any, tiny: Any
) -> None:
    stage = make_stage(config("instruct", dropout=0.5))
    batch = batch_of("instruct")
    stage.backward(GlobalBatch.single(batch))
    frozen, processor = tiny()
    with torch.no_grad():
        expected = frozen(processor.collate([*batch.texts.values()]))
    found = torch.stack([stage.text_cache[text] for text in batch.texts])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert not found.requires_grad


def test_stage1_embeds_queries_and_every_distinct_caption(
    config: Config, make_stage: MakeStage, batch_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = make_stage(config("pretrain"))
    batch = batch_of("pretrain")
    count = Counter(stage, monkeypatch)
    stage.backward(GlobalBatch.single(batch))
    assert count.rows == [len(batch.queries), len(set(batch.texts))]


@pytest.mark.parametrize("name", ["pretrain", "instruct"])
def test_finished_model_rests(
    name: str, config: Config, make_stage: MakeStage, batch_of: Any
) -> None:
    stage = make_stage(config(name, gradient_checkpointing=True))
    stage.backward(GlobalBatch.single(batch_of(name)))
    stage.finish()
    model = stage.model
    assert not model.training and not any(p.requires_grad for p in model.parameters())
    assert all(p.grad is None for p in model.parameters())
    assert model.has_instruct_adapter == (name == "instruct")
    assert not any(".pretrain." in key for key in model.state_dict())


def test_a_stage_refuses_the_others_queries(
    config: Config, make_stage: MakeStage, batch_of: Any
) -> None:
    with pytest.raises(DataError, match="stage 2 needs an instruction"):
        make_stage(config("instruct")).backward(GlobalBatch.single(batch_of("pretrain")))
    with pytest.raises(DataError, match="stage 1 asks with the image alone"):
        make_stage(config("pretrain")).backward(GlobalBatch.single(batch_of("instruct")))


def test_both_stages_follow_each_other(config: Config, tiny: Any, pictures: Any) -> None:
    """Stage 2 begins on the very model that stage 1 left."""
    from abc_embed.train.stages import Pretrain

    model, processor = tiny()
    process_group = ProcessGroup(Accelerator(cpu=True))
    first = Pretrain(config("pretrain"), model, processor, process_group)
    first.backward(GlobalBatch.single(make_batch(pictures("pretrain").groups(0, 2, 0), processor)))
    first.finish()
    second = Instruct(config("instruct"), model, processor, process_group)
    second.backward(GlobalBatch.single(make_batch(pictures("instruct").groups(0, 2, 0), processor)))
    assert all(p.grad is not None for p in second.parameters.values())
