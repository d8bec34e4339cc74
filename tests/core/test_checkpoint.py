"""Our own folders: bit-equal vectors, what they record, saving that is never half done."""

import json
from pathlib import Path
from typing import Any

import golden_parts
import pytest
import torch
from golden_parts import BASE, small

from abc_embed import adapters, checkpoint
from abc_embed.errors import CheckpointError, OutputError
from abc_embed.inputs import Item

ITEMS = [Item(text="a dog!"), small(shade=3), small("what is on the left?", shade=3)]


def vectors(loaded: checkpoint.Loaded) -> torch.Tensor:
    return golden_parts.vectors(loaded, ITEMS, tiny=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("instruct", [True, False])
def test_a_saved_model_gives_bit_equal_vectors(
    dtype: torch.dtype, instruct: bool, tmp_path: Path
) -> None:
    loaded = golden_parts.published(instruct, dtype=dtype)
    checkpoint.save(*loaded, tmp_path / "mine")
    again = checkpoint.load(str(tmp_path / "mine"), dtype=dtype)
    assert torch.equal(vectors(again), vectors(loaded))
    assert checkpoint.describe(*again) == checkpoint.describe(*loaded)
    assert again[0].source == loaded[0].source


def test_a_trained_stage_2_adapter_comes_back_bit_equal(tmp_path: Path) -> None:
    model, processor = golden_parts.published(instruct=False)
    adapters.attach_stage2(model, r=2, alpha=4)
    with torch.no_grad():
        for parameter in adapters.set_trainable(model, "instruct"):
            parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(0))
    model.requires_grad_(False)  # as a loaded one is; while it trains nothing is merged
    checkpoint.save(model, processor, tmp_path / "mine")
    again = checkpoint.load(str(tmp_path / "mine"))
    assert torch.equal(vectors(again), vectors((model, processor)))


def test_a_model_saved_in_float16_is_half_as_large_and_loads_as_float32(tmp_path: Path) -> None:
    loaded = golden_parts.shared()
    sizes = {}
    for dtype in (None, torch.float16):
        folder = tmp_path / str(dtype)
        checkpoint.save(*loaded, folder, dtype=dtype)
        sizes[dtype] = sum(p.stat().st_size for p in folder.rglob("*.safetensors"))
    assert sizes[torch.float16] < 0.55 * sizes[None]
    again = checkpoint.load(str(folder))
    assert again[0].dtype == torch.float32
    assert (vectors(again) * vectors(loaded)).sum(dim=1).min() > 0.999


def test_a_saved_folder_says_what_decides_a_vector(tmp_path: Path) -> None:
    model, processor = golden_parts.published()
    checkpoint.save(model, processor, tmp_path / "mine")
    facts = json.loads((tmp_path / "mine" / "abc.json").read_text())
    assert facts["format"] == 1
    assert facts["positions"] == "sequential"
    assert (facts["min_pixels"], facts["max_pixels"]) == (200704, 802816)
    assert facts["pooling"] == "mean"
    assert facts["instruct_adapter"] is True
    assert facts["temperature"] == pytest.approx(0.0412)
    assert facts["source"]["base"] == "base"
    assert facts["prompt_hash"] == processor.prompt_hash
    card = (tmp_path / "mine" / "README.md").read_text()
    assert "sequential" in card
    assert "base: base, pretrain: pretrain_adapter" in card


def test_transformers_itself_reads_the_saved_backbone(tmp_path: Path) -> None:
    from transformers import Qwen2VLModel

    model, processor = golden_parts.published()
    checkpoint.save(model, processor, tmp_path / "mine")
    vlm, report = Qwen2VLModel.from_pretrained(tmp_path / "mine", output_loading_info=True)
    assert not any(report.values())
    assert vlm.config.text_config.is_causal is False
    # The small numbers of one layer are enough to see that weights, not fresh ones, came.
    layer = model.backbone.vlm.visual.blocks[0].attn.qkv.weight
    assert torch.equal(vlm.visual.blocks[0].attn.qkv.weight, layer)


