"""The four lessons' weights put together: a model folder like any other, without stage 2."""

from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast, Qwen2VLConfig

from abc_embed import checkpoint
from abc_embed.backbone import build_backbone
from abc_embed.chat import IMAGE_TOKEN
from abc_embed.model import AbcModel
from abc_embed.pixels import ImageBudget
from abc_embed.processor import Processor
from experiments.curriculum.language import (
    HEAD_HIDDEN,
    PAD_TOKEN,
    Asker,
    text_config,
    token_id,
)
from experiments.curriculum.vision import vision_config
from experiments.curriculum.words import CHAT_TEMPLATE, SPECIAL

# Between 16 and 22 visual tokens: a square of 112 pixels, or the same area in another shape.
BUDGET = ImageBudget(min_pixels=112 * 112, max_pixels=160 * 112)
MAX_TOKENS = 512


def make_processor(tokenizer_file: Path) -> Processor:
    """The bundled model's processor, from the tokenizer that `words.make_tokenizer` made."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(tokenizer_file),
        eos_token="<|im_end|>",
        pad_token=PAD_TOKEN,
        additional_special_tokens=list(SPECIAL[1:]),
        model_max_length=MAX_TOKENS,
    )
    return Processor(
        tokenizer, CHAT_TEMPLATE, BUDGET, positions="sequential", max_tokens=MAX_TOKENS
    )


def assemble(folder: Path, tokenizer_file: Path, vision_file: Path, language_file: Path) -> Path:
    """Write the backbone and head as a model folder of ours, without a stage-2 adapter."""
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    special = {name: token_id(tokenizer, name) for name in SPECIAL}
    config = Qwen2VLConfig(
        text_config=text_config(tokenizer.get_vocab_size()).to_dict(),
        vision_config=vision_config().to_dict(),
        image_token_id=special[IMAGE_TOKEN],
        video_token_id=special["<|video_pad|>"],
        vision_start_token_id=special["<|vision_start|>"],
        vision_end_token_id=special["<|vision_end|>"],
        tie_word_embeddings=False,
    )
    model = AbcModel(build_backbone(config), head_width=HEAD_HIDDEN)
    asker = Asker(tokenizer)
    asker.load_state_dict(torch.load(language_file))
    model.backbone.vlm.visual.load_state_dict(torch.load(vision_file))
    model.backbone.vlm.language_model.load_state_dict(asker.language.state_dict())
    model.head.load_state_dict(asker.head.state_dict())
    model.temperature.temp.data.fill_(asker.tau())
    model.source["base"] = "trained from nothing on generated scenes"
    checkpoint.save(model, make_processor(tokenizer_file), folder)
    return folder
