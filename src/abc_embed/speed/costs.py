"""Counting and timing: arithmetic of a model, the peak of a device, seconds by two clocks.

On a CPU shares are of processor time, which other work on the machine does not change; on a GPU of
the time on the clock, after all that was asked of it is done.

Shapes: `T` tokens, `P` patches.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from abc_embed.model import AbcModel
from abc_embed.processor import Features
from abc_embed.runtime import synchronize
from abc_embed.speed.shapes import language_layers, vision_layers

PEAK_SIDE = {"cpu": 1024}
"""Side of the matrices whose product is the peak; elsewhere 8192."""


class Seconds(NamedTuple):
    """How long something took, by two clocks; NumPy takes several as rows `(N, 2)`."""

    processor: float
    wall: float

    def on(self, device: torch.device) -> float:
        """By the clock that counts there."""
        return self.processor if device.type == "cpu" else self.wall


class Stopwatch:
    """Laps, each ended when the device has done its part."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.restart()

    def restart(self) -> None:
        """Forget what was since the last lap."""
        synchronize(self._device)
        self._since = time.process_time(), time.perf_counter()

    def lap(self) -> Seconds:
        """Since the last lap."""
        synchronize(self._device)
        before, self._since = self._since, (time.process_time(), time.perf_counter())
        return Seconds(*np.subtract(self._since, before).tolist())


def seconds_of(work: Callable[[], object], device: torch.device) -> Seconds:
    """Do it, and say how long it took."""
    watch = Stopwatch(device)
    work()
    return watch.lap()


def median(seconds: Sequence[Seconds]) -> Seconds:
    """Of each clock."""
    return Seconds(*np.median(seconds, axis=0).tolist())


def sum_seconds(seconds: Sequence[Seconds], times: float = 1.0) -> Seconds:
    """Of each clock, so many times."""
    return Seconds(*(np.sum(seconds, axis=0) * times).tolist())


def peak_flops(device: torch.device, dtype: torch.dtype, times: int = 5) -> float:
    """Operations a second of a square matrix product, the fastest of some."""
    side = PEAK_SIDE.get(device.type, 8192)
    a = torch.randn(side, side, device=device).to(dtype)
    b = torch.randn(side, side, device=device).to(dtype)
    out = torch.empty_like(a)

    def product() -> None:
        torch.mm(a, b, out=out)

    product()
    taken = min(seconds_of(product, device).on(device) for _ in range(times))
    return 2.0 * float(side) ** 3 / max(taken, 1e-9)


@contextmanager
def exact_float32() -> Iterator[None]:
    """Inside, a GPU multiplies float32 as float32, not as TF32."""
    products, convolutions = torch.backends.cuda.matmul, torch.backends.cudnn
    before = products.allow_tf32, convolutions.allow_tf32
    products.allow_tf32 = convolutions.allow_tf32 = False
    try:
        yield
    finally:
        products.allow_tf32, convolutions.allow_tf32 = before


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """What one item asks of a model, in multiplications and additions of its layers' products."""

    token: int
    """Weights that a token meets."""
    token_pair: int
    """Operations of attention for each pair of tokens."""
    patch: int
    patch_pair: int
    """Pairs within one picture."""

    @classmethod
    def of(cls, model: AbcModel) -> "Arithmetic":
        """As the modules say; LoRA is left out, which inference merges where it can."""
        language, vision = model.backbone.language_shape(), model.backbone.vision_shape()
        tower = vision_layers(model)
        layers = sum(map(_weights, language_layers(model)))
        blocks = sum(map(_weights, tower))
        # Once a picture, not in a block: the patches' projection and the merger.
        inside = {module for block in tower for module in block.modules()}
        visual = next(m for m in model.backbone.vlm.children() if tower in set(m.modules()))
        merger = sum(_own(m) for m in visual.modules() if m not in inside)
        return cls(
            token=layers,
            token_pair=4 * language.heads * language.layers,
            patch=blocks + merger // model.backbone.merge_size**2,
            patch_pair=4 * vision.heads * vision.layers,
        )

    def flops(self, features: Iterable[Features]) -> tuple[int, int]:
        """Of the vision encoder, each picture once, and of the language model; no padding."""
        items = list(features)
        grids = {f.image_key: f.grid_thw for f in items if f.grid_thw is not None}
        vision = 0
        for views, rows, columns in grids.values():
            patches = rows * columns
            vision += views * (2 * self.patch * patches + self.patch_pair * patches**2)
        language = sum(2 * self.token * f.tokens + self.token_pair * f.tokens**2 for f in items)
        return vision, language


def _weights(module: nn.Module) -> int:
    return sum(_own(part) for name, part in module.named_modules() if "lora_" not in name)


def _own(module: nn.Module) -> int:
    return module.in_features * module.out_features if isinstance(module, nn.Linear) else 0
