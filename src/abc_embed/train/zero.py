"""AdamW's means split over the processes: DeepSpeed ZeRO, stages 1 and 2.

Does: read from accelerate whether and how to split, hand DeepSpeed what trains, make a step with
it, put its parts together for a checkpoint. Does not: split weights that are frozen (``sharding``
does, with FSDP2, as stage 3 of ZeRO would).

DeepSpeed gets a list of the trained weights, never the model: it needs no more for stages 1 and 2,
and so it neither casts nor broadcasts frozen weights, and no forward pass goes through it. A step
is many backward passes (GradCache); their gradients stay here until the last one is made and are
then averaged and split in one go, so that processes may make unequally many passes. τ is left out
and averaged by hand: ZeRO keeps copies of its own, which the floor of τ would not reach.

Accelerate's `prepare` is not used because its engine moves the weights in each backward pass.
Accelerate itself is not told of DeepSpeed either: it would leave autocast to it.
"""

import importlib.util
import logging
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import DeepSpeedPlugin
from torch import Tensor, nn

from abc_embed.errors import ConfigError, MissingExtraError
from abc_embed.train.config import OptimConfig
from abc_embed.train.optimizer import AdamW, torch_adamw
from abc_embed.train.processes import ProcessGroup
from abc_embed.train.sharding import launcher_says
from abc_embed.train.toml_config import flat

_SWITCH = "ACCELERATE_USE_DEEPSPEED"
_MEANS = ("exp_avg", "exp_avg_sq")
_BUCKET = 50_000_000
"""Gradients per message, unless the configuration says another number; 200 MB. DeepSpeed's own
choice is ten times that, and it keeps as much free memory ready in every step."""

_MENDS = {
    "gradient_accumulation_steps": "set it to 1: train.chunk_size of the recipe bounds memory",
    "gradient_clipping": "take it out: optim.clip_norm of the recipe says it",
    "zero_optimization.offload_optimizer": "set its device to none",
    "zero_optimization.offload_param": "set its device to none",
    "optimizer": "take it out: optim of the recipe says it",
    "scheduler": "take it out: optim of the recipe says it",
    "fp16": "take it out: model.precision of the recipe says it",
    "bf16": "take it out: model.precision of the recipe says it",
    "activation_checkpointing": "take it out and set train.gradient_checkpointing to true",
}
_READ = {
    "zero_optimization.stage",
    "zero_optimization.reduce_bucket_size",
    "zero_optimization.allgather_bucket_size",
}
_UNUSED = {"train_batch_size", "train_micro_batch_size_per_gpu", "steps_per_print"}
"""Accelerate writes them; the recipe has its own."""


def wants_zero() -> dict[str, Any] | None:
    """What the configuration says of ZeRO, if accelerate's launcher was told to use DeepSpeed.

    Raises `ConfigError` for what is not built, or not needed, `MissingExtraError` without
    DeepSpeed.
    """
    if not launcher_says(_SWITCH):
        return None
    if importlib.util.find_spec("deepspeed") is None:
        raise MissingExtraError.of("deepspeed", "DeepSpeed ZeRO")
    try:
        read = DeepSpeedPlugin().deepspeed_config
    except (ValueError, OSError) as error:
        raise ConfigError(f"accelerate cannot read its DeepSpeed configuration: {error}") from error
    stage = read["zero_optimization"].get("stage")
    if stage not in (1, 2):
        raise ConfigError(
            f"zero_stage {stage} of DeepSpeed's configuration cannot be used; set it to 1 or 2, or "
            "start with configs/accelerate/fsdp2.yaml, which splits the weights as stage 3 does"
        )
    for name, value in flat(read).items():
        if name in _READ | _UNUSED or _is_off(name, value):
            continue
        parent = next((known for known in _MENDS if f"{name}.".startswith(f"{known}.")), name)
        raise ConfigError(
            f"{name} of DeepSpeed's configuration cannot be used; "
            + _MENDS.get(parent, "take it out")
        )
    said = {
        name: value
        for name, value in read["zero_optimization"].items()
        if f"zero_optimization.{name}" in _READ and not _is_off(name, value)
    }
    return {"reduce_bucket_size": _BUCKET} | said


def _is_off(name: str, value: Any) -> bool:
    once = name == "gradient_accumulation_steps" and value == 1
    return once or value in (None, False, "auto", "none", "None", "")


@contextmanager
def hidden_from_accelerate() -> Iterator[None]:
    """Inside, accelerate sees processes that each hold everything."""
    told = os.environ.pop(_SWITCH, None)
    try:
        yield
    finally:
        if told is not None:
            os.environ[_SWITCH] = told


def _deepspeed(device: torch.device) -> Any:
    """The library, told where to compute and to keep quiet."""
    if device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # it would take a GPU that it finds
    import deepspeed

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)  # it logs to where results go
    if device.type == "cpu":
        # Or it compiles C++ of its own for messages, to save what gloo costs.
        deepspeed.ops.__compatible_ops__ = {}
    # Said by torch of a call in DeepSpeed, at each start; nobody here can mend it.
    warnings.filterwarnings("ignore", r".*all_gather_into_tensor` is deprecated", FutureWarning)
    return deepspeed


