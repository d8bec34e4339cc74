"""Modules that compute what those of transformers do at less cost, put in their place one by one.

Parameters keep their names, so that files, LoRA and weights of fewer bits find them. Where no
gradient is asked for they write in place. With `attn="eager"` all stays as transformers has it.

Shapes: B rows, T tokens, D width, H heads, d width of a head, P patches, C numbers per patch, L
patches of one image or window.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import groupby
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.activations import QuickGELUActivation, SiLUActivation
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.qwen2_vl.modeling_qwen2_vl import eager_attention_forward

from abc_embed.runtime import to_device


class PatchProjection(nn.Module):
    """A convolution whose stride is its kernel, as the matrix product that it is.

    Faster on every device, and exact in float32 on a GPU, where convolutions are TF32 by default.
    Parameters and their names are those of the convolution.
    """

    def __init__(self, convolution: nn.Module) -> None:
        super().__init__()
        self.weight = convolution.get_parameter("weight")
        self.bias: nn.Parameter | None = getattr(convolution, "bias", None)

    def forward(self, x: Tensor) -> Tensor:
        """`(N, C, *sides)` with sides that the kernel divides -> `(N, D, *counts)`."""
        kernel = self.weight.shape[2:]
        counts = [side // k for side, k in zip(x.shape[2:], kernel, strict=True)]
        if math.prod(counts) > 1:  # (N, C, h, kh, w, kw) -> (N, h, w, C, kh, kw)
            split = [n for pair in zip(counts, kernel, strict=True) for n in pair]
            places, inside = range(2, 2 + len(split), 2), range(3, 3 + len(split), 2)
            x = x.reshape(*x.shape[:2], *split).permute(0, *places, 1, *inside)
        patches = x.reshape(len(x), *counts, -1)
        return F.linear(patches, self.weight.flatten(1), self.bias).movedim(-1, 1)


class PatchEmbedding(nn.Module):
    """Qwen-VL's first layer, for patches with all their frames or with one that stands for all."""

    def __init__(self, embedding: nn.Module) -> None:
        super().__init__()
        self.proj = PatchProjection(embedding.get_submodule("proj"))

    def forward(self, patches: Tensor) -> Tensor:
        """`(P, C)` -> `(P, D)`."""
        weight: Tensor = self.proj.weight  # (D, 3, frames, side, side)
        if patches.shape[1] < weight[0].numel():  # equal frames, so that their weights add up
            weight = weight.float().sum(dim=2).to(weight.dtype)
        return F.linear(patches.to(weight.dtype), weight.flatten(1), self.proj.bias)


class LeanQuickGELU(nn.Module):
    """`x * sigmoid(1.702 * x)`; where no gradient is asked for, in one new tensor, not three."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape, elementwise."""
        if torch.is_grad_enabled():
            return x * torch.sigmoid(1.702 * x)
        return (1.702 * x).sigmoid_().mul_(x)


class LeanRMSNorm(nn.Module):
    """`x / sqrt(mean(x^2) + eps) * weight`."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.weight = norm.get_parameter("weight")
        self.eps = float(norm.variance_epsilon)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """`(..., D)` -> the same shape."""
        if torch.is_grad_enabled() or x.device.type != "cpu" or x.dtype != torch.float32:
            return F.rms_norm(x, self.weight.shape, self.weight, self.eps)
        # A CPU has no fused kernel: this goes over `x` twice, its plain steps four times.
        scale: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_()
        return x.mul(scale.div_(x.shape[-1]).add_(self.eps).rsqrt_()).mul_(self.weight)


class LeanGatedMLP(nn.Module):
    """`down(silu(gate(x)) * up(x))`."""

    def __init__(self, mlp: nn.Module) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = mlp.get_submodule("gate_proj"), mlp.get_submodule("up_proj")
        self.down_proj = mlp.get_submodule("down_proj")

    def forward(self, x: Tensor) -> Tensor:
        """`(..., D)` -> the same shape."""
        gate, up = self.gate_proj(x), self.up_proj(x)
        if torch.is_grad_enabled():
            gated = F.silu(gate) * up
        else:
            gated = F.silu(gate, inplace=True).mul_(up)
        out: Tensor = self.down_proj(gated)
        return out


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions: each pair (first half, second half) of `(..., d)` turned by its angle."""
    half = x.shape[-1] // 2
    first, second = x[..., :half], x[..., half:]
    if torch.is_grad_enabled():
        return x * cos + torch.cat((-second, first), dim=-1) * sin
    out = x * cos
    out[..., :half].addcmul_(second, sin[..., :half], value=-1)
    out[..., half:].addcmul_(first, sin[..., half:])
    return out


class LeanAttention(nn.Module):
    """Attention of the language model: rotary positions without a copy of each half."""

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.q_proj, self.k_proj = attention.q_proj, attention.k_proj
        self.v_proj, self.o_proj = attention.v_proj, attention.o_proj
        self.config = attention.config
        self.head_dim = int(attention.head_dim)
        self.num_key_value_groups = int(attention.num_key_value_groups)
        self.scaling = float(attention.scaling)
        self.dropout = float(attention.attention_dropout)
        self.sliding_window: int | None = attention.sliding_window
        self.is_causal = bool(attention.is_causal)

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None,
        position_embeddings: tuple[Tensor, Tensor],
        position_ids: Tensor | None = None,
        **options: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """`(B, T, D)`, cosine and sine `(B, T, d)` -> `(B, T, D)`, and weights if there are any."""
        batch, tokens, _ = hidden_states.shape
        parts = (self.q_proj, self.k_proj, self.v_proj)
        q, k, v = (part(hidden_states).view(batch, tokens, -1, self.head_dim) for part in parts)
        cos, sin = (angle.unsqueeze(2) for angle in position_embeddings)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        out, weights = attend(
            self,
            rotate(q, cos, sin).transpose(1, 2),
            rotate(k, cos, sin).transpose(1, 2),
            v.transpose(1, 2),
            attention_mask,
            dropout=self.dropout if self.training else 0.0,
            scaling=self.scaling,
            sliding_window=self.sliding_window,
            position_ids=position_ids,
            **options,
        )
        return self.o_proj(out.reshape(batch, tokens, -1)), weights


