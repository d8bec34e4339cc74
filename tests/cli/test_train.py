"""`abc-embed train`: a recipe tried out, trained, drawn; what goes wrong is one sentence."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from cli_parts import Cli, leftovers
from golden_parts import BASE
from process_parts import command, run_processes

from abc_embed.cli import train

RECIPE = """\
stage = "pretrain"
out = "run"
[model]
base = "{base}"
head_width = 96
pixels = [784, 3136]
device = "cpu"
[data]
records = "scenes"
negatives = 0
[adapter]
rank = 4
alpha = 8
[train]
steps = 2
batch_size = 4
chunk_size = 4
"""


@pytest.fixture
def recipe(cli: Cli, here: Path) -> Path:
    """A recipe of the mining model, and the scenes that it names."""
    assert cli("scenes", "--count", 6, "--out", "scenes", "--side", 56).code == 0
    (here / "run.toml").write_text(RECIPE.format(base=BASE))
    return here / "run.toml"


def test_a_dry_run_changes_nothing(cli: Cli, here: Path, recipe: Path) -> None:
    known = {path.name for path in here.iterdir()}
    done = cli("train", "mining-model", "--config", recipe, "--dry-run", "--gpu", "24GB")
    assert done.code == 0 and leftovers(here, known) == set()
    for words in ("LoRA, language model", "temperature", "tokens", "chunks", "AdamW's means"):
        assert words in done.out
    assert "It fits a GPU of 24 GB" in done.err
    again = cli("train", "mining-model", "--config", recipe, "--dry-run", "--json")
    plan = json.loads(again.out)
    assert plan["load"]["images"] == 4 and plan["total_bytes"] > plan["memory"]["frozen"] > 0


def test_train_log_and_draw(cli: Cli, here: Path, recipe: Path) -> None:
    done = cli("train", "mining-model", "--config", recipe, "--log-to", "none")
    assert done.code == 0 and "the model is in run/model" in done.out
    assert (here / "run/model/abc.json").is_file()
    drawn = cli("train", "plot", "run")
    assert drawn.code == 0 and (here / "runs.png").read_bytes()[:4] == b"\x89PNG"


def test_learning_rates_and_a_profile_leave_no_run(
    cli: Cli, here: Path, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from abc_embed.train import trials

    monkeypatch.setattr(trials, "SWEEP_STEPS", 30)
    words = ("train", "pretrain", "--config", recipe)
    done = cli(*words, "--find-lr", "rates")
    assert done.code == 0 and "learning rate" in done.out
    assert "suggested: --set optim.learning_rate=" in done.out or "fell at no" in done.out
    assert {path.name for path in (here / "rates").iterdir()} == {
        "learning_rates.csv",
        "learning_rates.png",
    }
    done = cli(*words, "--profile", "profile")
    assert done.code == 0 and "backward passes" in done.out and "trace.json" in done.err
    done = cli(*words, "--profile", "profile", "--json")
    assert done.code == 0 and set(json.loads(done.out)) == {"parts", "operations"}
    assert not (here / "run").exists()


def test_overrides_and_a_run_that_is_there(cli: Cli, here: Path, recipe: Path) -> None:
    words = ("train", "pretrain", "--config", recipe, "--set", "out=elsewhere")
    done = cli(*words, "--set", "train.steps=3")
    assert done.code == 0 and done.out == "the model is in elsewhere/model\n"
    assert len((here / "elsewhere/metrics.jsonl").read_text().splitlines()) == 3
    again = cli(*words, "--no-resume")
    assert again.code == 1 and "elsewhere" in again.error
    assert not (here / "run").exists()


def test_of_two_processes_one_says_where_the_model_is(recipe: Path, here: Path) -> None:
    words = ["train", "mining-model", "--config", str(recipe)]
    results = [one.value for one in run_processes(2, command, here, words)]
    assert results == [(0, "the model is in run/model\n"), (0, "")]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("mining-model", "--set", "data.negatives=7"), "add --set data.negatives=0"),
        (("instruct",), "run: abc-embed train pretrain"),
        (("pretrain", "--gpu", "24GB"), "--gpu goes with --dry-run"),
        (("pretrain", "--json"), "--json goes with --dry-run"),
        (("pretrain", "--dry-run", "--gpu", "big"), "give a size like 24GB"),
        (("pretrain", "--profile", "a", "--find-lr", "b"), "--find-lr and --profile are two"),
    ],
)
def test_wrong_usage(words: tuple[str, ...], sentence: str, cli: Cli, recipe: Path) -> None:
    done = cli("train", words[0], "--config", recipe, *words[1:])
    assert done.code == 2 and sentence in done.error


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--config", "gone.toml"), "cannot read the configuration gone.toml"),
        (("--config", "run.toml", "--set", "train.stepps=3"), "train.stepps is not a field"),
        (("--config", "run.toml", "--set", "data.records=''"), "data.records is missing"),
    ],
)
def test_a_configuration_that_cannot_be(
    words: tuple[str, ...], sentence: str, cli: Cli, recipe: Path
) -> None:
    done = cli("train", "pretrain", *words)
    assert (done.code, done.out) == (1, "")
    assert sentence in done.error


def test_a_word_that_no_log_has(cli: Cli, recipe: Path) -> None:
    done = cli("train", "pretrain", "--config", recipe, "--log-to", "comet")
    assert done.code == 1 and "train.log_to is 'comet'; it must be one of" in done.error


def test_every_help_shows_an_example(cli: Cli) -> None:
    for name in ("pretrain", "instruct", "mining-model", "plot", "bundled"):
        done = cli("train", name, "--help")
        assert done.code == 0 and f"abc-embed train {name}" in done.out


def test_the_curriculum_is_found_from_any_folder_beside_the_package(here: Path) -> None:
    """It is asked to work in a file, and says so: it was there to be asked."""
    words = ["-m", "abc_embed", "train", "bundled", "--out", "photo.jpg"]
    source = str(Path(train.__file__).parents[2])
    done = subprocess.run(
        [sys.executable, *words],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": source},
    )
    assert done.returncode == 1
    assert done.stderr.startswith("Error: photo.jpg cannot be made: there is a file of that name")


def test_without_a_checkout_there_is_no_curriculum(
    cli: Cli, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "CHECKOUT", here)
    done = cli("train", "bundled", "--out", "run")
    assert done.code == 2
    assert done.error.endswith("in a checkout of the repository run: make bundled")
