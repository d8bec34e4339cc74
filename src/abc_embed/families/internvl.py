"""InternVL: pictures in tiles of one size, a plain vision transformer, positions in one line.

The family of another design: it shares nothing with Qwen2-VL but the protocol. Its vision encoder
has one size of picture, so more detail is more tiles, and the user's dial (`max_pixels`) counts
tiles here.

Shapes: B items, T tokens, P patches, C numbers per patch, U images, V visual tokens of one image,
N tiles of all images, S side of a tile in pixels, D width.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Final

from PIL import Image
from torch import Tensor
from transformers import InternVLConfig, InternVLModel

from abc_embed.backbone import Backbone, register
from abc_embed.errors import AspectError, ConfigError, UsageError
from abc_embed.lean import PatchProjection
from abc_embed.pixels import ImageBudget, budget_values, resized

PLACEHOLDER: Final = "<IMG_CONTEXT>"
"""What InternVL's chat template writes for one picture."""


@register("internvl")
class InternVLBackbone(Backbone):
    """InternVL 2.5 and 3 of any size, as transformers has them, on any plain language model."""

    config_class = InternVLConfig
    vlm_class = InternVLModel
    vision_sites = (
        r"vision_tower\.encoder\.layer\.\d+\."
        r"(attention\.(q_proj|k_proj|v_proj|projection_layer)|mlp\.fc[12])"
    )
    own_prefixes = (
        *("language_model.layers.", "language_model.embed_tokens.", "language_model.norm."),
        *("vision_tower.", "multi_modal_projector."),
    )
    # Before transformers 4.52 the language model lay one level deeper, next to its output layer.
    key_renames = (("language_model.model.", "language_model."),)
    ignored_weights = frozenset({"lm_head.weight", "language_model.lm_head.weight"})

    def use_lean_patches(self) -> None:
        embed = self.vlm.vision_tower.embeddings.patch_embeddings
        embed.projection = PatchProjection(embed.projection)

    @staticmethod
    def read_merge_size(config: Any) -> int:
        return round(1 / float(config.downsample_ratio))

    @classmethod
    def read_budget(cls, settings: dict[str, Any], config: dict[str, Any]) -> ImageBudget:
        if "merge_size" not in settings:  # only files that we saved say it
            return _read_published(settings, config)
        return TileBudget(tile=int(settings["tile"]), **budget_values(settings))

    @classmethod
    def chat_template(cls, template: str) -> str:
        """With the marks around a picture, which InternVL's own processor adds."""
        tagged = f"<img>{PLACEHOLDER}</img>"
        return template if tagged in template else template.replace(PLACEHOLDER, tagged)

    def encode_images(self, pixel_values: Tensor, grid_thw: Tensor) -> Tensor:
        """Every tile has the same size, so that all of them are one call."""
        rows, columns = (int(n) for n in grid_thw[0, 1:])
        merge, side = self.merge_size, int(self.vlm.config.vision_config.patch_size[0])
        # The patches of a visual token lie together (pixels.py): back into their rows,
        # (P, C) -> (N, rows/m, columns/m, m, m, 3, side, side) -> (N, 3, S, S).
        tiles = pixel_values.reshape(
            -1, rows // merge, columns // merge, merge, merge, 3, side, side
        )
        tiles = tiles.permute(0, 5, 1, 3, 6, 2, 4, 7).reshape(-1, 3, rows * side, columns * side)
        config = self.vlm.config
        seen = self.vlm.get_image_features(
            tiles,
            vision_feature_layer=config.vision_feature_layer,
            vision_feature_select_strategy=config.vision_feature_select_strategy,
        ).pooler_output
        visual_tokens: Tensor = seen.flatten(0, 1)
        return visual_tokens

    def _positions(self, position_ids: Tensor) -> Tensor:
        return position_ids[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class TileBudget(ImageBudget):
    """How many tiles a picture is cut into; `min_pixels` and `max_pixels` are areas of tiles.

    A picture of more than one tile is shown once more as a whole, in one further tile, which
    `max_pixels` does not count.
    """

    has_rows: ClassVar[bool] = False
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

    def settings(self) -> dict[str, Any]:
        return ImageBudget.settings(self) | {"tile": self.tile}

    @property
    def tile_range(self) -> tuple[int, int]:
        """Fewest and most tiles side by side, the whole picture not counted."""
        most = self.max_pixels // self.tile**2
        return min(max(1, self.min_pixels // self.tile**2), most), most

    @property
    def smallest_pixels(self) -> int:
        return self.tile**2

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
            AspectError: longer and thinner than `max_aspect`.
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


def _read_published(settings: dict[str, Any], config: dict[str, Any]) -> TileBudget:
    """The budget of a published InternVL, from preprocessor_config.json and config.json.

    Raises:
        KeyError, TypeError, ValueError: a value is missing or cannot be.
    """
    side = int(settings["size"]["height"])
    patch = config["vision_config"]["patch_size"]
    most = int(settings.get("max_patches", 12)) if settings.get("crop_to_patches", True) else 1
    return TileBudget(
        tile=side,
        min_pixels=min(int(settings.get("min_patches", 1)), most) * side**2,
        max_pixels=most * side**2,
        patch_size=int(patch[0] if isinstance(patch, list) else patch),
        merge_size=round(1 / float(config["downsample_ratio"])),
        temporal_patch_size=1,
        mean=tuple(settings["image_mean"]),
        std=tuple(settings["image_std"]),
    )
