"""Evidence from attention, for comparison: what methods of others say of our model.

None of them is exact for a model that pools over all tokens, and rollout knows no text at all.

Shapes: `V` visual tokens, `T` tokens of the item, `H` heads, `D` width of the language model.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from abc_embed.explain import TokenProbe


def attention_rollout(probe: TokenProbe) -> Tensor:
    """Attention of all layers multiplied, half of each kept in place (arXiv 2005.00928): `(V,)`."""
    with torch.no_grad(), _recorded(probe) as (maps, _):
        probe.hidden(probe.visual)
    mixed = torch.eye(maps[0].shape[-1], device=maps[0].device)
    for attention in maps:
        mean = attention[0].float().mean(dim=0)
        mixed = (mean + torch.eye(len(mean), device=mean.device)) / 2 @ mixed
    return mixed.mean(dim=0)[probe.is_visual]


def gradient_times_attention(probe: TokenProbe) -> Tensor:
    """Each layer's attention times the gradient of the cosine by it, what is above 0: `(V,)`."""
    with torch.enable_grad(), _recorded(probe) as (maps, _):
        cosine = probe.cosine_of_pooled(probe.hidden(_leaf(probe))[1]).sum()
        gradients = torch.autograd.grad(cosine, maps)
    pairs = zip(gradients, maps, strict=True)
    return _seen(probe, [(gradient * attention).relu() for gradient, attention in pairs])


def legrad(probe: TokenProbe) -> Tensor:
    """The gradient of each layer's own cosine by its attention (arXiv 2404.03214): `(V,)`.

    A layer's own cosine is that of its hidden states, pooled and taken through norm and head.
    """
    norm = probe.language_model.norm
    gradients = []
    with torch.enable_grad(), _recorded(probe) as (maps, states):
        probe.hidden(_leaf(probe))
        for attention, state in zip(maps, states, strict=True):
            cosine = probe.cosine_of_pooled(norm(state).mean(dim=1)).sum()
            (gradient,) = torch.autograd.grad(cosine, [attention], retain_graph=True)
            gradients.append(gradient.relu())
    return _seen(probe, gradients)


METHODS: dict[str, Callable[[TokenProbe], Tensor]] = {
    "attention rollout": attention_rollout,
    "gradient x attention": gradient_times_attention,
    "LeGrad": legrad,
}


def _leaf(probe: TokenProbe) -> Tensor:
    """Tokens that a graph hangs on: weights may be frozen."""
    return probe.visual.detach().requires_grad_(True)


def _seen(probe: TokenProbe, layers: list[Tensor]) -> Tensor:
    """`(1, H, T, T)` of each layer -> how much all tokens together look at each visual one."""
    return torch.stack([of[0].float().mean(dim=(0, 1)) for of in layers]).mean(0)[probe.is_visual]


@contextmanager
def _recorded(probe: TokenProbe) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
    """Attention `(1, H, T, T)` and hidden states `(1, T, D)` after each layer, as it runs.

    The fast kernels keep no attention, so the plain one computes meanwhile.
    """
    maps: list[Tensor] = []
    states: list[Tensor] = []
    config = probe.language_model.config
    before = config._attn_implementation
    hooks = []
    for layer in probe.language_model.layers:
        keep_map: Callable[..., None] = lambda _, __, out: maps.append(out[1])  # noqa: E731
        keep_state: Callable[..., None] = lambda _, __, out: states.append(  # noqa: E731
            out if isinstance(out, Tensor) else out[0]
        )
        hooks += [layer.self_attn.register_forward_hook(keep_map)]
        hooks += [layer.register_forward_hook(keep_state)]
    try:
        config._attn_implementation = "eager"
        yield maps, states
    finally:
        config._attn_implementation = before
        for hook in hooks:
            hook.remove()
