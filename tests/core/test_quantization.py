"""Weights of fewer bits: near the plain vectors, alone and in company, and refused in plain words.

With the extra `quant` (which `dev` leaves out: with torchao at hand PEFT imports it for every
adapter, seconds at every start).
"""

from pathlib import Path
from typing import Any

import golden_parts
import numpy as np
import pytest
import torch

from abc_embed import errors, quantization
from abc_embed.embedder import Embedder
from abc_embed.inputs import Item
from abc_embed.quantization import PACKAGES

FEW = 4 * 28 * 28
ITEMS = [
    Item(text="a dog"),
    golden_parts.small(),
    golden_parts.small("what is on the left?"),
    Item(text="a longer text with ! in it"),
]


def load(**options: Any) -> Embedder:
    parts = (golden_parts.BASE, golden_parts.PRETRAIN, golden_parts.INSTRUCT)
    return Embedder.from_adapters(*parts, device="cpu", dtype="float32", **options)


@pytest.mark.parametrize(("weights", "least"), [("int8", 0.999), ("int4", 0.9)])
def test_vectors_stay_near_and_do_not_depend_on_their_company(
    weights: str, least: float, tmp_path: Path
) -> None:
    pytest.importorskip(PACKAGES[weights])
    plain, model = load(), load(weights=weights)
    expected, found = (m.embed(ITEMS, max_pixels=FEW) for m in (plain, model))
    assert (expected * found).sum(axis=1).min() > least
    assert np.abs(expected - found).max() > 1e-4  # the guard: something was turned
    alone = np.stack([model.embed(item, max_pixels=FEW) for item in ITEMS])
    assert np.abs(alone - found).max() < 1e-5
    assert model.config["weights"] == weights
    assert model.fingerprint == load(weights=weights).fingerprint != plain.fingerprint
    assert model.model.head.linear1.weight.dtype == torch.float32
    with pytest.raises(errors.OutputError, match="is not saved: load it without"):
        model.save(tmp_path / "model")


def test_what_cannot_be_is_said_before_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(errors.UsageError, match="weights is 'int2'; use int8 or int4"):
        Embedder.from_pretrained("no such folder", weights="int2")
    monkeypatch.setattr(quantization, "find_spec", lambda name: None)
    with pytest.raises(errors.MissingExtraError, match=r"abc-embed\[quant\]"):
        Embedder.from_pretrained("no such folder", weights="int4")
