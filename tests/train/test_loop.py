"""A run from end to end: it learns, it survives a kill to the last bit, it stops with a reason."""

import errno
import json
import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from abc_embed import checkpoint
from abc_embed.errors import OutputError, TrainingError
from abc_embed.model import AbcModel
from abc_embed.train import checkpoints
from abc_embed.train.config import TrainConfig
from abc_embed.train.loop import learning_rate_factor, run_stage
from abc_embed.train.metrics_logger import read_metrics

EXACT = ("step", "loss", "accuracy", "tau", "grad_norm", "learning_rate", "queries", "candidates")


@pytest.fixture
def train(tiny: Any, pictures: Any) -> Callable[..., AbcModel]:
    """Train a fresh tiny model on the coloured pictures."""

    def run(config: TrainConfig, out: Path, sampler: Any = None, **options: Any) -> AbcModel:
        model, processor = tiny()
        sampler = sampler or pictures(config.stage)
        return run_stage(config, sampler, model, processor, out, **options)

    return run


def curve(out: Path) -> list[tuple[float, ...]]:
    """All logged values that follow from the run, not from the clock."""
    return [tuple(row[name] for name in EXACT) for row in read_metrics(out / "metrics.jsonl")]


@pytest.mark.parametrize("stage", ["pretrain", "instruct"])
def test_learns_four_pairs_by_heart(
    stage: str, train: Any, config: Any, pictures: Any, tmp_path: Path
) -> None:
    settings = config(
        stage, steps=40, batch_size=4, checkpoint_every=40, label_smoothing=0.0, chunk_size=0
    )
    settings = replace(settings, optim=replace(settings.optim, learning_rate=5e-3))
    train(settings, tmp_path, pictures(stage, count=4))
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert len(rows) == 40
    assert rows[0]["loss"] > 0.5 and rows[0]["accuracy"] < 1
    assert rows[-1]["loss"] < 0.1 * rows[0]["loss"] and rows[-1]["accuracy"] == 1


@pytest.mark.parametrize("chunk_size", [0, 3])
@pytest.mark.parametrize("stage", ["pretrain", "instruct"])
def test_a_killed_run_goes_on_to_the_last_bit(
    stage: str, chunk_size: int, train: Any, config: Any, pictures: Any, tmp_path: Path
) -> None:
    settings = config(stage, dropout=0.2, chunk_size=chunk_size, steps=6, checkpoint_every=2)
    whole = train(settings, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):  # in the fourth step; the checkpoint is of the second
        train(settings, tmp_path / "broken", pictures(stage, stop_before=3))
    assert len(curve(tmp_path / "broken")) == 3
    torch.rand(17)  # the second process has another random state
    resumed = train(settings, tmp_path / "broken")

    assert curve(tmp_path / "broken") == curve(tmp_path / "whole")
    assert len({row[1] for row in curve(tmp_path / "whole")}) == 6  # the losses do differ
    for key, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[key], value), key
    before = [(p.name, p.read_bytes()) for p in sorted((tmp_path / "whole/model").glob("*.safe*"))]
    after = [(p.name, p.read_bytes()) for p in sorted((tmp_path / "broken/model").glob("*.safe*"))]
    assert before == after


