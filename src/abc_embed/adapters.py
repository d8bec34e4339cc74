"""LoRA adapters by PEFT: where they sit, what trains in which stage; their folders.

Which rows an adapter acts on is decided in model.py. PEFT's own loader is not used: it warns about
keys that find no home and about sites that stay empty, loads nothing, and goes on; the vectors are
then those of the untrained model.

    stage 1  r=64 α=128  language model and vision encoder; the head and τ train too; then merged
    stage 2  r=16 α=32   language model only; everything else frozen; acts on image + instruction
"""

import math
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

import regex
import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from abc_embed.errors import CheckpointError, TrainingError
from abc_embed.model import INSTRUCT_ADAPTER, AbcModel
from abc_embed.storage.json_files import read_json, write_json
from abc_embed.weights import (
    HEAD_KEYS,
    PEFT_PREFIX,
    fill_slots,
    open_weights,
    published_name,
    write_tensors,
)

PRETRAIN_ADAPTER = "pretrain"
"""Name of the stage-1 adapter inside PEFT's layers, until it is merged."""

# Settings of PEFT that would change the arithmetic and that no published adapter uses.
_REFUSED = (
    *("use_dora", "rank_pattern", "alpha_pattern", "layer_replication", "layers_to_transform"),
    *("layers_pattern", "bias", "lora_bias", "fan_in_fan_out", "exclude_modules"),
    *("target_parameters", "use_qalora"),
)

_MAX_PATTERN = 10_000
_PATTERN_S = 2.0

Stage = Literal["pretrain", "instruct", "all"]
"""What trains: stage 1, stage 2, or every weight (a backbone from nothing)."""


def stage1_sites(model: AbcModel) -> str:
    """Regular expression of the layers that take the stage-1 adapter (paper section 2)."""
    return f"({model.backbone.language_sites})|({model.backbone.vision_sites})"


def stage2_sites(model: AbcModel) -> str:
    """Regular expression of the layers that take the stage-2 adapter."""
    return model.backbone.language_sites


def attach_stage1(
    model: AbcModel, r: int = 64, alpha: int = 128, dropout: float = 0.05
) -> list[str]:
    """Put a fresh stage-1 adapter on both encoders; returns the names of its sites.

    Raises:
        TrainingError: an adapter is attached already.
    """
    config = LoraConfig(
        r=r, lora_alpha=alpha, lora_dropout=dropout, target_modules=stage1_sites(model)
    )
    return attach(model, PRETRAIN_ADAPTER, config)


def attach_stage2(
    model: AbcModel, r: int = 16, alpha: int = 32, dropout: float = 0.05
) -> list[str]:
    """Put a fresh stage-2 adapter on the language model; returns the names of its sites.

    Raises:
        TrainingError: an adapter is attached already; merge stage 1 first.
    """
    config = LoraConfig(
        r=r, lora_alpha=alpha, lora_dropout=dropout, target_modules=stage2_sites(model)
    )
    return attach(model, INSTRUCT_ADAPTER, config)


class _Sites(nn.Module):
    """The modules of a VLM under their names, without its configuration.

    Of a model with one, PEFT asks transformers for the table of all renamed checkpoints: 900
    patterns are compiled, which took a third of the time that loading the bundled model took, to
    find that layers which are named one by one need no renaming.
    """

    def __init__(self, vlm: nn.Module) -> None:
        super().__init__()
        for name, child in vlm.named_children():
            self.add_module(name, child)


def attach(model: AbcModel, name: str, config: LoraConfig) -> list[str]:
    """Put an adapter that `config` describes on the backbone; returns the names of its sites.

    Its weights are float32: they are what trains, and bfloat16 swallows small steps.

    Raises:
        TrainingError: an adapter is attached already.
    """
    attached = sorted({key for layer in _lora_layers(model).values() for key in layer.lora_A})
    if attached:
        raise TrainingError(
            f"the adapter {attached[0]!r} is attached already; merge it before attaching {name!r}"
        )
    sites = _Sites(model.backbone.vlm)
    inject_adapter_in_model(config, sites, name)
    model.backbone.vlm.peft_config = sites.peft_config
    model.forget_layers()
    model.train(model.training)  # PEFT's layers arrive in training mode, their dropout awake.
    for _, parameter in adapter_parameters(model, name):
        parameter.data = parameter.data.float()
    return list(_lora_layers(model))


