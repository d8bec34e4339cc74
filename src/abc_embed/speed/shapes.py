"""Models of a given shape with random weights, made on the device: no files, no network.

Words are those of the bundled model, whose tokens any larger table of embeddings has too.
"""

from copy import deepcopy
from typing import Any

import torch
from torch import nn

from abc_embed.adapters import adapter_parameters, attach_stage2
from abc_embed.backbone import build_backbone, parse_config
from abc_embed.embedder import Embedder
from abc_embed.errors import UsageError
from abc_embed.head import HIDDEN_WIDTH
from abc_embed.hub import bundled_folder
from abc_embed.model import INSTRUCT_ADAPTER, AbcModel
from abc_embed.pixels import ImageBudget
from abc_embed.processor import Processor
from abc_embed.storage.hashing import sha256_json
from abc_embed.storage.json_files import read_json

SEED = 0
# width, inner width, layers, heads, heads of keys, words; and of vision width, layers, heads
_SIZES = {
    "tiny": ((64, 160, 3, 4, 2, 1523), (64, 2, 4)),
    "2b": ((1536, 8960, 28, 12, 2, 151_936), (1280, 32, 16)),
    "7b": ((3584, 18_944, 28, 28, 4, 152_064), (1280, 32, 16)),
}
_BUDGETS = {"tiny": (4, 16)}
"""Least and most visual tokens where they are not those of the published model."""
SHAPES = tuple(_SIZES)


def shape_config(shape: str) -> dict[str, Any]:
    """The content of a config.json of Qwen2-VL of that size.

    Raises:
        UsageError: no such shape.
    """
    if shape not in _SIZES:
        raise UsageError(f"shape is {shape!r}; use one of: {', '.join(SHAPES)}")
    (width, inner, layers, heads, key_heads, words), (own, depth, own_heads) = _SIZES[shape]
    values: dict[str, Any] = deepcopy(read_json(bundled_folder() / "config.json"))
    half = width // heads // 2
    values["text_config"] |= {
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "layer_types": ["full_attention"] * layers,
        "num_attention_heads": heads,
        "num_key_value_heads": key_heads,
        "max_position_embeddings": 32_768,
        "vocab_size": words,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1e6,
            # As in the published sizes: a quarter for frames, the rest for rows and columns.
            "mrope_section": [half - 2 * (half * 3 // 8), half * 3 // 8, half * 3 // 8],
        },
    }
    values["vision_config"] |= {
        "embed_dim": own,
        "depth": depth,
        "num_heads": own_heads,
        "hidden_size": width,
    }
    return values


def meta_model(shape: str) -> tuple[AbcModel, Processor]:
    """A model of that shape without weights (on the meta device), and how it sees pictures.

    Raises:
        UsageError: no such shape.
    """
    with torch.device("meta"):
        model = AbcModel(build_backbone(parse_config(shape_config(shape))), head_width=HIDDEN_WIDTH)
    low, high = _BUDGETS.get(shape, (256, 1024))
    budget = ImageBudget(min_pixels=low * 784, max_pixels=high * 784)
    chat = Processor.from_folder(bundled_folder()).chat
    image_token_id = chat.image_token_id
    processor = Processor(chat.tokenizer, chat.template, budget, image_token_id=image_token_id)
    model.source = {"base": f"random weights of shape {shape}"}
    return model, processor


def random_embedder(shape: str, device: torch.device, dtype: torch.dtype) -> Embedder:
    """An embedder of that shape, with a stage-2 adapter.

    Raises:
        UsageError: no such shape.
    """
    model, processor = meta_model(shape)
    with torch.device("meta"):
        attach_stage2(model)
    fill_weights(model, device, dtype)
    return Embedder(model.requires_grad_(False).eval(), processor)


def shape_fingerprint(shape: str) -> str:
    """What stands for the random weights in a record."""
    return sha256_json({"config": shape_config(shape), "seed": SEED})


def fill_weights(model: AbcModel, device: torch.device, dtype: torch.dtype) -> None:
    """Give a model on the meta device random weights on a device, in the format of inference."""
    model.backbone.to(dtype)
    for _, parameter in adapter_parameters(model, INSTRUCT_ADAPTER):
        parameter.data = parameter.data.float()
    model.to_empty(device=device)
    with device:
        model.backbone.restore_buffers()
    model.forget_layers()
    generator = torch.Generator(device).manual_seed(SEED)
    with torch.no_grad():
        for module in model.modules():
            for name, parameter in module.named_parameters(recurse=False):
                if parameter.ndim >= 2:
                    parameter.normal_(std=0.02, generator=generator)
                else:  # norms, biases, τ
                    parameter.fill_(float(name != "bias"))


def keep_layers(model: AbcModel, language: int, vision: int) -> None:
    """Leave the first so many layers of each encoder."""
    for stack, layers in ((language_layers(model), language), (vision_layers(model), vision)):
        del stack[layers:]
    model.backbone.vlm.language_model.config.num_hidden_layers = language


def language_layers(model: AbcModel) -> nn.ModuleList:
    """The layers of the language model."""
    layers: nn.ModuleList = model.backbone.vlm.language_model.layers
    return layers


def vision_layers(model: AbcModel) -> nn.ModuleList:
    """The blocks of the vision encoder: of the other lists of modules the longest."""
    own = language_layers(model)
    others = (m for m in model.backbone.vlm.modules() if isinstance(m, nn.ModuleList))
    return max((stack for stack in others if stack is not own), key=len)
