"""`scenes`, `train` and `doctor`: what they hand over, and what they say."""

import json
from pathlib import Path
from typing import Any

import pytest
from cli_parts import Cli
from PIL import Image

from abc_embed import runtime
from abc_embed.cli import doctor

# -- scenes ----------------------------------------------------------------------------------------


def test_scenes_writes_a_data_set_and_a_sheet(cli: Cli, here: Path) -> None:
    done = cli("scenes", "--count", "3", "--out", "drawn", "--seed", "5", "--side", "56")
    assert done.code == 0
    assert done.out == "3 scenes in drawn; drawn/contact_sheet.png shows them\n"
    records = [json.loads(line) for line in Path("drawn/records.jsonl").read_text().splitlines()]
    assert len(records) == 3
    for record in records:
        with Image.open(Path("drawn", record["image"])) as image:
            assert image.size == (56, 56)
    assert Path("drawn/contact_sheet.png").is_file()
    summary = json.loads(cli("scenes", "-n", "1", "--out", "other", "--json").out)
    assert summary["count"] == 1


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("--out", "photos"), 1),
        (("--out", "photo.jpg"), 1),
        (("--out", "x", "--count", "0"), 2),
        (("--out", "x", "--side", "4"), 2),
        ((), 2),
    ],
)
def test_scenes_refuses(cli: Cli, here: Path, words: tuple[str, ...], code: int) -> None:
    done = cli("scenes", *words)
    assert (done.code, done.out) == (code, "")
    assert "Error: " in done.err


# -- train -----------------------------------------------------------------------------------------

CONFIG = """
stage = "pretrain"
out = "run"
[model]
base = "bundled"
[adapter]
rank = 2
alpha = 4
[train]
steps = 1
batch_size = 2
"""


@pytest.fixture
def config(here: Path) -> Path:
    (here / "config.toml").write_text(CONFIG)
    return Path("config.toml")


def test_train_hands_over(cli: Cli, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []

    def train_from_config(path: Path, overrides: list[str], *, resume: bool) -> Path:
        calls.append((path, overrides, resume))
        return Path("run/model")

    monkeypatch.setattr("abc_embed.train.run.train_from_config", train_from_config)
    words = ("--set", "train.steps=3", "--set", "out=elsewhere", "--no-resume")
    done = cli("train", "pretrain", "--config", config, *words)
    assert done.out == "the model is in run/model\n"
    assert calls == [(config, ["train.steps=3", "out=elsewhere"], False)]


def test_train_refuses_the_other_stage(cli: Cli, config: Path) -> None:
    done = cli("train", "instruct", "--config", config)
    assert done.code == 2
    assert done.error == "config.toml is for stage 'pretrain'; run: abc-embed train pretrain"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--config", "gone.toml"), "cannot read the configuration gone.toml"),
        (("--config", "config.toml", "--set", "train.stepps=3"), "train.stepps is not a field"),
        (("--config", "config.toml"), "data.records is missing"),
    ],
)
def test_train_refuses(cli: Cli, config: Path, words: tuple[str, ...], says: str) -> None:
    done = cli("train", "pretrain", *words)
    assert (done.code, done.out) == (1, "")
    assert says in done.error


def test_train_bundled_hands_over(cli: Cli, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from experiments.curriculum.run import Lengths

    calls: list[Any] = []

    def run(out: Path, *, lengths: Lengths) -> Path:
        calls.append((out, lengths))
        return out / "model"

    monkeypatch.setattr("experiments.curriculum.run.run", run)
    done = cli("train", "bundled", "--out", "run", "--scale", "0.5")
    assert done.out == "the model is in run/model\n"
    assert calls == [(Path("run"), Lengths().scaled(0.5))]


# -- doctor ----------------------------------------------------------------------------------------


def test_doctor_tries_the_model(cli: Cli, tiny: Path) -> None:
    done = cli("doctor", "--model", tiny)
    assert done.code == 0
    assert done.out.splitlines()[-1] == "All that is needed is here."
    for word in ("torch", "memory", "64 numbers, float32", "TIGER-Lab/ABC-Qwen2VL-Instruct"):
        assert word in done.out


def test_doctor_for_programs(cli: Cli, tiny: Path) -> None:
    report = json.loads(cli("doctor", "--model", tiny, "--json").out)
    assert report["healthy"] is True
    assert report["versions"]["abc-embed"]
    checks = {check["name"]: check for check in report["checks"]}
    assert checks["packages"]["good"]
    assert not checks["Qwen/Qwen2-VL-7B-Instruct"]["good"]  # the tests have an empty cache
    assert "with a network" in checks["Qwen/Qwen2-VL-7B-Instruct"]["mend"]


def test_doctor_names_what_is_broken(cli: Cli, broken_model: Path) -> None:
    done = cli("doctor", "--model", broken_model)
    assert done.code == 1
    assert "model.safetensors" in done.out
    assert done.out.splitlines()[-1] == "Something that is needed is missing."


def test_doctor_names_the_pip_lines(cli: Cli, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    extras = {"scale": ["no-such-package"], "mine": ["pytest"]}
    monkeypatch.setattr(doctor, "extras", lambda: extras)
    monkeypatch.setattr(runtime, "PACKAGES", ("torch", "no-such-package"))
    done = cli("doctor", "--model", tiny)
    assert done.code == 1
    assert "without no-such-package" in done.out
    assert "pip install 'abc-embed[scale]'" in done.out
    assert "abc-embed[mine]" not in done.out


@pytest.mark.parametrize(
    ("gpu", "memory", "good"), [(None, 20, False), (None, 64, True), (24, 8, True), (8, 99, False)]
)
def test_doctor_knows_what_the_published_model_takes(
    gpu: int | None, memory: int, good: bool
) -> None:
    cuda = [] if gpu is None else [{"name": "a GPU", "memory_bytes": gpu * 10**9}]
    check = doctor._memory({"cuda": cuda, "memory_bytes": memory * 10**9})
    assert check.good is good
    assert bool(check.mend) is not good