def test_cached_candidates_outlive_a_kill(
    train: Any, config: Any, pictures: Any, tmp_path: Path
) -> None:
    """They are read from the checkpoint, not embedded again: turned round there, they matter."""
    settings = config("instruct", steps=4, checkpoint_every=2)
    train(settings, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(settings, tmp_path / "broken", pictures("instruct", stop_before=3))
    file = tmp_path / "broken/checkpoints/step-00000002/vectors.safetensors"
    save_file({"vectors": -load_file(file)["vectors"]}, file)
    train(settings, tmp_path / "broken")
    whole, broken = curve(tmp_path / "whole"), curve(tmp_path / "broken")
    assert broken[:2] == whole[:2] and broken[2][1] != whole[2][1]


def test_steps_are_as_long_as_the_schedule_says(train: Any, config: Any, tmp_path: Path) -> None:
    """AdamW begins with steps as long as the learning rate, here a quarter of the way up."""
    settings = config("pretrain", steps=4, checkpoint_every=1, keep_checkpoints=4)
    train(replace(settings, optim=replace(settings.optim, warmup_share=0.99)), tmp_path)
    file = tmp_path / "checkpoints/step-00000001/trained.safetensors"
    bias = load_file(file)["head.linear2.bias"]  # began at zero
    assert bias.abs().median().item() == pytest.approx(1e-3 / 4, rel=1e-3)


def test_a_finished_run_saves_again_without_a_step(
    train: Any, config: Any, pictures: Any, tmp_path: Path
) -> None:
    settings = config("pretrain", steps=2)
    train(settings, tmp_path)
    weights = (tmp_path / "model" / "model.safetensors").read_bytes()
    train(settings, tmp_path, pictures("pretrain", stop_before=0))
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == weights
    assert len(curve(tmp_path)) == 2


@pytest.mark.parametrize("stage", ["pretrain", "instruct"])
def test_the_saved_folder_is_the_trained_model(
    stage: str, train: Any, config: Any, pictures: Any, tiny: Any, tmp_path: Path
) -> None:
    trained = train(config(stage, steps=3), tmp_path)
    loaded, processor = checkpoint.load(str(tmp_path / "model"))
    group = pictures("instruct").groups(0, 1, 0)[0]
    from abc_embed.inputs import Item

    items = [Item(image=group.image), Item(image=group.image, instruction="which?"), Item("red")]
    batch = processor.collate([processor.features(item) for item in items])
    untrained, _ = tiny()
    with torch.no_grad():
        assert torch.equal(loaded(batch), trained(batch))
        moved = (loaded(batch) - untrained(batch)).norm(dim=1)
    if stage == "pretrain":
        assert bool((moved > 1e-3).all())
        assert loaded.temperature.value == trained.temperature.value != pytest.approx(0.07)
    else:  # the adapter acts on image + instruction alone
        assert moved[0] < 1e-6 and moved[1] > 1e-4 and moved[2] < 1e-6


def test_keeps_the_newest_checkpoints_only(train: Any, config: Any, tmp_path: Path) -> None:
    train(config("pretrain", steps=5, checkpoint_every=1, keep_checkpoints=2), tmp_path)
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["step-00000004", "step-00000005"]


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), SafetensorError("I/O error")]
)
def test_a_full_disk_leaves_the_last_good_checkpoint(
    error: Exception, train: Any, config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config("pretrain", steps=4, checkpoint_every=1)
    save, calls = checkpoints.save_file, []

    def failing(*arguments: Any) -> None:
        calls.append(1)
        save(*arguments)
        if len(calls) == 2 * 2 + 1:  # two files each; the first of the third checkpoint
            raise error

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "save_file", failing)
        with pytest.raises(OutputError, match="last good checkpoint is intact"):
            train(settings, tmp_path / "broken")
    assert sorted(p.name for p in (tmp_path / "broken/checkpoints").iterdir()) == [
        "step-00000001",
        "step-00000002",
    ]
    train(settings, tmp_path / "broken")
    train(settings, tmp_path / "whole")
    assert curve(tmp_path / "broken") == curve(tmp_path / "whole")


def test_a_half_checkpoint_is_never_loaded(
    train: Any, config: Any, pictures: Any, tmp_path: Path
) -> None:
    settings = config("pretrain", steps=4, checkpoint_every=2)
    with pytest.raises(KeyboardInterrupt):
        train(settings, tmp_path, pictures("pretrain", stop_before=3))
    half = tmp_path / "checkpoints" / ".partial"  # what a kill in the middle of a save leaves
    half.mkdir()
    (half / "state.json").write_text("{")
    with (tmp_path / "metrics.jsonl").open("a") as log:
        log.write('{"step": 4, "los')
    train(settings, tmp_path)
    assert [row[0] for row in curve(tmp_path)] == [1, 2, 3, 4]
    assert not half.exists()


