"""The mean is over real tokens: padding, even poisoned, has no say."""

import torch

from abc_embed.pooling import mean_pool


def test_it_is_the_mean_of_the_real_tokens() -> None:
    hidden = torch.tensor([[[1.0, 2.0], [3.0, 6.0], [50.0, 50.0]]])
    mask = torch.tensor([[True, True, False]])
    assert mean_pool(hidden, mask).tolist() == [[2.0, 4.0]]


def test_padding_has_no_say_even_if_it_is_not_a_number() -> None:
    hidden = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    clean = mean_pool(hidden, mask)
    poisoned = hidden.clone()
    poisoned[1, 3:] = float("nan")
    assert torch.equal(mean_pool(poisoned, mask), clean)
    assert torch.equal(clean[1], mean_pool(hidden[1:, :3], mask[1:, :3])[0])


def test_bfloat16_states_are_summed_in_float32() -> None:
    # 1 + 1/256 is between two bfloat16 numbers; a sum of 4096 ones stops growing at 256 in it.
    hidden = torch.ones(1, 4096, 1, dtype=torch.bfloat16)
    pooled = mean_pool(hidden, torch.ones(1, 4096, dtype=torch.bool))
    assert pooled.dtype == torch.float32
    assert pooled.item() == 1.0


def test_gradients_reach_real_tokens_only() -> None:
    hidden = torch.ones(1, 3, 2, requires_grad=True)
    mean_pool(hidden, torch.tensor([[True, True, False]])).sum().backward()
    assert hidden.grad is not None
    assert hidden.grad.tolist() == [[[0.5, 0.5], [0.5, 0.5], [0.0, 0.0]]]
