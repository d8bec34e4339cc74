"""AdamW with its state split over the processes: DeepSpeed ZeRO, stages 1 and 2.

Frozen weights are split by `sharding`, with FSDP2, as stage 3 of ZeRO would.

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
from accelerate.utils import DeepSpeedPlugin
from torch import Tensor, nn

from abc_embed.errors import ConfigError, MissingExtraError
from abc_embed.train.config import OptimConfig
from abc_embed.train.optimizer import AdamW, set_learning_rate, torch_adamw
from abc_embed.train.processes import ProcessGroup
from abc_embed.train.sharding import launcher_flag
from abc_embed.train.toml_config import flatten

_LAUNCHER_FLAG = "ACCELERATE_USE_DEEPSPEED"
_STATE_NAMES = ("exp_avg", "exp_avg_sq")
_BUCKET_SIZE = 50_000_000
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


def zero_settings() -> dict[str, Any] | None:
    """Of the configuration's `zero_optimization` what is used, if accelerate's launcher was told to
    use DeepSpeed.

    Raises:
        ConfigError: something in it is not built, or not needed.
        MissingExtraError: DeepSpeed is not installed.
    """
    if not launcher_flag(_LAUNCHER_FLAG):
        return None
    if importlib.util.find_spec("deepspeed") is None:
        raise MissingExtraError.of("deepspeed", "DeepSpeed ZeRO")
    try:
        config = DeepSpeedPlugin().deepspeed_config
    except (ValueError, OSError) as error:
        raise ConfigError(f"accelerate cannot read its DeepSpeed configuration: {error}") from error
    stage = config["zero_optimization"].get("stage")
    if stage not in (1, 2):
        raise ConfigError(
            f"zero_stage {stage} of DeepSpeed's configuration cannot be used; set it to 1 or 2, or "
            "start with configs/accelerate/fsdp2.yaml, which splits the weights as stage 3 does"
        )
    for name, value in flatten(config).items():
        if name in _READ | _UNUSED or _is_off(name, value):
            continue
        parent = next((known for known in _MENDS if f"{name}.".startswith(f"{known}.")), name)
        raise ConfigError(
            f"{name} of DeepSpeed's configuration cannot be used; "
            + _MENDS.get(parent, "take it out")
        )
    used = {
        name: value
        for name, value in config["zero_optimization"].items()
        if f"zero_optimization.{name}" in _READ and not _is_off(name, value)
    }
    return {"reduce_bucket_size": _BUCKET_SIZE} | used


def _is_off(name: str, value: Any) -> bool:
    accumulates_once = name == "gradient_accumulation_steps" and value == 1
    return accumulates_once or value in (None, False, "auto", "none", "None", "")


@contextmanager
def hide_deepspeed() -> Iterator[None]:
    """Inside, accelerate sees processes that each hold everything."""
    flag = os.environ.pop(_LAUNCHER_FLAG, None)
    try:
        yield
    finally:
        if flag is not None:
            os.environ[_LAUNCHER_FLAG] = flag


def _import_deepspeed(device: torch.device) -> Any:
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
    """`optimizer.AdamW` with gradients and state in parts, one part with each process."""

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        optim: OptimConfig,
        process_group: ProcessGroup,
        settings: Mapping[str, Any],
    ) -> None:
        """`settings` are those of `zero_settings`. Weights must be equal on all processes."""
        self._process_group = process_group
        self._scalars = [p for p in parameters.values() if p.ndim == 0]  # τ
        self._scalar_adamw = AdamW(self._scalars, optim, process_group) if self._scalars else None
        split = [p for p in parameters.values() if p.ndim > 0]
        self._adamw = torch_adamw(split, optim)
        self._groups = [list(group["params"]) for group in self._adamw.param_groups]
        self._attributes = {p: set(vars(p)) for p in split}
        """Of each weight, before DeepSpeed adds its own."""
        deepspeed = _import_deepspeed(process_group.accelerator.device)
        self._engine, *_ = deepspeed.initialize(
            model=nn.ParameterList(split),
            optimizer=self._adamw,
            dist_init_required=False,
            config={
                "train_micro_batch_size_per_gpu": 1,  # it must be given; nothing is counted by it
                "gradient_accumulation_steps": 1,
                "gradient_clipping": 0.0,  # `clip_grad_norm` does it, with τ and before the step
                "zero_optimization": {**settings, "compute_grad_norm": False},
                "zero_allow_untested_optimizer": True,  # it knows AdamW by its own classes only
                "steps_per_print": None,
            },
        )
        self._zero = self._engine.optimizer

    def set_learning_rate(self, learning_rate: float) -> None:
        set_learning_rate(self._adamw, learning_rate)
        if self._scalar_adamw:
            self._scalar_adamw.set_learning_rate(learning_rate)

    @contextmanager
    def grad_sync(self) -> Iterator[None]:
        with self._engine.coalesce_grad_reduction():
            try:
                yield
            except BaseException:
                self._zero.zero_grad()  # nothing to send: the other processes may not be there
                raise
            for parameter in self._attributes:  # all must send the same
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
            self._process_group.average_gradients(self._scalars)

    def clip_grad_norm(self, max_norm: float) -> float:
        own = [part for parts in self._zero.averaged_gradients.values() for part in parts]
        square = torch.nn.utils.get_total_norm(own) ** 2
        total = self._process_group.mean(square) * self._process_group.world_size
        scalars = [p.grad for p in self._scalars if p.grad is not None]
        norm = (total + sum(grad.square() for grad in scalars)).sqrt()
        if max_norm:
            factor = (max_norm / (norm + 1e-6)).clamp(max=1.0)  # as torch's clip_grad_norm_ does
            for gradient in (*own, *scalars):
                gradient.mul_(factor)
        return float(norm)

    def step(self) -> None:
        self._engine.step()
        if self._scalar_adamw:
            self._scalar_adamw.step()

    def state_dict(self) -> dict[str, Tensor]:
        result: dict[str, Tensor] = {}
        for first, parameters, part in self._parts():
            state = self._adamw.state.get(part)
            if not state:  # before the first step
                return {}
            full = {name: self._gather(state[name], parameters) for name in _STATE_NAMES}
            for i in range(len(parameters)):
                result[f"{first + i}.step"] = state["step"].cpu().clone()
                result |= {f"{first + i}.{name}": full[name][i] for name in _STATE_NAMES}
        scalars = self._scalar_adamw.state_dict() if self._scalar_adamw else {}
        return result | _renumber(scalars, len(self._attributes))

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self._zero.refresh_fp32_params()  # its copy of this process's part of the weights
        if not state:
            return
        for first, parameters, part in self._parts():
            numbers = range(first, first + len(parameters))
            own_state = {"step": state[f"{first}.step"].clone()}
            for name in _STATE_NAMES:
                flat = torch.cat([state[f"{number}.{name}"].flatten() for number in numbers])
                own = flat[self._process_group.rank * len(part) :][: len(part)].to(part.device)
                own_state[name] = F.pad(own, (0, len(part) - len(own)))
            self._adamw.state[part] = own_state
        if self._scalar_adamw:
            self._scalar_adamw.load_state_dict(_renumber(state, -len(self._attributes)))

    def _parts(self) -> Iterator[tuple[int, list[nn.Parameter], Tensor]]:
        """Of each group the number of its first weight, its weights, and what this process steps.

        All weights of a group lie one after the other, filled up with zeros to parts that are
        equally long, one for each process.
        """
        first = 0
        for parameters, group in zip(self._groups, self._adamw.param_groups, strict=True):
            yield first, parameters, group["params"][0]
            first += len(parameters)

    def _gather(self, part: Tensor, parameters: Sequence[nn.Parameter]) -> list[Tensor]:
        """The parts of all processes as one tensor for each weight, in main memory."""
        parts = [torch.empty_like(part) for _ in range(self._process_group.world_size)]
        dist.all_gather(parts, part)
        flat = torch.cat([part.cpu() for part in parts])[: sum(p.numel() for p in parameters)]
        pieces = flat.split([p.numel() for p in parameters])
        return [piece.view(p.shape).clone() for piece, p in zip(pieces, parameters, strict=True)]

    def close(self) -> None:
        """Weights get memory of their own back, without the attributes that DeepSpeed added."""
        self._engine.destroy()
        for parameter, names in self._attributes.items():
            parameter.data = parameter.data.clone()
            for name in set(vars(parameter)) - names:
                delattr(parameter, name)


Optimizer = AdamW | ZeroAdamW


def make_optimizer(
    parameters: Mapping[str, nn.Parameter], optim: OptimConfig, process_group: ProcessGroup
) -> Optimizer:
    """AdamW for what trains, its state split where accelerate's launcher was told so."""
    settings = zero_settings()
    if settings and process_group.world_size > 1:
        return ZeroAdamW(parameters, optim, process_group, settings)
    return AdamW(list(parameters.values()), optim, process_group)


def _renumber(state: Mapping[str, Tensor], by: int) -> dict[str, Tensor]:
    """Keys `number.name` with numbers higher by `by`, without those that would fall below 0."""
    numbered = ((*key.partition(".")[::2], value) for key, value in state.items())
    return {f"{int(n) + by}.{name}": value for n, name, value in numbered if int(n) + by >= 0}
