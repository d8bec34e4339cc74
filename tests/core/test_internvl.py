"""Tiles as InternVL's own processor cuts them, and its published files as they are."""

import json
from pathlib import Path
from typing import Any

import golden_parts
import numpy as np
import pytest
import tiny_families
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import PreTrainedTokenizerFast
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import (
    GotOcr2ImageProcessorPil,
    get_optimal_tiled_canvas,
)

from abc_embed.errors import AspectError, CheckpointError, ConfigError, UsageError
from abc_embed.families.internvl import TileBudget
from abc_embed.inputs import Item
from abc_embed.pixels import PixelBatch, to_pixels
from abc_embed.processor import Processor

TILE = 56
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<IMG_CONTEXT>\n"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def budget(least: int = 1, most: int = 6) -> TileBudget:
    return TileBudget(
        tile=TILE, min_pixels=least * TILE**2, max_pixels=most * TILE**2, temporal_patch_size=1
    )


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 900), st.integers(1, 900), st.integers(1, 12), st.integers(1, 12))
def test_the_grid_of_tiles_is_that_of_transformers(
    height: int, width: int, least: int, most: int
) -> None:
    if max(height, width) > 200 * min(height, width):
        return
    least, most = sorted((least, most))
    rows, columns = budget(least, most).grid_for(height, width)
    assert (columns, rows) == get_optimal_tiled_canvas((height, width), (TILE, TILE), least, most)


@pytest.mark.parametrize("size", [(56, 56), (200, 90), (60, 300), (333, 222)])
def test_the_values_are_those_of_transformers(size: tuple[int, int]) -> None:
    random = np.random.default_rng(0)
    picture = Image.fromarray(random.integers(0, 256, (*size[::-1], 3), dtype=np.uint8))
    pixels = to_pixels(picture, budget())
    flat = torch.from_numpy(pixels.values).flatten()
    theirs: Any = GotOcr2ImageProcessorPil(
        size={"height": TILE, "width": TILE}, crop_to_patches=True, max_patches=6
    )(picture, return_tensors="pt")["pixel_values"]
    tiles = tiny_families.pictures(PixelBatch(flat, (pixels.grid_thw,), budget()).patches())
    assert pixels.grid_thw == (len(theirs), 4, 4)
    assert (tiles - theirs).abs().max() < 1e-5


def test_the_dial_counts_tiles() -> None:
    picture = Image.new("RGB", (400, 300))
    seen = [to_pixels(picture, budget(most=12).limited(n * TILE**2)).grid_thw[0] for n in (1, 12)]
    assert seen == [1, 13]  # the whole picture alone; 4 x 3 tiles and the whole
    assert budget(most=1).max_visual_tokens == 4 and budget(most=6).max_visual_tokens == 28
    with pytest.raises(UsageError, match=f"less than one tile; give at least {TILE**2}"):
        budget().limited(TILE**2 - 1)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ConfigError, match="a multiple of 28"):
        TileBudget(tile=50)
    with pytest.raises(ConfigError, match="less than one tile"):
        TileBudget(tile=448, min_pixels=56, max_pixels=400 * 400)
    with pytest.raises(AspectError, match="crop it"):
        budget().grid_for(1000, 1)
    with pytest.raises(ConfigError, match="counts in one line"):
        tiny_families.loaded("internvl", positions="mrope")


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """The files that a published InternVL brings, with the golden words."""
    words = golden_parts.base()[1].chat.tokenizer.backend_tokenizer
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words)
    tokenizer.add_special_tokens(
        {"additional_special_tokens": ["<img>", "</img>", "<IMG_CONTEXT>"]}
    )
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "chat_template.jinja").write_text(TEMPLATE)
    config = tiny_families.CONFIGS["internvl"] | {
        "image_token_id": tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>")
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    settings = {
        "crop_to_patches": True,
        "image_mean": [0.485, 0.456, 0.406],
        "image_processor_type": "GotOcr2ImageProcessorFast",
        "image_std": [0.229, 0.224, 0.225],
        "max_patches": 6,
        "min_patches": 1,
        "size": {"height": TILE, "width": TILE},
    }
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    return tmp_path


def test_published_files_are_read_and_prompts_have_the_marks(
    published: Path, tmp_path: Path
) -> None:
    processor = Processor.from_folder(published)
    assert processor.image == TileBudget(
        tile=TILE,
        min_pixels=TILE**2,
        max_pixels=6 * TILE**2,
        temporal_patch_size=1,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
    )
    item = Item(image=Image.new("RGB", (112, 56)), instruction="what is it?")
    tokens = processor.chat.tokenizer.convert_ids_to_tokens(
        processor.features(item).input_ids.tolist()
    )
    start = tokens.index("<img>")
    # Two tiles and the whole picture, 2 x 2 visual tokens each, as transformers' processor has it.
    assert tokens[start : start + 14] == ["<img>", *["<IMG_CONTEXT>"] * 12, "</img>"]
    processor.save(tmp_path / "saved")
    (tmp_path / "saved" / "config.json").write_text((published / "config.json").read_text())
    again = Processor.from_folder(tmp_path / "saved")
    assert again.settings() == processor.settings()
    assert again.prompt_hash == processor.prompt_hash


def test_without_cropping_there_is_one_tile(published: Path) -> None:
    path = published / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"crop_to_patches": False}))
    assert Processor.from_folder(published).image.max_pixels == TILE**2


def test_a_template_without_a_place_for_the_picture_is_refused(published: Path) -> None:
    (published / "chat_template.jinja").write_text("no picture here")
    with pytest.raises(CheckpointError, match="one placeholder for one picture"):
        Processor.from_folder(published)
