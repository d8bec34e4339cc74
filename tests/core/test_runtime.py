"""Devices and number formats by one word; a missing one is said plainly."""

import gc
import platform
import random
import threading
from importlib.metadata import PackageNotFoundError

import numpy as np
import pytest
import torch

from abc_embed import runtime
from abc_embed.errors import DeviceError, UsageError


def pretend(monkeypatch: pytest.MonkeyPatch, *, cuda: int = 0, mps: bool = False) -> None:
    """Tests say the same on every machine: what torch finds is replaced."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    monkeypatch.setattr(torch.backends.mps, "is_macos_or_newer", lambda major, minor: True)


def test_auto_takes_the_best_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch)
    assert runtime.resolve_device("auto") == torch.device("cpu")
    assert runtime.resolve_dtype("auto", "cpu") == torch.float32
    pretend(monkeypatch, mps=True)
    assert runtime.resolve_device("auto") == torch.device("mps")
    assert runtime.resolve_dtype("auto", "mps") == torch.bfloat16
    pretend(monkeypatch, cuda=1, mps=True)
    assert runtime.resolve_device() == torch.device("cuda")
    assert runtime.resolve_dtype("auto", "cuda") == torch.bfloat16


def test_a_named_device(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, cuda=2)
    assert runtime.resolve_device("cuda:1") == torch.device("cuda:1")
    assert runtime.resolve_device(torch.device("cpu")) == torch.device("cpu")
    with pytest.raises(DeviceError, match=r"no cuda:2; this machine has 2 "):
        runtime.resolve_device("cuda:2")


@pytest.mark.parametrize("name", ["cuda", "cuda:0", "mps"])
def test_a_device_that_is_not_there(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    pretend(monkeypatch)
    with pytest.raises(DeviceError, match="device='cpu'"):
        runtime.resolve_device(name)


@pytest.mark.parametrize("name", ["gpu", "meta", "", "cuda:x", "xla"])
def test_a_device_that_does_not_exist(name: str) -> None:
    with pytest.raises(UsageError, match="use auto, cpu, cuda"):
        runtime.resolve_device(name)


def test_number_formats(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in runtime.DTYPES:
        assert runtime.resolve_dtype(name) == getattr(torch, name)
        assert runtime.resolve_dtype(getattr(torch, name)) == getattr(torch, name)
    for wrong in ("float8", "int64", torch.int8):
        with pytest.raises(UsageError, match="use auto, float32"):
            runtime.resolve_dtype(wrong)
    pretend(monkeypatch, cuda=1)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: False)
    assert runtime.resolve_dtype("auto", "cuda") == torch.float32
    with pytest.raises(DeviceError, match="cannot compute in bfloat16"):
        runtime.resolve_dtype("bfloat16", "cuda")


def test_one_seed_for_all_generators() -> None:
    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    runtime.seed_everything(7)
    first = draw()
    assert draw() != first
    runtime.seed_everything(7)
    assert draw() == first
    runtime.seed_everything(2**32 + 7)  # NumPy takes 32 bits only


def test_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    found = runtime.versions()
    assert found["torch"] == torch.__version__
    assert {"abc-embed", "python", *runtime.PACKAGES} == set(found)

    def absent(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr("importlib.metadata.version", absent)
    assert runtime.versions()["peft"] == "missing"


def test_hardware(monkeypatch: pytest.MonkeyPatch) -> None:
    found = runtime.hardware()
    assert found["cpus"] >= 1
    assert found["memory_bytes"] is None or found["memory_bytes"] > 2**28
    monkeypatch.delattr("os.sysconf")
    assert runtime.hardware()["memory_bytes"] is None


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc keeps what is freed")
def test_freed_memory_is_given_back() -> None:
    """Blocks that small ones, still in use, lie between: none is at the end of the heap."""
    small = [(bytes(40_000), bytes(600)) for _ in range(2_000)]
    kept = [one for _, one in small]
    full = runtime.resident_bytes()
    del small
    runtime.trim_memory()
    assert full - runtime.resident_bytes() > 40e6 and len(kept) == 2_000


def test_the_collector_rests_within_and_is_as_before_after() -> None:
    with runtime.no_garbage_collection():
        assert not gc.isenabled()
        with runtime.no_garbage_collection():
            pass
        assert not gc.isenabled()
    assert gc.isenabled()
    with pytest.raises(UsageError), runtime.no_garbage_collection():
        raise UsageError("a fault within")
    assert gc.isenabled()


def test_work_in_a_thread_of_its_own_leaves_no_thread() -> None:
    def fail() -> None:
        raise UsageError("not so")

    thread = runtime.in_own_thread(threading.current_thread)
    assert thread is not threading.current_thread() and not thread.is_alive()
    with pytest.raises(UsageError, match="not so"):
        runtime.in_own_thread(fail)
