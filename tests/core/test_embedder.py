"""The public face: golden vectors, one item one vector, every argument, and what is refused."""

import base64
import copy
import doctest
import inspect
import io
import json
import pickle
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import golden_parts
import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from abc_embed import Embedder, Item, embedder, errors
from abc_embed.errors import CheckpointError, UsageError
from abc_embed.vectors import VectorFacts, quantize, truncate

FEW = 6 * 28 * 28
PARTS = (golden_parts.BASE, golden_parts.PRETRAIN, golden_parts.INSTRUCT)
EXPECTED = dict(np.load(golden_parts.GOLDEN / "expected_embeddings.npz"))


@pytest.fixture(scope="module", params=["sdpa", "eager"])
def attending(request: pytest.FixtureRequest) -> Embedder:
    return Embedder.from_adapters(*PARTS, device="cpu", dtype="float32", attn=request.param)


@pytest.fixture(scope="module")
def model() -> Embedder:
    return Embedder(*golden_parts.shared())


# -- the published vectors -------------------------------------------------------------------------


def test_golden_vectors(attending: Embedder) -> None:
    items = golden_parts.expected_items()
    got = dict(zip(items, attending.embed(list(items.values())), strict=True))
    assert set(got) == set(EXPECTED)
    for name, vector in got.items():
        if any(part in name for part in golden_parts.IN_BUDGET):
            assert np.abs(vector - EXPECTED[name]).max() <= 1e-5, name
        else:  # the published code resizes these twice (paper, trap 4)
            assert vector @ EXPECTED[name] >= 0.998, name


@pytest.mark.parametrize(("dtype", "cosine"), [("bfloat16", 0.999), ("float16", 0.9999)])
def test_short_number_formats_come_close(dtype: str, cosine: float) -> None:
    short = Embedder.from_adapters(*PARTS, device="cpu", dtype=dtype)
    names = ["text_0", "image_unaligned", "inst_aligned_560x448_0"]
    items = golden_parts.expected_items()
    for name, vector in zip(names, short.embed([items[name] for name in names]), strict=True):
        assert vector.dtype == np.float32
        assert abs(np.linalg.norm(vector) - 1) < 1e-5
        assert cosine <= vector @ EXPECTED[name] < 1 - 1e-7, name  # close, but not float32


# -- one item, one vector --------------------------------------------------------------------------


def picture(number: int) -> np.ndarray:
    rows, columns = [(56, 84), (84, 56), (28, 140), (60, 60), (200, 30)][number]
    values = np.random.default_rng(number).integers(0, 256, (rows, columns, 3))
    return values.astype(np.uint8)


PICTURES = [picture(number) for number in range(5)]
TEXTS = ["a dog", "!", "a dog!", "!!! a cat !!!", "a cat " * 30, " spaces ", "übergroß 犬\n"]
POOL = [Item(text) for text in TEXTS]
POOL += [Item(image=image) for image in PICTURES]
POOL += [
    Item(image=image, instruction=words)
    for image in PICTURES
    for words in ("!", "what is on the left?", "what is on the right? " * 4)
]


@pytest.fixture(scope="module")
def alone(model: Embedder) -> np.ndarray:
    return np.stack([model.embed(item, max_pixels=FEW) for item in POOL])


def test_the_pool_can_tell_a_mistake(alone: np.ndarray) -> None:
    """If all vectors were alike, the property below would hold for nothing."""
    differences = np.abs(alone[:, None] - alone[None]).max(axis=-1)
    assert differences[~np.eye(len(POOL), dtype=bool)].min() > 1e-3


