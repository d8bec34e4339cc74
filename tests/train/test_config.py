"""Configuration files: the shipped ones hold the paper's numbers, a wrong one gets one sentence."""

import ast
import inspect
from pathlib import Path

import pytest

from abc_embed.errors import ConfigError
from abc_embed.train import config as train_config
from abc_embed.train.config import TemperatureConfig, load_config

CONFIGS = Path(__file__).parents[2] / "configs"

GOOD = """\
stage = "pretrain"
out = "runs/x"

[adapter]
rank = 4
alpha = 8

[optim]
betas = [0.9, 0.99]
clip_norm = 2

[train]
steps = 10
batch_size = 2
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "run.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_reads_a_file_and_overrides(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD)
    config = load_config(path)
    assert config.optim.betas == (0.9, 0.99) and config.train.steps == 10
    assert config.optim.clip_norm == 2.0 and isinstance(config.optim.clip_norm, float)
    changed = load_config(
        path,
        ["train.steps=99", "model.base=some/name", "data.records='a b'", "temperature.learn=false"],
    )
    assert changed.train.steps == 99 and changed.model.base == "some/name"
    assert changed.data.records == "a b" and changed.temperature.learn is False
    assert changed.optim == config.optim and changed.adapter == config.adapter


@pytest.mark.parametrize(
    ("old", "new", "name", "line"),
    [
        ("rank = 4", "rang = 4", "adapter.rang is not a field", "line 5"),
        ("rank = 4", 'rank = "4"', "adapter.rank is '4'; it must be a whole number", "line 5"),
        ("rank = 4", "rank = 4.0", "adapter.rank is 4.0", "line 5"),
        ("rank = 4", "rank = true", "adapter.rank is True", "line 5"),
        ("rank = 4", "", "adapter.rank is missing", "line 4"),
        ("rank = 4", "rank = 0", "adapter.rank is 0; it must be at least 1", "line 5"),
        ('stage = "pretrain"', 'stage = "third"', "stage is 'third'; it must be one of", "line 1"),
        ('stage = "pretrain"', "", "stage is missing", ""),
        ("[0.9, 0.99]", "[0.9]", "optim.betas is [0.9]; it must be a list of 2", "line 9"),
        ("[0.9, 0.99]", "[0.9, 1.0]", "optim.betas is (0.9, 1.0)", "line 9"),
        ("clip_norm = 2", "clip_norm = -1", "optim.clip_norm is -1.0", "line 10"),
        ("clip_norm = 2", "clip_norm = true", "optim.clip_norm is True; it must be", "line 10"),
        ("clip_norm = 2", "clip_norm = nan", "optim.clip_norm is nan", "line 10"),
        ("[optim]", "[optimizer]", "optimizer is not a field", "line 8"),
        ("[adapter]", "adapter = 3\n[other]", "adapter is 3; it must be a section", "line 4"),
        ("steps = 10", "steps = 0", "train.steps is 0", "line 13"),
    ],
)
def test_a_mistake_names_field_file_and_line(
    old: str, new: str, name: str, line: str, tmp_path: Path
) -> None:
    assert old in GOOD
    path = write(tmp_path, GOOD.replace(old, new))
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    message = str(caught.value)
    assert name in message and str(path) in message and line in message and "\n" not in message


def test_a_wrong_override_names_the_field_not_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD)
    with pytest.raises(ConfigError, match=r"train\.steps is 'many'.*\(--set\)"):
        load_config(path, ["train.steps=many"])
    with pytest.raises(ConfigError, match=r"train\.stops is not a field.*\(--set\)"):
        load_config(path, ["train.stops=3"])
    with pytest.raises(ConfigError, match="not of the form"):
        load_config(path, ["train.steps"])
    with pytest.raises(ConfigError, match="out is a value, not a section"):
        load_config(path, ["out.there=3"])


def test_impossible_combinations(tmp_path: Path) -> None:
    stage2 = GOOD.replace("pretrain", "instruct")
    assert load_config(write(tmp_path, stage2)).temperature == TemperatureConfig()
    with pytest.raises(ConfigError, match="temperature is set for stage 2"):
        load_config(write(tmp_path, stage2 + "\n[temperature]\nstart = 0.05\n"))
    with pytest.raises(ConfigError, match=r"temperature\.start is 0\.05.*floor.*line 17"):
        load_config(write(tmp_path, GOOD + "\n[temperature]\nstart = 0.05\nfloor = 0.1\n"))
    with pytest.raises(ConfigError, match=r"model\.pixels"):
        load_config(write(tmp_path, GOOD + "\n[model]\npixels = [9, 4]\n"))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read the configuration .*gone\.toml"):
        load_config(tmp_path / "gone.toml")
    with pytest.raises(ConfigError, match=r"is not valid TOML.*line 1"):
        load_config(write(tmp_path, "stage = pretrain"))


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.toml")), ids=lambda path: path.stem)
def test_shipped_configurations_are_valid(path: Path) -> None:
    config = load_config(path)
    assert config.stage == path.stem.split("-")[0]
    assert config.out and config.model.base and config.data.records


def test_the_papers_numbers() -> None:
    first = load_config(CONFIGS / "pretrain-7b-8gpu.toml")
    second = load_config(CONFIGS / "instruct-7b.toml")
    assert (first.adapter.rank, first.adapter.alpha) == (64, 128)
    assert (second.adapter.rank, second.adapter.alpha) == (16, 32)
    assert (first.train.steps, first.train.batch_size, first.data.negatives) == (4000, 512, 7)
    assert (second.train.steps, second.train.batch_size, second.data.instructions) == (100, 128, 4)
    for config in (first, second):
        assert config.optim.learning_rate == 4e-5 and config.optim.betas == (0.9, 0.999)
        assert config.optim.weight_decay == 1e-3 and config.optim.warmup_share == 0.03
        assert config.train.label_smoothing == 0.1 and config.train.gradient_checkpointing
        assert config.data.max_pixels == 512 * 28 * 28 and config.model.precision == "bfloat16"
    assert first.temperature.start == 0.07 and first.temperature.learn
    assert first.model.pixels == (256 * 28 * 28, 1024 * 28 * 28)


def test_every_field_says_what_it_means() -> None:
    """A text under each field; for a section, the docstring of its class is that text."""
    for node in ast.parse(inspect.getsource(train_config)).body:
        if not isinstance(node, ast.ClassDef):
            continue
        for field, after in zip(node.body, [*node.body[1:], None], strict=True):
            if not isinstance(field, ast.AnnAssign):
                continue
            has_text = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
            is_section = ast.unparse(field.annotation).endswith("Config")
            assert has_text or is_section, f"{node.name}.{ast.unparse(field.target)}"
