"""An exported folder gives, in the real sentence-transformers, the vectors of `Embedder`."""

import json
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sentence_transformers import SentenceTransformer

from abc_embed import Embedder, Item
from abc_embed.errors import (
    ImageNotFoundError,
    InputError,
    OutputError,
    RemoteImageError,
    UsageError,
)
from abc_embed.interop.export import MODULE, save_sentence_transformer
from abc_embed.interop.sentence_transformers import (
    AbcModule,
    as_sentence_transformer,
    to_item,
)

CLOSE = 1e-5


@pytest.fixture(scope="module")
def folder(embedder: Embedder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_sentence_transformer(embedder, tmp_path_factory.mktemp("models") / "exported")


def load(folder: Path, **options: Any) -> SentenceTransformer:
    return SentenceTransformer(str(folder), trust_remote_code=True, device="cpu", **options)


@pytest.fixture(scope="module")
def model(folder: Path) -> SentenceTransformer:
    return load(folder)


def both(photos: list[Path]) -> tuple[list[Any], list[str | Item]]:
    """The same things as the library takes them, and as items; all kinds in one batch."""
    a, b = photos
    picture = Image.open(a)
    theirs = [
        "a dog",
        picture,
        {"image": picture, "text": "what is on the left?"},
        str(b),
        {"image": str(b), "text": "what is on the right?"},
        {"text": "a much longer text about a cat on a mat"},
        {"image": np.asarray(picture)},
        torch.from_numpy(np.array(picture)).permute(2, 0, 1),
        {"role": "user", "content": [{"type": "image", "image": picture}]},
        [
            {
                "role": "user",
                "content": [
                    {"type": "image", "image": str(b)},
                    {"type": "text", "text": "what is on the right?"},
                ],
            }
        ],
        {"role": "user", "content": "a dog"},
        {"image": picture, "text": ""},
    ]
    right = Item(image=b, instruction="what is on the right?")
    ours: list[str | Item] = [
        "a dog",
        Item(image=a),
        Item(image=a, instruction="what is on the left?"),
        Item(image=b),
        right,
        "a much longer text about a cat on a mat",
        Item(image=a),
        Item(image=a),
        Item(image=a),
        right,
        "a dog",
        Item(image=a),
    ]
    return theirs, ours


@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_a_mixed_batch_has_our_vectors(
    model: SentenceTransformer, embedder: Embedder, photos: list[Path], batch_size: int
) -> None:
    theirs, ours = both(photos)
    expected = embedder.embed(ours)
    found = model.encode(theirs, batch_size=batch_size)
    assert found.dtype == np.float32
    assert np.abs(found - expected).max() <= CLOSE
    apart = expected @ expected.T
    assert apart[1, 2] < 1 - 10 * CLOSE  # the instruction does change the vector


def test_single_inputs_and_similarity(
    model: SentenceTransformer, embedder: Embedder, photos: list[Path]
) -> None:
    single = model.encode({"image": str(photos[0]), "text": "what is on the left?"})
    item = Item(image=photos[0], instruction="what is on the left?")
    assert np.abs(single - embedder.embed(item)).max() <= CLOSE
    names = ["a dog", "a cat"]
    scores = model.similarity(model.encode(item_text := "a dog"), model.encode(names))
    expected = embedder.similarity(embedder.embed(item_text), embedder.embed(names))
    assert np.abs(np.asarray(scores)[0] - expected).max() <= CLOSE
    assert model.get_embedding_dimension() == embedder.dim
    assert model.supports("text") and model.supports("image") and model.supports(("image", "text"))
    assert not model.supports("audio")


def test_a_prompt_goes_in_front_of_the_words(
    model: SentenceTransformer, embedder: Embedder, photos: list[Path]
) -> None:
    theirs = ["a dog", str(photos[0]), {"image": str(photos[0]), "text": "left?"}]
    ours = [
        "look: a dog",
        Item(image=photos[0], instruction="look: "),
        Item(image=photos[0], instruction="look: left?"),
    ]
    found = model.encode(theirs, prompt="look: ")
    assert np.abs(found - embedder.embed(ours)).max() <= CLOSE


def test_the_resolution_dial(model: SentenceTransformer, embedder: Embedder) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (280, 280, 3), dtype=np.uint8)
    picture = Image.fromarray(noise)
    for area in (4 * 28 * 28, 16 * 28 * 28):
        expected = embedder.embed(Item(image=picture), max_pixels=area)
        assert np.abs(model.encode(picture, max_pixels=area) - expected).max() <= CLOSE
    assert np.abs(model.encode(picture, max_pixels=4 * 28 * 28) - expected).max() > 10 * CLOSE