@settings(max_examples=40)
@given(
    st.lists(st.integers(0, len(POOL) - 1), min_size=1, max_size=14),
    st.integers(1, 16),
    st.booleans(),
)
@example(list(range(len(POOL))), 32, False)
@example([1, 4], 2, False)  # "!", which is token 0, next to a longer text
def test_one_item_one_vector(
    model: Embedder, alone: np.ndarray, chosen: list[int], batch_size: int, streamed: bool
) -> None:
    items = [POOL[index] for index in chosen]
    if streamed:
        stream = model.stream(iter(items), batch_size=batch_size, max_pixels=FEW)
        vectors = np.stack(list(stream))
    else:
        vectors = model.embed(items, batch_size=batch_size, max_pixels=FEW)
    assert np.abs(vectors - alone[chosen]).max() <= 1e-5


def test_instruction_and_adapter_matter(model: Embedder) -> None:
    """Without stage 2, image + instruction changes; image alone and text alone do not."""
    plain = Embedder(*golden_parts.published(instruct=False))
    items = [Item(image=PICTURES[0], instruction="left?"), Item(image=PICTURES[0]), Item("a dog")]
    both = (embedded.embed(items, max_pixels=FEW) for embedded in (model, plain))
    different = np.abs(np.subtract(*both)).max(axis=1)
    assert different[0] > 1e-3
    assert different[1:].max() <= 1e-6


# -- shapes and arguments --------------------------------------------------------------------------


def test_one_item_is_a_vector_and_a_list_a_matrix(model: Embedder) -> None:
    assert model.dim == 64
    for one in ("a dog", Item("a dog"), Item(image=PICTURES[0])):
        vector = model.embed(one, max_pixels=FEW)
        assert vector.shape == (64,)
        assert abs(np.linalg.norm(vector) - 1) < 1e-6
    for many in (["a dog"], ("a dog",), (text for text in ["a dog"])):
        assert model.embed(many).shape == (1, 64)
    assert model.embed([]).shape == (0, 64)
    assert model.embed([]).dtype == np.float32
    assert model.embed([], on_error="skip")[1] == []
    assert list(model.stream([])) == []


def test_every_way_to_hand_over_an_image_gives_the_same_vector(
    model: Embedder, tmp_path: Path
) -> None:
    picture = Image.fromarray(PICTURES[0])
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    path = tmp_path / "a.png"
    path.write_bytes(stream.getvalue())
    url = f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"
    ways = [path, str(path), stream.getvalue(), url, picture, PICTURES[0]]
    vectors = model.embed([Item(image=way) for way in ways], max_pixels=FEW)
    np.testing.assert_array_equal(vectors, np.tile(vectors[:1], (6, 1)))


def test_max_pixels_changes_what_is_seen(model: Embedder) -> None:
    item = golden_parts.picture("aligned_560x448.png")
    coarse, fine = model.embed(item, max_pixels=FEW), model.embed(item)
    assert coarse @ fine < 0.9999
    for call in (model.embed, model.stream):
        with pytest.raises(errors.UsageError, match="less than one visual token"):
            call([item], max_pixels=5)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"batch_size": 0}, "at least 1"),
        ({"batch_size": 2.5}, "whole number"),
        ({"max_pixels": "200704"}, "whole number"),
        ({"on_error": "ignore"}, "'raise' or 'skip'"),
    ],
)
def test_arguments_out_of_range(model: Embedder, arguments: dict[str, Any], words: str) -> None:
    for call in (model.embed, model.stream):
        with pytest.raises(errors.UsageError, match=words):
            call(["a dog"], **arguments)


def test_one_thing_where_many_are_meant(model: Embedder) -> None:
    for one in ("a dog", Item("a dog"), Path("dog.jpg"), b"dog"):
        with pytest.raises(errors.UsageError, match="use embed"):
            model.stream(one)  # type: ignore[arg-type]
    for image in (Path("dog.jpg"), b"dog"):
        with pytest.raises(errors.InputError, match=r"Item\(image="):
            model.embed(image)  # type: ignore[arg-type]
    with pytest.raises(errors.UsageError, match="is for lists"):
        model.embed("a dog", on_error="skip")  # type: ignore[call-overload]