def merge_stage1(model: AbcModel) -> None:
    """Add the stage-1 adapter into the weights of the backbone and take its layers away.

    Raises:
        TrainingError: there is no stage-1 adapter.
    """
    layers = _lora_layers(model)
    if not any(PRETRAIN_ADAPTER in layer.lora_A for layer in layers.values()):
        raise TrainingError("there is no stage-1 adapter to merge; attach or load one first")
    for site, layer in layers.items():
        layer.merge(adapter_names=[PRETRAIN_ADAPTER])
        model.backbone.vlm.set_submodule(site, layer.get_base_layer())
    del model.backbone.vlm.peft_config  # PEFT's note that an adapter is attached.
    model.forget_layers()


def detach(model: AbcModel) -> None:
    """Take every adapter away without merging it: the weights are those from before it."""
    for site, layer in _lora_layers(model).items():
        model.backbone.vlm.set_submodule(site, layer.get_base_layer())
    model.forget_layers()
    if hasattr(model.backbone.vlm, "peft_config"):
        del model.backbone.vlm.peft_config


def set_trainable(model: AbcModel, stage: Stage) -> list[nn.Parameter]:
    """Freeze and unfreeze for `stage`; returns what trains, in a fixed order.

    Stage 1 trains its LoRA, the head and τ; stage 2 its LoRA alone (paper sections 2 and 5).

    Raises:
        TrainingError: the stage's adapter is not attached.
    """
    if stage == "all":
        model.requires_grad_(True)
        return list(model.parameters())
    model.requires_grad_(False)
    parameters = [parameter for _, parameter in adapter_parameters(model, stage)]
    if not parameters:
        raise TrainingError(f"the adapter {stage!r} is not attached; attach it before training it")
    if stage == PRETRAIN_ADAPTER:
        parameters += [*model.head.parameters(), *model.temperature.parameters()]
    for parameter in parameters:
        parameter.requires_grad_(True)
    return parameters


def adapter_parameters(model: AbcModel, name: str) -> Iterator[tuple[str, nn.Parameter]]:
    """(`site.lora_A.weight` or `site.lora_B.weight`, parameter) of an adapter, in order."""
    for site, layer in _lora_layers(model).items():
        for part, weights in (("lora_A", layer.lora_A), ("lora_B", layer.lora_B)):
            if name in weights:
                yield f"{site}.{part}.weight", weights.get_parameter(f"{name}.weight")


def _lora_layers(model: AbcModel) -> dict[str, LoraLayer]:
    """PEFT's layers by their name in the backbone."""
    return {
        name: module
        for name, module in model.backbone.vlm.named_modules()
        if isinstance(module, LoraLayer)
    }


# -- files -----------------------------------------------------------------------------------------


def load_adapter(model: AbcModel, name: str, folder: Path) -> None:
    """Attach and fill an adapter from a folder in PEFT's format, in the published layout or ours.

    The head and τ come in the same file as the stage-1 adapter and are filled too.

    Raises:
        CheckpointError: a site stays empty, a tensor is left over or misshapen, or a setting is
            not known; the message names it.
    """
    weights = open_weights(folder, "adapter_model")
    config = _read_lora_config(folder / "adapter_config.json")
    family = type(model.backbone)
    ranks = {weights.shape(key)[:1] for key in weights.names if key.endswith(".lora_A.weight")}
    if ranks != {(config.r,)}:  # before any is made
        raise CheckpointError(
            f"{folder / 'adapter_config.json'}: r is {config.r}, and the tensors of {weights.label}"
            f" have {sorted(ranks)}; get the adapter's files again"
        )
    sites = _sites(model, config.target_modules or [], folder)
    if not sites:
        raise CheckpointError(f"{folder}: target_modules chooses no layer of this model")
    config.target_modules = sites
    attach(model, name, config)
    ours = any(key.startswith(PEFT_PREFIX + family.own_prefixes[0]) for key in weights.names)
    slots: dict[str, tuple[str, Tensor]] = {}
    for slot_name, parameter in adapter_parameters(model, name):
        bare = slot_name if ours else published_name(family, slot_name)
        slots[slot_name] = (PEFT_PREFIX + bare, parameter)
    if name == PRETRAIN_ADAPTER:
        for key, slot_name in HEAD_KEYS:
            slots[slot_name] = (PEFT_PREFIX + key, model.get_parameter(slot_name))
    fill_slots(slots, weights)