class LeanVisionAttention(nn.Module):
    """Attention of the vision encoder: images laid end to end in one call per size.

    transformers calls it for one image after the other, unless flash attention is installed.
    """

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.qkv, self.proj = attention.qkv, attention.proj
        self.num_heads = int(attention.num_heads)
        self.num_key_value_groups = 1
        self.scaling = float(attention.scaling)
        self.is_causal = False

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        abc_groups: "AttentionGroups",
        **_: Any,
    ) -> Tensor:
        """`(P, D)`, cosine and sine `(P, d)` -> `(P, D)`."""
        patches = len(hidden_states)
        qkv = self.qkv(hidden_states).view(patches, 3, self.num_heads, -1)
        cos, sin = (angle[:, None, None].float() for angle in position_embeddings)
        # Queries and keys at once.
        turned = rotate(qkv[:, :2].float(), cos, sin).to(qkv.dtype)
        out = attend_in_groups(self, turned[:, 0], turned[:, 1], qkv[:, 2], abc_groups)
        projected: Tensor = self.proj(out.view(patches, -1))
        return projected


Groups = Sequence[tuple[int, int]]
"""(number of images or windows, L) of each run of equally long ones."""


@dataclass(frozen=True, slots=True, eq=False)
class AttentionGroups:
    """The runs that each attention module takes apart.

    No bare dictionary: torch.compile would look into it, and compile a layer anew for every module
    that it finds there.
    """

    of: dict[nn.Module, Groups]


def equal_runs(lengths: Sequence[int]) -> Groups:
    """L of each image or window, in order -> runs of equal L."""
    return [(len(list(run)), length) for length, run in groupby(lengths)]


def attend_in_groups(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, groups: AttentionGroups
) -> Tensor:
    """Vision attention for images laid end to end: one call per size instead of one per image.

    One call for all where the device has attention for rows of any length. `query`, `key`,
    `value`: `(sum L, H, d)`. Returns `(sum L, H, d)`.
    """
    runs = groups.of[module]
    if len(runs) > 1 and has_varlen(query):
        return attend_in_one_call(query, key, value, runs)
    outputs, start = [], 0
    for count, length in runs:
        end = start + count * length
        # (count * L, H, d) -> (count, H, L, d): no image sees another.
        q, k, v = (
            x[start:end].view(count, length, *x.shape[1:]).transpose(1, 2)
            for x in (query, key, value)
        )
        out, _ = sdpa_attention_forward(module, q, k, v, None)
        outputs.append(out.flatten(0, 1))
        start = end
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def has_varlen(query: Tensor) -> bool:
    """Whether torch's own attention for rows of any length takes this: since Ampere, 16 bits."""
    return (
        query.is_cuda
        and query.dtype in (torch.float16, torch.bfloat16)
        and query.shape[-1] <= 256
        and torch.cuda.get_device_capability(query.device) >= (8, 0)
        and find_spec("torch.nn.attention.varlen") is not None
    )


def attend_in_one_call(query: Tensor, key: Tensor, value: Tensor, runs: Groups) -> Tensor:
    """`attend_in_groups` by torch's attention for rows of any length."""
    from torch.nn.attention.varlen import varlen_attn

    lengths = [length for count, length in runs for _ in range(count)]
    ends = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
    ends = to_device(ends, query.device)
    q, k, v = (part.contiguous() for part in (query, key, value))
    longest = max(lengths)
    out: Any = varlen_attn(q, k, v, ends, ends, longest, longest)
    return out  # type: ignore[no-any-return]


def use_lean_modules(vlm: nn.Module, attn: str) -> None:
    """Put lean modules in the place of those of transformers that they can stand for.

    All stays with `attn="eager"`, the slow reference, and the attention where another is asked for.
    """
    if attn == "eager":
        return
    for parent in list(vlm.modules()):
        for name, child in list(parent.named_children()):
            lean = lean_module(child, attn)
            if lean is not None:
                setattr(parent, name, lean)


def lean_module(module: nn.Module, attn: str) -> nn.Module | None:
    """What stands for a module of transformers, None where it stays.

    They are known by their parts, as every family has classes of its own for the same thing.
    """
    parts = {name for name, _ in module.named_children()}
    if isinstance(module, QuickGELUActivation):
        return LeanQuickGELU()
    if type(module).__name__.endswith("RMSNorm") and hasattr(module, "variance_epsilon"):
        return LeanRMSNorm(module)
    if parts == {"gate_proj", "up_proj", "down_proj", "act_fn"}:
        is_silu = isinstance(module.act_fn, nn.SiLU | SiLUActivation)
        return LeanGatedMLP(module) if is_silu else None
    if attn == "sdpa" and parts == {"q_proj", "k_proj", "v_proj", "o_proj"}:
        return LeanAttention(module)
    if attn == "sdpa" and parts == {"qkv", "proj"} and hasattr(module, "scaling"):
        return LeanVisionAttention(module)
    return None
