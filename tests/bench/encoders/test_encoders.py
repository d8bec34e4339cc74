"""Ours, late fusion, chance and the cache, each through the one face that benchmarks see."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from golden_parts import BASE, INSTRUCT, PRETRAIN
from PIL import Image

from abc_embed import Embedder, Item
from abc_embed.bench.encoders import wrapped
from abc_embed.bench.encoders.base import Encoder, content_keys, shrink, strip_path
from abc_embed.bench.encoders.registry import NativeEncoder, load_encoder
from abc_embed.bench.encoders.wrapped import CachedEncoder, LateFusion, RandomEncoder
from abc_embed.errors import ImageNotFoundError, InputError, NotFiniteError, UsageError
from abc_embed.inputs import Kind
from abc_embed.search.folder import index_images
from abc_embed.storage.vector_cache import VectorCache


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    return Embedder.from_adapters(BASE, PRETRAIN, INSTRUCT, device="cpu")


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    rng = np.random.default_rng(0)
    paths = [tmp_path / name for name in ("a.png", "b.png")]
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (56, 56, 3), dtype=np.uint8)).save(path)
    return paths


def mixed(photos: Sequence[Path]) -> list[str | Item]:
    a, b = photos
    asked = [Item(image=p, instruction=words) for p in (a, b) for words in ("left?", "right?")]
    return ["a dog", Item(image=a), asked[0], asked[2], Item(image=b), asked[1], "a dog", asked[3]]


class Counting(Encoder):
    """Chance that keeps what it was asked, and can be told to take less or to fail."""

    def __init__(self, kinds: frozenset[Kind] = frozenset(Kind), fail_after: int = 99) -> None:
        self._inner = RandomEncoder(8)
        self.name, self.dim, self.supported_kinds = "counting", 8, kinds
        self.library = "counting"
        self.calls: list[list[Item]] = []
        self._fail_after = fail_after

    @property
    def fingerprint(self) -> str:
        return self._inner.fingerprint

    def _embed(self, items: list[Item]) -> np.ndarray:
        if len(self.calls) == self._fail_after:
            raise KeyboardInterrupt
        self.calls.append(items)
        return self._inner.embed(items)

    def _details(self) -> dict[str, Any]:
        return {"dtype": "float32"}


# -- ours ------------------------------------------------------------------------------------------


def test_ours_is_the_embedder(embedder: Embedder, photos: list[Path]) -> None:
    ours: Encoder = NativeEncoder(embedder, "bundled", batch_size=3)
    items = mixed(photos)
    assert np.allclose(ours.embed(items), embedder.embed(items), atol=1e-6)
    small = embedder.embed(items, max_pixels=4 * 28 * 28)
    assert np.allclose(ours.at(4 * 28 * 28).embed(items), small, atol=1e-6)
    assert ours.fingerprint == embedder.fingerprint
    assert (ours.dim, ours.supported_kinds) == (embedder.dim, frozenset(Kind))
    assert ours.embed([]).shape == (0, embedder.dim)


def test_a_description_names_no_folder(embedder: Embedder, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    embedder.save(folder)
    loaded = load_encoder(str(folder), device="cpu")
    assert loaded.name == "mine"
    said = loaded.describe()
    assert said["dtype"] == "float32" and said["device"] == "cpu"
    assert said["prompt_hash"] == embedder.processor.prompt_hash
    assert str(tmp_path) not in str(said)
    assert said["takes"] == ["text", "image", "instructed"]


# -- chance ----------------------------------------------------------------------------------------


def test_chance_knows_nothing_but_equality(photos: list[Path]) -> None:
    chance = RandomEncoder(512)
    items = mixed(photos)
    vectors = chance.embed(items)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    cosines = vectors @ vectors.T
    assert np.allclose(cosines[0, 6], 1)
    np.fill_diagonal(cosines, 0)
    cosines[0, 6] = cosines[6, 0] = 0
    assert np.abs(cosines).max() < 0.25
    assert np.array_equal(RandomEncoder(512).embed(items[::-1]), vectors[::-1])
    assert not np.allclose(RandomEncoder(512, seed=1).embed(items), vectors)
    assert RandomEncoder(512, seed=1).fingerprint != chance.fingerprint


@pytest.mark.parametrize(("name", "dim"), [("random", 64), ("random:7", 7)])
def test_chance_by_name(name: str, dim: int) -> None:
    made = load_encoder(name)
    assert (made.name, made.dim) == (name, dim)


# -- late fusion -----------------------------------------------------------------------------------


def test_late_fusion_adds_unit_vectors(embedder: Embedder, photos: list[Path]) -> None:
    late = LateFusion(NativeEncoder(embedder, "tiny"))
    items = mixed(photos)
    found = late.embed(items)
    for row, item in enumerate(items):
        if isinstance(item, Item) and item.instruction is not None:
            image, words = embedder.embed([Item(image=item.image), item.instruction])
            expected = (image + words) / np.linalg.norm(image + words)
        else:
            expected = embedder.embed([item])[0]
        assert np.allclose(found[row], expected, atol=1e-5)
    assert late.name == "late:tiny"
    assert late.fingerprint != embedder.fingerprint
    assert late.embed([]).shape == (0, embedder.dim)


def test_late_fusion_embeds_each_part_once(photos: list[Path]) -> None:
    inner = Counting(frozenset({Kind.TEXT, Kind.IMAGE}))
    late = LateFusion(inner)
    assert late.supported_kinds == frozenset(Kind)
    late.embed(mixed(photos))
    (call,) = inner.calls
    assert len(call) == 5  # a dog, left?, right?, two pictures
    assert late.describe()["kind"] == "late fusion of counting"


def test_late_fusion_needs_both() -> None:
    with pytest.raises(UsageError, match="does not take both"):
        LateFusion(Counting(frozenset({Kind.TEXT})))


def test_late_fusion_by_name(embedder: Embedder, tmp_path: Path) -> None:
    embedder.save(tmp_path / "mine")
    assert load_encoder(f"late:{tmp_path / 'mine'}", device="cpu").name == "late:mine"
    assert load_encoder("late:random:5").dim == 5


def test_opposite_vectors_have_no_sum(photos: list[Path]) -> None:
    class Opposite(Counting):
        def _embed(self, items: list[Item], *_: Any) -> np.ndarray:
            signs = [1.0 if item.image else -1.0 for item in items]
            return np.array([[s] + [0.0] * 7 for s in signs], dtype=np.float32)

    with pytest.raises(NotFiniteError, match="no direction"):
        LateFusion(Opposite()).embed([Item(image=photos[0], instruction="left?")])


# -- the cache -------------------------------------------------------------------------------------


def test_cached_vectors_are_the_same(embedder: Embedder, photos: list[Path]) -> None:
    ours = NativeEncoder(embedder, "tiny")
    remembering = CachedEncoder(ours)
    items = mixed(photos)
    first = remembering.embed(items)
    assert np.allclose(first, ours.embed(items), atol=1e-6)
    assert np.array_equal(remembering.embed(items[::-1]), first[::-1])
    assert remembering.embed([]).shape == (0, embedder.dim)
    same = (remembering.name, remembering.fingerprint, remembering.dim, remembering.supported_kinds)
    assert same == (ours.name, ours.fingerprint, ours.dim, ours.supported_kinds)
    assert remembering.describe() == ours.describe()


def test_nothing_is_embedded_twice(photos: list[Path]) -> None:
    inner = Counting()
    remembering = CachedEncoder(inner)
    remembering.embed(mixed(photos))
    remembering.embed(mixed(photos)[::-1])
    assert [len(call) for call in inner.calls] == [7]  # eight items, one of them twice


def test_a_picture_of_one_call_is_encoded_once(
    embedder: Embedder, photos: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every control asks for the same pictures; the vision encoder sees each once."""
    encode, seen = embedder.model.backbone.encode_images, []

    def counted(pixels: Any, grid: Any) -> Any:
        seen.append(len(grid))
        return encode(pixels, grid)

    monkeypatch.setattr(embedder.model.backbone, "encode_images", counted)
    CachedEncoder(NativeEncoder(embedder, "tiny", batch_size=2)).embed(mixed(photos))
    assert sum(seen) == 2


