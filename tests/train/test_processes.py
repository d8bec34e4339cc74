"""Several processes really run here, joined by gloo: they learn what one process learns with the
same global batch, go on after a kill to the last bit, and end together when one of them fails."""

import json
from pathlib import Path

import numpy as np
import pytest
from process_parts import (
    Uneven,
    assert_same_run,
    curve,
    run_processes,
    small_config,
    split_run,
    train_run,
    values,
)

from abc_embed.errors import ConfigError
from abc_embed.train.sharding import fsdp_requested

CONFIGS = sorted((Path(__file__).parents[2] / "configs" / "accelerate").glob("*.yaml"))
SPLIT = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
"""What accelerate's launcher says for configs/accelerate/fsdp2.yaml."""


@pytest.mark.parametrize("stage", ["pretrain", "instruct"])
def test_two_processes_learn_what_one_does(stage: str, tmp_path: Path) -> None:
    """Five images a step, so their shares are uneven, as are questions and captions."""
    config = small_config(stage, chunk_size=2)
    alone = train_run(config, Uneven(stage), tmp_path / "alone")
    sampler = Uneven(stage, own_only=True)
    one, two = values(run_processes(2, train_run, config, sampler, tmp_path / "together"))
    assert_same_run(tmp_path / "together", tmp_path / "alone", one, alone)
    for name, weight in one["weights"].items():
        assert np.array_equal(two["weights"][name], weight), name
    assert one["tau"] == two["tau"]
    moved = {row[3] for row in curve(tmp_path / "together")}
    assert len(moved) == (5 if stage == "pretrain" else 1)  # τ learns in stage 1, for all alike
    # Written once, by one of them: nothing half done or doubled lies beside it.
    assert [p.name for p in (tmp_path / "together/checkpoints").iterdir()] == ["step-00000005"]
    assert sorted(p.name for p in (tmp_path / "together").iterdir()) == [
        *(".lock", "checkpoints", "metrics.jsonl", "model")
    ]


@pytest.mark.parametrize("stage", ["pretrain", "instruct"])
def test_split_weights_learn_what_whole_ones_do(stage: str, tmp_path: Path) -> None:
    """FSDP2, chunks of unequal number per process, gradient checkpointing."""
    config = small_config(stage, chunk_size=2, gradient_checkpointing=True)
    alone = train_run(config, Uneven(stage), tmp_path / "alone")
    sampler = Uneven(stage, own_only=True)
    results = values(run_processes(2, split_run, config, sampler, tmp_path / "together", env=SPLIT))
    assert_same_run(tmp_path / "together", tmp_path / "alone", results[0], alone)
    assert all(0.45 < one["held"] < 0.6 for one in results)  # about half, each
    assert (tmp_path / "together/model/model.safetensors").is_file()


def test_the_published_gather_learns_something_else(tmp_path: Path) -> None:
    """What it learns is tested by formula elsewhere; here, that the field is heeded."""
    found = {}
    for how in ("gradient", "published"):
        config = small_config("pretrain", gather=how, steps=2, checkpoint_every=2)
        run_processes(2, train_run, config, Uneven("pretrain"), tmp_path / how)
        found[how] = curve(tmp_path / how)
    assert found["gradient"][0][1] == found["published"][0][1]  # the loss itself is the same
    assert abs(found["gradient"][0][4] - found["published"][0][4]) > 1e-3


def test_a_killed_team_goes_on_to_the_last_bit(tmp_path: Path) -> None:
    """Dropout on, and in stage 2, where vectors of both processes are kept."""
    stage = "instruct"
    config = small_config(stage, chunk_size=2, dropout=0.2, checkpoint_every=2)
    whole = values(run_processes(2, train_run, config, Uneven(stage), tmp_path / "whole"))
    stopped = run_processes(2, train_run, config, Uneven(stage, stop_before=3), tmp_path / "broken")
    assert all("KeyboardInterrupt" in result.error for result in stopped)
    assert len(curve(tmp_path / "broken")) == 3
    resumed = values(run_processes(2, train_run, config, Uneven(stage), tmp_path / "broken"))
    assert curve(tmp_path / "broken") == curve(tmp_path / "whole")
    for name, weight in whole[0]["weights"].items():
        assert np.array_equal(resumed[0]["weights"][name], weight), name


def test_a_run_goes_on_with_other_processes(tmp_path: Path) -> None:
    """Two steps with split weights, two alone, the last split again."""
    config = small_config("pretrain", checkpoint_every=2)
    alone = train_run(config, Uneven("pretrain"), tmp_path / "alone")
    for step, count in ((3, 2), (4, 1)):
        sampler = Uneven("pretrain", stop_before=step)
        env = SPLIT if count > 1 else {}
        results = run_processes(count, train_run, config, sampler, tmp_path / "together", env=env)
        assert all("KeyboardInterrupt" in one.error for one in results)
    found = values(
        run_processes(2, split_run, config, Uneven("pretrain"), tmp_path / "together", env=SPLIT)
    )
    assert_same_run(tmp_path / "together", tmp_path / "alone", found[0], alone)


def test_bad_data_on_one_process_ends_all_with_one_sentence(tmp_path: Path) -> None:
    config = small_config("pretrain")
    sampler = Uneven("pretrain", broken=(1, 4))  # step 2, the second process's share
    one, two = run_processes(2, train_run, config, sampler, tmp_path)
    assert "no/such/picture.png" in two.error and not two.reported_elsewhere
    assert one.error == f"process 1 of 2 stopped: {two.error}" and one.reported_elsewhere
    assert "\n" not in two.error
    assert len(curve(tmp_path)) == 1


def test_a_full_disk_or_a_bad_folder_ends_all(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    sampler = Uneven("pretrain")
    one, two = run_processes(2, train_run, small_config("pretrain"), sampler, tmp_path / "file/run")
    assert "cannot be made" in one.error and not one.reported_elsewhere
    assert "cannot be made" in two.error and two.reported_elsewhere


def test_a_process_that_is_gone_does_not_leave_the_other_hanging(tmp_path: Path) -> None:
    config = small_config("pretrain", checkpoint_every=1)
    sampler = Uneven("pretrain", exit_at=(2, "1"))
    one, two = run_processes(2, train_run, config, sampler, tmp_path)
    assert two.error == "gone"
    assert one.error.startswith("another process of this run has ended")
    state = json.loads((tmp_path / "checkpoints/step-00000002/state.json").read_text())
    assert state["step"] == 2


def test_the_shipped_configurations_are_read_by_accelerate() -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    kinds = {p.name: load_config_from_file(str(p)).distributed_type for p in CONFIGS}
    assert kinds == {
        "ddp.yaml": "MULTI_GPU",
        "deepspeed.yaml": "DEEPSPEED",
        "fsdp2.yaml": "FSDP",
    }


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"FSDP_VERSION": "1"}, "fsdp_version .* set it to 2"),
        ({"FSDP_OFFLOAD_PARAMS": "true"}, "fsdp_offload_params .* set it to false"),
        ({"FSDP_ACTIVATION_CHECKPOINTING": "true"}, r"train\.gradient_checkpointing to true"),
    ],
)
def test_what_is_not_built_is_refused(
    wrong: dict[str, str], sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not fsdp_requested()
    for name, value in (SPLIT | wrong).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=sentence):
        fsdp_requested()
