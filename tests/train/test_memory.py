"""The memory formula against what a step really holds, counted on a CPU.

Every tensor that a step makes is counted when it comes and when it goes. The estimate must not be
below that, or a user runs out of memory on its word, and not far above.
"""

import copy
import json
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from abc_embed.backbone import EncoderShape, build_backbone, parse_config
from abc_embed.model import AbcModel
from abc_embed.processor import Processor
from abc_embed.train.batches import TrainBatch, caption_group, instruction_group, make_batch
from abc_embed.train.config import TrainConfig
from abc_embed.train.dry_run import _estimate, _run_shape
from abc_embed.train.memory import CPU_RESERVE_BYTES, ChunkShape, RunShape, estimate_memory
from abc_embed.train.processes import GlobalBatch, ProcessGroup
from abc_embed.train.stages import Instruct, Pretrain, Stage

ABOVE = 1.7
"""At most so many times what was counted; the proportions of a large model end nearer."""


class Live(TorchDispatchMode):
    """Bytes of all storages that came since it began, and their most at one time."""

    def __init__(self, before: list[torch.Tensor]) -> None:
        super().__init__()
        self._kept = before  # so that their storages keep their place
        self._seen: dict[int, Any] = {t.untyped_storage()._cdata: None for t in before}
        self.now = self.peak = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        out = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage())
        return out

    def _count(self, storage: Any) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._seen or not size:
            return
        self.now += size
        self.peak = max(self.peak, self.now)

        def gone(_: Any) -> None:
            self._seen.pop(key, None)
            self.now -= size

        self._seen[key] = weakref.ref(storage, gone)


@pytest.fixture(scope="module")
def values(golden: Path) -> dict[str, Any]:
    """The golden model with the proportions of a large one: inner layers wide, pixels few."""
    found: dict[str, Any] = json.loads((golden / "base/config.json").read_text())
    found |= {"hidden_size": 192, "intermediate_size": 960, "num_attention_heads": 6}
    found |= {"num_key_value_heads": 2, "num_hidden_layers": 3, "max_window_layers": 3}
    found["rope_scaling"]["mrope_section"] = [4, 6, 6]
    found["vision_config"] |= {"depth": 2, "embed_dim": 160, "hidden_size": 192, "mlp_ratio": 4}
    return found


def small_batch(stage: str, processor: Processor) -> TrainBatch:
    random = np.random.default_rng(0)
    pictures = [random.integers(0, 255, (168, 168, 3), dtype=np.uint8) for _ in range(4)]
    words = "red above blue " * 3
    if stage == "pretrain":
        groups = [
            caption_group(p, f"{words}{i}", [f"{words}no {i}"]) for i, p in enumerate(pictures)
        ]
    else:
        asks = ("what is on top?", "what is below it?")
        groups = [
            instruction_group(p, [(ask, f"{words}{i}{ask}") for ask in asks])
            for i, p in enumerate(pictures)
        ]
    return make_batch(groups, processor)


def counted(stage: Stage, batch: TrainBatch) -> int:
    """Most bytes at one time, besides weights, gradients and the batch itself."""
    before: list[torch.Tensor] = [*stage.model.parameters(), *stage.model.buffers()]
    for parameter in stage.parameters.values():
        parameter.grad = torch.zeros_like(parameter)
        before.append(parameter.grad)
    for features in batch.features:
        before += [t for t in (features.input_ids, features.pixels) if t is not None]
    with Live(before) as live:
        stage.backward(GlobalBatch.single(batch))
    return live.peak


class Half(Accelerator):
    """In bfloat16: accelerate itself takes one number format per process."""

    def autocast(self, autocast_handler: Any = None) -> Any:
        return torch.autocast("cpu", torch.bfloat16)


@pytest.mark.parametrize("chunk_size", [0, 2])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(("stage", "dropout"), [("pretrain", 0.0), ("instruct", 0.05)])
@pytest.mark.parametrize("number_bytes", [4, 2])
def test_the_estimate_is_a_little_above_what_was_counted(
    number_bytes: int,
    stage: str,
    dropout: float,
    checkpointing: bool,
    chunk_size: int,
    values: dict[str, Any],
    config: Any,
    golden: Path,
) -> None:
    torch.manual_seed(0)
    dtype = torch.float32 if number_bytes == 4 else torch.bfloat16
    backbone = build_backbone(parse_config(copy.deepcopy(values))).to(dtype)
    model = AbcModel(backbone, head_width=96)
    processor = Processor.from_folder(golden / "base", min_pixels=784, max_pixels=784 * 64)
    settings: TrainConfig = config(
        stage, dropout=dropout, gradient_checkpointing=checkpointing, chunk_size=chunk_size
    )
    kind = Pretrain if stage == "pretrain" else Instruct
    accelerator = Accelerator if number_bytes == 4 else Half
    made = kind(settings, model, processor, ProcessGroup(accelerator(cpu=True)))
    batch = small_batch(stage, processor)
    shape = _run_shape(settings, model, processor, number_bytes, on_gpu=False)
    found = _estimate(settings, shape, batch)
    share = (found.activations + found.vectors) / counted(made, batch)
    assert 1.0 <= share <= ABOVE, share


SHAPE = RunShape(
    language=EncoderShape(layers=2, width=8, inner=16, heads=8),
    vision=EncoderShape(layers=2, width=8, inner=16, heads=8),
    frozen_bytes=1000,
    trained=10,
    vision_trains=True,
    patch_values=12,
    rank=2,
    dropout=False,
    number_bytes=2,
    on_gpu=True,
    checkpointing=False,
    chunked=True,
)


def test_weights_gradients_and_means_by_hand() -> None:
    found = estimate_memory(replace(SHAPE, on_gpu=False), [], queries=0, candidates=0)
    assert (found.frozen, found.trained, found.gradients, found.optimizer) == (1000, 40, 40, 80)
    assert found.activations == found.vectors == found.process == 0
    assert found.reserve == CPU_RESERVE_BYTES and found.total == 1160 + CPU_RESERVE_BYTES


def test_memory_follows_the_largest_chunk_not_the_batch() -> None:
    one = ChunkShape(tokens=100, patches=40)
    few = estimate_memory(SHAPE, [one], queries=4, candidates=4)
    many = estimate_memory(SHAPE, [one] * 50, queries=4, candidates=4)
    assert few.activations == many.activations > 0 and few.reserve == many.reserve > 0