def test_pictures_need_no_wrapping(model: Embedder) -> None:
    array = PICTURES[0]
    vector = model.embed(Item(image=array))
    tensor = torch.from_numpy(array).permute(2, 0, 1)
    for picture in (array, Image.fromarray(array), tensor):
        np.testing.assert_array_equal(model.embed(picture), vector)  # type: ignore[call-overload]
    pair = np.stack([array, array])
    for pictures in (pair, torch.stack([tensor, tensor]), [Image.fromarray(array)] * 2):
        assert np.allclose(model.embed(pictures), vector, atol=1e-5)  # type: ignore[call-overload]
    words = np.array(["a dog", "a cat"])
    np.testing.assert_array_equal(model.embed(words), model.embed(["a dog", "a cat"]))


def test_tables_and_mappings_are_not_embedded_by_their_keys(model: Embedder) -> None:
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame({"caption": ["a dog", "a cat"]})
    for call in (model.embed, model.stream):
        with pytest.raises(errors.InputError, match="give one of its columns"):
            call(table)
        with pytest.raises(errors.InputError, match=r"dict \(of image\); give Item"):
            call({"image": "dog.jpg"})
    np.testing.assert_array_equal(model.embed(table["caption"]), model.embed(["a dog", "a cat"]))


def test_a_path_given_as_a_text_is_warned_of_once_a_call(
    model: Embedder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "dog.png"
    Image.fromarray(PICTURES[0]).save(path)
    model.embed(str(path))
    model.embed([str(path), Item(str(path))])
    list(model.stream([str(path)] * 2))
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 3
    assert f"Item(image={str(path)!r})" in caplog.text


def test_a_single_bad_item_is_named_without_a_number(model: Embedder) -> None:
    with pytest.raises(errors.ImageNotFoundError, match=r"^there is no file 'dog\.jpg'"):
        model.embed(Item(image="dog.jpg"))


@pytest.mark.parametrize("items", [["a", "b", "c"], (text for text in "abc")])
def test_progress_goes_to_stderr(
    model: Embedder,
    items: Sequence[str] | Iterator[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("abc_embed.progress.PLAIN_LINE_EVERY_S", 0.0)
    sized = isinstance(items, list)
    assert len(list(model.stream(items, progress=True))) == 3
    if sized:
        model.embed(items, progress=True)
    printed = capsys.readouterr()
    assert printed.out == ""
    last = "embedding 3 of 3" if sized else "embedding 3"
    assert printed.err.splitlines().count(last) == (2 if sized else 1)
    model.embed(["a", "b"])
    assert capsys.readouterr().err == ""


# -- similarity ------------------------------------------------------------------------------------


def test_similarity_is_the_cosine_in_every_shape(model: Embedder) -> None:
    random = np.random.default_rng(0)
    a, b = random.normal(size=(3, 5)), random.normal(size=(4, 5))
    expected = (a @ b.T) / np.outer(np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1))
    for first, second, want in (
        (a, b, expected),
        (a[0], b, expected[0]),
        (a, b[1], expected[:, 1]),
        (a[0], b[1], expected[0, 1]),
        (a.tolist(), b.astype(np.float32), expected),
    ):
        got = model.similarity(first, second)
        assert isinstance(got, np.ndarray)
        assert got.dtype == np.float32
        assert got.shape == want.shape
        np.testing.assert_allclose(got, want, atol=1e-6)
    assert model.similarity(np.zeros((0, 5)), b).shape == (0, 4)


@pytest.mark.parametrize(
    ("a", "b", "words"),
    [
        ([1.0, 0], [1.0, 0, 0], "different widths, 2 and 3"),
        ([0.0, 0], [1.0, 0], "first vectors is zero"),
        ([1.0, 0], [[1.0, 0], [np.nan, 0]], "second vectors is zero or not finite"),
        ([[[1.0]]], [1.0], "3 axes"),
        (1.0, [1.0], "0 axes"),
        ("a dog", [1.0], "no numbers"),
    ],
)
def test_what_has_no_cosine(a: Any, b: Any, words: str) -> None:
    with pytest.raises(errors.UsageError, match=words):
        Embedder.similarity(a, b)


# -- what it is ------------------------------------------------------------------------------------


def test_saved_and_loaded_it_is_the_same_to_the_bit(model: Embedder, tmp_path: Path) -> None:
    model.save(tmp_path / "mine")
    again = Embedder.from_pretrained(tmp_path / "mine", device="cpu", dtype="float32")
    np.testing.assert_array_equal(
        again.embed(POOL, max_pixels=FEW), model.embed(POOL, max_pixels=FEW)
    )
    assert again.config == model.config
    assert again.fingerprint == model.fingerprint


def test_the_configuration_says_what_decides_a_vector(model: Embedder) -> None:
    config = model.config
    assert json.loads(json.dumps(config)) == config
    assert config["positions"] == "sequential"
    assert config["pooling"] == "mean"
    assert (config["min_pixels"], config["max_pixels"]) == (256 * 784, 1024 * 784)
    assert config["prompt_hash"] == model.processor.prompt_hash


def test_the_fingerprint_sees_weights_and_settings() -> None:
    def fresh() -> Embedder:
        return Embedder(*golden_parts.published())

    one = fresh()
    assert len(one.fingerprint) == 64
    assert fresh().fingerprint == one.fingerprint
    other = fresh()
    other.model.head.linear2.bias.data[3] += 1e-6
    other_budget = fresh()
    other_budget.processor.image = other_budget.processor.image.limited(FEW)
    short = Embedder(*golden_parts.published(dtype=golden_parts.torch.bfloat16))
    elsewhere = fresh()
    elsewhere.model.source["base"] = "the same weights in another folder"
    assert len({e.fingerprint for e in (one, other, other_budget, short)}) == 4
    assert elsewhere.fingerprint == one.fingerprint


def test_a_missing_device_is_said_before_anything_is_loaded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(golden_parts.torch.cuda, "is_available", lambda: False)
    with pytest.raises(errors.DeviceError, match="device='cpu'"):
        Embedder.from_adapters("nowhere", "nowhere", device="cuda")
    with pytest.raises(errors.UsageError, match="dtype is 'float8'"):
        Embedder.from_pretrained("nowhere", device="cpu", dtype="float8")
    with pytest.raises(errors.UnknownModelError):
        Embedder.from_pretrained("no such model", device="cpu")


def test_examples_in_the_docstrings(model: Embedder, tmp_path: Path) -> None:
    model.save(tmp_path / "mine")
    names = {"folder": tmp_path / "mine", "photo": PICTURES[0]}
    tests = doctest.DocTestFinder().find(embedder, extraglobs=names)
    results = [doctest.DocTestRunner().run(test) for test in tests if test.examples]
    assert sum(result.attempted for result in results) >= 7
    assert not any(result.failed for result in results)
    from abc_embed import inputs, prompts

    for module in (inputs, prompts):
        assert doctest.testmod(module).failed == 0


def test_importing_is_silent_and_light() -> None:
    """The package, and even its `Item`, come without torch."""
    code = (
        "import sys, abc_embed; from abc_embed import Item; Item('a dog');"
        "assert not {'torch', 'transformers', 'peft'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_face_is_the_agreed_one() -> None:
    for name in ("embed", "stream"):
        parameters = inspect.signature(getattr(Embedder, name)).parameters
        assert list(parameters) == [
            *("self", "items", "max_pixels", "batch_size", "dim", "output", "devices"),
            *("progress", "on_error"),
        ]
    for name, first in (("from_pretrained", ["name"]), ("from_adapters", None)):
        parameters = list(inspect.signature(getattr(Embedder, name)).parameters)
        assert parameters == [
            *(first or ["base", "pretrain", "instruct"]),
            "device",
            "dtype",
            "attn",
            "weights",
            "compile",
            *(["truncate_dim"] if first else []),
        ]


# -- widths, and the names of sentence-transformers ------------------------------------------------


def test_vectors_are_cut_to_a_width(model: Embedder) -> None:
    items: list[Item | str] = ["a dog", golden_parts.small("what is it?"), "a cat"]
    full = model.embed(items)
    expected = full[:, :8] / np.linalg.norm(full[:, :8], axis=1, keepdims=True)
    assert np.abs(model.embed(items, dim=8) - expected).max() <= 1e-6
    assert np.abs(np.stack(list(model.stream(items, dim=8))) - expected).max() <= 1e-5
    assert np.abs(model.embed("a dog", dim=8) - expected[0]).max() <= 1e-5
    assert (model.embed(items, dim=model.dim) == full).all()
    bad: list[Any] = ["", "  "]
    none, skipped = model.embed(bad, dim=8, on_error="skip")
    assert none.shape == (0, 8) and len(skipped) == 2
    some, skipped = model.embed(["a dog", "", "a cat"], dim=8, on_error="skip")
    assert np.abs(some - expected[[0, 2]]).max() <= 1e-5 and [bad.index for bad in skipped] == [1]
    for width in (0, model.dim + 1):
        with pytest.raises(errors.UsageError, match="dim is"):
            model.stream(items, dim=width)
        with pytest.raises(errors.UsageError, match="dim is"):
            model.embed(items, dim=width)


def test_the_names_of_sentence_transformers(model: Embedder) -> None:
    texts = ["a dog", "a cat"]
    full = model.embed(texts)
    assert np.abs(model.encode(texts) - full).max() <= 1e-6
    assert np.abs(model.encode_query("a dog") - full[0]).max() <= 1e-5
    bits = model.encode_document(texts, precision="ubinary", truncate_dim=16)
    assert (bits == np.packbits(full[:, :16] > 0, axis=1)).all()
    assert model.device.type == "cpu"
    with pytest.raises(errors.UsageError, match="needs the range"):
        model.encode(texts, precision="int8")
    narrow = copy.copy(model)
    narrow.truncate_dim = 16  # as given to from_pretrained
    assert narrow.encode("a dog").shape == (16,) and narrow.embed("a dog").shape == (model.dim,)
    assert narrow.encode("a dog", truncate_dim=8).shape == (8,)
    assert pickle.loads(pickle.dumps(narrow)).truncate_dim == 16


def test_vectors_in_small_formats(model: Embedder, tmp_path: Path) -> None:
    items: list[Item | str] = ["a dog", golden_parts.small("what is it?"), "a cat"]
    full = model.embed(items)
    with pytest.raises(UsageError, match="calibrate"):
        model.embed(items, output="int8")
    assert np.array_equal(model.embed(items, output="ubinary"), quantize(full, "ubinary"))
    model.calibrate(items, dims=[8])
    try:
        ranges = np.stack([full.min(0), full.max(0)])
        assert np.array_equal(model.embed(items, output="int8"), quantize(full, "int8", ranges))
        cut = truncate(full, 8)
        expected = quantize(cut, "uint8", np.stack([cut.min(0), cut.max(0)]))
        streamed = np.stack(list(model.stream(items, dim=8, output="uint8")))
        assert np.array_equal(streamed, expected)
        assert np.array_equal(model.encode(items, precision="float16"), full.astype(np.float16))
        model.save(tmp_path / "model")
        again = Embedder.from_pretrained(tmp_path / "model", device="cpu")
        assert np.array_equal(again.embed(items, output="int8"), model.embed(items, output="int8"))
        facts = tmp_path / "model" / "vectors.json"
        facts.write_text('{"matryoshka": [], "ranges": {"8": [1]}}')
        with pytest.raises(CheckpointError, match=r"vectors\.json"):
            Embedder.from_pretrained(tmp_path / "model", device="cpu")
    finally:
        model.model.vector_facts = VectorFacts()