def test_the_folder_is_still_one_of_ours(
    folder: Path, embedder: Embedder, photos: list[Path]
) -> None:
    again = Embedder.from_pretrained(folder, device="cpu")
    _, ours = both(photos)
    assert np.array_equal(again.embed(ours), embedder.embed(ours))
    assert json.loads((folder / "modules.json").read_text())[0]["type"] == MODULE
    assert f"{AbcModule.__module__}.{AbcModule.__name__}" == MODULE
    assert not list(folder.rglob("*.py"))


def test_what_the_library_saves_loads_again(
    model: SentenceTransformer, embedder: Embedder, photos: list[Path], tmp_path: Path
) -> None:
    model.save_pretrained(str(tmp_path / "resaved"))
    theirs, ours = both(photos)
    found = load(tmp_path / "resaved").encode(theirs)
    assert np.abs(found - embedder.embed(ours)).max() <= CLOSE


def test_number_format_is_chosen_as_the_library_does(folder: Path) -> None:
    model = load(folder, model_kwargs={"dtype": "bfloat16"})
    ours = Embedder.from_pretrained(folder, device="cpu", dtype="bfloat16")
    assert model[0].embedder.model.dtype == torch.bfloat16  # type: ignore[union-attr]
    assert np.array_equal(model.encode(["a dog"]), ours.embed(["a dog"]))


def test_without_a_folder(embedder: Embedder, photos: list[Path]) -> None:
    theirs, ours = both(photos)
    found = as_sentence_transformer(embedder).encode(theirs)
    assert np.abs(found - embedder.embed(ours)).max() <= CLOSE


def test_it_reaches_the_library_s_worker_processes(
    model: SentenceTransformer, embedder: Embedder
) -> None:
    """They get the model by pickle; the lock of an `Embedder` cannot go along."""
    again = pickle.loads(pickle.dumps(model[0]))
    features = again.preprocess(["a dog"])
    vector = again(features)["sentence_embedding"].numpy()
    assert np.abs(vector - embedder.embed(["a dog"])).max() <= CLOSE


def test_the_library_asks_for_leave_first(folder: Path) -> None:
    """Since its release 6 it calls every class outside itself remote code; the docs say so."""
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        SentenceTransformer(str(folder), device="cpu")


@pytest.mark.parametrize(
    ("value", "error"),
    [
        ({"image": "a.png", "audio": "b.wav"}, InputError),
        ({"text": ["a", "b"]}, InputError),
        ({"image": "gone.png", "text": "left?"}, ImageNotFoundError),
        ("https://example.com/a.png", RemoteImageError),
        (np.zeros(8), InputError),
        (3, InputError),
        ("", InputError),
        ({}, InputError),
        ([{"role": "system", "content": "x"}], InputError),
        ([{"role": "user", "content": "x"}, {"role": "user", "content": "y"}], InputError),
        ({"role": "user", "content": [{"type": "video", "video": "x"}]}, InputError),
    ],
)
def test_what_is_no_item_is_refused(
    model: SentenceTransformer, value: Any, error: type[InputError]
) -> None:
    with pytest.raises(error):
        item = to_item(value)
        model[0].embedder.embed(item)  # type: ignore[union-attr]


# -- export alone ----------------------------------------------------------------------------------


