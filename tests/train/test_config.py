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
    assert load_config(path, ["train.matryoshka=[64, 32]"]).train.matryoshka == (64, 32)


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
        ("steps = 10", "stepz = 10", "train.stepz is not a field; did you mean steps?", "line 13"),
        ("clip_norm = 2", "learning_rate = inf", "finite", "line 10"),
        ("[0.9, 0.99]", '[0.9, "x"]', "optim.betas is 'x'; it must be a number", "line 9"),
        ('out = "runs/x"', "out = 5", 'out is 5; it must be a text, in quotes: "5"', "line 2"),
        ("[optim]", "[optim.more]\nx = 1\n[optim]", "optim.more is not a field", "line 8"),
        ("steps = 10", 'steps = 10\nlog_to = "wanb"', "train.log_to is 'wanb'", "line 14"),
        ("steps = 10", f"steps = 10\nseed = {2**63}", "train.seed is", "line 14"),
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


@pytest.mark.parametrize("text", ["adapter.rank = '4'", "adapter = { rank = '4', alpha = 8 }"])
def test_the_line_is_found_in_every_way_of_writing_it(text: str, tmp_path: Path) -> None:
    rest = GOOD.replace("[adapter]\nrank = 4\nalpha = 8\n", "")
    more = "adapter.alpha = 8\n" if text.startswith("adapter.") else ""
    with pytest.raises(ConfigError, match=r"adapter\.rank is '4'.*line 3\b"):
        load_config(write(tmp_path, rest.replace("\n\n", f"\n{text}\n{more}\n", 1)))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["train.steps=3\nbatch_size=4"], "sets more than one field"),
        (["train={steps = 3}"], "sets more than one field"),
        (["train=3"], "train is a section; set one of its fields"),
        (["train.steps=3", "train.steps=4"], "train.steps is given twice"),
        (["train..steps=3"], "not of the form"),
        (["=3"], "not of the form"),
        (["train.steps="], "train.steps is ''"),
        (["out=7"], 'in quotes: "7"'),
        (["model.pixels=[1]"], "model.pixels is [1]; it must be a list of 2"),
        (["train.matryoshka=64"], "train.matryoshka is 64; it must be a list"),
        (['train.matryoshka=["a"]'], "train.matryoshka is 'a'; it must be a whole number"),
    ],
)
def test_overrides_are_as_strict_as_the_file(
    overrides: list[str], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path, GOOD), overrides)
    assert message in str(caught.value) and "\n" not in str(caught.value).replace("\\n", "")


@pytest.mark.parametrize(
    ("stage", "overrides", "message"),
    [
        ("pretrain", ["data.instructions=2"], "data.instructions is 2, which is for stage 2"),
        ("instruct", ["data.negatives=3"], "data.negatives is 3, which is for stage 1"),
        ("instruct", ["data.negatives_file=x.parquet"], "data.negatives_file is 'x.parquet', whi"),
        ("instruct", ["model.head_width=8"], "model.head_width is 8, which is for stage 1"),
        ("instruct", ["model.pixels=[1, 2]"], "model.pixels is (1, 2), which is for stage 1"),
        ("instruct", ["temperature.learn=false"], "temperature is set for stage 2"),
        ("pretrain", ["data.negatives=0", "data.negatives_file=x"], "nothing of data.negatives_fi"),
        ("pretrain", ["train.batch_size=1", "data.negatives=0"], "one candidate"),
        ("instruct", ["train.batch_size=1", "data.instructions=1"], "one candidate"),
        ("pretrain", ["model.pixels=[900, 0]", "data.max_pixels=800"], "less than the smallest"),
        (
            "pretrain",
            ["model.attention=flash_attention_2", "model.device=cpu"],
            "model.device is 'cpu'; it must be something else",
        ),
        (
            "pretrain",
            ["model.attention=flash_attention_2", "model.precision=float32"],
            "model.precision is 'float32'; it must be something else",
        ),
        ("pretrain", ["model.attention=fast"], "model.attention is 'fast'; it must be one of"),
    ],
)
def test_what_cannot_go_together(
    stage: str, overrides: list[str], message: str, tmp_path: Path
) -> None:
    """As overrides, and in the file with its line."""
    path = write(tmp_path, GOOD.replace("pretrain", stage))
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    assert message in str(caught.value) and "\n" not in str(caught.value)
    if "temperature" not in message:  # that is about a section, and --set named a field of it
        assert "(--set)" in str(caught.value)
    sections: dict[str, list[str]] = {}
    for override in overrides:
        name, _, value = override.partition("=")
        section, key = name.split(".")
        quoted = value if value[0] in "[0123456789tf" and value not in ("float32", "fast") else ""
        quoted = "" if value.startswith("flash") else quoted
        sections.setdefault(section, []).append(f"{key} = {quoted or repr(value)}")
    text = GOOD.replace("pretrain", stage).replace("batch_size = 2\n", "")
    train = sections.pop("train", ["batch_size = 2"])
    text += "\n".join(train) + "\n"
    text += "".join(f"[{name}]\n" + "\n".join(rows) + "\n" for name, rows in sections.items())
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"line \d+\)") as caught:
        load_config(path)
    assert message in str(caught.value)


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
    stages = {"pretrain": "pretrain", "mining": "pretrain", "instruct": "instruct"}
    assert config.stage == stages[path.stem.split("-")[0]]
    if path.stem.startswith("mining"):
        assert config.data.negatives == 0
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


def test_the_mining_models_numbers() -> None:
    config = load_config(CONFIGS / "mining-model-7b.toml")
    assert (config.train.steps, config.train.batch_size, config.data.negatives) == (1000, 256, 0)


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
