"""A sweep of learning rates, and a look at where the time goes: real steps that leave nothing."""

import csv
import itertools
import json
from pathlib import Path

import pytest
from golden_parts import BASE
from run_parts import write_data

from abc_embed.train import trials
from abc_embed.train.config import TrainConfig, load_config
from abc_embed.train.run import train_from_config

RECIPE = """\
stage = "pretrain"
out = "{folder}/run"
[model]
base = "{base}"
head_width = 96
pixels = [784, 3136]
device = "cpu"
[data]
records = "{folder}/data"
negatives = 0
[adapter]
rank = 4
alpha = 8
[train]
steps = 2
batch_size = 4
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    write_data(tmp_path / "data")
    path = tmp_path / "run.toml"
    path.write_text(RECIPE.format(folder=tmp_path, base=BASE))
    return path


@pytest.fixture
def config(recipe: Path) -> TrainConfig:
    return load_config(recipe)


def table(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_a_sweep_falls_then_rises(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trials, "SWEEP_STEPS", 40)
    monkeypatch.setattr(trials, "HIGHEST", 10.0)
    found = trials.find_learning_rate(config, tmp_path / "rates")
    rates = [row["learning_rate"] for row in found.rows]
    assert rates[0] == trials.LOWEST and rates == sorted(rates)
    ratios = [b / a for a, b in itertools.pairwise(rates)]
    assert max(ratios) == pytest.approx(min(ratios))
    settled = found.rows[trials.SETTLED - 1 :]
    best = min(settled, key=lambda row: row["smoothed"])
    assert found.suggestion == pytest.approx(best["learning_rate"] / 10)
    assert best["smoothed"] < min(settled[0]["smoothed"], settled[-1]["smoothed"])
    rows = table(tmp_path / "rates" / "learning_rates.csv")
    assert [float(row["loss"]) for row in rows] == [row["loss"] for row in found.rows]
    assert (tmp_path / "rates" / "learning_rates.png").read_bytes()[:4] == b"\x89PNG"
    assert not (tmp_path / "run").exists()


def test_a_loss_that_is_no_number_ends_the_sweep(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = iter([0.1, *[3.0] * 9, 2.0, 1.0, float("nan")])  # the first is luck
    monkeypatch.setattr(trials.Trial, "step", lambda self, number, rate: next(losses))
    found = trials.find_learning_rate(config, tmp_path)
    assert len(found.rows) == 12 and found.diverged
    assert found.suggestion == pytest.approx(found.rows[-1]["learning_rate"] / 10)


def test_where_nothing_falls_nothing_is_suggested(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trials.Trial, "step", lambda self, number, rate: 2.0)
    found = trials.find_learning_rate(config, tmp_path)
    assert (found.suggestion, found.diverged, len(found.rows)) == (None, False, 100)


def test_the_first_steps_are_those_of_the_run(recipe: Path, tmp_path: Path) -> None:
    """Same data, same weights, same seed: the loss of a run's first step, and of its second."""
    trial = trials.Trial(load_config(recipe), 2)
    losses = [trial.step(number, rate) for number, rate in enumerate((4e-5, 4e-5))]
    train_from_config(recipe, ["optim.warmup_share=0", "optim.learning_rate=4e-5"])
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert losses == [json.loads(line)["loss"] for line in lines]


def test_a_profile_adds_up(config: TrainConfig, tmp_path: Path) -> None:
    found = trials.profile_steps(config, tmp_path / "profile")
    assert list(found.parts) == ["data", "forward passes", "backward passes", "update"]
    assert all(ms > 0 for ms in found.parts.values())
    own = sum(row["ms"] for row in found.operations)
    assert 0.5 < own / sum(found.parts.values()) < 1.1  # the rest is Python between operations
    assert {"aten::addmm", "aten::mm"} & {row["operation"] for row in found.operations}
    events = json.loads((tmp_path / "profile" / "trace.json").read_text())["traceEvents"]
    steps = [e for e in events if e.get("name") == "update" and e.get("cat") == "user_annotation"]
    assert len(steps) == trials.PROFILE_STEPS
    rows = table(tmp_path / "profile" / "operations.csv")
    assert len(rows) == len(found.operations)
    assert not (tmp_path / "run").exists()
