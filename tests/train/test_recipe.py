"""From a TOML file to a trained folder, and what a wrong file gets before anything is loaded."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from abc_embed import checkpoint
from abc_embed.errors import ConfigError, UnknownModelError
from abc_embed.train.batches import Group
from abc_embed.train.logbook import read_metrics
from abc_embed.train.recipe import train_from_config

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
    first = train_from_config(recipe, source=pictures("pretrain"))
    assert first == tmp_path / "one" / "model"
    model, processor = checkpoint.load(str(first))
    assert not model.has_instruct_adapter
    assert (processor.settings()["min_pixels"], processor.settings()["max_pixels"]) == (784, 3136)

    stage2 = ["stage=instruct", f"model.base={first}", f"out={tmp_path}/two"]
    second = train_from_config(recipe, stage2, source=pictures("instruct"))
    trained, _ = checkpoint.load(str(second))
    assert trained.has_instruct_adapter
    assert trained.temperature.value == model.temperature.value
    assert len(read_metrics(tmp_path / "two" / "metrics.jsonl")) == 3

    # What stage 2 made can be trained again; its adapter is left out first.
    again = ["stage=instruct", f"model.base={second}", f"out={tmp_path}/three"]
    repeated, _ = checkpoint.load(
        str(train_from_config(recipe, again, source=pictures("instruct")))
    )
    for (name, one), (_, other) in zip(
        sorted(trained.state_dict().items()), sorted(repeated.state_dict().items()), strict=True
    ):
        assert one.equal(other), name


def test_the_same_command_goes_on(recipe: Path, tmp_path: Path, pictures: Any) -> None:
    with pytest.raises(KeyboardInterrupt):
        train_from_config(recipe, source=pictures("pretrain", stop_before=2))
    train_from_config(recipe, source=pictures("pretrain"))
    train_from_config(recipe, [f"out={tmp_path}/whole"], source=pictures("pretrain"))
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
        ("stage=instruct", "stage 2 needs a model that has passed stage 1"),
    ],
)
def test_what_is_missing_is_said_before_anything_starts(
    override: str, message: str, recipe: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        train_from_config(recipe, [override], source=Never())
    assert not (tmp_path / "one").exists()


def test_records_or_a_source_is_needed(recipe: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.records is missing"):
        train_from_config(recipe)


def test_an_unknown_base_is_named(recipe: Path) -> None:
    with pytest.raises(UnknownModelError, match="no such thing"):
        train_from_config(recipe, ["model.base='no such thing'"], source=Never())
