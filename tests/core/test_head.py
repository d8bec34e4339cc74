"""The head as published: residual SELU MLP, float32 whatever comes in; and the temperature."""

import pytest
import torch
import torch.nn.functional as F

from abc_embed.head import HIDDEN_WIDTH, START_TEMPERATURE, Head, Temperature, l2_normalize


def test_a_fresh_head_is_x_plus_selu_of_x() -> None:
    head = Head(64)
    x = torch.randn(3, 64, generator=torch.Generator().manual_seed(0))
    assert head.linear1.weight.shape == (HIDDEN_WIDTH, 64)
    assert torch.allclose(head(x), x + F.selu(x), atol=1e-6)


def test_a_head_wider_than_its_inside_starts_like_eye_too() -> None:
    head = Head(8, hidden=4)
    assert torch.equal(head.linear1.weight, torch.eye(4, 8))
    assert torch.equal(head.linear2.weight, torch.eye(8, 4))
    assert not head.linear1.bias.any()


def test_it_is_the_formula_of_the_paper() -> None:
    head = Head(8, hidden=16)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.normal_(generator=generator)
    x = torch.randn(2, 8, generator=generator)
    (w1, b1), (w2, b2) = ((layer.weight, layer.bias) for layer in (head.linear1, head.linear2))
    assert torch.allclose(head(x), x + F.selu(x @ w1.T + b1) @ w2.T + b2, atol=1e-5)


def test_autocast_and_bfloat16_input_leave_it_in_float32() -> None:
    head = Head(64)
    x = torch.randn(3, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = head(x)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, head(x.float()))


def test_unit_vectors_have_length_one() -> None:
    lengths = l2_normalize(torch.tensor([[3.0, 4.0], [1e-4, 0.0]])).norm(dim=1)
    assert torch.allclose(lengths, torch.ones(2))


def test_the_temperature_divides_and_learns() -> None:
    temperature = Temperature()
    assert temperature.value == pytest.approx(START_TEMPERATURE)
    scores = temperature(torch.tensor([0.5]))
    assert scores.item() == pytest.approx(0.5 / 0.07)
    scores.backward()
    assert temperature.temp.grad is not None
    assert temperature.temp.grad.item() == pytest.approx(-0.5 / 0.07**2, rel=1e-5)


def test_the_floor_lifts_a_collapsed_temperature_and_leaves_others() -> None:
    temperature = Temperature(1e-6)
    temperature.floor_(0.01)
    assert temperature.value == pytest.approx(0.01)
    temperature.floor_(0.001)
    assert temperature.value == pytest.approx(0.01)
