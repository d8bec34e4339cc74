"""AdamW over all that trains, whether weights are whole or split by FSDP2.

`zero` has the same optimizer with its state split by DeepSpeed.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from abc_embed.train.config import OptimConfig
from abc_embed.train.processes import ProcessGroup
from abc_embed.train.sharding import full_tensor, is_sharded, shard_like


class AdamW:
    """torch's own, for weights that are whole or split by FSDP2.

    All processes make the same calls in the same order.
    """

    def __init__(
        self, parameters: Sequence[nn.Parameter], optim: OptimConfig, process_group: ProcessGroup
    ) -> None:
        self._parameters = list(parameters)
        self._process_group = process_group
        self._adamw = torch_adamw(parameters, optim)

    def set_learning_rate(self, learning_rate: float) -> None:
        """The learning rate from the next step on."""
        set_learning_rate(self._adamw, learning_rate)

    @contextmanager
    def grad_sync(self) -> Iterator[None]:
        """Goes around all backward passes of a step. After it gradients are those of all."""
        yield
        self._process_group.average_gradients(self._parameters)

    def clip_grad_norm(self, max_norm: float) -> float:
        """Scale all gradients together to `max_norm` if they exceed it and it is not 0.

        Returns:
            The norm before; not finite where a gradient is not.
        """
        norm = self._process_group.accelerator.clip_grad_norm_(
            self._parameters, max_norm or math.inf
        )
        return float(full_tensor(norm))

    def step(self) -> None:
        """Move the weights and forget the gradients."""
        self._adamw.step()
        self._adamw.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Tensor]:
        """Full running means and step counts as `number.name`, in main memory.

        Parameters are numbered matrices first, τ last, however they are split. Rates and decays are
        left out: they follow from the configuration.
        """
        return {
            f"{number}.{name}": full_tensor(value).cpu().contiguous()
            for number, values in self._adamw.state_dict()["state"].items()
            for name, value in values.items()
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from `state`, and from the weights as they are now. Waits for no other process."""
        by_number: dict[int, dict[str, Tensor]] = {}
        parameters = [p for group in self._adamw.param_groups for p in group["params"]]
        for key, value in state.items():
            number, _, name = key.partition(".")
            if name != "step":
                value = shard_like(value, parameters[int(number)])
            by_number.setdefault(int(number), {})[name] = value
        self._adamw.load_state_dict(self._adamw.state_dict() | {"state": by_number})

    def close(self) -> None:
        """Let go of the weights: training is done."""


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Set it for all groups of parameters."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate


def torch_adamw(parameters: Sequence[nn.Parameter], optim: OptimConfig) -> torch.optim.AdamW:
    """AdamW; weight decay on matrices only.

    Where weights are split, those that are not (τ) are a group of their own: torch steps through a
    group at once, and cannot mix the two kinds.
    """
    matrices = [p for p in parameters if p.ndim > 1]
    others = [p for p in parameters if p.ndim <= 1]
    groups: list[dict[str, list[nn.Parameter] | float]] = [
        {"params": matrices, "weight_decay": optim.weight_decay},
        {"params": [p for p in others if is_sharded(p)], "weight_decay": 0.0},
        {"params": [p for p in others if not is_sharded(p)], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]], lr=optim.learning_rate, betas=optim.betas
    )
