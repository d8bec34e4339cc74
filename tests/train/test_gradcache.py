"""GradCache gives the gradients of the whole batch, dropout included, on the memory of a chunk."""

import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from abc_embed.train.config import TrainConfig
from abc_embed.train.gradcache import cached_backward, plain_backward
from abc_embed.train.losses import contrastive_loss
from abc_embed.train.processes import GlobalBatch
from abc_embed.train.stages import Stage

Backward = Callable[..., tuple[Tensor, Tensor]]


class Toy(nn.Module):
    """Something with dropout and a temperature."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(
            nn.Linear(8, 32), nn.Dropout(dropout), nn.Tanh(), nn.Linear(32, 6)
        )
        self.tau = nn.Parameter(torch.tensor(0.2))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.normalize(self.layers(x), dim=1)


def gradients(run: Backward, sizes: tuple[int, ...], dropout: float) -> dict[str, Tensor]:
    model = Toy(dropout)
    items = torch.randn(12, 8, generator=torch.Generator().manual_seed(3))
    torch.manual_seed(5)
    loss, _ = run(
        items.split(sizes),
        model,
        lambda v: contrastive_loss(v[:4], v[4:], torch.arange(4), model.tau, 0.1),
        Tensor.backward,
    )
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return found | {"loss": loss, "random state after": torch.get_rng_state()}


def assert_close(a: dict[str, Tensor], b: dict[str, Tensor], tolerance: float = 1e-5) -> None:
    assert a.keys() == b.keys() and len(a) > 2
    for name in a:
        scale = max(b[name].float().norm().item(), 1e-6)
        assert (a[name].float() - b[name].float()).norm().item() <= tolerance * scale, name


@pytest.mark.parametrize("sizes", [(12,), (4, 8), (1,) * 12, (5, 5, 2)])
def test_equals_the_whole_batch(sizes: tuple[int, ...]) -> None:
    assert_close(gradients(cached_backward, sizes, 0.0), gradients(plain_backward, (12,), 0.0))


@pytest.mark.parametrize("sizes", [(4, 8), (3, 3, 3, 3)])
def test_equals_the_same_chunks_with_dropout(sizes: tuple[int, ...]) -> None:
    cached, plain = (gradients(run, sizes, 0.4) for run in (cached_backward, plain_backward))
    assert_close(cached, plain)
    # The test could fail: dropout matters here.
    assert (cached["loss"] - gradients(plain_backward, sizes, 0.0)["loss"]).abs() > 1e-3


def test_holds_the_activations_of_one_chunk_only() -> None:
    alive: list[int] = []
    kept: list[weakref.ref[Any]] = []
    weight = torch.randn(4, 4, requires_grad=True)

    def encode(x: Tensor) -> Tensor:
        alive.append(sum(ref() is not None for ref in kept))
        inner = x @ weight
        if inner.requires_grad:
            kept.append(weakref.ref(inner))
        return inner.square()  # keeps `inner` for the way back

    chunks = torch.randn(10, 4).split(2)
    loss_of: Callable[[Tensor], Any] = lambda v: (v.sum() ** 2, torch.tensor(0.0))  # noqa: E731
    cached_backward(chunks, encode, loss_of, Tensor.backward)
    assert max(alive) == 0 and len(alive) == 10
    alive.clear(), kept.clear()
    plain_backward(chunks, encode, loss_of, Tensor.backward)
    assert max(alive) == 4


@pytest.mark.parametrize("stage_name", ["pretrain", "instruct"])
def test_model_chunked_equals_whole_batch(
    stage_name: str,
    config: Callable[..., TrainConfig],
    make_stage: Callable[..., Stage],
    batch_of: Any,
) -> None:
    found = []
    for chunk_size in (0, 3):
        stage = make_stage(config(stage_name, chunk_size=chunk_size))
        loss, _ = stage.backward(GlobalBatch.single(batch_of(stage_name)))
        grads = {n: p.grad for n, p in stage.parameters.items() if p.grad is not None}
        assert grads.keys() == stage.parameters.keys()
        found.append({"loss": loss} | grads)
    assert_close(found[1], found[0])


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("stage_name", ["pretrain", "instruct"])
def test_model_with_dropout_equals_the_same_chunks_kept(
    stage_name: str,
    checkpointing: bool,
    config: Callable[..., TrainConfig],
    make_stage: Callable[..., Stage],
    batch_of: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = config(stage_name, chunk_size=2, dropout=0.3, gradient_checkpointing=checkpointing)
    found = []
    for run in (cached_backward, plain_backward):
        monkeypatch.setattr("abc_embed.train.stages.cached_backward", run)
        stage = make_stage(settings)
        torch.manual_seed(7)
        loss, _ = stage.backward(GlobalBatch.single(batch_of(stage_name)))
        grads = {n: p.grad for n, p in stage.parameters.items() if p.grad is not None}
        found.append({"loss": loss} | grads)
    assert_close(*found)