def test_saving_twice_makes_equal_files(tmp_path: Path) -> None:
    loaded = golden_parts.published()
    contents = []
    for name in ("one", "two"):
        checkpoint.save(*loaded, tmp_path / name)
        contents.append(
            {
                str(path.relative_to(tmp_path / name)): path.read_bytes()
                for path in (tmp_path / name).rglob("*")
                if path.is_file()
            }
        )
    assert contents[0] == contents[1]


def test_saving_replaces_a_model_of_ours_and_nothing_else(tmp_path: Path) -> None:
    loaded = golden_parts.shared()
    mine = tmp_path / "deep" / "mine"
    checkpoint.save(*loaded, mine)
    (mine / "stale.txt").write_text("from before")
    checkpoint.save(*loaded, mine)
    assert not (mine / "stale.txt").exists()
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"cat")
    (tmp_path / "file").write_text("a file")
    for other in ("photos", "file"):
        with pytest.raises(OutputError, match="no model of ours"):
            checkpoint.save(*loaded, tmp_path / other)
    with pytest.raises(OutputError, match="cannot be saved"):
        checkpoint.save(*loaded, tmp_path / "file" / "below")
    assert (tmp_path / "photos" / "cat.jpg").read_bytes() == b"cat"
    assert sorted(path.name for path in mine.parent.iterdir()) == ["mine"]


def test_a_broken_off_save_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, processor = golden_parts.published()
    mine = tmp_path / "mine"
    checkpoint.save(model, processor, mine)
    before = (mine / "abc.json").read_bytes()

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(processor, "save", full)
    with pytest.raises(OutputError, match="No space left on device"):
        checkpoint.save(model, processor, mine)
    with pytest.raises(OutputError, match="No space left on device"):
        checkpoint.save(model, processor, tmp_path / "other")
    assert (mine / "abc.json").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_an_unmerged_stage_1_adapter_is_not_saved_silently(tmp_path: Path) -> None:
    model, processor = golden_parts.base()
    adapters.attach_stage1(model)
    with pytest.raises(CheckpointError, match="merge_stage1"):
        checkpoint.save(model, processor, tmp_path / "mine")


@pytest.mark.parametrize(
    ("facts", "named"),
    [
        ({"format": 2}, "format 2"),
        ({"pooling": "last"}, "pooling 'last'"),
        ({"head_width": None}, "'head_width'"),
        ({"instruct_adapter": "yes"}, "'instruct_adapter'"),
    ],
)
def test_a_folder_with_other_facts_is_refused(
    facts: dict[str, Any], named: str, tmp_path: Path
) -> None:
    checkpoint.save(*golden_parts.shared(), tmp_path / "mine")
    path = tmp_path / "mine" / "abc.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | facts))
    with pytest.raises(CheckpointError, match=named):
        checkpoint.load(str(tmp_path / "mine"))


@pytest.mark.parametrize(
    "file",
    [
        "config.json",
        "model.safetensors",
        "head.safetensors",
        "instruct_adapter/adapter_config.json",
        "instruct_adapter/adapter_model.safetensors",
        "tokenizer.json",
        "chat_template.jinja",
        "preprocessor_config.json",
    ],
)
def test_a_folder_that_lost_a_file_is_an_error(file: str, tmp_path: Path) -> None:
    checkpoint.save(*golden_parts.shared(), tmp_path / "mine")
    (tmp_path / "mine" / file).unlink()
    with pytest.raises(CheckpointError, match=Path(file).stem.replace("_", ".")):
        checkpoint.load(str(tmp_path / "mine"))


def test_a_plain_base_is_no_embedder() -> None:
    with pytest.raises(CheckpointError, match="from_adapters"):
        checkpoint.load(str(BASE))
