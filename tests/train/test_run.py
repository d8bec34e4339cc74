"""From a TOML file to a trained folder, and what a wrong file gets before anything is loaded."""

import os
import resource
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from abc_embed import checkpoint
from abc_embed.errors import ConfigError, OutputError, TrainingError, UnknownModelError
from abc_embed.train.batches import Group
from abc_embed.train.metrics_logger import read_metrics
from abc_embed.train.run import train_from_config

RECIPE = """\
stage = "pretrain"
out = "{out}/one"
[model]
base = "{base}"
head_width = 96
pixels = [784, 3136]
device = "cpu"
[adapter]
rank = 4
alpha = 8
[optim]
learning_rate = 1e-3
[train]
steps = 3
batch_size = 4
checkpoint_every = 2
"""


@pytest.fixture
def recipe(golden: Path, tmp_path: Path) -> Path:
    path = tmp_path / "run.toml"
    path.write_text(RECIPE.format(out=tmp_path, base=golden / "base"), encoding="utf-8")
    return path


def test_both_stages_from_files(recipe: Path, tmp_path: Path, pictures: Any) -> None:
    first = train_from_config(recipe, sampler=pictures("pretrain"))
    assert first == tmp_path / "one" / "model"
    model, processor = checkpoint.load(str(first))
    assert not model.has_instruct_adapter
    assert (processor.settings()["min_pixels"], processor.settings()["max_pixels"]) == (784, 3136)

    recipe.write_text(recipe.read_text().replace("head_width = 96\npixels = [784, 3136]\n", ""))
    stage2 = ["stage=instruct", f"model.base={first}", f"out={tmp_path}/two"]
    second = train_from_config(recipe, stage2, sampler=pictures("instruct"))
    trained, _ = checkpoint.load(str(second))
    assert trained.has_instruct_adapter
    assert trained.temperature.value == model.temperature.value
    assert len(read_metrics(tmp_path / "two" / "metrics.jsonl")) == 3


def test_the_same_command_goes_on(recipe: Path, tmp_path: Path, pictures: Any) -> None:
    with pytest.raises(KeyboardInterrupt):
        train_from_config(recipe, sampler=pictures("pretrain", stop_before=2))
    train_from_config(recipe, sampler=pictures("pretrain"))
    train_from_config(recipe, [f"out={tmp_path}/whole"], sampler=pictures("pretrain"))
    broken, whole = (read_metrics(tmp_path / d / "metrics.jsonl") for d in ("one", "whole"))
    assert [row["loss"] for row in broken] == [row["loss"] for row in whole]


class Never:
    """A source that must not be asked."""

    def groups(self, step: int, count: int, seed: int) -> Sequence[Group]:
        raise AssertionError


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("out=''", "out is missing"),
        ("model.base=''", "model.base is missing"),
        ("stage=instruct", "which is for stage 1"),
    ],
)
def test_what_is_missing_is_said_before_anything_starts(
    override: str, message: str, recipe: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        train_from_config(recipe, [override], sampler=Never())
    assert not (tmp_path / "one").exists()


def test_records_or_a_source_is_needed(recipe: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.records is missing"):
        train_from_config(recipe)


def test_an_unknown_base_is_named(recipe: Path) -> None:
    with pytest.raises(UnknownModelError, match="no such thing"):
        train_from_config(recipe, ["model.base='no such thing'"], sampler=Never())


def test_stage_2_needs_what_stage_1_made(recipe: Path) -> None:
    recipe.write_text(recipe.read_text().replace("head_width = 96\npixels = [784, 3136]\n", ""))
    with pytest.raises(ConfigError, match="stage 2 needs a model that has passed stage 1"):
        train_from_config(recipe, ["stage=instruct"], sampler=Never())


def refuse(*arguments: Any, **options: Any) -> None:
    raise AssertionError("a model was loaded")


def test_another_configuration_is_found_before_the_model_is_loaded(
    recipe: Path, pictures: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_from_config(recipe, sampler=pictures("pretrain"))
    monkeypatch.setattr(checkpoint, "load_base", refuse)
    with pytest.raises(TrainingError, match=r"optim\.learning_rate was 0\.001 .* is 0\.002 now"):
        train_from_config(recipe, ["optim.learning_rate=2e-3"], sampler=Never())
    with pytest.raises(TrainingError, match="holds a run already"):
        train_from_config(recipe, sampler=Never(), resume=False)


def test_a_folder_that_cannot_be_is_found_before_the_model_is_loaded(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "load_base", refuse)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match=r"file is a file; choose another folder"):
        train_from_config(recipe, [f"out={tmp_path}/file/run"], sampler=Never())
    monkeypatch.setattr(os, "access", lambda *_: False)  # the superuser may write anywhere
    with pytest.raises(OutputError, match=r"may not be written; choose another folder"):
        train_from_config(recipe, sampler=Never())


@contextmanager
def disk_of(largest: int) -> Iterator[None]:
    """The system refuses to let any file grow beyond `largest` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("largest", [4_000, 400_000])
def test_a_disk_that_is_full_leaves_the_last_good_checkpoint(
    largest: int, recipe: Path, tmp_path: Path, pictures: Any
) -> None:
    """Refused by the system itself: first a checkpoint's file, then the model's, the largest."""
    with pytest.raises(KeyboardInterrupt):
        train_from_config(recipe, sampler=pictures("pretrain", stop_before=2))
    folder = tmp_path / "one/checkpoints/step-00000002"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    if largest > 10_000:
        assert max(map(len, before.values())) < largest
    with disk_of(largest), pytest.raises(OutputError, match=r"cannot (write|be saved)") as caught:
        train_from_config(recipe, sampler=pictures("pretrain"))
    assert "\n" not in str(caught.value)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    left = {path.name for path in (tmp_path / "one").iterdir()}
    assert left == {".lock", "checkpoints", "metrics.jsonl"}
    train_from_config(recipe, sampler=pictures("pretrain"))
    train_from_config(recipe, [f"out={tmp_path}/whole"], sampler=pictures("pretrain"))
    broken, whole = (read_metrics(tmp_path / d / "metrics.jsonl") for d in ("one", "whole"))
    assert [row["loss"] for row in broken] == [row["loss"] for row in whole]
