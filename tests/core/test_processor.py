"""Items -> tensors: golden tokens and grids, positions, padding, pictures once per batch."""

import json
import shutil
from pathlib import Path

import golden_parts
import numpy as np
import pytest
import torch
from transformers import AutoConfig, Qwen2VLModel

from abc_embed import errors
from abc_embed.chat import read_chat_template, read_tokenizer
from abc_embed.inputs import Item, Kind
from abc_embed.processor import ImageBudget, Processor

RECORDS = json.loads((golden_parts.GOLDEN / "expected_inputs.json").read_text())
TOKEN = 28 * 28


@pytest.fixture(scope="module")
def processor() -> Processor:
    return Processor.from_folder(golden_parts.BASE)


def with_positions(processor: Processor, positions: str, **options: int) -> Processor:
    chat = processor.chat
    return Processor(
        *(chat.tokenizer, chat.template, processor.image, positions),  # type: ignore[arg-type]
        **options,
    )


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record["id"])
def test_tokens_and_grids_are_the_published_ones(processor: Processor, record: dict) -> None:
    features = processor.features(golden_parts.expected_items()[record["id"]])
    ids = features.input_ids.tolist()
    assert features.tokens == len(ids) == record["n_tokens"]
    assert ids[:40] == record["input_ids_head"]
    assert ids[-24:] == record["input_ids_tail"]
    grid = record.get("image_grid_thw")
    assert features.grid_thw == (tuple(grid) if grid else None)
    visual = ids.count(processor.image_token_id)
    assert visual == (grid[1] * grid[2] // 4 if grid else 0)
    if features.pixels is not None:
        assert features.pixels.shape == (1, grid[1] * 14, grid[2] * 14, 3)
        assert features.pixels.dtype == torch.uint8


def test_the_kinds(processor: Processor) -> None:
    kinds = [
        processor.features(item, max_pixels=4 * TOKEN).kind
        for item in (Item("a"), golden_parts.small(), golden_parts.small("left?"))
    ]
    assert kinds == list(Kind)


def test_max_pixels_is_a_dial(processor: Processor) -> None:
    item = golden_parts.picture("aligned_560x448.png")
    grids = [processor.features(item, max_pixels=n * TOKEN).grid_thw for n in (1, 16, 320, 1024)]
    assert grids == [(1, 2, 2), (1, 6, 8), (1, 32, 40), (1, 32, 40)]
    with pytest.raises(errors.UsageError, match="less than one visual token"):
        processor.features(item, max_pixels=100)


def test_pixels_made_before_are_not_made_again(processor: Processor) -> None:
    item = golden_parts.picture("aligned_560x448.png", "left?")
    pixels = processor.pixels(item.image)
    absent = Item(image="no such file.png", instruction="left?")
    once, again = processor.features(item), processor.features(absent, pixels=pixels)
    assert torch.equal(once.input_ids, again.input_ids)
    assert once.image_key == again.image_key
    assert torch.equal(once.pixels, again.pixels)


# -- batches ---------------------------------------------------------------------------------------


def test_a_batch_is_padded_on_the_right(processor: Processor) -> None:
    features = [processor.features(Item(text)) for text in ("a", "a dog and a cat", "!")]
    batch = processor.collate(features)
    longest = max(f.tokens for f in features)
    assert batch.input_ids.shape == batch.attention_mask.shape == (3, longest)
    for row, item in enumerate(features):
        assert torch.equal(batch.input_ids[row, : item.tokens], item.input_ids)
        assert batch.attention_mask[row].tolist() == [n < item.tokens for n in range(longest)]
        assert batch.position_ids[:, row, : item.tokens].tolist() == [list(range(item.tokens))] * 3
        assert not batch.position_ids[:, row, item.tokens :].any()
    assert batch.pixels is None and batch.image_grid_thw is None
    assert batch.image_index.tolist() == [-1, -1, -1]
    assert not batch.instructed.any()


def test_equal_pictures_are_in_a_batch_once(processor: Processor, tmp_path: Path) -> None:
    copy = tmp_path / "the same under another name.png"
    shutil.copy(golden_parts.GOLDEN / "images" / "aligned_560x448.png", copy)
    items = [
        *(golden_parts.small("what?"), Item("a dog")),
        *(golden_parts.picture("aligned_560x448.png"), Item(image=copy, instruction="left?")),
        golden_parts.small(),
    ]
    features = [processor.features(item, max_pixels=12 * TOKEN) for item in items]
    batch = processor.collate(features)
    assert batch.image_index.tolist() == [0, -1, 1, 1, 0]
    assert batch.instructed.tolist() == [True, False, False, True, False]
    assert batch.image_grid_thw.tolist() == [list(features[n].grid_thw) for n in (0, 2)]
    unique = [features[0].pixels.flatten(), features[2].pixels.flatten()]
    assert torch.equal(batch.pixels.values, torch.cat(unique))
    without = processor.collate(features, pixels=False)
    assert without.pixels is None
    assert torch.equal(without.image_grid_thw, batch.image_grid_thw)


def test_an_empty_batch(processor: Processor) -> None:
    batch = processor.collate([])
    assert batch.input_ids.shape == (0, 0)
    assert batch.image_grid_thw is None


def test_what_the_model_computes_with_moves_and_only_patches_change_their_format(
    processor: Processor,
) -> None:
    batch = golden_parts.batch(processor, [golden_parts.small(), Item("a")], tiny=True)
    moved = batch.to("meta", torch.bfloat16)
    for name in ("input_ids", "attention_mask", "position_ids"):
        before, after = getattr(batch, name), getattr(moved, name)
        assert after.device.type == "meta" and after.shape == before.shape
        assert after.dtype == before.dtype
    assert moved.pixels.values.device.type == "meta"
    assert moved.pixels.values.dtype == torch.uint8  # one byte a value goes over the bus
    assert moved.pixels.patches().dtype == torch.bfloat16
    assert moved.pixels.patches().shape == batch.pixels.patches().shape
    for name in ("instructed", "image_grid_thw", "image_index"):  # only the CPU reads these
        assert getattr(moved, name) is getattr(batch, name)
    assert golden_parts.batch(processor, [Item("a")]).to("meta", torch.float16).pixels is None


# -- positions -------------------------------------------------------------------------------------


def test_sequential_positions_count_through_a_picture(processor: Processor) -> None:
    features = processor.features(golden_parts.picture("aligned_wide.png", "left?"))
    positions = processor.position_ids(features.input_ids, features.grid_thw)
    assert positions.tolist() == [list(range(features.tokens))] * 3


def test_mrope_positions_are_those_of_qwen2_vl(processor: Processor) -> None:
    mrope = with_positions(processor, "mrope", max_tokens=4096)
    config = AutoConfig.from_pretrained(golden_parts.BASE, local_files_only=True)
    with torch.device("meta"):
        reference = Qwen2VLModel(config)
    items = [
        *(Item("a dog"), golden_parts.picture("aligned_wide.png", "what is on the left?")),
        *(golden_parts.picture("aligned_560x448.png"), golden_parts.small("what?", size=(90, 20))),
    ]
    batch = golden_parts.batch(mrope, items)
    theirs, _ = reference.get_rope_index(
        batch.input_ids,
        mm_token_type_ids=(batch.input_ids == mrope.image_token_id).int(),
        image_grid_thw=batch.image_grid_thw,
        attention_mask=batch.attention_mask,
    )
    assert torch.equal(batch.position_ids, theirs)
    assert not torch.equal(batch.position_ids, golden_parts.batch(processor, items).position_ids)


# -- what cannot be --------------------------------------------------------------------------------


def test_a_text_beyond_the_model_is_refused_and_not_cut(processor: Processor) -> None:
    with pytest.raises(errors.TextTooLongError, match=r"8,037 tokens .* at most 4,096") as caught:
        processor.features(Item("dog! " * 2000))
    assert "shorten it" in str(caught.value)
    limit = processor.features(Item("a dog")).tokens
    exact = with_positions(processor, "sequential", max_tokens=limit)
    assert exact.features(Item("a dog")).tokens == limit
    with pytest.raises(errors.TextTooLongError, match=f"{limit + 1} tokens .* {limit}"):
        exact.features(Item("a dog!"))


@pytest.mark.parametrize("item", [Item("a dog " * 400), golden_parts.small("the dog? " * 400)])
def test_words_beyond_the_model_are_cut_where_that_is_asked_for(
    processor: Processor, item: Item, caplog: pytest.LogCaptureFixture
) -> None:
    """As much of them as fits, and the end of the prompt stays whole."""
    tight = with_positions(processor, "sequential", max_tokens=600)
    with pytest.raises(errors.TextTooLongError):
        tight.features(item)
    tight.truncate = "end"
    for _ in range(12):
        cut = tight.features(item)
    assert 590 <= cut.tokens <= 600
    full = processor.features(item).input_ids
    assert cut.input_ids[-3:].tolist() == full[-3:].tolist()
    assert cut.input_ids[:150].tolist() == full[:150].tolist()
    assert tight.features(Item("a dog")).tokens == processor.features(Item("a dog")).tokens
    assert tight.truncated == 12
    assert [record.args[0] for record in caplog.records if record.args] == [1, 10]
    tight.max_tokens = 5  # no room for a word
    with pytest.raises(errors.TextTooLongError):
        tight.features(item)


def test_a_picture_beyond_the_model_is_refused(processor: Processor) -> None:
    tight = with_positions(processor, "sequential", max_tokens=300)
    item = golden_parts.picture("aligned_560x448.png", "left?")
    with pytest.raises(errors.TextTooLongError, match=r"320 of them for the picture.*max_pixels"):
        tight.features(item)
    assert tight.features(item, max_pixels=200 * TOKEN).tokens <= 300


@pytest.mark.parametrize(
    "item", [Item("a <|image_pad|>"), golden_parts.small("what is <|image_pad|>?")]
)
def test_the_placeholder_cannot_be_smuggled_in(processor: Processor, item: Item) -> None:
    with pytest.raises(errors.TextError, match="stands for a picture"):
        processor.features(item)


def test_a_strip_names_itself(processor: Processor) -> None:
    strip = np.zeros((1, 5000, 3), np.uint8)
    with pytest.raises(errors.AspectError, match=r"given as array: .*5000 x 1 pixels"):
        processor.features(Item(image=strip))


def test_the_decode_limit_reaches_the_opener() -> None:
    small = Processor.from_folder(golden_parts.BASE, decode_limit=1000)
    with pytest.raises(errors.ImageTooLargeError, match="1,000 pixels"):
        small.features(golden_parts.picture("small.png"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"positions": "random"}, "sequential' or 'mrope"),
        ({"max_tokens": 0}, "at least 1"),
        ({"decode_limit": 0}, "at least 1"),
    ],
)
def test_impossible_settings(options: dict, words: str) -> None:
    tokenizer, template = read_tokenizer(golden_parts.BASE), read_chat_template(golden_parts.BASE)
    with pytest.raises(errors.ConfigError, match=words):
        Processor(tokenizer, template, ImageBudget(), **options)


