"""Qwen3-VL: its vision encoder also hands features of earlier layers to the language model.

These K further features of each visual token are added to the output of the first K layers of the
language model ("DeepStack"). They travel next to the visual token itself, so that a token is
W = D (1 + K) wide and whoever keeps or repeats images need not know.

Shapes: B items, T tokens, D width, V merged visual tokens of one image, K further features.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import Qwen3VLConfig, Qwen3VLModel

from abc_embed.backbone import Qwen2VLBackbone, register


@register("qwen3_vl")
class Qwen3VLBackbone(Qwen2VLBackbone):
    """Qwen3-VL of any size, without mixture of experts."""

    config_class = Qwen3VLConfig
    vlm_class = Qwen3VLModel
    vision_sites = r"visual\.blocks\.\d+\.(attn\.(qkv|proj)|mlp\.linear_fc[12])"
    key_renames = (
        ("model.language_model.", "language_model."),
        ("model.visual.", "visual."),
    )

    def _visual_tokens(self, output: Any) -> Tensor:
        return torch.cat([output.pooler_output, *output.deepstack_features], dim=-1)

    def merge_visual_tokens(
        self, states: Tensor, places: Tensor, visual_tokens: Tensor
    ) -> tuple[Tensor, dict[str, Any]]:
        tokens, *further = torch.split(visual_tokens, self.hidden_size, dim=-1)
        embeddings, extra = super().merge_visual_tokens(states, places, tokens)
        return embeddings, extra | {"visual_pos_masks": places, "deepstack_visual_embeds": further}
