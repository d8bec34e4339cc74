"""Counting and timing: the arithmetic of published shapes, clocks that wait for the device."""

import pytest
import torch

from abc_embed.inputs import Kind
from abc_embed.processor import Features
from abc_embed.speed import costs
from abc_embed.speed.costs import Arithmetic, Seconds, Stopwatch, exact_float32, median, peak_flops
from abc_embed.speed.shapes import keep_layers, language_layers, meta_model, vision_layers


def seen(tokens: int, grid: tuple[int, int, int], key: str = "a") -> Features:
    return Features(Kind.IMAGE, torch.zeros(tokens, dtype=torch.int64), None, grid, key)


def test_the_arithmetic_of_7b_is_what_was_counted_by_hand() -> None:
    """A picture of 504 visual tokens, 542 tokens in all: 3.25 and 7.19 TFLOP."""
    model, _ = meta_model("7b")
    vision, language = Arithmetic.of(model).flops([seen(542, (1, 36, 56))])
    assert language == pytest.approx(7.19e12, rel=0.01)
    assert vision == pytest.approx(3.25e12, rel=0.01)


def test_a_picture_counts_once_and_layers_add_up() -> None:
    model, _ = meta_model("tiny")
    arithmetic = Arithmetic.of(model)
    one = arithmetic.flops([seen(20, (1, 8, 8))])
    twice = arithmetic.flops([seen(20, (1, 8, 8))] * 2)
    assert twice == (one[0], 2 * one[1])
    assert arithmetic.flops([seen(20, (1, 8, 8)), seen(20, (1, 8, 8), "b")])[0] == 2 * one[0]
    keep_layers(model, 1, 1)
    assert (len(language_layers(model)), len(vision_layers(model))) == (1, 1)
    assert Arithmetic.of(model).token * 3 == arithmetic.token


def test_a_lap_ends_when_the_device_has_done_its_part(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[str] = []
    monkeypatch.setattr(costs, "synchronize", lambda device: waited.append(device.type))
    watch = Stopwatch(torch.device("cuda"))
    watch.lap()
    assert waited == ["cuda", "cuda"]


def test_the_clock_that_counts_and_the_median() -> None:
    seconds = Seconds(processor=2.0, wall=1.0)
    assert seconds.on(torch.device("cpu")) == 2.0 and seconds.on(torch.device("cuda")) == 1.0
    assert median([seconds, Seconds(3, 5), Seconds(4, 3)]) == Seconds(3, 3)


def test_float32_is_exact_inside_and_as_it_was_after() -> None:
    before = torch.backends.cudnn.allow_tf32
    with exact_float32():
        assert not torch.backends.cudnn.allow_tf32
        assert not torch.backends.cuda.matmul.allow_tf32
    assert torch.backends.cudnn.allow_tf32 is before


def test_the_peak_is_a_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(costs.PEAK_SIDE, "cpu", 64)
    assert peak_flops(torch.device("cpu"), torch.float32) > 1e6
