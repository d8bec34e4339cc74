"""Two processes really train under DeepSpeed ZeRO here, joined by gloo: they learn what one process
learns, keep half of AdamW's means each, and leave checkpoints like those of any other run."""

import importlib.util
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from process_parts import (
    Uneven,
    assert_same_run,
    curve,
    run_processes,
    small_config,
    train_run,
    values,
    zero_run,
)
from safetensors.numpy import load_file

from abc_embed.errors import ConfigError, MissingExtraError
from abc_embed.train.zero import hide_deepspeed, zero_settings

USE, LEVEL = "ACCELERATE_USE_DEEPSPEED", "ACCELERATE_DEEPSPEED_ZERO_STAGE"
ZERO = {USE: "true", LEVEL: "2"}
"""What accelerate's launcher says for configs/accelerate/deepspeed.yaml."""
# Chunks of unequal number per process, clipping that has work to do, a checkpoint half-way.
CONFIG = small_config("pretrain", chunk_size=2, gradient_checkpointing=True, checkpoint_every=2)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A run of one process: its folder and what it learnt."""
    out = tmp_path_factory.mktemp("alone") / "run"
    return out, train_run(CONFIG, Uneven("pretrain"), out)


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Any]]:
    """The same by two processes under ZeRO."""
    out = tmp_path_factory.mktemp("together") / "run"
    sampler = Uneven("pretrain", own_only=True)
    return out, values(run_processes(2, zero_run, CONFIG, sampler, out, env=ZERO))


def assert_split_and_equal(results: list[Any]) -> None:
    one, two = results
    assert one["tau"] == two["tau"]
    for name, weight in one["weights"].items():
        assert np.array_equal(two["weights"][name], weight), name
    assert all(0.49 < each["held"] < 0.51 and each["left"] == [] for each in results)


def test_two_processes_learn_what_one_does(
    alone: tuple[Path, Any], together: tuple[Path, list[Any]]
) -> None:
    assert_same_run(together[0], alone[0], together[1][0], alone[1])
    assert_split_and_equal(together[1])
    assert all(row[4] > CONFIG.optim.clip_norm for row in curve(alone[0]))
    assert len({row[3] for row in curve(together[0])}) == 5  # τ learns too
    assert [p.name for p in sorted(together[0].iterdir())] == [
        ".lock",
        "checkpoints",
        "metrics.jsonl",
        "model",
    ]


def test_they_do_in_stage_2_with_the_first_stage_of_zero(tmp_path: Path) -> None:
    """And in many small messages; some weights are larger than one."""
    file = tmp_path / "zero.json"
    file.write_text(json.dumps({"zero_optimization": {"stage": 1, "reduce_bucket_size": 300}}))
    env = {USE: "true", "ACCELERATE_DEEPSPEED_CONFIG_FILE": str(file)}
    config = small_config("instruct", chunk_size=2)
    one = train_run(config, Uneven("instruct"), tmp_path / "alone")
    sampler = Uneven("instruct", own_only=True)
    results = values(run_processes(2, zero_run, config, sampler, tmp_path / "together", env=env))
    assert_same_run(tmp_path / "together", tmp_path / "alone", results[0], one)
    assert_split_and_equal(results)


def test_a_run_goes_on_after_a_kill_and_in_another_way(
    alone: tuple[Path, Any], together: tuple[Path, list[Any]], tmp_path: Path
) -> None:
    """To the last bit by the same processes, within 1e-5 by one that holds everything."""
    sampler = Uneven("pretrain", exit_at=(3, "1"))
    results = run_processes(2, zero_run, CONFIG, sampler, tmp_path / "run", env=ZERO)
    assert results[0].error.startswith("another process of this run has ended")
    assert [p.name for p in (tmp_path / "run/checkpoints").glob("step-*")] == ["step-00000002"]
    shutil.copytree(tmp_path / "run", tmp_path / "by-one")

    found = values(
        run_processes(2, zero_run, CONFIG, Uneven("pretrain"), tmp_path / "run", env=ZERO)
    )
    assert curve(tmp_path / "run") == curve(together[0])
    for name, weight in together[1][0]["weights"].items():
        assert np.array_equal(found[0]["weights"][name], weight), name
    assert_split_and_equal(found)

    one = train_run(CONFIG, Uneven("pretrain"), tmp_path / "by-one")
    assert_same_run(tmp_path / "by-one", alone[0], one, alone[1])


def test_means_are_stored_whole(alone: tuple[Path, Any], together: tuple[Path, list[Any]]) -> None:
    """Under the same numbers, so that it does not show how they were held."""
    last = "checkpoints/step-00000005/optimizer.safetensors"
    one, two = load_file(alone[0] / last), load_file(together[0] / last)
    assert one.keys() == two.keys()
    for name, value in one.items():
        assert value.shape == two[name].shape, name
        np.testing.assert_allclose(two[name], value, rtol=0, atol=1e-5, err_msg=name)


# -- what the configuration may say ----------------------------------------------------------------


def test_what_is_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert zero_settings() is None
    for name, value in ZERO.items():
        monkeypatch.setenv(name, value)
    assert zero_settings() == {"stage": 2, "reduce_bucket_size": 50_000_000}
    sizes = {"stage": 1, "reduce_bucket_size": 1000, "allgather_bucket_size": 2000}
    file = tmp_path / "zero.json"
    unsaid = {"gradient_clipping": "auto", "fp16": {"enabled": False}}
    file.write_text(json.dumps({"train_batch_size": "auto", "zero_optimization": sizes} | unsaid))
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_CONFIG_FILE", str(file))
    assert zero_settings() == sizes
    with hide_deepspeed():
        assert USE not in os.environ
    assert os.environ[USE] == "true"


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({LEVEL: "3"}, r"zero_stage 3 .* configs/accelerate/fsdp2\.yaml"),
        ({LEVEL: "0"}, "zero_stage 0 .* set it to 1 or 2"),
        (
            {"ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": "cpu"},
            r"offload_optimizer\.device .* set its device to none",
        ),
        (
            {"ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE": "nvme"},
            r"offload_param\.device .* set its device to none",
        ),
        ({"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"}, r"accumulation_steps .*chunk_size"),
        ({"ACCELERATE_GRADIENT_CLIPPING": "1.0"}, r"gradient_clipping .*optim\.clip_norm"),
    ],
)
def test_what_is_not_built_is_refused(
    wrong: dict[str, str], sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (ZERO | wrong).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=sentence):
        zero_settings()


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"fp16": {"enabled": True}}, r"fp16\.enabled .*model\.precision"),
        ({"bf16": {"enabled": True}}, r"bf16\.enabled .*model\.precision"),
        ({"optimizer": {"type": "Adam"}}, r"optimizer\.type .* optim of the recipe"),
        ({"scheduler": {"type": "WarmupLR"}}, r"scheduler\.type .* optim of the recipe"),
        (
            {"activation_checkpointing": {"partition_activations": True}},
            r"partition_activations .* train\.gradient_checkpointing to true",
        ),
        ({"zero_optimization": {"stage": 2, "overlap_comm": True}}, "overlap_comm .* take it out"),
    ],
)
def test_so_is_what_a_file_says(
    wrong: dict[str, Any], sentence: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "zero.json"
    file.write_text(json.dumps({"zero_optimization": {"stage": 2}} | wrong))
    monkeypatch.setenv(USE, "true")
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_CONFIG_FILE", str(file))
    with pytest.raises(ConfigError, match=sentence):
        zero_settings()


def test_without_deepspeed_there_is_a_pip_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(USE, "true")
    found = importlib.util.find_spec
    absent = lambda name, package=None: None if name == "deepspeed" else found(name, package)  # noqa: E731
    monkeypatch.setattr(importlib.util, "find_spec", absent)
    with pytest.raises(MissingExtraError, match=r"pip install 'abc-embed\[deepspeed\]'"):
        zero_settings()
