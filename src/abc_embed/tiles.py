"""The pixel budget of models that look at a picture in square tiles of one size (InternVL).

Does: choose how many tiles lie side by side, cut the picture into them, add the whole picture as
one more tile, and read a budget of either kind from a model's files. Does not: normalise or cut
patches; `to_patches` does it for every budget alike.
Why a budget of its own: these vision encoders have one size of picture. More detail is more tiles,
so that the user's dial (`max_pixels`) counts tiles here.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from PIL import Image

from abc_embed.errors import AspectError, CheckpointError, ConfigError, UsageError
from abc_embed.pixels import ImageBudget, resized

PLACEHOLDER: Final = "<IMG_CONTEXT>"
"""What InternVL's chat template writes for one picture."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TileBudget(ImageBudget):
    """How many tiles a picture is cut into; `min_pixels` and `max_pixels` are areas of tiles.

    A picture of more than one tile is shown once more as a whole, in one further tile, which
    `max_pixels` does not count.
    """

    tile: int = 448
    """Side of a tile in pixels."""

    def __post_init__(self) -> None:
        ImageBudget.__post_init__(self)
        if self.tile < 1 or self.tile % self.factor:
            raise ConfigError(f"tile is {self.tile}; it must be a multiple of {self.factor}")
        if self.max_pixels < self.tile**2:
            raise ConfigError(
                f"max_pixels is {self.max_pixels}, less than one tile; give at least {self.tile**2}"
            )

    @property
    def tile_range(self) -> tuple[int, int]:
        """Fewest and most tiles side by side, the whole picture not counted."""
        most = self.max_pixels // self.tile**2
        return min(max(1, self.min_pixels // self.tile**2), most), most

    @property
    def max_visual_tokens(self) -> int:
        most = self.tile_range[1]
        return (most + (most > 1)) * (self.tile // self.factor) ** 2

    def limited(self, max_pixels: int | None) -> "ImageBudget":
        if max_pixels is not None and max_pixels < self.tile**2:
            raise UsageError(
                f"max_pixels is {max_pixels}, less than one tile; give at least {self.tile**2}"
            )
        return ImageBudget.limited(self, max_pixels)

    def grid_for(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of tiles: InternVL's rule, the nearest aspect ratio.

        Of equally near ones the larger, as long as its area is less than twice the picture's.

        Raises:
            AspectError: longer and thinner than ``max_aspect``.
        """
        if max(height, width) > self.max_aspect * min(height, width):
            raise AspectError(
                f"a picture of {width} x {height} pixels is longer and thinner than "
                f"{self.max_aspect:g} to 1; crop it, or cut it into pieces"
            )
        least, most = self.tile_range
        sizes = [
            (rows, columns)
            for columns in range(1, most + 1)
            for rows in range(1, most // columns + 1)
            if rows * columns >= least
        ]
        best = min(abs(width / height - columns / rows) for rows, columns in sizes)
        # By number of tiles; of one number, the narrower first.
        nearest = sorted(
            (size for size in sizes if abs(width / height - size[1] / size[0]) == best),
            key=lambda size: (size[0] * size[1], size[1]),
        )
        chosen = nearest[0]
        for size in nearest[1:]:
            if 2 * height * width > self.tile**2 * size[0] * size[1]:
                chosen = size
        return chosen

    def size_for(self, height: int, width: int) -> tuple[int, int]:
        """The size of all tiles together, `(height, width)`."""
        rows, columns = self.grid_for(height, width)
        return rows * self.tile, columns * self.tile

    def views(self, picture: Image.Image) -> list[Image.Image]:
        """Tiles row by row, and the whole picture last if there is more than one."""
        side = self.tile
        height, width = self.size_for(picture.height, picture.width)
        whole = resized(picture, width, height)
        views = [
            whole.crop((left, top, left + side, top + side))
            for top in range(0, height, side)
            for left in range(0, width, side)
        ]
        return views if len(views) == 1 else [*views, resized(picture, side, side)]


def _read_internvl(found: dict[str, Any], model: dict[str, Any]) -> TileBudget:
    """The budget of a published InternVL, from preprocessor_config.json and config.json.

    Raises: KeyError, TypeError or ValueError where a value is missing or cannot be.
    """
    side = int(found["size"]["height"])
    patch = model["vision_config"]["patch_size"]
    most = int(found.get("max_patches", 12)) if found.get("crop_to_patches", True) else 1
    return TileBudget(
        tile=side,
        min_pixels=min(int(found.get("min_patches", 1)), most) * side**2,
        max_pixels=most * side**2,
        patch_size=int(patch[0] if isinstance(patch, list) else patch),
        merge_size=round(1 / float(model["downsample_ratio"])),
        temporal_patch_size=1,
        mean=tuple(found["image_mean"]),
        std=tuple(found["image_std"]),
    )


def with_image_tags(template: str) -> str:
    """InternVL's chat template with the marks around a picture, which its processor would add.

    Raises:
        CheckpointError: the template has no placeholder of a picture.
    """
    if PLACEHOLDER not in template:
        raise CheckpointError(
            f"the chat template has no {PLACEHOLDER}; use the template that belongs to the model"
        )
    frame = f"<img>{PLACEHOLDER}</img>"
    return template if frame in template else template.replace(PLACEHOLDER, frame)


def read_budget(found: dict[str, Any], model: dict[str, Any]) -> ImageBudget:
    """The budget in our settings, or in the files of a published model.

    Raises: KeyError, TypeError or ValueError where a value is missing or cannot be.
    """
    if has_published_tiles(found, model):
        return _read_internvl(found, model)
    size = found.get("size") or {}  # where newer releases of transformers keep the budget
    kind = partial(TileBudget, tile=int(found["tile"])) if "tile" in found else ImageBudget
    return kind(
        min_pixels=int(found.get("min_pixels") or size["shortest_edge"]),
        max_pixels=int(found.get("max_pixels") or size["longest_edge"]),
        patch_size=int(found["patch_size"]),
        merge_size=int(found["merge_size"]),
        temporal_patch_size=int(found["temporal_patch_size"]),
        mean=tuple(found["image_mean"]),
        std=tuple(found["image_std"]),
        max_aspect=float(found.get("max_aspect", ImageBudget().max_aspect)),
    )


def has_published_tiles(found: dict[str, Any], model: dict[str, Any]) -> bool:
    """Whether the files are InternVL's own; those that we saved say `merge_size`."""
    return "merge_size" not in found and model.get("model_type") == "internvl"
