"""InternVL: pictures in tiles of one size, a plain vision transformer, positions in one line.

Does: say how its parts are named and called. It is the family of another design: it shares nothing
with Qwen2-VL but the protocol. Does not: cut pictures (tiles.py does).

Shapes: B items, T tokens, P patches, C numbers per patch, U images, V visual tokens of one image,
N tiles of all images, S side of a tile in pixels, D width.
"""

from copy import deepcopy
from typing import Any, ClassVar

from torch import Tensor
from transformers import InternVLConfig, InternVLModel, PretrainedConfig

from abc_embed.backbone import Backbone, make_bidirectional, register
from abc_embed.errors import CheckpointError


@register("internvl")
class InternVLBackbone(Backbone):
    """InternVL 2.5 and 3 of any size, as transformers has them, on any plain language model."""

    config_class: ClassVar[type[PretrainedConfig]] = InternVLConfig
    language_sites = (
        r"language_model\.layers\.\d+\.(self_attn\.(q|k|v|o)_proj|mlp\.(gate|up|down)_proj)"
    )
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

    def __init__(self, given: PretrainedConfig, attn: str = "sdpa") -> None:
        super().__init__()
        config: Any = deepcopy(given)  # The caller's stays as it is.
        config.text_config.is_causal = False
        config.text_config.use_cache = False
        config._attn_implementation = dict.fromkeys(("", "text_config", "vision_config"), attn)
        self.vlm = InternVLModel(config)
        make_bidirectional(self.vlm.language_model)
        self.hidden_size = int(config.text_config.hidden_size)
        self._merge = round(1 / config.downsample_ratio)

    @classmethod
    def build(cls, config: PretrainedConfig, attn: str) -> "InternVLBackbone":
        if not isinstance(config, InternVLConfig):
            raise CheckpointError(f"config.json describes {config.model_type!r}, not 'internvl'")
        return cls(config, attn)

    def restore_buffers(self) -> None:
        language = self.vlm.language_model
        language.rotary_emb = type(language.rotary_emb)(language.config)

    def visual_lengths(self, grid_thw: Tensor) -> Tensor:
        lengths: Tensor = grid_thw.prod(dim=-1) // self._merge**2
        return lengths

    def encode_images(self, pixel_values: Tensor, grid_thw: Tensor) -> Tensor:
        """Every tile has the same size, so that all of them are one call."""
        rows, columns = (int(n) for n in grid_thw[0, 1:])
        merge, side = self._merge, int(self.vlm.config.vision_config.patch_size[0])
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
