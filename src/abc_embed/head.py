"""What turns pooled states into embeddings: a residual MLP, unit length, a learnt temperature.

`y = x + W2 · SELU(W1 · x + b1) + b2`, then `y / |y|`, always in float32, autocast or not: cosines
of neighbours differ in the third digit, and bfloat16 has only two; the head is tiny next to the
backbone.

Shapes: B items, D width of the backbone, H width inside the head.
"""

from collections.abc import Callable
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HIDDEN_WIDTH = 4096
"""H of the published model."""

START_TEMPERATURE = 0.07
"""Where the published training starts; it ends near 0.03."""


class Float32Module(nn.Module):
    """Keeps its number format when the model around it changes its own, as `.half()` does."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        def move(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        super()._apply(move, recurse)  # type: ignore[no-untyped-call]
        return self


class Head(Float32Module):
    """Residual MLP `(B, D)` -> `(B, D)` float32, not yet of unit length.

    Both weights start as `eye` and both biases as 0 (the published start): the fresh head is
    `x + SELU(x)`, so it keeps what the backbone knows.
    """

    def __init__(self, width: int, hidden: int = HIDDEN_WIDTH) -> None:
        super().__init__()
        self.linear1 = nn.Linear(width, hidden, dtype=torch.float32)
        self.linear2 = nn.Linear(hidden, width, dtype=torch.float32)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Put the published start values back."""
        for layer in (self.linear1, self.linear2):
            nn.init.eye_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, pooled: Tensor) -> Tensor:
        """`pooled` `(B, D)` of any float type -> `(B, D)` float32."""
        with torch.autocast(pooled.device.type, enabled=False):
            x = pooled.float()
            y: Tensor = self.linear2(F.selu(self.linear1(x)))
            return x + y


def l2_normalize(vectors: Tensor) -> Tensor:
    """Scale each row of `(B, D)` to length 1, in float32."""
    return F.normalize(vectors.float(), dim=-1)


class Temperature(Float32Module):
    """The one learnt scalar τ of `score = cos / τ`: it divides, here and everywhere."""

    def __init__(self, start: float = START_TEMPERATURE) -> None:
        super().__init__()
        self.temp = nn.Parameter(torch.tensor(start, dtype=torch.float32))

    def forward(self, cosines: Tensor) -> Tensor:
        """Cosines of any shape -> scores of the same shape, float32."""
        return cosines.float() / self.temp

    @property
    def value(self) -> float:
        """τ as a plain number."""
        return float(self.temp.detach())

    @torch.no_grad()
    def floor_(self, minimum: float) -> None:
        """Lift τ to `minimum` if it fell below; call it after each optimizer step.

        With random negatives τ runs to 0 and the loss with it to NaN (paper section 4).
        """
        self.temp.clamp_(min=minimum)
