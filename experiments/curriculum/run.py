"""The bundled model from nothing: five lessons, the last five times, then the paper's two stages.

Every part resumes. Ends with `out/model`, a model folder in float16; docs/bundled.md says how long
it took.
"""

import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast, Qwen2VLConfig

from abc_embed import Embedder, checkpoint
from abc_embed.backbone import build_backbone
from abc_embed.chat import IMAGE_TOKEN
from abc_embed.inputs import Item
from abc_embed.model import AbcModel
from abc_embed.pixels import ImageBudget
from abc_embed.processor import Processor
from abc_embed.scenes.questions import all_answers
from abc_embed.storage.files import make_folder
from abc_embed.train.config import (
    AdapterConfig,
    DataConfig,
    ModelConfig,
    OptimConfig,
    RunConfig,
    StageName,
    TemperatureConfig,
    TrainConfig,
)
from abc_embed.train.loop import run_stage
from abc_embed.vectors import VectorFacts
from experiments.curriculum.language import (
    HEAD_HIDDEN,
    PAD_TOKEN,
    learn_to_answer,
    learn_to_look,
    text_config,
    token_id,
)
from experiments.curriculum.sampler import SceneSampler
from experiments.curriculum.together import WIDTHS, VisionLanguage, interpolate, learn_together
from experiments.curriculum.tokenizer import CHAT_TEMPLATE, SPECIAL, make_tokenizer
from experiments.curriculum.vision import learn_to_see, vision_config
from experiments.curriculum.wide import (
    wide_picture,
    wide_question,
    wide_questions,
    wide_scene,
    wide_wording,
)
from experiments.curriculum.world import LARGE_GRIDS

logger = logging.getLogger(__name__)

# Between 25 and 35 visual tokens: a square of 140 pixels, or the same area in another shape.
BUDGET = ImageBudget(min_pixels=140 * 140, max_pixels=200 * 140)
MAX_TOKENS = 512
PARTS_SHARE = 0.7
"""How far the weights go towards those that know single tokens: sizes suffer from more."""
BATCH_SIZES = (64, 32)
"""Images of a step in stage 1 and in stage 2."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """Optimizer steps of each part; `scaled` shortens or lengthens them all alike."""

    things: int = 640
    places: int = 1720
    asking: int = 1078
    looking: int = 450
    together: int = 3600
    again: int = 2500
    further: int = 2700
    larger: int = 4350
    parts: int = 600
    stage1: int = 20
    stage2: int = 60

    def scaled(self, factor: float) -> "Lengths":
        return Lengths(
            **{name: max(2, round(getattr(self, name) * factor)) for name in self.__slots__}
        )


def run(
    out: Path,
    *,
    lengths: Lengths | None = None,
    device: str = "cpu",
    workers: int = 1,
    compile: bool = False,
) -> Path:
    """Train everything that `out` does not hold yet.

    Args:
        out: Folder of the run; a broken one goes on.
        lengths: Steps of each part; those of the shipped model unless given.
        device: Where the lessons train, "cpu" or "cuda".
        workers: Processes that draw scenes ahead.
        compile: Compile the layers of lesson five, the longest.

    Returns:
        The folder of the finished model.
    """
    steps = lengths or Lengths()
    make_folder(out)
    words, things, places = out / "tokenizer.json", out / "things.pt", out / "places.pt"
    asking, looking = out / "asking.pt", out / "looking.pt"
    both, again = out / "together.pt", out / "again.pt"
    further, larger = out / "further.pt", out / "larger.pt"
    parts, between = out / "parts.pt", out / "between.pt"
    if not words.exists():
        make_tokenizer().save(str(words))
    tokenizer = Tokenizer.from_file(str(words))
    where: dict[str, Any] = {"device": device, "workers": workers}
    fast: dict[str, Any] = {"compile": compile}
    if not things.exists():
        learn_to_see(things, steps.things, singles=True, batch=128, rate=4e-4, seed=1, **where)
    if not places.exists():
        learn_to_see(
            places, steps.places, singles=False, start=things, batch=64, rate=4e-4, seed=2, **where
        )
    if not asking.exists():
        learn_to_answer(asking, tokenizer, steps.asking, **where)
    if not looking.exists():
        learn_to_look(looking, tokenizer, places, asking, steps.looking, **where)
    if not both.exists():
        learn_together(both, tokenizer, (places, looking), steps.together, **where, **fast)
    if not again.exists():
        learn_together(
            again, tokenizer, (both,), steps.again, rate=2.5e-4, seed=11, **where, **fast
        )
    fast |= where | {"scenes": 64, "per_scene": 2}
    if not further.exists():
        learn_together(further, tokenizer, (again,), steps.further, rate=1.2e-4, seed=13, **fast)
    fast["grids"] = LARGE_GRIDS
    if not larger.exists():
        learn_together(larger, tokenizer, (further,), steps.larger, rate=1.2e-4, seed=17, **fast)
    if not parts.exists():
        fast["part_weight"] = 1.0
        learn_together(parts, tokenizer, (larger,), steps.parts, rate=1e-4, seed=29, **fast)
    if not (out / "base").exists():
        interpolate(between, larger, parts, PARTS_SHARE)
        assemble(out / "base", words, between)
    return stages(out, steps, **where)


def make_processor(tokenizer_file: Path) -> Processor:
    """The bundled model's processor, from the tokenizer that `tokenizer.make_tokenizer` made."""
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


