"""A tiny random model of every family, made on the spot, for the tests of several files.

The configurations are written as the real checkpoints write theirs; only sizes, and the token ids
of the golden tokenizer, are ours.
"""

import json
from dataclasses import replace
from typing import Any

import golden_parts
import torch

from abc_embed.backbone import FAMILIES, FURTHER, Backbone, build_backbone, parse_config
from abc_embed.checkpoint import Loaded
from abc_embed.model import AbcModel
from abc_embed.processor import Positions, Processor

ALL = sorted({"qwen2_vl", *FAMILIES, *FURTHER})

_GOLDEN: dict[str, Any] = json.loads((golden_parts.BASE / "config.json").read_text())
_TOKENS = {key: value for key, value in _GOLDEN.items() if key.endswith("token_id")}
_TEXT_KEYS = (
    *("attention_dropout", "hidden_act", "hidden_size", "initializer_range", "vocab_size"),
    *("intermediate_size", "max_position_embeddings", "num_attention_heads", "num_hidden_layers"),
    *("num_key_value_heads", "rms_norm_eps", "rope_theta", "tie_word_embeddings"),
)

CONFIGS: dict[str, dict[str, Any]] = {
    "qwen2_vl": _GOLDEN,
    # Flat, as Qwen/Qwen2.5-VL-7B-Instruct has it.
    "qwen2_5_vl": _GOLDEN
    | {
        "model_type": "qwen2_5_vl",
        "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},
        "vision_config": {
            "model_type": "qwen2_5_vl",
            "depth": 4,
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_heads": 4,
            "in_chans": 3,
            "out_hidden_size": 64,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "spatial_patch_size": 14,
            "temporal_patch_size": 2,
            "tokens_per_second": 2,
            "window_size": 56,  # 2 x 2 visual tokens
            "fullatt_block_indexes": [1, 3],
            "initializer_range": 0.08,
        },
    },
    # In parts, as Qwen/Qwen3-VL-8B-Instruct has it.
    "qwen3_vl": _TOKENS
    | {
        "model_type": "qwen3_vl",
        "tie_word_embeddings": False,
        "text_config": {key: _GOLDEN[key] for key in _TEXT_KEYS}
        | {
            "model_type": "qwen3_vl_text",
            "head_dim": 16,
            "rope_scaling": {
                "mrope_interleaved": True,
                "mrope_section": [2, 3, 3],
                "rope_type": "default",
            },
        },
        "vision_config": {
            "model_type": "qwen3_vl",
            "depth": 4,
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_heads": 4,
            "in_channels": 3,
            "out_hidden_size": 64,
            "patch_size": 16,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "num_position_embeddings": 64,
            "deepstack_visual_indexes": [0, 2],
            "initializer_range": 0.08,
        },
    },
}


def backbone(family: str, attn: str = "sdpa", seed: int = 0) -> Backbone:
    """A fresh backbone; equal seeds give equal weights, whatever the attention."""
    torch.manual_seed(seed)
    return build_backbone(parse_config(CONFIGS[family]), attn=attn).eval()


def loaded(family: str, attn: str = "sdpa", positions: Positions = "sequential") -> Loaded:
    """A fresh frozen model with a head that does something, and the golden tokenizer."""
    model = AbcModel(backbone(family, attn), head_width=96)
    with torch.no_grad():
        for parameter in model.head.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    golden = Processor.from_folder(golden_parts.BASE)
    patch_size = int(model.backbone.vlm.config.vision_config.patch_size)
    factor = patch_size * golden.image.merge_size
    image = replace(
        golden.image, patch_size=patch_size, min_pixels=4 * factor**2, max_pixels=20 * factor**2
    )
    processor = Processor(
        golden.chat.tokenizer,
        golden.chat.template,
        image,
        positions,
        golden.image_token_id,
        golden.max_tokens,
    )
    return model.requires_grad_(False).eval(), processor