def test_a_damaged_checkpoint_is_one_sentence(train: Any, config: Any, tmp_path: Path) -> None:
    train(config("pretrain", steps=2), tmp_path)
    (tmp_path / "checkpoints/step-00000002/optimizer.safetensors").write_bytes(b"damaged")
    with pytest.raises(TrainingError, match="cannot be read") as caught:
        train(config("pretrain", steps=2), tmp_path)
    assert "\n" not in str(caught.value)


def test_another_configuration_does_not_go_on(train: Any, config: Any, tmp_path: Path) -> None:
    train(config("pretrain", steps=2), tmp_path)
    with pytest.raises(TrainingError, match=r"train\.steps was 2 .* and is 1 now"):
        train(config("pretrain", steps=1), tmp_path)
    with pytest.raises(TrainingError, match=r"train\.seed was 0 .* and is 3 now"):
        train(config("pretrain", steps=2, seed=3), tmp_path)
    with pytest.raises(TrainingError, match="holds a run already"):
        train(config("pretrain", steps=2), tmp_path, resume=False)
    train(config("pretrain", steps=2, chunk_size=2, log_every=2), tmp_path)  # only how, not what


def test_a_run_that_explodes_stops_with_a_diagnosis(
    train: Any, config: Any, tmp_path: Path
) -> None:
    settings = config("pretrain", optim={"learning_rate": 1e30, "clip_norm": 0.0})
    with pytest.raises(TrainingError, match=r"stopped at step [2-6]: the loss is") as caught:
        train(settings, tmp_path)
    assert "learning_rate" in str(caught.value) and "\n" not in str(caught.value)


def test_a_collapsed_temperature_stops_with_a_diagnosis(
    train: Any, config: Any, tmp_path: Path
) -> None:
    settings = config("pretrain", steps=30, optim={"learning_rate": 1e-9})
    low = replace(settings.temperature, start=0.05, floor=0.05, patience=4)
    # The same data decide whether τ rises a little or falls to the floor; at 1e-9 it cannot move.
    with pytest.raises(TrainingError, match=r"stopped at step 4: τ has collapsed"):
        train(replace(settings, temperature=low), tmp_path)
    fixed = replace(settings, temperature=replace(low, learn=False))
    train(replace(fixed, train=replace(fixed.train, steps=6)), tmp_path / "fixed")


def test_warm_up_and_cosine(config: Any) -> None:
    settings = config("pretrain", steps=100, optim={"warmup_share": 0.1})
    shares = [learning_rate_factor(step, settings) for step in range(100)]
    assert shares[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert shares[10] == 1.0
    assert shares[55] == pytest.approx(0.5)
    assert all(a > b for a, b in pairwise(shares[10:]))
    assert 0 < shares[-1] < 0.001
    short = config("pretrain", steps=1)
    assert learning_rate_factor(0, short) == 1.0


def test_every_line_of_the_log_is_complete(
    train: Any, config: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    train(config("pretrain", steps=5, log_every=2), tmp_path)
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows] == [2, 4, 5]
    for row in rows:
        assert {"rejected", "items_per_s", "wait_share", "elapsed_s", *EXACT} == row.keys()
        assert all(math.isfinite(value) for value in row.values())
        assert row["items_per_s"] > 0 and 0 <= row["wait_share"] <= 1
    printed = capfd.readouterr()
    assert printed.out == "" and "step 5 of 5" in printed.err and "items/s" in printed.err
    assert len(printed.err.splitlines()) == 1  # not wrapped where there is no terminal


def test_an_unwritable_folder_is_one_sentence(train: Any, config: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match="cannot be made"):
        train(config("pretrain"), tmp_path / "file" / "run")


def test_the_state_on_disk_is_readable(train: Any, config: Any, tmp_path: Path) -> None:
    train(config("instruct", steps=2), tmp_path)
    state = json.loads((tmp_path / "checkpoints/step-00000002/state.json").read_text())
    assert state["step"] == 2 and state["config"]["stage"] == "instruct"
    assert len(state["texts"]) == len(set(state["texts"])) > 4
