"""The engine against the plain way: equal results, and nothing walked or switched in vain."""

from typing import Any
from unittest import mock

import golden_parts
import numpy as np
import pytest
import tiny_families
import torch
from torch import nn
from transformers.activations import QuickGELUActivation

from abc_embed import adapters
from abc_embed import model as model_module
from abc_embed.embedder import Embedder
from abc_embed.errors import DeviceError
from abc_embed.inputs import Item
from abc_embed.lean import LeanQuickGELU, PatchProjection
from abc_embed.model import AbcModel
from abc_embed.processor import Batch, Processor

MIXED = [
    Item(text="a dog"),
    golden_parts.small("what is on the left?"),
    golden_parts.small(),
    Item(text="a longer text, with ! in it"),
    golden_parts.small("what is on the right?", shade=90),
]


@pytest.fixture(scope="module")
def loaded() -> tuple[AbcModel, Processor]:
    return golden_parts.published()


def batch_of(loaded: tuple[AbcModel, Processor], items: list[Item]) -> Batch:
    return golden_parts.batch(loaded[1], items, tiny=True)


# -- modules that compute the same -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("convolution", "shape"),
    [
        (nn.Conv3d(3, 8, (2, 14, 14), (2, 14, 14), bias=False), (5, 3, 2, 14, 14)),
        (nn.Conv3d(3, 8, (2, 4, 4), (2, 4, 4)), (2, 3, 4, 8, 12)),
        (nn.Conv2d(3, 8, (14, 14), (14, 14)), (2, 3, 56, 28)),
    ],
)
def test_a_patch_projection_is_its_convolution(
    convolution: nn.Module, shape: tuple[int, ...]
) -> None:
    projection = PatchProjection(convolution)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    expected = convolution(x)
    found = projection(x)
    assert found.shape == expected.shape
    assert (found - expected).abs().max() < 1e-5
    assert projection.state_dict().keys() == convolution.state_dict().keys()


def test_the_lean_activation_is_that_of_transformers_to_the_last_bit() -> None:
    x = torch.randn(50, 60, generator=torch.Generator().manual_seed(0))
    before = x.clone()
    expected = QuickGELUActivation()(x)
    with torch.no_grad():
        assert torch.equal(LeanQuickGELU()(x), expected)
    assert torch.equal(x, before)
    x.requires_grad_(True)
    (found,) = torch.autograd.grad(LeanQuickGELU()(x).sum(), [x])
    (plain,) = torch.autograd.grad(QuickGELUActivation()(x).sum(), [x])
    assert torch.equal(found, plain)


@pytest.mark.parametrize("family", tiny_families.NATIVE)
def test_one_frame_stands_for_all_equal_frames(family: str) -> None:
    backbone = tiny_families.backbone(family)
    pixels, grid = tiny_families.patches(family)
    one = pixels.view(len(pixels), 3, 2, -1)[:, :, 0]
    both = one.unsqueeze(2).expand(-1, -1, 2, -1).flatten(1)
    with torch.no_grad():
        found, expected = (backbone.encode_images(p, grid) for p in (one.flatten(1), both))
    assert (found - expected).abs().max() < 1e-5


@pytest.mark.parametrize("family", tiny_families.ALL)
def test_no_family_reads_its_patches_by_a_convolution(family: str) -> None:
    kinds = (nn.Conv2d, nn.Conv3d)
    assert not [m for m in tiny_families.backbone(family).modules() if isinstance(m, kinds)]


# -- the adapter -----------------------------------------------------------------------------------


