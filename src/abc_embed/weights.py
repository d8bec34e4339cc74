"""Tensors in safetensors files, and the names under which the world keeps them.

`from_pretrained` of transformers warns about what is missing or left over and goes on, and its
renaming rules move with its releases. Here every tensor finds its place, or is named.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PretrainedConfig

from abc_embed.backbone import Backbone, build_backbone
from abc_embed.errors import CheckpointError
from abc_embed.storage.files import partial_path
from abc_embed.storage.json_files import read_json

PEFT_PREFIX = "base_model.model."
"""What PEFT writes in front of every name in an adapter file."""

HEAD_KEYS = (
    ("mlp_head.linear_layer1.weight", "head.linear1.weight"),
    ("mlp_head.linear_layer1.bias", "head.linear1.bias"),
    ("mlp_head.linear_layer2.weight", "head.linear2.weight"),
    ("mlp_head.linear_layer2.bias", "head.linear2.bias"),
    ("temperature.temp", "temperature.temp"),
)
"""(name in a published stage-1 adapter, name in `AbcModel`)."""


_MAX_BUFFER = 1 << 24  # numbers of tables that are in no file


class Weights:
    """The tensors of one or several safetensors files, read one by one when asked for."""

    def __init__(self, files: Iterable[Path]) -> None:
        self._handles: dict[str, Any] = {}
        self.label = ""
        for path in files:
            self.label = self.label or str(path)
            handle = _open(path)
            for key in handle.keys():  # noqa: SIM118  (a safetensors handle is no dict)
                if key in self._handles:
                    raise CheckpointError(f"{path}: the tensor {key!r} is in two files of this set")
                self._handles[key] = handle

    @property
    def names(self) -> frozenset[str]:
        """Names of all tensors, as they stand in the files."""
        return frozenset(self._handles)

    def shape(self, key: str) -> tuple[int, ...]:
        """Shape of one tensor, without reading it."""
        return tuple(self._read(key, lambda handle: handle.get_slice(key).get_shape()))

    def get(self, key: str) -> Tensor:
        """One tensor, in the number format of the file."""
        tensor: Tensor = self._read(key, lambda handle: handle.get_tensor(key))
        if not tensor.is_floating_point():
            raise CheckpointError(f"{self.label}: {key!r} holds {tensor.dtype}, no weights")
        return tensor

    def _read(self, key: str, read: Callable[[Any], Any]) -> Any:
        try:
            return read(self._handles[key])
        except Exception as problem:
            raise CheckpointError(f"{self.label}: {key!r} cannot be read: {problem}") from problem


def _open(path: Path) -> Any:
    if not path.is_file():
        raise CheckpointError(f"the model file {path} is missing; fetch or copy the folder again")
    try:
        return safe_open(str(path), framework="pt")
    except Exception as problem:
        raise CheckpointError(
            f"{path} is damaged or no safetensors file ({problem}); fetch or copy it again"
        ) from problem


def open_weights(folder: Path, stem: str = "model") -> Weights:
    """`stem.safetensors` of a folder, or the shards that `stem.safetensors.index.json` lists.

    Raises:
        CheckpointError: a file is missing or damaged, or the index disagrees with its shards.
    """
    index = folder / f"{stem}.safetensors.index.json"
    if not index.is_file():
        return Weights([folder / f"{stem}.safetensors"])
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index} has no weight_map; fetch or copy it again")
    names = sorted({str(name) for name in weight_map.values()})
    if any(Path(name).name != name for name in names):
        raise CheckpointError(f"{index} names a file outside of its folder")
    weights = Weights(folder / name for name in names)
    for key in sorted(weights.names ^ weight_map.keys()):
        raise CheckpointError(f"{index} and its shards disagree about the tensor {key!r}")
    return weights


# -- names -----------------------------------------------------------------------------------------


def our_name(family: type[Backbone], key: str) -> str | None:
    """Name in a file, in any known layout -> name in `vlm`; None if no layout has it."""
    for prefix in family.own_prefixes:
        for known in (prefix, f"model.{prefix}"):
            if key.startswith(known):
                return prefix + key.removeprefix(known)
    for old, new in family.key_renames:
        if key.startswith(old):
            return new + key.removeprefix(old)
    return None


def published_name(family: type[Backbone], name: str) -> str:
    """Name in `vlm` -> name in the old layout; unchanged where the old layout has no rule."""
    for old, new in family.key_renames:
        if name.startswith(new):
            return old + name.removeprefix(new)
    return name


# -- backbone --------------------------------------------------------------------------------------


def load_backbone(
    weights: Weights,
    config: PretrainedConfig,
    *,
    dtype: torch.dtype,
    device: torch.device | str,
    attn: str,
) -> Backbone:
    """A backbone with exactly these weights, in `dtype` on `device`, whatever the file's format.

    Raises:
        CheckpointError: a tensor is missing, homeless or misshapen; the first one is named.
    """
    _check_layers(config, weights)
    with torch.device("meta"):  # No memory and no random numbers for what the file replaces.
        backbone = build_backbone(config, attn=attn)
    slots = backbone.vlm.state_dict()
    keys = _backbone_keys(type(backbone), weights, slots)
    check_complete({name: (keys[name], slot) for name, slot in slots.items()}, weights)
    buffers = sum(buffer.numel() for buffer in backbone.buffers())
    if buffers > max(_MAX_BUFFER, sum(slot.numel() for slot in slots.values())):
        raise CheckpointError(
            f"config.json asks for tables of {buffers:,} numbers; get the model's files again"
        )
    loaded = {name: weights.get(keys[name]).to(device=device, dtype=dtype) for name in slots}
    backbone.vlm.load_state_dict(loaded, strict=True, assign=True)
    backbone.restore_buffers()
    return backbone.to(device)


def _check_layers(config: PretrainedConfig, weights: Weights) -> None:
    """Refuse more layers than the files have tensors, before one is built."""
    for name in ("text_config", "vision_config"):
        part = getattr(config, name)
        for key in ("num_hidden_layers", "depth"):
            layers = getattr(part, key, 0)
            if not isinstance(layers, int) or layers > len(weights.names):
                raise CheckpointError(
                    f"config.json: {key} of {name} is {layers!r}, and {weights.label} has"
                    f" {len(weights.names)} tensors; get the model's files again"
                )


def _backbone_keys(
    family: type[Backbone], weights: Weights, slots: Mapping[str, Tensor]
) -> dict[str, str]:
    """Name in `vlm` -> key in the file; where the file has none, the key it should have."""
    keys = {name: published_name(family, name) for name in slots}
    found: dict[str, str] = {}
    for key in sorted(weights.names - family.ignored_weights):
        name = our_name(family, key)
        if name is None or name not in slots:
            raise CheckpointError(f"{weights.label}: the tensor {key!r} has no place in this model")
        if name in found:
            raise CheckpointError(
                f"{weights.label}: {found[name]!r} and {key!r} are the same tensor twice"
            )
        found[name] = key
    return keys | found


# -- filling ---------------------------------------------------------------------------------------

Slots = Mapping[str, tuple[str, Tensor]]
"""Our name -> (key in the file, the tensor of the model that it belongs in)."""


def check_complete(slots: Slots, weights: Weights) -> None:
    """Raise CheckpointError, naming the key, unless the file has every slot in the right shape."""
    for key, slot in slots.values():
        if key not in weights.names:
            raise CheckpointError(f"{weights.label}: the tensor {key!r} is missing")
        if weights.shape(key) != tuple(slot.shape):
            raise CheckpointError(
                f"{weights.label}: {key!r} has shape {weights.shape(key)},"
                f" the model needs {tuple(slot.shape)}"
            )


@torch.no_grad()
def fill_slots(slots: Slots, weights: Weights) -> None:
    """Copy the tensors of a file into the model: all of the one into all of the other.

    Raises:
        CheckpointError: a tensor is missing, misshapen or left over; the first one is named.
    """
    check_complete(slots, weights)
    for key in sorted(weights.names - {key for key, _ in slots.values()}):
        raise CheckpointError(f"{weights.label}: the tensor {key!r} has no place in this model")
    for key, slot in slots.values():
        slot.copy_(weights.get(key))


# -- writing ---------------------------------------------------------------------------------------


def write_tensors(path: Path, tensors: Mapping[str, Tensor], dtype: torch.dtype | None) -> None:
    """Write one safetensors file; `dtype` converts, None keeps each tensor's own."""
    converted = {
        key: tensor.detach().to(device="cpu", dtype=dtype or tensor.dtype).contiguous()
        for key, tensor in tensors.items()
    }
    partial = partial_path(path)  # the tensors may be those of the very file that is replaced
    save_file(converted, str(partial), metadata={"format": "pt"})
    # safetensors writes for the owner's eyes only; a model is a file like any other.
    partial.chmod(partial.stat().st_mode | 0o444)
    os.replace(partial, path)


def fingerprint(config: Mapping[str, Any], tensors: Mapping[str, object]) -> str:
    """SHA-256 in hex over settings (JSON values) and tensors by name, in any number format."""
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for name, tensor in sorted(_plain(tensors)):
        if isinstance(tensor, Tensor):  # a state dict may hold settings of its modules too
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            digest.update(data.numpy().data)
    return digest.hexdigest()


def _plain(tensors: Mapping[str, object]) -> Iterator[tuple[str, object]]:
    """Tensors by name; of one that is made up of several, as torchao's are, these."""
    for name, tensor in tensors.items():
        if hasattr(tensor, "__tensor_flatten__"):
            parts = tensor.__tensor_flatten__()[0]
            yield from _plain({f"{name}.{part}": getattr(tensor, part) for part in parts})
        else:
            yield name, tensor
