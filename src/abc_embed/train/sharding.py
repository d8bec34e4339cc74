"""Weights split over the processes, for models that do not fit one device: FSDP2.

Each block of both encoders is one unit, the rest another; a unit is brought together for its pass
and let go after it. τ is left whole: the loss uses it outside the model. Accelerate's own `prepare`
is not used because it knows one entrance to a model, `forward`, and training has two, the vision
encoder and the rest; and because it would turn head and adapters to bfloat16, which stay float32.
"""

import copy
import os

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from abc_embed.errors import ConfigError
from abc_embed.model import AbcModel


def fsdp_requested() -> bool:
    """Whether accelerate's launcher was told to split the weights.

    Raises:
        ConfigError: a way of splitting that is not built, or not needed.
    """
    # Read here, not from accelerate's state: on CPUs it knows nothing of FSDP.
    if not launcher_flag("ACCELERATE_USE_FSDP"):
        return False
    for name, wrong, mend in (
        ("fsdp_version", os.environ.get("FSDP_VERSION") != "2", "set it to 2"),
        ("fsdp_offload_params", launcher_flag("FSDP_OFFLOAD_PARAMS"), "set it to false"),
        (
            "fsdp_activation_checkpointing",
            launcher_flag("FSDP_ACTIVATION_CHECKPOINTING"),
            "set it to false and train.gradient_checkpointing to true",
        ),
    ):
        if wrong:
            raise ConfigError(f"{name} of accelerate's configuration cannot be used; {mend}")
    return True


def launcher_flag(name: str, default: str = "false") -> bool:
    """Whether accelerate's launcher put a yes under this name into the environment."""
    return os.environ.get(name, default).lower() in ("1", "true", "yes")


def shard(model: AbcModel, device: torch.device) -> None:
    """Split the weights of `model` over the devices of all processes, in place."""
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    reshard = launcher_flag("FSDP_RESHARD_AFTER_FORWARD", "true")
    layer_lists = [m for m in model.backbone.vlm.modules() if isinstance(m, nn.ModuleList)]
    for layers in reversed(layer_lists):  # the innermost first
        for layer in layers:
            fully_shard(layer, mesh=mesh, reshard_after_forward=reshard)
    fully_shard(model, mesh=mesh, ignored_params={model.temperature.temp})
    for method in ("encode_images", "embed"):
        register_fsdp_forward_method(model, method)


def meta_copy(model: AbcModel) -> AbcModel:
    """A copy of `model` with its weights on the meta device, to be filled by `unshard_into`."""
    empty = {
        id(p): nn.Parameter(torch.empty_like(p, device="meta"), requires_grad=p.requires_grad)
        for p in model.parameters()
    }
    return copy.deepcopy(model, empty)


def unshard_into(target: AbcModel, sharded: AbcModel) -> AbcModel:
    """Fill a meta copy with the weights of the split model, in main memory, on every process."""
    weights = {name: full_tensor(value).cpu() for name, value in sharded.state_dict().items()}
    target.load_state_dict(weights, assign=True)
    return target


def is_sharded(tensor: Tensor) -> bool:
    """Whether this process holds a part of `tensor` only."""
    return isinstance(tensor, DTensor)


def full_tensor(tensor: Tensor) -> Tensor:
    """All of a tensor. Where it is split, every process must ask for it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def shard_like(values: Tensor, target: Tensor) -> Tensor:
    """`values`, the same on all processes, split as `target` is."""
    if not isinstance(target, DTensor):
        return values
    return distribute_tensor(
        values.to(target.device), target.device_mesh, target.placements, src_data_rank=None
    )