def test_merged_weights_give_the_vectors_of_the_adapter(
    loaded: tuple[AbcModel, Processor], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, _ = loaded
    batch = batch_of(loaded, MIXED)
    names = {name: parameter.clone() for name, parameter in model.named_parameters()}
    with torch.no_grad():
        merged = model(batch)
        assert model._for_inference is not None and model._for_inference[2]
        model.forget_layers()
        monkeypatch.setattr(model_module, "MERGE_SHARE", 0.0)
        plain = model(batch)
        assert not model._for_inference[2]
    model.forget_layers()
    assert (merged - plain).abs().max() < 1e-5
    assert not torch.equal(merged, plain)  # the guard: there were two ways
    assert all(torch.equal(p, names[name]) for name, p in model.named_parameters())


def test_merged_weights_follow_an_adapter_that_trains() -> None:
    model, processor = golden_parts.published()
    batch = batch_of((model, processor), MIXED[1:2])
    with torch.no_grad():
        before = model(batch)
        trained = adapters.set_trainable(model, "instruct")
        for parameter in trained:
            parameter.mul_(1.5)
        training = model(batch)
        model.requires_grad_(False)
        after = model(batch)
    assert (before - after).abs().max() > 1e-4
    assert (training - after).abs().max() < 1e-5


def test_an_error_leaves_the_plain_weights(loaded: tuple[AbcModel, Processor]) -> None:
    model, _ = loaded
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    with (
        mock.patch.object(model.backbone, "language", side_effect=RuntimeError("on purpose")),
        pytest.raises(RuntimeError, match="on purpose"),
        torch.no_grad(),
    ):
        model(batch_of(loaded, MIXED[1:2]))
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert not any(layer.disable_adapters for layer in model.instruct_layers())


def test_in_bfloat16_merging_is_as_near_to_float32_as_the_adapter_is(
    loaded: tuple[AbcModel, Processor], monkeypatch: pytest.MonkeyPatch
) -> None:
    items = [item for item in MIXED if item.instruction]
    half = golden_parts.published(dtype=torch.bfloat16)
    with torch.no_grad():
        exact = loaded[0](batch_of(loaded, items))
        batch = batch_of(half, items).to("cpu", torch.bfloat16)
        merged = half[0](batch)
        half[0].forget_layers()
        monkeypatch.setattr(model_module, "MERGE_SHARE", 0.0)
        plain = half[0](batch)
    distances = [1 - (vectors * exact).sum(dim=1).min().item() for vectors in (merged, plain)]
    assert distances[0] < 2 * distances[1] + 1e-4


def test_an_adapter_that_is_not_merged_multiplies_in_the_format_of_the_backbone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, processor = golden_parts.published(dtype=torch.bfloat16)
    monkeypatch.setattr(model_module, "MERGE_SHARE", 0.0)
    names = {name: parameter.clone() for name, parameter in model.named_parameters()}
    formats: set[torch.dtype] = set()
    layer: Any = model.instruct_layers()[0]
    for part in (layer.lora_A, layer.lora_B):
        part["instruct"].register_forward_hook(
            lambda m, x, y: formats.update((x[0].dtype, y.dtype))
        )
    batch = batch_of((model, processor), MIXED).to("cpu", torch.bfloat16)
    with torch.no_grad():
        model(batch)
    assert formats == {torch.bfloat16}
    for name, parameter in model.named_parameters():  # float32 on disk and in training
        assert parameter.dtype == names[name].dtype and torch.equal(parameter, names[name])


# -- no walks --------------------------------------------------------------------------------------


def test_embedding_walks_over_no_modules(loaded: tuple[AbcModel, Processor]) -> None:
    embedder = Embedder(*loaded)
    items = ["a dog", golden_parts.small(), golden_parts.small("left?")]
    for item in items:  # the first time may look for layers
        embedder.embed(item, max_pixels=4 * 28 * 28)
    failure = AssertionError("a walk over all modules")
    with (
        mock.patch.object(nn.Module, "named_modules", side_effect=failure),
        mock.patch.object(nn.Module, "train", side_effect=failure),
    ):
        for item in items:
            embedder.embed(item, max_pixels=4 * 28 * 28)


def test_attaching_and_detaching_is_seen() -> None:
    model, _ = golden_parts.published(instruct=False)
    assert not model.has_instruct_adapter
    adapters.attach_stage2(model, r=2, alpha=4)
    assert len(model.instruct_layers()) == 21
    adapters.detach(model)
    assert not model.has_instruct_adapter


# -- compiled layers -------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["internvl", "qwen2_5_vl"])
def test_compiled_layers_give_the_same_vectors_and_are_compiled_once_for_all_shapes(
    family: str,
) -> None:
    """Traced and cut as for any compiler, but run by torch itself: compiling C++ takes a minute."""
    embedder = Embedder(*tiny_families.loaded(family))
    pixels = 4 * embedder.processor.image.max_pixels
    items = [*MIXED, "one more text, longer than the others are", golden_parts.small(shade=9)]
    plain = embedder.embed(items, max_pixels=pixels)
    torch._dynamo.reset()
    embedder.model.backbone.compile_layers(backend="aot_eager")
    counters = torch._dynamo.utils.counters
    counters.clear()
    assert np.abs(embedder.embed(items, max_pixels=pixels) - plain).max() < 1e-5
    graphs = counters["stats"]["unique_graphs"]
    assert graphs > 0
    longer = [f"{'word ' * n}" + "and the end" for n in range(3, 9)]
    expected = Embedder(*tiny_families.loaded(family)).embed(longer)
    assert np.abs(embedder.embed(longer) - expected).max() < 1e-5
    assert counters["stats"]["unique_graphs"] == graphs


def test_without_a_compiler_there_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: object, **options: object) -> object:
        raise RuntimeError("No working C++ compiler found\nand more")

    monkeypatch.setattr(torch, "compile", broken)
    embedder = Embedder(*golden_parts.shared())
    with pytest.raises(DeviceError, match=r"cpu \(No working C\+\+ compiler found\); install a C"):
        embedder.compile()
    assert not embedder.model.backbone.is_compiled
