"""A tiny random model of every family, made on the spot, for the tests of several files.

The configurations are written as the real checkpoints write theirs; only sizes, and the token ids
of the golden tokenizer, are ours.
"""

import json
from dataclasses import replace
from typing import Any

import golden_parts
import torch
from torch import nn

from abc_embed.adapters import attach_stage1, attach_stage2, merge_stage1
from abc_embed.backbone import LAZY_REGISTRY, REGISTRY, Backbone, build_backbone, parse_config
from abc_embed.checkpoint import Loaded
from abc_embed.families.internvl import TileBudget
from abc_embed.model import AbcModel
from abc_embed.pixels import ImageBudget
from abc_embed.processor import Positions, Processor

ALL = sorted({"qwen2_vl", *REGISTRY, *LAZY_REGISTRY})

TILED = ("internvl",)
"""Families that see tiles of one size, and whose positions are a plain line."""
NATIVE = tuple(family for family in ALL if family not in TILED)
"""The other families, of Qwen2-VL's design."""

GRIDS = [(1, 4, 6), (1, 10, 14), (1, 6, 4), (1, 4, 6), (1, 14, 10), (1, 2, 2), (1, 8, 8)]
TILED_GRIDS = [(1, 4, 4), (3, 4, 4), (1, 4, 4), (7, 4, 4)]

_GOLDEN: dict[str, Any] = json.loads((golden_parts.BASE / "config.json").read_text())
_TOKENS = {key: value for key, value in _GOLDEN.items() if key.endswith("token_id")}
_TEXT_KEYS = (
    *("attention_dropout", "hidden_act", "hidden_size", "initializer_range", "vocab_size"),
    *("intermediate_size", "max_position_embeddings", "num_attention_heads", "num_hidden_layers"),
    *("num_key_value_heads", "rms_norm_eps", "rope_theta", "tie_word_embeddings"),
)

_PLAIN_TEXT = {key: _GOLDEN[key] for key in _TEXT_KEYS}

CONFIGS: dict[str, dict[str, Any]] = {
    # In parts, as OpenGVLab/InternVL3-1B-hf has it; tiles of 56 pixels.
    "internvl": {
        "model_type": "internvl",
        "image_token_id": _GOLDEN["image_token_id"],
        "image_seq_length": 4,
        "downsample_ratio": 0.5,
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "default",
        "tie_word_embeddings": False,
        "text_config": _PLAIN_TEXT | {"model_type": "qwen2"},
        "vision_config": {
            "model_type": "internvl_vision",
            "attention_bias": True,
            "hidden_size": 64,
            "image_size": [56, 56],
            "initializer_range": 0.08,
            "intermediate_size": 96,
            "layer_scale_init_value": 1.0,
            "num_attention_heads": 4,
            "num_hidden_layers": 2,
            "patch_size": [14, 14],
            "use_mean_pooling": True,
        },
    },
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
        "text_config": _PLAIN_TEXT
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
    processor = Processor(
        golden.chat.tokenizer,
        golden.chat.template,
        _budget(family, golden.image, model.backbone.vlm.config.vision_config),
        positions,
        golden.image_token_id,
        golden.max_tokens,
    )
    return model.requires_grad_(False).eval(), processor


def wake_adapter(model: nn.Module) -> None:
    """A fresh LoRA does nothing; this one does."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05)


def with_instruct_adapter(family: str, attn: str = "sdpa") -> Loaded:
    model, processor = loaded(family, attn)
    attach_stage1(model, r=4, alpha=8)
    wake_adapter(model)
    merge_stage1(model)
    attach_stage2(model, r=4, alpha=8)
    wake_adapter(model)
    return model.requires_grad_(False), processor


def _budget(family: str, golden: ImageBudget, vision: Any) -> ImageBudget:
    if family in TILED:
        return TileBudget(tile=56, min_pixels=56**2, max_pixels=6 * 56**2, temporal_patch_size=1)
    factor = int(vision.patch_size) * golden.merge_size
    return replace(
        golden,
        patch_size=int(vision.patch_size),
        min_pixels=4 * factor**2,
        max_pixels=20 * factor**2,
    )


def vision_encoder(backbone: Backbone) -> nn.Module:
    """The module that sees; its first argument holds all patches, or all tiles."""
    vlm = backbone.vlm
    module: nn.Module = vlm.vision_tower if hasattr(vlm, "vision_tower") else vlm.visual
    return module


def vision_blocks(backbone: Backbone) -> nn.ModuleList:
    """The layers of the module that sees."""
    vlm = backbone.vlm
    blocks: nn.ModuleList = (
        vlm.vision_tower.encoder.layer if hasattr(vlm, "vision_tower") else vlm.visual.blocks
    )
    return blocks


def patches(family: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Random patches `(P, C)` of some images and their grids `(U, 3)`."""
    vision: Any = backbone(family).vlm.config.vision_config
    grid = torch.tensor(TILED_GRIDS if family in TILED else GRIDS)
    side, frames = (14, 1) if family in TILED else (vision.patch_size, 2)
    generator = torch.Generator().manual_seed(0)
    count = int(grid.prod(dim=1).sum())
    return torch.randn(count, 3 * frames * side**2, generator=generator), grid


def pictures(pixels: torch.Tensor) -> torch.Tensor:
    """Patches of tiles of 56 pixels, four of a token together -> tiles `(N, 3, 56, 56)`.

    Written out patch by patch, unlike the one permutation that it is held against.
    """
    tiles = torch.empty(len(pixels) // 16, 3, 56, 56)
    for number, patch in enumerate(pixels.reshape(-1, 3, 14, 14)):
        tile, place = divmod(number, 16)
        token, inside = divmod(place, 4)
        row = token // 2 * 2 + inside // 2
        column = token % 2 * 2 + inside % 2
        tiles[tile, :, row * 14 : row * 14 + 14, column * 14 : column * 14 + 14] = patch
    return tiles
