"""Several devices: the vectors of one, the order kept, nothing lost of a process that dies."""

import logging
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import golden_parts
import numpy as np
import pytest

from abc_embed import devices, errors
from abc_embed.devices import device_of_process, resolve_devices, stream_in_processes
from abc_embed.embedder import Embedder, Skipped
from abc_embed.inputs import Item

FEW = 4 * 28 * 28


@pytest.fixture(scope="module")
def model() -> Embedder:
    return Embedder(*golden_parts.shared())


def test_two_processes_give_the_vectors_of_one(model: Embedder) -> None:
    items = [
        item
        for shade in range(6)
        for item in (
            Item(text=f"a dog {shade}"),
            golden_parts.small(shade=shade),
            golden_parts.small("what is on the left?", shade=shade),
            Item(image="no such file.png") if shade == 3 else Item(text="a cat"),
        )
    ]
    alone, bad = model.embed(items, max_pixels=FEW, on_error="skip")
    both, skipped = model.embed(items, max_pixels=FEW, on_error="skip", devices=["cpu", "cpu"])
    assert np.abs(both - alone).max() < 1e-5
    assert [(s.index, str(s.error)) for s in skipped] == [(s.index, str(s.error)) for s in bad]
    assert skipped[0].index == 15 and skipped[0].item is items[15]


def test_a_stream_keeps_its_order_and_ends_at_a_bad_item(
    model: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "TASK_ITEMS", 3)
    texts = [f"a dog {n}" for n in range(10)]
    stream = model.stream([*texts, Item(image="no.png"), "x"], devices=["cpu", "cpu"], dim=16)
    found = [next(stream) for _ in range(10)]
    assert np.abs(np.stack(found) - model.embed(texts, dim=16)).max() < 1e-5
    with pytest.raises(errors.ImageNotFoundError, match=r"^item 10: "):
        next(stream)


def load_and_die_once(mark: Path, number: int) -> Callable[[Iterable[Any]], Iterator[Any]]:
    """Stands in for a model; the process that gets item 7 first dies of it."""

    def stream(items: Iterable[Any]) -> Iterator[Any]:
        for item in items:
            if item == 7 and not mark.exists():
                mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            if item == 11:
                yield Skipped(0, item, errors.InputError("eleven is bad"))
            else:
                yield np.full(2, item, dtype=np.float32)

    return stream


def test_a_process_that_dies_is_named_and_another_does_its_items(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    load = partial(load_and_die_once, tmp_path / "mark")
    with caplog.at_level(logging.WARNING):
        results = list(
            stream_in_processes(load, enumerate(range(20)), 2, on_error="skip", total=20)
        )
    assert [index for index, _ in results] == list(range(20))
    for index, result in results:
        if index == 11:
            assert isinstance(result, Skipped) and str(result) == "item 11: eleven is bad"
        else:
            assert not isinstance(result, Skipped) and result.tolist() == [index, index]
    assert len(caplog.messages) == 1
    assert "process" in caplog.messages[0] and "exit code -9" in caplog.messages[0]


def test_what_cannot_be_is_said_before_a_process_starts(model: Embedder) -> None:
    for wrong in ([], "cpu"):
        with pytest.raises(errors.UsageError, match="give a list, like"):
            model.embed(["a"], devices=wrong)
    with pytest.raises(errors.DeviceError, match="use device='cpu'"):
        model.embed(["a"], devices=["cuda:0", "cpu"])
    with pytest.raises(errors.UsageError, match="cannot be handed to another process"):
        list(stream_in_processes(load_nothing, [(0, lambda: None)], 1))


def load_nothing(number: int) -> Any:
    raise AssertionError


def test_auto_is_a_gpu_for_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices.torch.cuda, "device_count", lambda: 2)
    assert [device_of_process("auto", n) for n in range(3)] == ["cuda:0", "cuda:1", "cuda:0"]
    assert device_of_process("cpu", 1) == "cpu"
    monkeypatch.setattr(devices.torch.cuda, "device_count", lambda: 1)
    assert device_of_process("auto", 1) == "auto"
    assert resolve_devices(["cpu", "cpu"]) == [devices.torch.device("cpu")] * 2