def assemble(folder: Path, tokenizer_file: Path, weights: Path) -> Path:
    """Write what lesson five learnt as a model folder of ours, without a stage-2 adapter."""
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
    learnt = VisionLanguage(tokenizer)
    learnt.load_state_dict(torch.load(weights, map_location="cpu"))
    language = learnt.language
    model.backbone.vlm.visual.load_state_dict(learnt.vision.state_dict())
    model.backbone.vlm.language_model.load_state_dict(language.language.state_dict())
    model.head.load_state_dict(language.head.state_dict())
    model.temperature.temp.data.fill_(language.tau())
    model.source["base"] = "trained from nothing on generated scenes"
    checkpoint.save(model, make_processor(tokenizer_file), folder)
    return folder


def stages(out: Path, steps: Lengths, *, device: str = "cpu", workers: int = 0) -> Path:
    """Stages 1 and 2 of the paper on `out/base`, by the same code as for any other backbone."""
    model, processor = checkpoint.load(str(out / "base"))
    config = stage_config("pretrain", out, steps.stage1, device, workers)
    run_stage(config, SceneSampler("pretrain", negatives=3), model, processor, out / "stage1")
    model, processor = checkpoint.load(str(out / "stage1" / "model"))
    config = stage_config("instruct", out, steps.stage2, device, workers)
    run_stage(config, SceneSampler("instruct", negatives=4), model, processor, out / "stage2")
    model, processor = checkpoint.load(str(out / "stage2" / "model"))
    model.vector_facts = VectorFacts(tuple(width for width in WIDTHS if width < model.dim))
    Embedder(model, processor).calibrate(typical_items())
    checkpoint.save(model, processor, out / "model", dtype=torch.float16)
    (out / "steps.json").write_text(json.dumps(asdict(steps)) + "\n")
    logger.info("the model is in %s", out / "model")
    return out / "model"


def typical_items(scenes: int = 200) -> list[str | Item]:
    """Every answer, and pictures of the wide world alone and with a question: for ranges."""
    items: list[str | Item] = list(all_answers())
    for index in range(scenes):
        rng = np.random.default_rng((8, index, 41))
        scene = wide_scene(8, index, smallest=2)
        picture = wide_picture(scene, 5, 5, rng)
        question = wide_wording(wide_question(rng, wide_questions(scene)), rng)
        items += [Item(image=picture), Item(image=picture, instruction=question)]
    return items


def stage_config(
    stage: StageName, out: Path, steps: int, device: str = "cpu", workers: int = 0
) -> TrainConfig:
    """The paper's adapters; higher rates, since the model is small and the runs short."""
    pretrain = stage == "pretrain"
    base = out / "base" if pretrain else out / "stage1" / "model"
    temperature = TemperatureConfig(start=0.05, learn=True, floor=0.02)
    return TrainConfig(
        stage=stage,
        out=str(out / ("stage1" if pretrain else "stage2")),
        adapter=AdapterConfig(rank=64, alpha=128) if pretrain else AdapterConfig(rank=16, alpha=32),
        train=RunConfig(
            steps=steps,
            batch_size=BATCH_SIZES[0 if pretrain else 1],
            label_smoothing=0.1,
            seed=5 if pretrain else 6,
            checkpoint_every=20,
            log_every=5,
        ),
        model=ModelConfig(
            base=str(base), device="cpu" if device == "cpu" else "auto", precision="float32"
        ),
        data=DataConfig(workers=workers),
        temperature=temperature if pretrain else TemperatureConfig(),
        optim=OptimConfig(learning_rate=5e-5 if pretrain else 2e-4),
    )