# -- on disk ---------------------------------------------------------------------------------------


def test_what_is_saved_reads_back_the_same(processor: Processor, tmp_path: Path) -> None:
    budget = ImageBudget(min_pixels=4 * TOKEN, max_pixels=16 * TOKEN, max_aspect=9, mean=(0, 0, 0))
    chat = processor.chat
    ours = Processor(chat.tokenizer, chat.template, budget, "mrope", max_tokens=77)
    ours.save(tmp_path / "new" / "folder")
    (tmp_path / "new" / "folder" / "config.json").write_text('{"model_type": "qwen2_vl"}')
    again = Processor.from_folder(tmp_path / "new" / "folder")
    assert again.settings() == ours.settings()
    assert again.image == budget
    assert (again.positions, again.max_tokens) == ("mrope", 77)
    assert again.prompt_hash == ours.prompt_hash


def test_a_published_folder_can_be_told_its_budget_and_positions() -> None:
    plain = Processor.from_folder(golden_parts.BASE)
    assert (plain.positions, plain.max_tokens) == ("sequential", 4096)
    told = Processor.from_folder(
        golden_parts.BASE, positions="mrope", min_pixels=4 * TOKEN, max_pixels=8 * TOKEN
    )
    assert (told.positions, told.image.min_pixels) == ("mrope", 4 * TOKEN)
    assert told.image.max_pixels == 8 * TOKEN


def test_a_folder_with_a_file_missing_or_damaged(tmp_path: Path) -> None:
    folder = tmp_path / "base"
    shutil.copytree(golden_parts.BASE, folder)
    folder.chmod(0o755)
    path = folder / "preprocessor_config.json"
    path.unlink()
    with pytest.raises(errors.CheckpointError, match=r"no file .*preprocessor_config\.json"):
        Processor.from_folder(folder)
    settings = json.loads((golden_parts.BASE / "preprocessor_config.json").read_text())
    edges = {
        "shortest_edge": settings.pop("min_pixels"),
        "longest_edge": settings.pop("max_pixels"),
    }
    path.write_text(json.dumps(settings | {"size": edges}))  # as newer releases write it
    assert Processor.from_folder(folder).image == ImageBudget()
    path.write_text(json.dumps({"min_pixels": 10}))
    with pytest.raises(errors.CheckpointError, match="incomplete or damaged"):
        Processor.from_folder(folder)
