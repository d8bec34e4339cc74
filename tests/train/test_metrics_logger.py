"""TensorBoard and W&B get the lines of metrics.jsonl, also when a run is taken up again."""

import sys
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from abc_embed.errors import MissingExtraError, OutputError, TrainingError
from abc_embed.train.metrics_logger import (
    MetricsLogger,
    StepRecord,
    check_tracker,
    open_tracker,
)


def lines(config: Any, out: Path, to: str, first: int, last: int) -> None:
    """Log steps `first + 1` to `last` as a run does."""
    settings = config("pretrain", steps=9, log_to=to)
    logger = MetricsLogger(
        out / "metrics.jsonl",
        first_step=first,
        steps=9,
        tracker=open_tracker(settings, out, first),
    )
    with logger:
        for step in range(first + 1, last + 1):
            logger.log(
                StepRecord(
                    step=step,
                    loss=10.0 + step + first / 100,
                    accuracy=0.5,
                    tau=0.07,
                    grad_norm=1.0,
                    learning_rate=1e-3,
                    queries=4,
                    candidates=8,
                )
            )


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # tensorboard's own protobuf classes
def test_tensorboard_shows_a_broken_run_once(config: Any, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    lines(config, tmp_path, "tensorboard", 0, 5)  # the checkpoint was of step 3
    lines(config, tmp_path, "tensorboard", 3, 6)
    found = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    losses = [(event.step, round(event.value, 2)) for event in found.Scalars("train/loss")]
    assert losses == [(1, 11.0), (2, 12.0), (3, 13.0), (4, 14.03), (5, 15.03), (6, 16.03)]
    names = set(found.Tags()["scalars"])
    assert {"train/tau", "train/grad_norm", "train/items_per_s", "train/wait_share"} <= names


class FakeRun:
    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings, self.logged, self.finished = settings, list[Any](), False

    def log(self, values: dict[str, float], step: int) -> None:
        self.logged.append((step, values["loss"]))

    def finish(self) -> None:
        self.finished = True


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A stand-in with the part of W&B's interface that is used."""
    fake: Any = types.ModuleType("wandb")
    fake.runs = []
    fake.errors = types.SimpleNamespace(Error=type("Error", (Exception,), {}))
    fake.Settings = lambda **values: types.SimpleNamespace(project=None, **values)
    fake.init = lambda **settings: fake.runs.append(FakeRun(settings)) or fake.runs[-1]
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


def test_wandb_takes_the_same_run_up_again(config: Any, wandb: Any, tmp_path: Path) -> None:
    lines(config, tmp_path, "wandb", 0, 5)
    lines(config, tmp_path, "wandb", 3, 4)
    lines(config, tmp_path, "wandb", 0, 1)  # begun anew in the same folder
    first, again, anew = wandb.runs
    assert first.logged[0] == (1, 11.0) and len(first.logged) == 5 and again.logged == [(4, 14.03)]
    assert first.settings["id"] == again.settings["id"] != anew.settings["id"]
    assert first.settings["resume"] == "allow" and first.settings["settings"].project == "abc-embed"
    assert first.settings["config"]["train"]["steps"] == 9
    assert all(run.finished for run in wandb.runs)


def test_wandb_that_refuses_is_one_sentence(config: Any, wandb: Any, tmp_path: Path) -> None:
    def refuse(**settings: Any) -> None:
        raise wandb.errors.Error("no API key\nconfigured")

    wandb.init = refuse
    with pytest.raises(TrainingError, match=r"\(no API key configured\); log in") as caught:
        lines(config, tmp_path, "wandb", 0, 1)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_missing_library_is_named_before_training(
    name: str, config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config("pretrain", log_to=name)
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtraError, match=r"pip install 'abc-embed\[log\]'"):
        check_tracker(settings)
    check_tracker(replace(settings, train=replace(settings.train, log_to="none")))


def test_the_log_on_a_full_disk_is_one_sentence(
    config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full:
        def __init__(self, file: Any) -> None:
            self._file = file

        def __enter__(self) -> "Full":
            return self

        def __exit__(self, *error: object) -> None:
            self._file.close()

        def writelines(self, lines: Any) -> None:
            raise OSError(28, "No space left on device")

    opened = Path.open
    monkeypatch.setattr(Path, "open", lambda *a, **k: Full(opened(*a, **k)))
    with pytest.raises(OutputError, match=r"metrics\.jsonl: No space left.*checkpoint is intact"):
        lines(config, tmp_path, "none", 0, 1)
