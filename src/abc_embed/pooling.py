"""Mean over the tokens of each item: template, image and text tokens alike (paper section 3).

What is padding, the mask says, never a token id: "!" is a real token (its id is 0 in Qwen2-VL, and
code that masks by id loses it).

Shapes: B items, T tokens, D width.
"""

import torch
from torch import Tensor


def mean_pool(hidden: Tensor, mask: Tensor) -> Tensor:
    """Average `hidden` `(B, T, D)` over tokens where `mask` `(B, T)` is true -> `(B, D)` float32.

    The sum runs in float32 even if the states are bfloat16: a sum over a thousand tokens loses the
    small ones otherwise. Padding is replaced, not multiplied away, so that not even a NaN there
    reaches the mean. Every row must have at least one real token.
    """
    keep = mask.to(device=hidden.device, dtype=torch.bool).unsqueeze(-1)
    total = hidden.float().masked_fill(~keep, 0.0).sum(dim=1)
    return total / keep.sum(dim=1)