def test_content_decides_and_not_the_path(photos: list[Path], tmp_path: Path) -> None:
    inner = Counting()
    remembering = CachedEncoder(inner)
    copy = tmp_path / "copy.png"
    shutil.copy(photos[0], copy)
    a = remembering.embed([Item(image=photos[0]), Item(image=photos[1])])
    b = remembering.embed([Item(image=copy), Item(image=photos[0].read_bytes())])
    assert np.array_equal(b, a[[0, 0]]) and len(inner.calls) == 1
    shutil.copy(photos[1], copy)  # another picture under an old name
    assert np.array_equal(remembering.embed([Item(image=copy)])[0], a[1])
    remembering.at(784).embed([Item(image=photos[0])])
    assert len(inner.calls) == 2  # another resolution is another vector


def test_keys_tell_apart_what_differs(photos: list[Path]) -> None:
    a, b = photos
    picture = Image.open(a)
    palette = picture.convert("P")
    items = [
        *(Item(text=words) for words in ("left?", "left? ", "right?")),
        *(Item(image=image) for image in (a, b, picture, palette, picture.rotate(90))),
        *(Item(image=a, instruction=words) for words in ("left?", "right?")),
        Item(image=b, instruction="left?"),
    ]
    assert len(set(content_keys(items))) == len(items)
    again = [Item(image=np.asarray(picture)), Item(image=picture.copy())]
    assert content_keys(again) == [content_keys(items)[5]] * 2
    with pytest.raises(ImageNotFoundError, match="check the path"):
        content_keys([Item(image=a.with_name("gone.png"))])