def save_adapter(model: AbcModel, name: str, folder: Path, dtype: torch.dtype | None) -> None:
    """Write an adapter in PEFT's format, with names as in our backbone, into a new folder.

    As in the published layout, the head and τ go with the stage-1 adapter.
    """
    folder.mkdir(exist_ok=True)
    config = model.backbone.vlm.peft_config[name].to_dict() | {"inference_mode": True}
    if not isinstance(config["target_modules"], str):
        config["target_modules"] = sorted(config["target_modules"])
    write_json(folder / "adapter_config.json", config)
    tensors = {PEFT_PREFIX + key: parameter for key, parameter in adapter_parameters(model, name)}
    if name == PRETRAIN_ADAPTER:
        tensors |= {PEFT_PREFIX + key: model.get_parameter(ours) for key, ours in HEAD_KEYS}
    write_tensors(folder / "adapter_model.safetensors", tensors, dtype)


def _sites(model: AbcModel, targets: str | Iterable[str], folder: Path) -> list[str]:
    """Layers of the backbone that `target_modules` of an adapter_config.json chooses.

    A string is a regular expression of whole names, a list holds endings of names, as in PEFT; it
    may speak of our names or of the published ones.

    Raises:
        CheckpointError: the expression is none, or needs too long.
    """
    family = type(model.backbone)
    linears = [
        (name, published_name(family, name))
        for name, module in model.backbone.vlm.named_modules()
        if isinstance(module, nn.Linear)
    ]
    if isinstance(targets, str):
        return _matching(targets, linears, folder)
    endings = tuple(f".{target}" for target in targets)
    return [
        ours
        for ours, published in linears
        if f".{ours}".endswith(endings) or f".{published}".endswith(endings)
    ]


def _matching(pattern: str, names: list[tuple[str, str]], folder: Path) -> list[str]:
    """The first of each pair of names, where the pattern, from a file, is one of the two."""
    where = f"{folder / 'adapter_config.json'}: target_modules"
    if len(pattern) > _MAX_PATTERN:
        raise CheckpointError(f"{where} has {len(pattern):,} characters; get the file again")
    # Not `re`: an expression that tries a name in a million ways would never come back from it.
    end = time.monotonic() + _PATTERN_S
    found = []
    try:
        compiled = regex.compile(pattern)
        for pair in names:
            left = max(end - time.monotonic(), 0.001)
            if any(compiled.fullmatch(name, timeout=left) for name in pair):
                found.append(pair[0])
    except TimeoutError:
        raise CheckpointError(
            f"{where} needs more than {_PATTERN_S} s to be matched; give a list of names"
        ) from None
    except (regex.error, RecursionError, MemoryError, ValueError) as problem:
        raise CheckpointError(f"{where} is no regular expression ({problem})") from None
    return found


def _read_lora_config(path: Path) -> LoraConfig:
    """The settings of an adapter that change its arithmetic; others must be at their default.

    Raises:
        CheckpointError: a setting that we do not know how to honour.
    """
    settings = read_json(path)
    if settings.get("peft_type") != "LORA":
        raise CheckpointError(f"{path}: peft_type is {settings.get('peft_type')!r}, not 'LORA'")
    for key in _REFUSED:
        if settings.get(key) not in (None, False, [], {}, "none"):
            raise CheckpointError(f"{path}: {key} = {settings[key]!r} is not supported")
    try:
        config = LoraConfig(
            r=settings["r"],
            lora_alpha=settings["lora_alpha"],
            lora_dropout=float(settings.get("lora_dropout", 0.0)),
            use_rslora=bool(settings.get("use_rslora", False)),
            target_modules=settings["target_modules"],
        )
        if type(config.r) is not int or config.r < 1 or not math.isfinite(config.lora_alpha):
            raise ValueError(f"r is {config.r!r}, lora_alpha is {config.lora_alpha!r}")
        if not 0 <= config.lora_dropout < 1:
            raise ValueError(f"lora_dropout is {config.lora_dropout!r}")
        names = [config.target_modules]
        if not isinstance(config.target_modules, str):
            names = list(config.target_modules or [])
        if not all(isinstance(name, str) for name in names):
            raise TypeError("target_modules holds something else than names")
    except Exception as problem:
        raise CheckpointError(f"{path} is incomplete or damaged ({problem!r})") from problem
    return config