class ZeroAdamW:
    """`optimizer.Optimizer` with gradients and means in parts, one part with each process."""

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        optim: OptimConfig,
        team: ProcessGroup,
        accelerator: Accelerator,
        zero: Mapping[str, Any],
    ) -> None:
        """`zero` is what `wants_zero` found. Weights must be equal on all processes."""
        scalars = [p for p in parameters.values() if p.ndim == 0]  # τ
        split = [p for p in parameters.values() if p.ndim > 0]
        team.leave_to_zero(split)
        self._team = team
        self._apart = AdamW(scalars, optim, accelerator) if scalars else None
        self._scalars = scalars
        self._adamw = torch_adamw(split, optim)
        self._groups = [list(group["params"]) for group in self._adamw.param_groups]
        self._before = {p: set(vars(p)) for p in split}
        deepspeed = _deepspeed(accelerator.device)
        self._engine, *_ = deepspeed.initialize(
            model=nn.ParameterList(split),
            optimizer=self._adamw,
            dist_init_required=False,
            config={
                "train_micro_batch_size_per_gpu": 1,  # it must be told; nothing is counted by it
                "gradient_accumulation_steps": 1,
                "gradient_clipping": 0.0,  # `clip` does it, τ included, and before the step
                "zero_optimization": {**zero, "compute_grad_norm": False},
                "zero_allow_untested_optimizer": True,  # it knows AdamW by its own classes only
                "steps_per_print": None,
            },
        )
        self._zero = self._engine.optimizer

    def set_rate(self, rate: float) -> None:
        for group in self._adamw.param_groups:
            group["lr"] = rate
        if self._apart:
            self._apart.set_rate(rate)

    @contextmanager
    def gathering(self) -> Iterator[None]:
        with self._engine.coalesce_grad_reduction():
            try:
                yield
            except BaseException:
                self._zero.zero_grad()  # nothing to send: the other processes may not be there
                raise
            for parameter in self._before:  # all must send the same
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)

    def clip(self, most: float) -> float:
        mine = [part for parts in self._zero.averaged_gradients.values() for part in parts]
        square = torch.nn.utils.get_total_norm(mine) ** 2
        total = self._team.mean(square) * self._team.count
        whole = [p.grad for p in self._scalars if p.grad is not None]
        norm = (total + sum(grad.square() for grad in whole)).sqrt()
        if most:
            share = (most / (norm + 1e-6)).clamp(max=1.0)  # as torch's clip_grad_norm_ does
            for gradient in (*mine, *whole):
                gradient.mul_(share)
        return float(norm)

    def step(self) -> None:
        self._engine.step()
        if self._apart:
            self._apart.step()

    def means(self) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for first, parameters, part in self._parts():
            state = self._adamw.state.get(part)
            if not state:  # before the first step
                return {}
            whole = {name: self._together(state[name], parameters) for name in _MEANS}
            for place in range(len(parameters)):
                found[f"{first + place}.step"] = state["step"].cpu().clone()
                found |= {f"{first + place}.{name}": whole[name][place] for name in _MEANS}
        return found | _moved(self._apart.means() if self._apart else {}, len(self._before))

    def restore(self, means: Mapping[str, Tensor]) -> None:
        self._zero.refresh_fp32_params()  # its copy of this process's part of the weights
        if not means:
            return
        for first, parameters, part in self._parts():
            numbers = range(first, first + len(parameters))
            state = {"step": means[f"{first}.step"].clone()}
            for name in _MEANS:
                flat = torch.cat([means[f"{number}.{name}"].flatten() for number in numbers])
                mine = flat[self._team.rank * len(part) :][: len(part)].to(part.device)
                state[name] = F.pad(mine, (0, len(part) - len(mine)))
            self._adamw.state[part] = state
        if self._apart:
            self._apart.restore(_moved(means, -len(self._before)))

    def _parts(self) -> Iterator[tuple[int, list[nn.Parameter], Tensor]]:
        """Of each group the number of its first weight, its weights, and what this process steps.

        All weights of a group lie one after the other, filled up with zeros to parts that are
        equally long, one for each process.
        """
        first = 0
        for parameters, group in zip(self._groups, self._adamw.param_groups, strict=True):
            yield first, parameters, group["params"][0]
            first += len(parameters)

    def _together(self, part: Tensor, parameters: Sequence[nn.Parameter]) -> list[Tensor]:
        """What the parts of all processes say of each weight, in main memory."""
        parts = [torch.empty_like(part) for _ in range(self._team.count)]
        dist.all_gather(parts, part)
        flat = torch.cat([each.cpu() for each in parts])[: sum(p.numel() for p in parameters)]
        pieces = flat.split([p.numel() for p in parameters])
        return [piece.view(p.shape).clone() for piece, p in zip(pieces, parameters, strict=True)]

    def close(self) -> None:
        """Weights get memory of their own back, without what DeepSpeed hung on them."""
        self._engine.destroy()
        for parameter, names in self._before.items():
            parameter.data = parameter.data.clone()
            for name in set(vars(parameter)) - names:
                delattr(parameter, name)


def _moved(means: Mapping[str, Tensor], by: int) -> dict[str, Tensor]:
    """Means under numbers that are higher by `by`; those that would fall below 0 are left out."""
    numbered = ((*key.partition(".")[::2], value) for key, value in means.items())
    return {f"{int(n) + by}.{name}": value for n, name, value in numbered if int(n) + by >= 0}
