"""`doctor`: what works here, what is missing, and how to get it."""

import json
import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NoReturn

import pytest
import sources
import torch
from cli_parts import Cli

from abc_embed import Embedder, runtime
from abc_embed.cli import doctor
from abc_embed.errors import OutOfMemoryError


def test_doctor_tries_the_model(cli: Cli, tiny: Path) -> None:
    done = cli("doctor", "--model", tiny)
    assert done.code == 0
    assert done.out.splitlines()[-1] == "All that is needed is here."
    for word in (
        "torch",
        "memory",
        "bfloat16 takes",
        "64 numbers, float32",
        "TIGER-Lab/ABC-Qwen2VL-Instruct",
    ):
        assert word in done.out


def test_doctor_for_programs(cli: Cli, tiny: Path) -> None:
    report = json.loads(cli("doctor", "--model", tiny, "--json").out)
    assert report["healthy"] is True
    assert report["versions"]["abc-embed"]
    checks = {check["name"]: check for check in report["checks"]}
    assert checks["packages"]["good"]
    assert not checks["Qwen/Qwen2-VL-7B-Instruct"]["good"]  # the tests have an empty cache
    assert "with a network" in checks["Qwen/Qwen2-VL-7B-Instruct"]["mend"]


def checks_on(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, **facts: object
) -> dict[str, dict[str, object]]:
    """What doctor finds on a machine of which that is true; no model is loaded."""

    def fail(*_: object, **__: object) -> NoReturn:
        raise OutOfMemoryError("no model here")

    hardware = {**runtime.hardware(), **facts}
    monkeypatch.setattr(runtime, "hardware", lambda: hardware)
    monkeypatch.setattr(Embedder, "from_pretrained", fail)
    return {check["name"]: check for check in json.loads(cli("doctor", "--json").out)["checks"]}


@pytest.mark.parametrize(
    ("bfloat16", "one_thread", "found"),
    [
        (0.5, 1.6, "bfloat16 takes 0.50 of the time of float32; faster with --dtype bfloat16"),
        (3.0, 1.6, "bfloat16 takes 3.00 of the time of float32; as it is, it is fastest"),
        (3.0, 0.6, "1 of 2 threads 0.60; faster with OMP_NUM_THREADS=1"),
        (0.5, 0.6, "faster with --dtype bfloat16 and OMP_NUM_THREADS=1"),
    ],
)
def test_doctor_says_what_would_be_faster(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, bfloat16: float, one_thread: float, found: str
) -> None:
    times_s = {
        ("float32", 1): one_thread,
        ("float32", 2): 1.0,
        ("bfloat16", 1): 9.0,
        ("bfloat16", 2): bfloat16,
    }
    monkeypatch.setattr(runtime, "product_times_s", lambda counts: times_s)
    checks = checks_on(cli, monkeypatch, cuda=[], mps=False, torch_threads=2)
    assert str(checks["speed of a large product"]["found"]).endswith(found)


def test_the_speed_of_a_product_is_measured() -> None:
    threads = torch.get_num_threads()
    times_s = runtime.product_times_s([1, threads], budget_s=0)
    assert set(times_s) == {(n, t) for n in ("float32", "bfloat16") for t in (1, threads)}
    assert all(seconds > 0 for seconds in times_s.values())
    assert torch.get_num_threads() == threads


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
    cli: Cli, monkeypatch: pytest.MonkeyPatch, gpu: int | None, memory: int, good: bool
) -> None:
    cuda = [] if gpu is None else [{"name": "a GPU", "memory_bytes": gpu * 10**9}]
    monkeypatch.setattr(
        runtime, "product_times_s", lambda counts: {("float32", 1): 1.0, ("bfloat16", 1): 1.0}
    )
    checks = checks_on(cli, monkeypatch, cuda=cuda, memory_bytes=memory * 10**9, torch_threads=1)
    check = checks["memory for the published model"]
    assert check["good"] is good
    assert bool(check["mend"]) is not good


def test_doctor_lists_the_extras_of_pyproject(cli: Cli, tiny: Path) -> None:
    """The metadata of the installed package are the table; nothing is typed in."""
    project = tomllib.loads((sources.ROOT / "pyproject.toml").read_text())["project"]
    expected = {extra for extra in project["optional-dependencies"] if extra != "dev"}
    report = json.loads(cli("doctor", "--model", tiny, "--json").out)
    checks = {c["name"]: c for c in report["checks"] if c["name"].startswith("extra ")}
    again = "pyproject.toml changed since the package was installed: pip install -e ."
    assert set(checks) == {f"extra {extra}" for extra in expected}, again
    for extra in expected:
        missing = [name for name in doctor.extras()[extra] if not installed(name)]
        check = checks[f"extra {extra}"]
        assert check["good"] is not bool(missing)
        assert all(name in check["found"] for name in missing)
        assert (f"abc-embed[{extra}]" in check["mend"]) is bool(missing)


def installed(package: str) -> bool:
    try:
        return bool(version(package))
    except PackageNotFoundError:
        return False


def test_a_mistyped_model_is_answered_before_the_machine_is_asked(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "hardware", lambda: pytest.fail("torch is imported"))
    done = cli("doctor", "--model", "nope")
    assert done.code == 1 and "'nope' is neither a folder nor a known name" in done.error
