"""The loss against the published arithmetic and against closed forms."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from abc_embed.errors import TrainingError
from abc_embed.head import Head, l2_normalize
from abc_embed.train.losses import contrastive_loss, fake_quantize
from abc_embed.vectors import quantize


def unit_rows(rows: int, width: int = 16) -> torch.Tensor:
    return normalize(torch.randn(rows, width, generator=torch.Generator().manual_seed(rows)), dim=1)


def test_published_arithmetic(golden: Path) -> None:
    expected = np.load(golden / "expected_loss.npz")
    loss, accuracy = contrastive_loss(
        torch.from_numpy(expected["query"]),
        torch.from_numpy(expected["candidate"]),
        torch.arange(len(expected["query"])),
        torch.tensor(expected["temperature"]),
        float(expected["label_smoothing"]),
    )
    assert abs(loss.item() - float(expected["loss"])) <= 1e-5
    assert accuracy.item() == float(expected["accuracy"])


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
@pytest.mark.parametrize(("queries", "candidates"), [(3, 7), (5, 5), (1, 2)])
def test_equal_scores_give_log_of_the_candidates(
    queries: int, candidates: int, smoothing: float
) -> None:
    loss, _ = contrastive_loss(
        torch.zeros(queries, 8),
        torch.zeros(candidates, 8),
        torch.arange(queries),
        0.07,
        smoothing,
    )
    assert loss.item() == pytest.approx(math.log(candidates), rel=1e-6)


def test_label_smoothing_in_closed_form() -> None:
    """(1 - s) times the plain loss, plus s times the mean over all candidates."""
    query, candidates, positives = unit_rows(4), unit_rows(9), torch.tensor([8, 0, 3, 3])
    tau, s = 0.05, 0.1
    logs = torch.log_softmax(query @ candidates.T / tau, dim=1)
    by_hand = -((1 - s) * logs[range(4), positives] + s * logs.mean(dim=1)).mean()
    loss, _ = contrastive_loss(query, candidates, positives, tau, s)
    assert loss.item() == pytest.approx(by_hand.item(), rel=1e-6)


@pytest.mark.parametrize("tau", [1.0, 0.1, 0.03])
def test_temperature_divides_the_cosine(tau: float) -> None:
    """Cosines 0.8 with the right candidate and 0.6 with the other, so log(1 + e^(-0.2 / τ))."""
    query, candidates = torch.tensor([[0.8, 0.6]]), torch.eye(2)
    loss, _ = contrastive_loss(query, candidates, torch.tensor([0]), tau)
    assert loss.item() == pytest.approx(math.log1p(math.exp(-0.2 / tau)), rel=1e-4)


def test_accuracy_is_no_matter_of_luck() -> None:
    same = unit_rows(1).expand(4, -1)
    _, collapsed = contrastive_loss(same, same, torch.arange(4), 0.07)
    assert collapsed.item() == 0
    vectors = unit_rows(4)
    _, half = contrastive_loss(vectors, vectors, torch.tensor([0, 1, 3, 2]), 0.07)
    assert half.item() == 0.5


def test_scores_are_float32_under_autocast_and_for_half_vectors() -> None:
    query, candidates = unit_rows(6), unit_rows(8)
    exact, _ = contrastive_loss(query, candidates, torch.arange(6), 0.01)
    with torch.autocast("cpu", torch.bfloat16):
        autocast, _ = contrastive_loss(query, candidates, torch.arange(6), 0.01)
    assert autocast.item() == exact.item()
    half, _ = contrastive_loss(query.bfloat16(), candidates.bfloat16(), torch.arange(6), 0.01)
    assert half.dtype == torch.float32


def test_gradient_reaches_vectors_and_temperature() -> None:
    query, candidates = unit_rows(3).requires_grad_(), unit_rows(5).requires_grad_()
    tau = torch.tensor(0.07, requires_grad=True)
    loss, accuracy = contrastive_loss(query, candidates, torch.arange(3), tau, 0.1)
    loss.backward()
    assert all(t.grad is not None and t.grad.abs().sum() > 0 for t in (query, candidates, tau))
    assert not accuracy.requires_grad


@pytest.mark.parametrize(
    ("query", "candidates", "positives"),
    [
        (torch.zeros(2, 4), torch.zeros(3, 5), torch.tensor([0, 1])),
        (torch.zeros(2, 4), torch.zeros(3, 4), torch.tensor([0])),
        (torch.zeros(2, 4), torch.zeros(3, 4), torch.tensor([0.0, 1.0])),
        (torch.zeros(4), torch.zeros(3, 4), torch.tensor([0])),
    ],
)
def test_shapes_that_do_not_belong_together(
    query: torch.Tensor, candidates: torch.Tensor, positives: torch.Tensor
) -> None:
    with pytest.raises(TrainingError, match="the loss needs"):
        contrastive_loss(query, candidates, positives, 0.07)


def test_the_matryoshka_loss_is_the_mean_over_widths() -> None:
    query, candidates, positives = unit_rows(4), unit_rows(9), torch.tensor([8, 0, 3, 3])
    by_hand = [
        contrastive_loss(normalize(query[:, :w]), normalize(candidates[:, :w]), positives, 0.1)[0]
        for w in (16, 8, 4)
    ]
    loss, accuracy = contrastive_loss(query, candidates, positives, 0.1, matryoshka=[8, 4])
    assert loss.item() == pytest.approx(sum(by_hand).item() / 3, rel=1e-6)  # type: ignore[union-attr]
    assert accuracy == contrastive_loss(query, candidates, positives, 0.1)[1]


@pytest.mark.parametrize("options", [{}, {"matryoshka": [8, 3]}])
def test_gradients_of_the_head_are_those_of_finite_differences(
    options: dict[str, list[int]],
) -> None:
    torch.manual_seed(0)
    head = Head(16, hidden=8)
    bias, second, second_bias = (
        parameter.detach().double()
        for parameter in (head.linear1.bias, head.linear2.weight, head.linear2.bias)
    )
    pooled = torch.randn(5, 16, dtype=torch.float64)
    candidates, positives = unit_rows(7).double(), torch.tensor([6, 0, 1, 2, 2])

    def loss_at(weight: torch.Tensor) -> torch.Tensor:
        # In float64 by hand, since the head and the loss compute in float32.
        hidden = torch.selu(pooled @ weight.T + bias)
        query = normalize(pooled + hidden @ second.T + second_bias, dim=-1)
        losses = []
        for width in (16, *options.get("matryoshka", [])):
            scores = normalize(query[:, :width]) @ normalize(candidates[:, :width]).T / 0.1
            losses.append(torch.nn.functional.cross_entropy(scores, positives))
        return torch.stack(losses).mean()

    weight = head.linear1.weight.detach().double()
    numeric = torch.zeros_like(weight)
    for index in np.ndindex(*weight.shape):
        step = torch.zeros_like(weight)
        step[index] = 1e-6
        numeric[index] = (loss_at(weight + step) - loss_at(weight - step)) / 2e-6
    loss, _ = contrastive_loss(
        l2_normalize(head(pooled.float())),
        candidates.float(),
        positives,
        0.1,
        **options,  # type: ignore[arg-type]
    )
    loss.backward()  # type: ignore[no-untyped-call]
    assert head.linear1.weight.grad is not None
    assert (head.linear1.weight.grad - numeric).abs().max() <= 1e-5 * numeric.abs().max() + 1e-6


@pytest.mark.parametrize("output", ["int8", "binary"])
def test_fake_quantization_is_that_of_the_product_and_lets_gradients_through(output: str) -> None:
    vectors = unit_rows(40).requires_grad_()
    rounded = fake_quantize(vectors, output)
    ranges = np.stack([v.detach().numpy() for v in (vectors.amin(0), vectors.amax(0))])
    if output == "binary":
        stored = np.where(vectors.detach().numpy() > 0, 1.0, -1.0)
    else:
        levels = quantize(vectors.detach().numpy(), "uint8", ranges).astype(np.float32)
        stored = ranges[0] + (ranges[1] - ranges[0]) / 255 * (levels + 0.5)
    stored /= np.linalg.norm(stored, axis=1, keepdims=True)
    off = np.abs(rounded.detach().numpy() - stored)
    assert np.median(off) <= 1e-6
    assert off.max() <= (3e-3 if output == "int8" else 1e-6)  # a step where it is a tie
    rounded.sum().backward()  # type: ignore[no-untyped-call]
    assert torch.equal(vectors.grad, torch.ones_like(vectors))
    plain, _ = contrastive_loss(vectors, unit_rows(9), torch.zeros(40, dtype=torch.int64), 0.1)
    aware, _ = contrastive_loss(
        vectors, unit_rows(9), torch.zeros(40, dtype=torch.int64), 0.1, quantization=output
    )
    assert aware.item() != plain.item()
