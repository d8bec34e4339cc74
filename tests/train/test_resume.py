"""A run that is taken up again: with the same content only, longer if it was finished, by one
process at a time, and what it says."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from run_parts import write_data
from safetensors.torch import load_file, save_file

from abc_embed.errors import DataError, TrainingError
from abc_embed.storage.parquet import import_pyarrow
from abc_embed.train.batches import Group
from abc_embed.train.checkpoints import list_checkpoints, lock_run
from abc_embed.train.config import DataConfig
from abc_embed.train.loop import learning_rate_factor, run_stage
from abc_embed.train.metrics_logger import read_metrics
from abc_embed.train.run import train_from_config
from abc_embed.train.sampler import RecordSampler

RECIPE = """\
stage = "pretrain"
out = "{root}/run"
[model]
base = "{root}/base"
head_width = 96
pixels = [784, 3136]
device = "cpu"
[data]
records = "{root}/data"
negatives = 1
[adapter]
rank = 4
alpha = 8
[train]
steps = 4
batch_size = 3
checkpoint_every = 2
"""


@pytest.fixture
def recipe(golden: Path, tmp_path: Path) -> Path:
    shutil.copytree(golden / "base", tmp_path / "base")
    write_data(tmp_path / "data")
    path = tmp_path / "run.toml"
    path.write_text(RECIPE.format(root=tmp_path), encoding="utf-8")
    return path


@pytest.fixture
def broken(recipe: Path, tmp_path: Path) -> Path:
    """The recipe of a run that was broken off after its checkpoint of step 2."""
    train_from_config(recipe)
    shutil.rmtree(tmp_path / "run" / "model")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-00000004")
    return recipe


def test_other_weights_of_the_base_are_refused(broken: Path, tmp_path: Path) -> None:
    file = tmp_path / "base" / "model.safetensors"
    tensors = load_file(file)
    name = next(iter(tensors))
    tensors[name] = tensors[name] + torch.ones_like(tensors[name]) * 1e-3
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(TrainingError, match=r"model\.base .* has other content than when"):
        train_from_config(broken)


@pytest.mark.parametrize(
    "change", [{"order": range(4)}, {"order": (1, 0, 2, 3, 4, 5)}, {"text": "REWRITTEN"}]
)
def test_other_records_are_refused(change: Any, broken: Path, tmp_path: Path) -> None:
    write_data(tmp_path / "data", **change)
    for moved in (False, True):
        with pytest.raises(TrainingError, match=r"data\.records .* has other content than when"):
            train_from_config(broken, moved=moved)
    write_data(tmp_path / "data")
    train_from_config(broken)


def test_what_only_moved_goes_on_when_that_is_said(broken: Path, tmp_path: Path) -> None:
    (tmp_path / "data").rename(tmp_path / "elsewhere")
    (tmp_path / "base").rename(tmp_path / "weights")
    overrides = [f"data.records={tmp_path}/elsewhere", f"model.base={tmp_path}/weights"]
    with pytest.raises(TrainingError, match=r"data\.records was .* add --moved"):
        train_from_config(broken, overrides)
    train_from_config(broken, overrides, moved=True)
    assert [row["step"] for row in read_metrics(tmp_path / "run" / "metrics.jsonl")] == [1, 2, 3, 4]
    write_data(tmp_path / "other", text="another")
    with pytest.raises(TrainingError, match=r"data\.records .* has other content"):
        train_from_config(broken, [overrides[1], f"data.records={tmp_path}/other"], moved=True)


def test_a_checkpoint_of_before_is_taken_as_it_is(broken: Path, tmp_path: Path) -> None:
    """Without a fingerprint, and without a field that came later."""
    path = tmp_path / "run" / "checkpoints" / "step-00000002" / "state.json"
    state = json.loads(path.read_text())
    del state["fingerprint"], state["config"]["data"]["on_error"]
    path.write_text(json.dumps(state))
    with pytest.raises(TrainingError, match=r"cannot be compared with what there was"):
        (tmp_path / "data").rename(tmp_path / "moved")
        train_from_config(broken, [f"data.records={tmp_path}/moved"], moved=True)
    (tmp_path / "moved").rename(tmp_path / "data")
    train_from_config(broken)


def test_mined_negatives_are_those_of_these_records(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    arrow = import_pyarrow()
    from abc_embed.mining.corpus import read_corpus
    from abc_embed.mining.output import CAPTIONS_KEY

    write_data(tmp_path / "data")
    corpus = read_corpus(tmp_path / "data")
    table = arrow.table({"row": [0], "negatives": [[1]]})
    mined = tmp_path / "mined.parquet"
    arrow.parquet.write_table(
        table.replace_schema_metadata({CAPTIONS_KEY: corpus.fingerprint}), mined
    )
    settings = DataConfig(negatives_file=str(mined))
    RecordSampler(tmp_path / "data", "pretrain", settings)
    write_data(tmp_path / "data", order=(1, 0, 2, 3, 4, 5))
    with pytest.raises(DataError, match="mined from other records, or from these in another order"):
        RecordSampler(tmp_path / "data", "pretrain", settings)
    arrow.parquet.write_table(table, mined)  # as the published data set has it: not known
    RecordSampler(tmp_path / "data", "pretrain", settings)


# -- one folder ------------------------------------------------------------------------------------


def trained(config: Any, tiny: Any, pictures: Any, out: Path, **options: Any) -> None:
    sampler = options.pop("sampler", None) or pictures(config.stage)
    run_stage(config, sampler, *tiny(), out, **options)


def test_a_finished_run_is_made_longer(
    tiny: Any, config: Any, pictures: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "abc_embed")
    trained(config("pretrain", steps=3), tiny, pictures, tmp_path)
    longer = config("pretrain", steps=6, checkpoint_every=5)
    trained(longer, tiny, pictures, tmp_path)
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    rates = [learning_rate_factor(step, longer) * 1e-3 for step in (3, 4, 5)]
    assert [row["learning_rate"] for row in rows[3:]] == pytest.approx(rates)
    (said,) = [message for message in caplog.messages if "goes on to 6" in message]
    assert f"{rates[0]:.2e}" in said and f"{rates[2]:.2e}" in said
    with pytest.raises(TrainingError, match=r"train\.steps was 6 .* and is 5 now"):
        trained(config("pretrain", steps=5), tiny, pictures, tmp_path)
    with pytest.raises(KeyboardInterrupt):
        sampler = pictures("pretrain", stop_before=8)
        trained(config("pretrain", steps=10), tiny, pictures, tmp_path, sampler=sampler)
    with pytest.raises(TrainingError, match="can be made longer once it is finished"):
        trained(config("pretrain", steps=12), tiny, pictures, tmp_path)


def test_a_resumed_run_says_from_where_and_keeps_its_time(
    tiny: Any, config: Any, pictures: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "abc_embed")
    settings = config("pretrain", steps=4, checkpoint_every=2)
    with pytest.raises(KeyboardInterrupt):
        trained(settings, tiny, pictures, tmp_path, sampler=pictures("pretrain", stop_before=3))
    rows = read_metrics(tmp_path / "metrics.jsonl")
    rows[1]["elapsed_s"] = 1000.0
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "metrics.jsonl").write_text(lines)
    trained(settings, tiny, pictures, tmp_path)
    assert [m for m in caplog.messages if "from step" in m] == [
        f"{tmp_path}: going on from step 2 of 4"
    ]
    elapsed = [row["elapsed_s"] for row in read_metrics(tmp_path / "metrics.jsonl")]
    assert 1000 < elapsed[2] < elapsed[3] < 1100


def test_names_of_others_are_left_alone(
    tiny: Any, config: Any, pictures: Any, tmp_path: Path
) -> None:
    for name in ("step-best", "step-00000009.bak", "step-1", "zzz"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    trained(config("pretrain", steps=4, checkpoint_every=1), tiny, pictures, tmp_path)
    names = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert names == {
        *("step-best", "step-00000009.bak", "step-1", "zzz"),
        *("step-00000003", "step-00000004"),
    }
    assert [p.name for p in list_checkpoints(tmp_path / "checkpoints")] == [
        *("step-00000003", "step-00000004")
    ]


def test_what_a_kill_left_is_removed(tiny: Any, config: Any, pictures: Any, tmp_path: Path) -> None:
    trained(config("pretrain", steps=2), tiny, pictures, tmp_path)
    inside = (".partial", ".step-00000004.part", "step-00000002.old")
    for name in (".model.4711.part", *(f"checkpoints/{name}" for name in inside)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "half").write_text("x")
    (tmp_path / ".metrics.jsonl.4711.part").write_text("x")
    trained(config("pretrain", steps=2), tiny, pictures, tmp_path)
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {".lock", "checkpoints", "metrics.jsonl", "model"}
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000002"]


HOLDER = """\
import sys, time
from pathlib import Path
from abc_embed.train.checkpoints import lock_run
lock = lock_run(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(600)
"""


def test_the_second_of_two_runs_in_one_folder_is_refused(
    recipe: Path,
    tiny: Any,
    config: Any,
    pictures: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    train_from_config(recipe)
    run = tmp_path / "run"
    command = [sys.executable, "-c", HOLDER, str(run)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout is not None and holder.stdout.readline() == "held\n"
            before = (run / "metrics.jsonl").read_bytes()
            with pytest.raises(TrainingError, match=r"another process is training in"):
                train_from_config(recipe)
            with pytest.raises(TrainingError, match=r"another process is training in"):
                trained(config("pretrain", steps=2), tiny, pictures, run)
            assert (run / "metrics.jsonl").read_bytes() == before
            # Before the other has its first checkpoint, too: no model is loaded for the refusal.
            (run / "checkpoints").rename(tmp_path / "away")
            with monkeypatch.context() as patch, pytest.raises(TrainingError, match="another pro"):
                patch.setattr("abc_embed.train.run.load_for_training", pytest.fail)
                train_from_config(recipe)
            (tmp_path / "away").rename(run / "checkpoints")
        finally:
            holder.send_signal(signal.SIGKILL)
    train_from_config(recipe)  # a killed process holds nothing
    lock_run(run).release()


@dataclass(frozen=True)
class KilledLater:
    """A sampler whose worker is killed in the second step, while the model computes the first."""

    pictures: Any

    def groups(self, step: int, count: int, seed: int) -> Sequence[Group]:
        if step == 1:
            time.sleep(0.2)
            os.kill(os.getpid(), signal.SIGKILL)
        groups: Sequence[Group] = self.pictures.groups(step, count, seed)
        return groups


def test_a_killed_worker_is_one_sentence_wherever_the_process_is(
    tiny: Any, config: Any, pictures: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from abc_embed.train import loop

    step: Callable[..., Any] = loop.take_step

    def slow(*arguments: Any, **named: Any) -> Any:
        """The signal of the worker's end arrives here, not in the loader."""
        end = time.monotonic() + 30
        while time.monotonic() < end:
            np.zeros(10)
        return step(*arguments, **named)

    monkeypatch.setattr(loop, "take_step", slow)
    settings = config("pretrain", steps=3)
    settings = replace(settings, data=replace(settings.data, workers=1))
    began = time.monotonic()
    with pytest.raises(TrainingError, match="prepares data was killed") as caught:
        trained(settings, tiny, pictures, tmp_path, sampler=KilledLater(pictures("pretrain")))
    assert time.monotonic() - began < 25 and "\n" not in str(caught.value)
    assert caught.value.__cause__ is None and caught.value.__suppress_context__
