"""The golden model and its items, for the tests of several files.

`tests/golden` was written by the published code: a small random Qwen2-VL, both adapters in the
published layout, and the vectors that code gives one item at a time in float32 on a CPU.
"""

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from abc_embed.checkpoint import Loaded, load_base, load_published
from abc_embed.inputs import Item
from abc_embed.processor import Batch, Processor

GOLDEN = Path(__file__).parent.parent / "golden"
BASE = GOLDEN / "base"
PRETRAIN = GOLDEN / "pretrain_adapter"
INSTRUCT = GOLDEN / "instruct_adapter"
IN_BUDGET = ("text", "aligned", "unaligned")
"""What the names of items contain that the published code does not resize twice (paper, trap 4)."""


def published(instruct: bool = True, **options: Any) -> Loaded:
    """The golden model anew, by the strict loader."""
    return load_published(str(BASE), str(PRETRAIN), str(INSTRUCT) if instruct else None, **options)


@functools.cache
def shared() -> Loaded:
    """One golden model for tests that only look at it."""
    return published()


def base(**options: Any) -> Loaded:
    """The golden base anew, with a fresh head."""
    return load_base(str(BASE), positions="sequential", **options)


def expected_items() -> dict[str, Item]:
    """All golden items by id."""
    records = json.loads((GOLDEN / "expected_inputs.json").read_text())
    return {record["id"]: _item(record) for record in records}


def _item(record: dict[str, Any]) -> Item:
    if "image" not in record:
        return Item(text=record["text"])
    return picture(record["image"], record.get("text"))


def picture(name: str, instruction: str | None = None) -> Item:
    """A golden image, alone or with an instruction."""
    return Item(image=GOLDEN / "images" / name, instruction=instruction)


def small(instruction: str | None = None, shade: int = 0, size: tuple[int, int] = (56, 84)) -> Item:
    """An image of few pixels (`size` is rows, columns), to be collated with `max_pixels`."""
    rows, columns = size
    pixels = np.arange(rows * columns * 3, dtype=np.int64).reshape(rows, columns, 3)
    return Item(image=((pixels * 7 + shade) % 251).astype(np.uint8), instruction=instruction)


def batch(processor: Processor, items: Sequence[Item], tiny: bool = False) -> Batch:
    """Items -> batch; `tiny` lowers the pixel budget to a few visual tokens per image."""
    max_pixels = 12 * 28 * 28 if tiny else None
    return processor.collate([processor.features(item, max_pixels=max_pixels) for item in items])


def vectors(loaded: Loaded, items: Sequence[Item], tiny: bool = False) -> torch.Tensor:
    """Items in one batch -> `(B, D)`, without gradients."""
    model, processor = loaded
    with torch.inference_mode():
        return model(batch(processor, items, tiny))
