"""Images on disk: which are found, what is remembered of them, how they are ranked."""

import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from abc_embed.data.image_files import find_images
from abc_embed.errors import ImageNotFoundError, NotAnImageError, OutputError
from abc_embed.inputs import Item
from abc_embed.search import folder
from abc_embed.search.folder import FolderIndex, index_pictures
from abc_embed.storage.vector_cache import VectorCache, default_folder


def vectors(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float32)


# -- pictures --------------------------------------------------------------------------------------


def test_images_by_name_in_order_hidden_ones_apart(tmp_path: Path) -> None:
    for name in ("b.PNG", "a.jpeg", "x.txt", ".c.png", "sub/d.webp", ".git/e.png", "sub/f"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = find_images(tmp_path)
    names = [str(path.relative_to(tmp_path)) for path in found.files]
    assert names == ["a.jpeg", "b.PNG", "sub/d.webp"]
    assert found.others == 2


def test_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(ImageNotFoundError, match="there is no folder"):
        find_images(tmp_path / "gone")


# -- cache -----------------------------------------------------------------------------------------


def test_what_is_put_is_got_again_and_after_closing(tmp_path: Path) -> None:
    many = {str(number): vectors(number, 0.1) for number in range(1100)}
    with VectorCache(tmp_path / "deep" / "cache", "model", None) as cache:
        cache.put(many)
    with VectorCache(tmp_path / "deep" / "cache", "model", None) as cache:
        found = cache.get([*many, "unknown"])
    assert found.keys() == many.keys()
    assert all(np.array_equal(found[key], many[key]) for key in many)


def test_another_model_or_resolution_knows_nothing(tmp_path: Path) -> None:
    with VectorCache(tmp_path, "model", None) as cache:
        cache.put({"x": vectors(1)})
    for model, pixels in (("other", None), ("model", 784)):
        with VectorCache(tmp_path, model, pixels) as cache:
            assert cache.get(["x"]) == {}


def test_two_at_once(tmp_path: Path) -> None:
    with VectorCache(tmp_path, "m", None) as one, VectorCache(tmp_path, "m", None) as other:
        one.put({"x": vectors(1)})
        other.put({"x": vectors(2), "y": vectors(3)})
        assert one.get(["x", "y"]).keys() == {"x", "y"}


def test_a_damaged_file_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "vectors.sqlite").write_bytes(b"no database " * 99)
    with pytest.raises(OutputError, match=r"cannot be used .* delete it"):
        VectorCache(tmp_path, "m", None)


def test_no_folder_can_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be used"):
        VectorCache(tmp_path / "file" / "cache", "m", None)


def test_a_broken_write_leaves_what_was_there(tmp_path: Path) -> None:
    with VectorCache(tmp_path, "m", None) as cache:
        cache.put({"x": vectors(1)})
        with pytest.raises(OutputError):
            cache.put({"y": vectors(2), object(): vectors(3)})  # type: ignore[dict-item]
        assert cache.get(["x", "y"]).keys() == {"x"}


def test_where_it_lies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("ABC_EMBED_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "abc-embed"
    monkeypatch.setenv("ABC_EMBED_CACHE", str(tmp_path / "mine"))
    assert default_folder() == tmp_path / "mine"


# -- folder ----------------------------------------------------------------------------------------


class Length:
    """In the place of an embedder: an image's vector says how many bytes the file has."""

    dim = 2

    def __init__(self) -> None:
        self.seen: list[str] = []

    def stream(self, items: Iterable[Item], **_: Any) -> Iterator[Any]:
        from abc_embed.pipeline import Skipped

        for number, item in enumerate(items):
            path = Path(str(item.image))
            self.seen.append(path.name)
            size = path.stat().st_size
            error = NotAnImageError(f"{path.name} is bad")
            yield vectors(size, 1) if size else Skipped(number, item, error)


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    for name, content in {"a": b"1", "b": b"22", "same": b"1", "bad": b"", "z": b"333"}.items():
        (tmp_path / name).write_bytes(content)
    return [tmp_path / name for name in ("a", "b", "same", "bad", "gone", "z")]


def test_new_ones_are_embedded_once_and_remembered(files: list[Path], tmp_path: Path) -> None:
    model = Length()
    with VectorCache(tmp_path / "cache", "m", None) as cache:
        counts: list[int] = []
        index = index_pictures(files, model, cache, counted=counts.append)  # type: ignore[arg-type]
        assert model.seen == ["a", "b", "bad", "z"]
        assert [path.name for path in index.paths] == ["a", "b", "same", "z"]
        assert index.vectors.tolist() == [[1, 1], [2, 1], [1, 1], [3, 1]]
        assert {bad.path.name: str(bad.error) for bad in index.bad} == {
            "gone": f"there is no file {str(files[4])!r}",
            "bad": "bad is bad",
        }
        assert counts[-1] == len(files)
        model.seen.clear()
        again = index_pictures(files, model, cache)  # type: ignore[arg-type]
        assert model.seen == ["bad"]
        assert again.from_cache == 4
        assert np.array_equal(again.vectors, index.vectors)


def test_broken_off_keeps_what_was_embedded(
    files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(done: int) -> None:
        if done == len(files) - 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(folder, "SAVE_EVERY", 1)
    with VectorCache(tmp_path / "cache", "m", None) as cache, pytest.raises(KeyboardInterrupt):
        index_pictures(files, Length(), cache, counted=stop)  # type: ignore[arg-type]
    rows = sqlite3.connect(tmp_path / "cache" / "vectors.sqlite")
    assert rows.execute("SELECT count(*) FROM vectors").fetchone() == (2,)
    rows.close()


def test_the_best_come_first_and_equals_by_name() -> None:
    paths = [Path(name) for name in "abcd"]
    index = FolderIndex(paths, np.array([[0, 1], [1, 0], [1, 0], [0.6, 0.8]], np.float32), [], 0)
    hits = index.search(vectors(1, 0), 3)
    assert [hit.path.name for hit in hits] == ["b", "c", "d"]
    assert [hit.score for hit in hits] == pytest.approx([1, 1, 0.6])
    assert len(index.search(vectors(1, 0), 99)) == 4