def test_a_folder_outlives_the_process(photos: list[Path], tmp_path: Path) -> None:
    items = mixed(photos)
    with CachedEncoder(Counting(), tmp_path / "kept") as remembering:
        first = remembering.embed(items)
    never = Counting(fail_after=0)
    with CachedEncoder(never, tmp_path / "kept") as again:
        assert np.array_equal(again.embed(items), first)
    assert never.calls == []


def test_what_was_embedded_before_a_stop_is_kept(
    photos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wrapped, "SAVE_EVERY", 2)
    items = mixed(photos)
    with (
        CachedEncoder(Counting(fail_after=2), tmp_path) as stopped,
        pytest.raises(KeyboardInterrupt),
    ):
        stopped.embed(items)
    rest = Counting()
    with CachedEncoder(rest, tmp_path) as again:
        assert np.array_equal(again.embed(items), Counting().embed(items))
    assert sum(map(len, rest.calls)) == 7 - 4


def test_search_and_benchmarks_share_their_vectors(
    embedder: Embedder, photos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def embedded_anew(*_: object) -> None:
        raise AssertionError

    with VectorCache(tmp_path / "kept", embedder.fingerprint, None) as cache:
        index_images(photos, embedder, cache)
    monkeypatch.setattr(NativeEncoder, "_embed", embedded_anew)
    with CachedEncoder(NativeEncoder(embedder, "tiny"), tmp_path / "kept") as remembering:
        remembering.embed([Item(image=path) for path in photos])


# -- names and refusals ----------------------------------------------------------------------------


def test_what_is_not_taken_is_refused() -> None:
    text_only = CachedEncoder(Counting(frozenset({Kind.TEXT})))
    with pytest.raises(UsageError, match=r"item 1 is an image alone, and counting takes only a te"):
        text_only.embed(["a dog", Item(image=b"")])
    with pytest.raises(InputError, match="type int"):
        RandomEncoder().embed([3])  # type: ignore[list-item]


@pytest.mark.parametrize("name", ["random:", "random:x", "late:", "st:", "open_clip:", "random:0"])
def test_half_a_name_is_refused(name: str) -> None:
    with pytest.raises(UsageError):
        load_encoder(name)


def test_shrinking_keeps_the_shape() -> None:
    picture = Image.new("RGB", (300, 100))
    assert shrink(picture, None) is picture and shrink(picture, 30_000) is picture
    width, height = shrink(picture, 2_700).size
    assert (width, height) == (90, 30)
    assert shrink(Image.new("RGB", (1000, 1)), 10).size == (100, 1)


@pytest.mark.parametrize(
    ("place", "name"),
    [
        ("runs/mine", "mine"),
        ("runs/mine/model", "mine"),
        ("runs/mine/checkpoints/step-00000100", "mine-step-00000100"),
        ("runs/mine/model/", "mine"),
    ],
)
def test_a_model_is_called_by_its_run(place: str, name: str, tmp_path: Path) -> None:
    (tmp_path / place).mkdir(parents=True)
    assert strip_path(str(tmp_path / place)) == name
    assert strip_path("owner/model") == "owner/model"


def test_a_run_is_the_model_in_it(embedder: Embedder, tmp_path: Path) -> None:
    embedder.save(tmp_path / "run" / "model")
    loaded = load_encoder(str(tmp_path / "run"), device="cpu")
    assert loaded.name == "run" and loaded.fingerprint == embedder.fingerprint
