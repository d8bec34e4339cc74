"""Models of sentence-transformers: what they are handed, what they do not take, how they load."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from golden_parts import BASE, INSTRUCT, PRETRAIN
from PIL import Image
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modality import infer_modality
from sentence_transformers.base.modules import InputModule
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from abc_embed import Embedder, Item
from abc_embed.bench.encoders.base import Encoder
from abc_embed.bench.encoders.foreign import SentenceTransformerEncoder
from abc_embed.bench.encoders.registry import load_encoder
from abc_embed.bench.encoders.wrapped import LateFusion
from abc_embed.errors import CheckpointError, OfflineError, UnknownModelError, UsageError
from abc_embed.inputs import Kind
from abc_embed.interop.export import save_sentence_transformer


class Recording(InputModule):
    """A multimodal model that answers with what it sees, and keeps what it was handed."""

    def __init__(self, modalities: list[Any]) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(3))
        self._modalities = modalities
        self.batches: list[list[Any]] = []

    @property
    def modalities(self) -> list[Any]:
        return self._modalities

    def get_embedding_dimension(self) -> int:
        return 3

    def preprocess(self, inputs: Any, prompt: str | None = None, **_: Any) -> dict[str, Any]:
        self.batches.append(list(inputs))
        rows = [self._row(value) for value in inputs]
        return {"rows": torch.tensor(rows, dtype=torch.float32)}

    def _row(self, value: Any) -> list[float]:
        if isinstance(value, str):
            return [len(value), 0, 0]
        if isinstance(value, dict) and set(value) == {"text"}:
            return [len(value["text"]), 0, 0]
        if isinstance(value, dict):
            return [len(value["text"]), *value["image"].getpixel((0, 0))[:2]]
        return [0, *value.getpixel((0, 0))[:2]]

    def forward(self, features: dict[str, Any], **_: Any) -> dict[str, Any]:
        return {**features, "sentence_embedding": features["rows"] * self.weight}

    def save(self, output_path: str, *args: Any, **kwargs: Any) -> None:
        raise NotImplementedError


def recording(
    *modalities: Any, batch_size: int = 2
) -> tuple[SentenceTransformerEncoder, Recording]:
    module = Recording(list(modalities))
    model = SentenceTransformer(modules=[module], device="cpu")
    return SentenceTransformerEncoder(model, "recording", batch_size=batch_size), module


def word_model() -> SentenceTransformer:
    words = {word: n for n, word in enumerate(["[UNK]", "a", "dog", "cat", "photo", "jpg", "."])}
    tokenizer = Tokenizer(WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    weights = np.random.default_rng(0).standard_normal((len(words), 8)).astype(np.float32)
    module = StaticEmbedding(tokenizer, embedding_weights=weights)
    return SentenceTransformer(modules=[module], device="cpu")


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    paths = []
    for name, colour in (("a.png", 10), ("b.png", 200)):
        path = tmp_path / name
        Image.new("L", (40, 20), colour).save(path)
        paths.append(path)
    return paths


# -- what is taken ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("modalities", "takes"),
    [
        (("text",), {Kind.TEXT}),
        (("text", "image"), {Kind.TEXT, Kind.IMAGE}),
        (("text", "image", "message"), set(Kind)),
        (("text", ("image", "text")), {Kind.TEXT, Kind.INSTRUCTED}),
    ],
)
def test_takes_what_the_model_says(modalities: Sequence[Any], takes: set[Kind]) -> None:
    encoder, _ = recording(*modalities)
    assert encoder.supported_kinds == takes
    assert encoder.describe()["takes"] == [kind.value for kind in Kind if kind in takes]


def test_what_it_does_not_take_is_refused(photos: list[Path]) -> None:
    encoder, module = recording("text", "image")
    with pytest.raises(UsageError, match="item 1 is an image with an instruction"):
        encoder.embed(["a dog", Item(image=photos[0], instruction="left?")])
    assert module.batches == []
    fused = LateFusion(encoder)
    assert fused.embed([Item(image=photos[0], instruction="left?")]).shape == (1, 3)


# -- what it is handed -----------------------------------------------------------------------------


def test_kinds_go_apart_and_the_order_comes_back(photos: list[Path]) -> None:
    encoder, module = recording("text", "image", "message")
    a, b = photos
    items: list[str | Item] = [
        Item(image=b, instruction="right?"),
        "a dog",
        Item(image=a),
        Item(image=a, instruction="left?"),
        "a black cat",
        Item(image=b),
    ]
    rows = [[6, 200, 200], [5, 0, 0], [0, 10, 10], [5, 10, 10], [11, 0, 0], [0, 200, 200]]
    expected = np.array(rows) / np.linalg.norm(rows, axis=1, keepdims=True)
    assert np.allclose(encoder.embed(items), expected, atol=1e-6)
    for batch in module.batches:
        assert len({type(value) for value in batch}) == 1 and len(batch) <= 2
    assert encoder.embed([]).shape == (0, 3)


def test_pictures_are_rgb_upright_and_no_larger_than_asked(tmp_path: Path) -> None:
    encoder, module = recording("text", "image")
    turned = Image.new("RGB", (40, 20), "red")
    exif = Image.Exif()
    exif[274] = 6
    turned.save(tmp_path / "turned.jpg", exif=exif)
    clear = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    encoder.embed([Item(image=tmp_path / "turned.jpg"), Item(image=clear)])
    handed = sorted((p for batch in module.batches for p in batch), key=lambda p: p.size)
    assert [picture.mode for picture in handed] == ["RGB", "RGB"]
    assert [picture.size for picture in handed] == [(8, 8), (20, 40)]
    assert handed[0].getpixel((0, 0)) == (255, 255, 255)
    encoder.at(200).embed([Item(image=tmp_path / "turned.jpg")])
    assert module.batches[-1][0].size == (10, 20)


def test_a_text_stays_a_text(photos: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """The library takes a text for an image where a file of that name lies."""
    monkeypatch.chdir(photos[0].parent)
    encoder, module = recording("text", "image", batch_size=3)
    assert infer_modality("a.png") == "image"  # what would have become of it
    encoder.embed(["a.png", "https://example.com/a.png", "a dog"])
    (handed,) = module.batches
    assert {"text": "a.png"} in handed and "a dog" in handed
    assert all(infer_modality(value) == "text" for value in handed)


# -- a real text model, from its folder ------------------------------------------------------------


def test_a_text_model_from_its_folder(tmp_path: Path) -> None:
    folder = tmp_path / "words"
    word_model().save(str(folder))
    encoder: Encoder = load_encoder(f"st:{folder}", device="cpu")
    assert (encoder.name, encoder.dim) == ("st:words", 8)
    assert encoder.supported_kinds == {Kind.TEXT}
    expected = word_model().encode(["a dog", "a cat"], normalize_embeddings=True)
    assert np.allclose(encoder.embed(["a dog", "a cat"]), expected, atol=1e-6)
    again = load_encoder(f"st:{folder}", device="cpu")
    assert again.fingerprint == encoder.fingerprint and len(encoder.fingerprint) == 64
    other = word_model()
    with torch.no_grad():
        next(other.parameters()).mul_(2)
    assert SentenceTransformerEncoder(other, "words").fingerprint != encoder.fingerprint
    assert str(tmp_path) not in json.dumps(encoder.describe())


# -- our own, exported -----------------------------------------------------------------------------


def test_an_exported_model_gives_our_vectors(tmp_path: Path, photos: list[Path]) -> None:
    embedder = Embedder.from_adapters(BASE, PRETRAIN, INSTRUCT, device="cpu")
    folder = save_sentence_transformer(embedder, tmp_path / "exported")
    encoder = load_encoder(f"st:{folder}", device="cpu", batch_size=2)
    items = ["a dog", *(Item(image=p) for p in photos), Item(image=photos[1], instruction="left?")]
    assert np.abs(encoder.embed(items) - embedder.embed(items)).max() <= 1e-5
    assert encoder.supported_kinds == frozenset(Kind)


# -- refusals --------------------------------------------------------------------------------------


def test_no_code_of_strangers_is_run(tmp_path: Path) -> None:
    folder = tmp_path / "stranger"
    word_model().save(str(folder))
    modules = json.loads((folder / "modules.json").read_text())
    modules[0]["type"] = "modeling_stranger.Stranger"
    (folder / "modules.json").write_text(json.dumps(modules))
    ran = tmp_path / "ran"
    (folder / "modeling_stranger.py").write_text(f"open({str(ran)!r}, 'w')\n")
    with pytest.raises(CheckpointError, match="cannot load"):
        load_encoder(f"st:{folder}", device="cpu")
    ours = {"idx": 1, "name": "1", "path": "", "type": "abc_embed.interop.x.Y"}
    (folder / "modules.json").write_text(json.dumps([*modules, ours]))
    with pytest.raises(CheckpointError, match="cannot load"):
        load_encoder(f"st:{folder}", device="cpu")
    assert not ran.exists()


def test_names_that_lead_nowhere(tmp_path: Path) -> None:
    with pytest.raises(UnknownModelError):
        load_encoder("st:no such folder")
    with pytest.raises(OfflineError):
        load_encoder("st:owner/name")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="cannot load"):
        load_encoder(f"st:{tmp_path / 'empty'}", device="cpu")
