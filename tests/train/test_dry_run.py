"""Trying a recipe out: the counts are those of the real run, and nothing is loaded or written."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from abc_embed import weights
from abc_embed.errors import OfflineError, UsageError
from abc_embed.train.config import TrainConfig
from abc_embed.train.dry_run import dry_run
from abc_embed.train.memory import GIB


@pytest.fixture
def bare(golden: Path, tmp_path: Path) -> Path:
    """A model's folder without its weights."""
    folder = tmp_path / "bare"
    shutil.copytree(golden / "base", folder)
    (folder / "model.safetensors").unlink()
    return folder


def recipe(config: Any, base: Path, stage: str = "pretrain", **train: Any) -> TrainConfig:
    made: TrainConfig = config(stage, **train)
    model = replace(made.model, base=str(base), head_width=96, pixels=(784, 3136))
    return replace(made, model=model)


def test_the_counts_are_those_of_training(
    config: Any, bare: Path, pictures: Any, make_stage: Any
) -> None:
    settings = recipe(config, bare)
    plan = dry_run(settings, "24GB", pictures("pretrain"))
    real = list(make_stage(config("pretrain")).parameters.values())
    assert sum(group.tensors for group in plan.groups) == len(real)
    assert sum(group.parameters for group in plan.groups) == sum(p.numel() for p in real)
    names = [group.name for group in plan.groups]
    assert names == ["LoRA, vision encoder", "LoRA, language model", "head", "temperature"]
    assert plan.load.images == plan.load.queries == 4 and plan.load.candidates > 4
    assert plan.load.padded >= plan.load.tokens > 0 and plan.load.patches == 4 * 16
    assert plan.memory.optimizer == 2 * plan.memory.trained == 8 * sum(p.numel() for p in real)
    assert plan.fits and plan.gpu_bytes == 24 * GIB and plan.number_format == "bfloat16"


def test_stage_2_trains_the_language_model_alone(config: Any, bare: Path, pictures: Any) -> None:
    (bare / "abc.json").write_text(json.dumps({"head_width": 96}))
    made = config("instruct")
    settings = replace(made, model=replace(made.model, base=str(bare)))
    plan = dry_run(settings, "24GB", pictures("instruct"))
    assert [group.name for group in plan.groups] == ["LoRA, language model"]
    assert plan.load.queries == 2 * plan.load.images == 8


def test_nothing_is_read_of_the_weights_and_nothing_written(
    config: Any, golden: Path, pictures: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("weights were opened")

    monkeypatch.setattr(weights, "open_weights", refuse)
    monkeypatch.chdir(tmp_path)
    settings = replace(recipe(config, golden / "base"), out=str(tmp_path / "run"))
    before = sorted(golden.rglob("*"))
    dry_run(settings, "8", pictures("pretrain"))
    assert list(tmp_path.iterdir()) == [] and sorted(golden.rglob("*")) == before


def test_a_gpu_that_is_too_small_is_told_with_the_chunk_that_fits(
    config: Any, bare: Path, pictures: Any
) -> None:
    whole = recipe(config, bare, batch_size=12)
    large = dry_run(whole, "24GB", pictures("pretrain"))
    size = large.memory.total - large.memory.activations // 2  # half of its activations fit
    plan = dry_run(whole, f"{size / GIB:.9f}GB", pictures("pretrain"))
    assert not plan.fits and 0 < plan.fitting_chunk < 24
    mended = recipe(config, bare, batch_size=12, chunk_size=plan.fitting_chunk)
    assert dry_run(mended, f"{size / GIB:.9f}", pictures("pretrain")).fits
    tiny = dry_run(whole, "0.001GB", pictures("pretrain"))
    assert not tiny.fits and tiny.fitting_chunk == 0


def test_a_name_that_is_not_here_is_not_fetched(config: Any, pictures: Any) -> None:
    settings = recipe(config, Path("Qwen/Qwen2-VL-7B-Instruct"))
    with pytest.raises(OfflineError, match="a dry run fetches nothing"):
        dry_run(settings, "24GB", pictures("pretrain"))


@pytest.mark.parametrize("gpu", ["much", "24MB", "-3", "0"])
def test_a_gpu_that_is_no_size(gpu: str, config: Any, bare: Path, pictures: Any) -> None:
    with pytest.raises(UsageError, match="give a size like 24GB"):
        dry_run(recipe(config, bare), gpu, pictures("pretrain"))
