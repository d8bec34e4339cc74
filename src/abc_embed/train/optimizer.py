"""What moves the weights: AdamW over all that trains, however it is held.

Does: say what the loop and the checkpoints ask of an optimizer (`Optimizer`), and be it for weights
that are whole or split by FSDP2 (`AdamW`). Does not: hold its means in parts (``zero`` does), or
choose the learning rate of a step (``loop`` does).
"""

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from abc_embed.train.config import OptimConfig
from abc_embed.train.sharding import is_sharded, like, whole


class Optimizer(Protocol):
    """AdamW. All processes make the same calls in the same order."""

    def set_rate(self, rate: float) -> None:
        """The learning rate from the next step on."""

    def gathering(self) -> AbstractContextManager[None]:
        """Goes around all backward passes of a step. After it gradients are those of all."""

    def clip(self, most: float) -> float:
        """Scale all gradients together to the norm `most` if they exceed it and it is not 0.

        Returns the norm before; not finite where a gradient is not.
        """

    def step(self) -> None:
        """Move the weights and forget the gradients."""

    def means(self) -> dict[str, Tensor]:
        """Whole running means and step counts as `number.name`, in main memory.

        Parameters are counted matrices first, τ last, so that all kinds of holding agree.
        """

    def restore(self, means: Mapping[str, Tensor]) -> None:
        """Go on from `means`, and from the weights as they are now. Waits for no other process."""

    def close(self) -> None:
        """Let go of the weights: training is done."""


class AdamW:
    """torch's own, for weights that are whole or split by FSDP2."""

    def __init__(
        self, parameters: Sequence[nn.Parameter], optim: OptimConfig, accelerator: Accelerator
    ) -> None:
        self._parameters = list(parameters)
        self._accelerator = accelerator
        self._adamw = torch_adamw(parameters, optim)

    def set_rate(self, rate: float) -> None:
        for group in self._adamw.param_groups:
            group["lr"] = rate

    def gathering(self) -> AbstractContextManager[None]:
        return nullcontext()  # the stage averages whole weights, FSDP2 its parts

    def clip(self, most: float) -> float:
        norm = self._accelerator.clip_grad_norm_(self._parameters, most or math.inf)
        return float(whole(norm))

    def step(self) -> None:
        self._adamw.step()
        self._adamw.zero_grad(set_to_none=True)

    def means(self) -> dict[str, Tensor]:
        return {
            f"{number}.{name}": whole(value).cpu().contiguous()
            for number, values in self._adamw.state_dict()["state"].items()
            for name, value in values.items()
        }

    def restore(self, means: Mapping[str, Tensor]) -> None:
        """Rates and decays are not among `means`: they follow from the configuration."""
        state: dict[int, dict[str, Tensor]] = {}
        trained = [p for group in self._adamw.param_groups for p in group["params"]]
        for key, value in means.items():
            number, _, name = key.partition(".")
            split = like(value, trained[int(number)]) if name != "step" else value
            state.setdefault(int(number), {})[name] = split
        self._adamw.load_state_dict(self._adamw.state_dict() | {"state": state})

    def close(self) -> None:
        pass


def torch_adamw(parameters: Sequence[nn.Parameter], optim: OptimConfig) -> torch.optim.AdamW:
    """AdamW; weight decay on matrices only.

    Where weights are split, those that are not (τ) are a group of their own: torch steps through a
    group at once, and cannot mix the two kinds.
    """
    matrices = [p for p in parameters if p.ndim > 1]
    others = [p for p in parameters if p.ndim <= 1]
    split = [p for p in others if is_sharded(p)]
    groups: list[dict[str, list[Tensor] | float]] = [
        {"params": list(matrices), "weight_decay": optim.weight_decay},
        {"params": list(split), "weight_decay": 0.0},
        {"params": [p for p in others if not is_sharded(p)], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]], lr=optim.learning_rate, betas=optim.betas
    )
