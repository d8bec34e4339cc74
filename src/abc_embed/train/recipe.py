"""A TOML file in, a trained model in a folder out: what `abc-embed train` calls.

Does: read the configuration, load the model it names, open its records, run the stage. Does not:
train (``loop``) or define fields (``config``).
"""

import logging
from collections.abc import Sequence
from pathlib import Path

import torch

from abc_embed import checkpoint, hub
from abc_embed.adapters import detach
from abc_embed.errors import ConfigError
from abc_embed.model import AbcModel
from abc_embed.processor import Processor
from abc_embed.train.batches import Source
from abc_embed.train.config import TrainConfig, load_config
from abc_embed.train.loop import autocast_type, run_stage1, run_stage2
from abc_embed.train.sources import RecordSource

logger = logging.getLogger(__name__)


def train_from_config(
    path: str | Path,
    overrides: Sequence[str] = (),
    *,
    resume: bool = True,
    source: Source | None = None,
) -> Path:
    """Run what a TOML file says; the folder of the trained model, ready for `--model`.

    `overrides` are `"section.field=value"`. `source` stands in for `data.records`. Called again, a
    broken run goes on; with `resume=False` a folder that holds a run is refused.

    Raises `ConfigError` before anything is loaded, and what `run_stage1` raises.
    """
    config = load_config(path, overrides)
    for name, value in (("out", config.out), ("model.base", config.model.base)):
        if not value:
            raise ConfigError(f"{name} is missing; give it a value ({path})")
    if source is None and not config.data.records:
        raise ConfigError(f"data.records is missing; give it a records file ({path})")
    if source is None:
        source = RecordSource(config.data.records, config.stage, config.data)
    model, processor = load_for_training(config)
    run = run_stage1 if config.stage == "pretrain" else run_stage2
    run(config, source, model, processor, config.out, resume=resume)
    return Path(config.out) / "model"


def load_for_training(config: TrainConfig) -> tuple[AbcModel, Processor]:
    """The model that a run begins with, without a stage-2 adapter.

    The frozen weights are in the number format of training: half the memory in bfloat16.
    """
    chosen = config.model
    dtype = autocast_type(chosen) or torch.float32
    if _is_embedder(chosen.base):
        model, processor = checkpoint.load(chosen.base, dtype=dtype, attn=chosen.attention)
    elif config.stage == "instruct":
        raise ConfigError(
            f"model.base is {chosen.base!r}; stage 2 needs a model that has passed stage 1, like "
            "the folder that stage 1 saved"
        )
    else:
        model, processor = checkpoint.load_base(
            chosen.base,
            pixels=(chosen.pixels[0] or None, chosen.pixels[1] or None),
            head_width=chosen.head_width,
            dtype=dtype,
            attn=chosen.attention,
        )
    if model.has_instruct_adapter:
        logger.warning(
            "the stage-2 adapter of %s is left out; this run begins without", chosen.base
        )
        detach(model)
    return model, processor


def _is_embedder(base: str) -> bool:
    """Whether `base` names a model with a trained head: one of ours, or a published one."""
    known = base == hub.BUNDLED or base.partition("@")[0] in hub.PUBLISHED
    return known or (Path(base).expanduser() / "abc.json").is_file()
