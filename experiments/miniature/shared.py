"""What all runs share: the base model, the scenes on disk, and the negatives mined once.

The base is the bundled model before its stage 2, with a fresh head and only some of its language
layers. Its vision encoder names things; what is cut is most of the way from there to an embedding:
that is what the runs learn again, a vision-language model that sees and does not embed. It is also
half as long, and so twice as fast.
"""

import re
import shutil
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path

import torch
from torch import Tensor

from abc_embed import checkpoint
from abc_embed.adapters import detach
from abc_embed.backbone import build_backbone
from abc_embed.embedder import Embedder
from abc_embed.hub import bundled_folder
from abc_embed.mining.corpus import read_corpus
from abc_embed.mining.mine import MiningRun
from abc_embed.mining.output import write_mined
from abc_embed.mining.settings import MiningSettings
from abc_embed.mining.shards import EmbedderSetup
from abc_embed.model import AbcModel
from abc_embed.processor import Processor
from abc_embed.scenes.dataset import write_dataset
from abc_embed.storage.hashing import sha256_file
from abc_embed.train.loop import run_stage
from abc_embed.train.sampler import RecordSampler
from experiments.miniature.plan import Condition, Job, Sizes, job_config, shared_key

MINING = Condition(name="mining", negatives=0)
"""The mining model: a short run with in-batch negatives only (paper section 3)."""


def bundled_hash() -> str:
    """SHA-256 of the weights that the base is cut from."""
    return sha256_file(bundled_folder() / "model.safetensors")


class SharedInputs:
    """The folder of what is shared, by the key of what decides it."""

    def __init__(self, out: Path, sizes: Sizes) -> None:
        self.sizes = sizes
        self.bundled = bundled_hash()
        self.folder = out / f"shared-{shared_key(sizes, self.bundled)}"
        self.base = self.folder / "base"
        self.records = self.folder / "scenes" / "mined.jsonl"

    def make(self) -> None:
        """Make what is missing."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if not self.base.exists():
            cut_base(self.base, self.sizes.layers)
        if not self.records.exists():
            self._mine()

    def _mine(self) -> None:
        sizes, scenes = self.sizes, self.records.parent
        plain = write_dataset(scenes, sizes.images, sizes.world, sizes.side)
        config = job_config(Job(MINING, 0), sizes, sizes.mining_steps)
        sampler = RecordSampler(plain, "pretrain", config.data)
        model, processor = load(self.base, config.model.attention)
        out = self.folder / "mining"
        run_stage(config, sampler, model, processor, out)
        settings = MiningSettings(pool=sizes.pool, sample_size=sizes.drawn)
        setup = EmbedderSetup(Embedder(model, processor))
        mined = MiningRun(read_corpus(plain), setup, settings, out / "work").mine()
        write_mined(mined, self.records)
        shutil.rmtree(out)


def cut_base(out: Path, layers: Sequence[int]) -> None:
    """Write the base into a new folder: the bundled model with these language layers only."""
    bundled, processor = checkpoint.load("bundled")
    detach(bundled)
    config = deepcopy(bundled.backbone.vlm.config)
    text = config.text_config
    text.layer_types = [text.layer_types[layer] for layer in layers]
    text.num_hidden_layers = len(layers)
    model = AbcModel(build_backbone(config), head_width=bundled.head.linear1.out_features)
    weights: dict[str, Tensor] = {}
    for name, tensor in bundled.backbone.vlm.state_dict().items():
        layer = re.fullmatch(r"(language_model\.layers\.)(\d+)(\..+)", name)
        if layer is None:
            weights[name] = tensor
        elif int(layer[2]) in layers:
            weights[f"{layer[1]}{layers.index(int(layer[2]))}{layer[3]}"] = tensor
    model.backbone.vlm.load_state_dict(weights)
    model.source["base"] = f"bundled, language layers {list(layers)}, fresh head"
    checkpoint.save(model, processor, out)


def load(folder: Path, attention: str = "sdpa") -> tuple[AbcModel, Processor]:
    """A model in float32; training computes in the format of its configuration all the same."""
    return checkpoint.load(str(folder), device="cpu", dtype=torch.float32, attn=attention)
