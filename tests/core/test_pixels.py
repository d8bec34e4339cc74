"""The pixel budget and the patches, against Qwen2-VL's own arithmetic in transformers."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import (
    Qwen2VLImageProcessorPil,
    smart_resize,
)

from abc_embed.errors import AspectError, ConfigError, UsageError
from abc_embed.pixels import ImageBudget, PixelBatch, to_pixels

BUDGET = ImageBudget()
TOKEN = 28 * 28
# The bundled model's budget has one size only, the narrowest there is.
NARROW = ImageBudget(min_pixels=112 * 112, max_pixels=112 * 112)


def noise(width: int, height: int) -> Image.Image:
    values = np.random.default_rng(width * 10_000 + height).integers(0, 256, (height, width, 3))
    return Image.fromarray(values.astype(np.uint8))


@pytest.mark.parametrize("size", [(560, 448), (530, 487), (101, 75), (1500, 1100), (60, 900)])
@pytest.mark.parametrize("tokens", [(256, 1024), (4, 16)])
def test_patches_are_those_of_qwen2_vl_bit_for_bit(
    size: tuple[int, int], tokens: tuple[int, int]
) -> None:
    low, high = (TOKEN * n for n in tokens)
    theirs = Qwen2VLImageProcessorPil(
        size={"shortest_edge": low, "longest_edge": high},
    )(images=noise(*size), return_tensors="np")
    budget = ImageBudget(min_pixels=low, max_pixels=high)
    pixels = to_pixels(noise(*size), budget)
    assert pixels.grid_thw == tuple(theirs["image_grid_thw"][0].tolist())
    assert pixels.values.dtype == np.uint8
    flat = torch.from_numpy(pixels.values).flatten()
    ours = PixelBatch(flat, (pixels.grid_thw,), budget).patches()
    frames = theirs["pixel_values"].reshape(len(ours), 3, 2, 14**2)
    for frame in (0, 1):
        np.testing.assert_array_equal(ours.view(-1, 3, 14**2), frames[:, :, frame])


def test_normalising_on_the_device_is_the_table_of_all_256_levels_bit_for_bit() -> None:
    levels = (np.arange(256, dtype=np.float64) * (1 / 255)).astype(np.float32)
    picture = torch.arange(14 * 14 * 4 * 3, dtype=torch.int64).reshape(1, 28, 28, 3) % 256
    patches = PixelBatch(picture.to(torch.uint8).flatten(), ((1, 2, 2),), BUDGET).patches()
    corner = picture[0, :14, 14:].permute(2, 0, 1).reshape(3, -1)  # the second patch
    for colour in range(3):
        table = (levels - np.float32(BUDGET.mean[colour])) / np.float32(BUDGET.std[colour])
        np.testing.assert_array_equal(patches[1].view(3, -1)[colour], table[corner[colour]])
    assert len(picture.unique()) == 256


def test_pictures_of_several_sizes_are_cut_as_each_alone() -> None:
    sizes = [(560, 448), (448, 560), (448, 560), (101, 75)]
    pixels = [to_pixels(noise(*size), BUDGET) for size in sizes]
    flat = [torch.from_numpy(p.values).flatten() for p in pixels]
    grids = tuple(p.grid_thw for p in pixels)
    together = PixelBatch(torch.cat(flat), grids, BUDGET).to("cpu", torch.bfloat16).patches()
    alone = [
        PixelBatch(values, (grid,), BUDGET).patches()
        for values, grid in zip(flat, grids, strict=True)
    ]
    assert together.dtype == torch.bfloat16
    assert torch.equal(together, torch.cat(alone).bfloat16())


@given(st.integers(1, 6000), st.integers(1, 6000))
def test_sizes_are_those_of_qwen2_vl(height: int, width: int) -> None:
    if max(height, width) > 200 * min(height, width):
        with pytest.raises(AspectError):
            BUDGET.size_for(height, width)
        return
    theirs = smart_resize(height, width, 28, BUDGET.min_pixels, BUDGET.max_pixels)
    assert BUDGET.size_for(height, width) == theirs


@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(1, 40), st.integers(0, 40))
def test_sizes_stay_within_any_budget(height: int, width: int, least: int, more: int) -> None:
    budget = ImageBudget(
        min_pixels=TOKEN * least, max_pixels=TOKEN * (least + more), max_aspect=3000
    )
    high, wide = budget.size_for(height, width)
    assert high % 28 == wide % 28 == 0
    assert 0 < high * wide <= budget.max_pixels


@pytest.mark.parametrize("size", [(50, 60), (60, 50), (10, 1500), (112, 224), (3, 3), (448, 448)])
def test_a_narrow_budget_holds_where_qwen2_vl_overruns_it(size: tuple[int, int]) -> None:
    high, wide = NARROW.size_for(*size)
    assert 0 < high * wide <= NARROW.max_pixels
    assert NARROW.size_for(size[0], size[0]) == (112, 112)


def test_the_aspect_limit() -> None:
    assert BUDGET.size_for(5, 1000)
    with pytest.raises(AspectError, match=r"5000 x 1 pixels .* 200 to 1"):
        BUDGET.size_for(1, 5000)
    assert ImageBudget(max_aspect=5000).size_for(1, 5000)


def test_the_dial_lowers_the_lower_end_where_it_must() -> None:
    assert BUDGET.limited(None) is BUDGET
    lower = BUDGET.limited(100 * TOKEN)
    assert (lower.min_pixels, lower.max_pixels) == (100 * TOKEN, 100 * TOKEN)
    higher = BUDGET.limited(2000 * TOKEN)
    assert (higher.min_pixels, higher.max_pixels) == (256 * TOKEN, 2000 * TOKEN)
    assert BUDGET.limited(TOKEN).size_for(900, 900) == (28, 28)
    with pytest.raises(UsageError, match="at least 784"):
        BUDGET.limited(TOKEN - 1)


def test_tokens_and_pixels() -> None:
    assert BUDGET.tokens_to_pixels(256) == BUDGET.min_pixels == 200_704
    assert BUDGET.max_visual_tokens == 1024


def test_the_key_is_that_of_the_resized_pixels() -> None:
    picture = noise(112, 56)
    turned = Image.fromarray(np.asarray(picture).reshape(112, 56, 3))  # same bytes, other shape
    budget = ImageBudget(min_pixels=8 * TOKEN, max_pixels=8 * TOKEN)
    key = to_pixels(picture, budget).key
    assert key == to_pixels(picture.copy(), budget).key
    assert key != to_pixels(turned, budget).key
    changed = picture.copy()
    changed.putpixel((3, 3), (1, 2, 3))
    assert key != to_pixels(changed, budget).key
    assert key != to_pixels(picture, budget.limited(4 * TOKEN)).key


@pytest.mark.parametrize(
    "wrong",
    [
        {"min_pixels": 0},
        {"min_pixels": 900, "max_pixels": 800},
        {"max_pixels": 783, "min_pixels": 1},
        {"patch_size": 0},
        {"std": (0.0, 1.0, 1.0)},
        {"mean": (0.5,)},
        {"max_aspect": 0.5},
    ],
)
def test_impossible_budgets(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        ImageBudget(**wrong)  # type: ignore[arg-type]