def test_export_needs_no_library(
    embedder: Embedder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    folder = save_sentence_transformer(embedder, tmp_path / "exported")
    assert save_sentence_transformer(embedder, folder) == folder  # one of ours is replaced
    assert sorted(p.name for p in folder.parent.iterdir()) == ["exported"]


def test_a_stranger_s_folder_is_left_alone(embedder: Embedder, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("four years of work")
    with pytest.raises(OutputError, match="no model of ours"):
        save_sentence_transformer(embedder, tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "four years of work"


def test_a_folder_loads_without_trust_where_the_module_is_handed_over(
    folder: Path, embedder: Embedder
) -> None:
    with pytest.raises(ValueError, match="trust_remote_code"):
        SentenceTransformer(str(folder), device="cpu")
    model = SentenceTransformer(modules=[AbcModule.load(str(folder))], device="cpu")
    assert np.abs(model.encode("a dog") - embedder.embed("a dog")).max() <= CLOSE


@pytest.mark.parametrize("backend", ["onnx", "openvino"])
def test_other_backends_are_refused_in_a_sentence(folder: Path, backend: Any) -> None:
    with pytest.raises(UsageError, match=f"backend is '{backend}', and this model runs on torch"):
        load(folder, backend=backend)


@pytest.mark.parametrize("cached", [False, True])
def test_their_trainer_trains_it(cached: bool, folder: Path, tmp_path: Path) -> None:
    """Images with an instruction as anchors, texts as positives; their trainer and their loss."""
    from datasets import Dataset
    from sentence_transformers import (
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from sentence_transformers.sentence_transformer.losses import (
        CachedMultipleNegativesRankingLoss,
        MultipleNegativesRankingLoss,
    )

    shades = {"black": 0, "grey": 120, "white": 255, "dark": 60}
    pictures = {}
    for name, shade in shades.items():
        pictures[name] = tmp_path / f"{name}.png"
        Image.new("RGB", (56, 56), (shade,) * 3).save(pictures[name])
    anchors = [{"image": str(path), "text": "what shade is it?"} for path in pictures.values()]
    data = Dataset.from_dict({"anchor": anchors * 8, "positive": list(shades) * 8})
    model = load(folder).requires_grad_(True)
    before = model.encode(["grey", *anchors])
    loss = (
        CachedMultipleNegativesRankingLoss(model, mini_batch_size=2)
        if cached
        else MultipleNegativesRankingLoss(model)
    )
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(tmp_path / "trainer"),
        per_device_train_batch_size=4,
        max_steps=8,
        learning_rate=3e-3,
        logging_steps=1,
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        batch_sampler="no_duplicates",
        disable_tqdm=True,
    )
    trainer = SentenceTransformerTrainer(model, arguments, train_dataset=data, loss=loss)
    trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    assert len(losses) == 8 and max(losses[-2:]) < 0.8 * min(losses[:2])
    model.save_pretrained(str(tmp_path / "trained"))
    after = model.encode(["grey", *anchors])
    assert np.abs(after - before).max() > 0.01
    found = load(tmp_path / "trained").encode(["grey", *anchors])
    assert np.abs(found - after).max() <= CLOSE
    ours = Embedder.from_pretrained(tmp_path / "trained", device="cpu")
    assert np.abs(ours.embed("grey") - after[0]).max() <= CLOSE


def test_gradients_are_those_of_the_model(folder: Path, photos: list[Path]) -> None:
    """The same vectors as in use, with and without the stage-2 adapter in one batch."""
    model = load(folder).requires_grad_(True)
    theirs, _ = both(photos)
    inputs = model.preprocess(theirs)
    expected = model.encode(theirs)
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):  # of the adapter, awake in training alone
            module.p = 0.0
    found = model(inputs)["sentence_embedding"]
    assert np.abs(found.detach().numpy() - expected).max() <= CLOSE
    found[:3].sum().backward()
    assert all(p.grad is not None for p in model[0].model.head.parameters())
