"""Weights in 8 or 4 bits, of a model that only embeds: less memory, at some cost in exactness.

    int8  a number of 8 bits, a scale for each row (torchao)
    int4  NF4: 4 bits, a scale for each 64 numbers (bitsandbytes: torchao has no int4 that also runs
          on a CPU)

Only the layers of the two encoders are turned; embeddings, norms, head and the stage-2 adapter stay
as they are, and what the layers compute with stays in the model's number format. What it costs in
quality is measured: docs/speed.md.
"""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, Literal, get_args

import torch
from torch import nn

from abc_embed.errors import MissingExtraError, UsageError
from abc_embed.model import AbcModel

Weights = Literal["int8", "int4"]
PACKAGES = {"int8": "torchao", "int4": "bitsandbytes"}
GROUP = 64
"""Numbers of int4 that share a scale."""


def check_weights(weights: str) -> None:
    """Before a model is loaded for nothing.

    Raises:
        UsageError: no such format.
        MissingExtraError: its package is not installed.
    """
    if weights not in get_args(Weights):
        raise UsageError(f"weights is {weights!r}; use {' or '.join(get_args(Weights))}")
    if find_spec(PACKAGES[weights]) is None:
        raise MissingExtraError.of("quant", f"weights={weights!r}")


@torch.no_grad()
def quantize_weights(model: AbcModel, weights: str, device: torch.device) -> None:
    """Turn the layers of a frozen model, one at a time, and move it to `device`.

    So the device never holds the weights as they were.

    Raises:
        UsageError, MissingExtraError: as `check_weights`.
    """
    check_weights(weights)
    turn = _int8 if weights == "int8" else _int4
    for layer in model.backbone.layers():
        for name, module in list(layer.named_modules()):
            if type(module) is nn.Linear and ".lora_" not in f".{name}":
                layer.set_submodule(name, turn(module, device))
    model.backbone.weights = weights
    model.forget_layers()
    model.to(device)


@contextmanager
def _quietly() -> Iterator[None]:
    """Both packages say at their import which kernels of GPUs are absent."""
    disabled = logging.root.manager.disable
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(disabled)


def _int8(layer: nn.Linear, device: torch.device) -> nn.Module:
    with _quietly():
        from torchao.quantization import Int8WeightOnlyConfig, quantize_

        quantize_(layer.to(device), Int8WeightOnlyConfig(set_inductor_config=False))
    return layer


def _int4(layer: nn.Linear, device: torch.device) -> nn.Module:
    with _quietly():
        import bitsandbytes

    options: dict[str, Any] = {
        "quant_type": "nf4",
        "compress_statistics": False,
        "quant_storage": torch.uint8,
    }
    turned = bitsandbytes.nn.Linear4bit(
        layer.in_features,
        layer.out_features,
        bias=layer.bias is not None,
        compute_dtype=layer.weight.dtype,
        device="meta",
        **options,
    )
    turned.weight = bitsandbytes.nn.Params4bit(
        layer.weight.data, requires_grad=False, blocksize=GROUP, module=turned, **options
    )
    turned.bias = layer.bias
    module: nn.Module = turned.to(device)
    return module
