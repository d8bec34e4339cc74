"""Picture -> pixels -> patches: the budget, the one resize, the values the vision encoder eats.

The CPU decodes and resizes; bytes go to the device, which makes of them what is eight times as
large: normalised patches.

One resize, where the published code has two, first to multiples of 28 and then into the budget:
one step straight into the budget is what Qwen2-VL itself does; it agrees exactly for pictures
inside the budget and to a cosine above 0.998 for tiny and huge ones (paper, trap 4).

Shapes: `N` views of a picture, `H` rows and `W` columns of pixels, `P` patches, `C` values of a
patch: 3 colours x 14 x 14 pixels.
"""

import dataclasses
import hashlib
import math
from dataclasses import dataclass
from itertools import groupby
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from abc_embed.errors import AspectError, ConfigError, UsageError
from abc_embed.runtime import to_device


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageBudget:
    """How large a picture the model sees, and how it is cut and normalised."""

    min_pixels: int = 256 * 28 * 28
    """Smaller pictures are enlarged to this area: 256 visual tokens (paper, section 2)."""
    max_pixels: int = 1024 * 28 * 28
    """Larger pictures are shrunk to this area: 1024 visual tokens (paper, section 2)."""
    patch_size: int = 14
    """Side of a patch in pixels."""
    merge_size: int = 2
    """Patches per side that the vision encoder merges into one visual token."""
    temporal_patch_size: int = 2
    """Frames per patch; a still picture fills them all alike."""
    mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    """Subtracted from red, green, blue, which run from 0 to 1 (CLIP's values)."""
    std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)
    """Then divided by."""
    max_aspect: float = 200.0
    """Longest side over shortest side that is still accepted (Qwen2-VL's limit)."""

    has_rows: ClassVar[bool] = True
    """Whether visual tokens have rows and columns for `mrope` to count."""

    def __post_init__(self) -> None:
        if min(self.patch_size, self.merge_size, self.temporal_patch_size) < 1:
            raise ConfigError("patch_size, merge_size and temporal_patch_size must be at least 1")
        if self.max_pixels < self.factor**2:
            raise ConfigError(
                f"max_pixels is {self.max_pixels}, less than one visual token; "
                f"give at least {self.factor**2}"
            )
        if not 0 < self.min_pixels <= self.max_pixels:
            raise ConfigError(
                f"min_pixels is {self.min_pixels}; it must lie between 1 and max_pixels "
                f"({self.max_pixels})"
            )
        if {len(self.mean), len(self.std)} != {3} or min(self.std) <= 0:
            raise ConfigError("mean and std must have three values each, those of std above 0")
        if not all(map(math.isfinite, (*self.mean, *self.std))):
            raise ConfigError("mean and std must be finite")
        if not self.max_aspect >= 1:
            raise ConfigError(f"max_aspect is {self.max_aspect}; it must be at least 1")

    @property
    def factor(self) -> int:
        """Side of a visual token in pixels: 28."""
        return self.patch_size * self.merge_size

    def tokens_to_pixels(self, tokens: int) -> int:
        """The area in pixels that `tokens` visual tokens cover (256 -> 200704)."""
        return tokens * self.factor**2

    @property
    def smallest_pixels(self) -> int:
        """The area of the smallest picture, one visual token."""
        return self.factor**2

    @property
    def max_visual_tokens(self) -> int:
        """The most visual tokens that one picture can have."""
        return self.max_pixels // self.factor**2

    def limited(self, max_pixels: int | None) -> "ImageBudget":
        """This budget with another upper end; the lower end gives way where it must.

        Raises:
            UsageError: `max_pixels` is less than one visual token.
        """
        if max_pixels is None or max_pixels == self.max_pixels:
            return self
        if max_pixels < self.factor**2:
            raise UsageError(
                f"max_pixels is {max_pixels}, less than one visual token; "
                f"give at least {self.factor**2}"
            )
        low = min(self.min_pixels, max_pixels)
        return dataclasses.replace(self, max_pixels=max_pixels, min_pixels=low)

    def size_for(self, height: int, width: int) -> tuple[int, int]:
        """The size at which a picture is seen: `(height, width)`, multiples of 28.

        Qwen2-VL's rule: nearest multiples; if that is outside the budget, scale to its nearer end.
        One thing differs: where that rule itself ends above `max_pixels` (a narrow budget, or a
        very long strip in a small one), the long side gives way, so that the upper end holds.

        Raises:
            AspectError: longer and thinner than `max_aspect`.
        """
        if max(height, width) > self.max_aspect * min(height, width):
            raise AspectError(
                f"a picture of {width} x {height} pixels is longer and thinner than "
                f"{self.max_aspect:g} to 1; crop it, or cut it into pieces"
            )
        area, side = height * width, self.factor
        high, wide = round(height / side), round(width / side)
        most = self.max_visual_tokens
        if high * wide * side**2 < self.min_pixels:
            scale = math.sqrt(self.min_pixels / area)
            high, wide = math.ceil(height * scale / side), math.ceil(width * scale / side)
        if high * wide > most:
            scale = math.sqrt(area / self.max_pixels)
            high = max(1, math.floor(height / scale / side))
            wide = max(1, math.floor(width / scale / side))
        high, wide = max(1, high), max(1, wide)
        if high * wide > most:
            high, wide = (high, most // high) if wide > high else (most // wide, wide)
        return high * side, wide * side

    def settings(self) -> dict[str, Any]:
        """As JSON values, under the names of a preprocessor_config.json; see `budget_values`."""
        return {
            "min_pixels": self.min_pixels,
            "max_pixels": self.max_pixels,
            "patch_size": self.patch_size,
            "merge_size": self.merge_size,
            "temporal_patch_size": self.temporal_patch_size,
            "image_mean": list(self.mean),
            "image_std": list(self.std),
            "max_aspect": self.max_aspect,
        }

    def views(self, picture: Image.Image) -> list[Image.Image]:
        """What the vision encoder sees of an RGB picture: pictures of one size, here just one.

        Raises:
            AspectError: longer and thinner than `max_aspect`.
        """
        height, width = self.size_for(picture.height, picture.width)
        return [resized(picture, width, height)]


def budget_values(settings: dict[str, Any]) -> dict[str, Any]:
    """The fields of an `ImageBudget` from the content of a preprocessor_config.json.

    Raises:
        KeyError, TypeError, ValueError: a value is missing or cannot be.
    """
    size = settings.get("size") or {}  # where newer releases of transformers keep the budget
    return {
        "min_pixels": int(settings.get("min_pixels") or size["shortest_edge"]),
        "max_pixels": int(settings.get("max_pixels") or size["longest_edge"]),
        "patch_size": int(settings["patch_size"]),
        "merge_size": int(settings["merge_size"]),
        "temporal_patch_size": int(settings["temporal_patch_size"]),
        "mean": tuple(settings["image_mean"]),
        "std": tuple(settings["image_std"]),
        "max_aspect": float(settings.get("max_aspect", ImageBudget().max_aspect)),
    }


@dataclass(frozen=True, slots=True, eq=False)
class Pixels:
    """One picture at the size at which it is seen."""

    values: NDArray[np.uint8]
    """`(N, H, W, 3)`, N views."""
    grid_thw: tuple[int, int, int]
    """Views, rows and columns of patches; `P` is their product."""
    key: str
    """Equal exactly when the pixels are equal."""


def resized(picture: Image.Image, width: int, height: int) -> Image.Image:
    """The picture at this size, by one bicubic resize."""
    if (width, height) == picture.size:
        return picture
    return picture.resize((width, height), Image.Resampling.BICUBIC)


def to_pixels(picture: Image.Image, budget: ImageBudget) -> Pixels:
    """An RGB picture -> its pixels, resized.

    Raises:
        AspectError: longer and thinner than the budget's `max_aspect`.
    """
    views = budget.views(picture)
    pixels = np.stack([np.asarray(view, dtype=np.uint8) for view in views])
    number, height, width, _ = pixels.shape
    digest = hashlib.blake2b(pixels.data, digest_size=16).hexdigest()
    return Pixels(
        values=pixels,
        grid_thw=(number, height // budget.patch_size, width // budget.patch_size),
        key=f"{width}x{height}-{digest}",
    )


@dataclass(frozen=True, slots=True, eq=False)
class PixelBatch:
    """The pixels of several pictures on a device, where they are normalised and cut."""

    values: Tensor
    """uint8, all pictures one after the other, each `(N, H, W, 3)` laid flat."""
    grids: tuple[tuple[int, int, int], ...]
    """Views, rows and columns of patches of each."""
    budget: ImageBudget
    dtype: torch.dtype = torch.float32
    """Of the patches."""

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> "PixelBatch":
        """The same on a device, its patches in `dtype`."""
        values = to_device(self.values, device)
        return dataclasses.replace(self, values=values, dtype=dtype or self.dtype)

    def patches(self) -> Tensor:
        """Normalised patches `(sum P, C)`.

        They come in Qwen2-VL's order: the `merge_size` x `merge_size` patches of a visual token
        lie together, tokens go row by row, views one after the other; inside a patch: colour, row,
        column. A picture's frames are all alike, so that one stands for all.
        """
        side, merge = self.budget.patch_size, self.budget.merge_size
        counts = [math.prod(grid) for grid in self.grids]
        patches = torch.empty((sum(counts), 3, side**2), device=self.values.device)
        start = 0
        for grid, run in groupby(self.grids):
            (views, rows, columns), number = grid, len(list(run))
            end = start + number * math.prod(grid)
            # (views, rows/m, m, side, columns/m, m, side, 3)
            # -> (views, rows/m, columns/m, m, m, 3, side, side)
            tiles = self.values[start * 3 * side**2 : end * 3 * side**2].view(
                number * views, rows // merge, merge, side, columns // merge, merge, side, 3
            )
            tiles = tiles.permute(0, 1, 4, 2, 5, 7, 3, 6)
            patches[start:end].view(tiles.shape).copy_(tiles)
            start = end
        patches.div_(255)  # bit for bit what transformers computes
        for colour, (mean, std) in enumerate(zip(self.budget.mean, self.budget.std, strict=True)):
            patches[:, colour].sub_(mean).div_(std)
        return patches.flatten(1).to(self.dtype)
