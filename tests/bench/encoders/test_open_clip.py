"""open_clip, by a stand-in with the same functions: the library needs torchvision.

The stand-in has what open_clip's own documentation shows: `create_model_and_transforms` gives the
model and two preparations, `get_tokenizer` a tokenizer; the model has `encode_image` and
`encode_text`, whose vectors are not of unit length.
"""

import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from abc_embed import Item
from abc_embed.bench.encoders.base import Encoder
from abc_embed.bench.encoders.registry import load_encoder
from abc_embed.bench.encoders.wrapped import LateFusion
from abc_embed.errors import CheckpointError, MissingExtraError, UsageError
from abc_embed.inputs import Kind


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(3.0))
        self.sizes: list[int] = []

    def encode_image(self, image: torch.Tensor) -> torch.Tensor:
        assert image.dtype == self.scale.dtype and image.shape[1:] == (3, 2, 2)
        self.sizes.append(len(image))
        return self.scale * image.mean(dim=(2, 3))

    def encode_text(self, text: torch.Tensor) -> torch.Tensor:
        self.sizes.append(len(text))
        return self.scale * text.to(self.scale.dtype)


def prepare(picture: Image.Image) -> torch.Tensor:
    assert picture.mode == "RGB"
    small = np.asarray(picture.resize((2, 2)), dtype=np.float32) / 255
    return torch.from_numpy(small).permute(2, 0, 1)


def tokenize(texts: list[str]) -> torch.Tensor:
    return torch.tensor([[len(text), 1, text.count("a")] for text in texts])


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, Any]]]:
    made: list[dict[str, Any]] = []

    def create(name: str, **options: Any) -> tuple[Any, Any, Any]:
        made.append({"name": name, **options})
        if options["pretrained"] == "nothing":
            raise RuntimeError("Pretrained value 'nothing' is not known.\nAvailable: ...")
        model = Model()
        return (model.bfloat16() if options["precision"] == "bf16" else model), None, prepare

    module = ModuleType("open_clip")
    module.create_model_and_transforms = create  # type: ignore[attr-defined]
    module.get_tokenizer = lambda name: tokenize  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "open_clip", module)
    yield made


def test_texts_and_images(calls: list[dict[str, Any]]) -> None:
    name = "open_clip:ViT-B-32/laion2b"
    encoder: Encoder = load_encoder(name, device="cpu", batch_size=2)
    assert calls == [
        {"name": "ViT-B-32", "pretrained": "laion2b", "device": "cpu", "precision": "fp32"}
    ]
    assert (encoder.name, encoder.supported_kinds) == (name, frozenset({Kind.TEXT, Kind.IMAGE}))
    assert encoder.dim == 3
    grey = Image.new("L", (8, 4), 128)
    red = Image.new("RGB", (4, 8), (255, 0, 0))
    items = [Item(image=grey), "a cat", Item(image=red), "dog", "a bat"]
    expected = np.array([[1, 1, 1], [5, 1, 2], [1, 0, 0], [3, 1, 0], [5, 1, 2]], dtype=float)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    assert np.allclose(encoder.embed(items), expected, atol=1e-6)
    assert max(encoder.model.sizes) <= 2  # type: ignore[attr-defined]
    assert encoder.embed([]).shape == (0, 3)
    assert encoder.describe()["takes"] == ["text", "image"]


def test_an_instruction_is_not_taken_but_fused(calls: list[dict[str, Any]]) -> None:
    encoder = load_encoder("open_clip:ViT-B-32/laion2b", device="cpu")
    asked = Item(image=Image.new("RGB", (4, 4), (255, 0, 0)), instruction="left?")
    with pytest.raises(UsageError, match="takes only a text, an image alone"):
        encoder.embed([asked])
    fused = load_encoder("late:open_clip:ViT-B-32/laion2b", device="cpu")
    assert isinstance(fused, LateFusion) and fused.embed([asked]).shape == (1, 3)


def test_the_weights_decide_the_fingerprint(calls: list[dict[str, Any]]) -> None:
    one, same = (load_encoder("open_clip:a/b", device="cpu") for _ in range(2))
    half = load_encoder("open_clip:a/b", device="cpu", dtype="bfloat16")
    assert one.fingerprint == same.fingerprint != half.fingerprint
    assert half.describe()["dtype"] == "bfloat16"
    red = Item(image=Image.new("RGB", (4, 4), (255, 0, 0)))
    assert np.allclose(half.embed([red]), [[1, 0, 0]])


@pytest.mark.parametrize("name", ["ViT-B-32", "ViT-B-32/", "/laion2b"])
def test_half_a_name_is_refused(calls: list[dict[str, Any]], name: str) -> None:
    with pytest.raises(UsageError, match="MODEL/PRETRAINED"):
        load_encoder(f"open_clip:{name}", device="cpu")


def test_a_name_that_the_library_does_not_know(calls: list[dict[str, Any]]) -> None:
    with pytest.raises(CheckpointError, match="not known"):
        load_encoder("open_clip:ViT-B-32/nothing", device="cpu")


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'abc-embed\[open-clip\]'"):
        load_encoder("open_clip:ViT-B-32/laion2b")
