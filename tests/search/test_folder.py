"""Images of a folder: what is remembered of them, and how they are ranked."""

import os
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from abc_embed.errors import NotAnImageError
from abc_embed.inputs import Item
from abc_embed.search import folder
from abc_embed.search.folder import FolderIndex, index_images
from abc_embed.storage.hashing import sha256
from abc_embed.storage.vector_cache import VectorCache


def unit(*values: float) -> np.ndarray:
    """As every vector of an embedder, of length 1: the cache takes any other for damaged."""
    vector = np.array(values, dtype=np.float32)
    return vector / np.linalg.norm(vector)


def sizes(vectors: np.ndarray) -> list[int]:
    """What the vectors of `Length` say."""
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1)
    return [round(x / y) for x, y in vectors.tolist()]


class Length:
    """In the place of an embedder: an image's vector says how many bytes it has."""

    dim = 2

    def __init__(self) -> None:
        self.seen: list[bytes] = []

    def stream(self, items: Iterable[Item], **_: Any) -> Iterator[Any]:
        from abc_embed.inputs import Skipped

        for number, item in enumerate(items):
            assert isinstance(item.image, bytes)
            self.seen.append(item.image)
            error = NotAnImageError("the image given as bytes is bad")
            size = len(item.image)
            yield unit(size, 1) if size else Skipped(number, item, error)


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    for name, content in {"a": b"1", "b": b"22", "same": b"1", "bad": b"", "z": b"333"}.items():
        (tmp_path / name).write_bytes(content)
    return [tmp_path / name for name in ("a", "b", "same", "bad", "gone", "z")]


def test_new_ones_are_embedded_once_and_remembered(files: list[Path], tmp_path: Path) -> None:
    model = Length()
    with VectorCache(tmp_path / "cache", "m", None) as cache:
        counts: list[int] = []
        index = index_images(files, model, cache, on_progress=counts.append)  # type: ignore[arg-type]
        assert model.seen == [b"1", b"22", b"", b"333"]
        assert [path.name for path in index.paths] == ["a", "b", "same", "z"]
        assert sizes(index.vectors) == [1, 2, 1, 3]
        assert {bad.path.name: str(bad.error) for bad in index.bad} == {
            "gone": f"there is no file {str(files[4])!r}",
            "bad": f"{str(files[3])!r} is bad",
        }
        assert counts[-1] == len(files)
        model.seen.clear()
        again = index_images(files, model, cache)  # type: ignore[arg-type]
        assert model.seen == [b""]
        assert again.from_cache == 4
        assert np.array_equal(again.vectors, index.vectors)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_named_like_an_image_is_bad_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    index = index_images([tmp_path / "pipe.png"], Length(), None)  # type: ignore[arg-type]
    assert [str(bad.error) for bad in index.bad] == [
        f"{str(tmp_path / 'pipe.png')!r} cannot be read (it is no ordinary file); check it"
    ]


def test_broken_off_keeps_what_was_embedded(
    files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(done: int) -> None:
        if done == len(files) - 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(folder, "SAVE_EVERY", 1)
    with VectorCache(tmp_path / "cache", "m", None) as cache, pytest.raises(KeyboardInterrupt):
        index_images(files, Length(), cache, on_progress=stop)  # type: ignore[arg-type]
    rows = sqlite3.connect(tmp_path / "cache" / "vectors.sqlite")
    assert rows.execute("SELECT count(*) FROM vectors").fetchone() == (2,)
    rows.close()


def settle(*paths: Path) -> None:
    """As if the files had been changed last in 2001."""
    for path in paths:
        os.utime(path, ns=(10**18, 10**18))


def test_a_file_is_read_again_only_if_its_size_or_time_changed(tmp_path: Path) -> None:
    path, moved = tmp_path / "a", tmp_path / "b"
    path.write_bytes(b"one")
    settle(path)

    def embed(*paths: Path) -> list[int]:
        with VectorCache(tmp_path / "cache", "m", None) as cache:
            index = index_images(paths, model, cache)  # type: ignore[arg-type]
        return sizes(index.vectors)

    model = Length()
    embed(path)
    path.write_bytes(b"two")
    settle(path)
    assert embed(path) == [3]
    assert model.seen == [b"one"]  # what the stamp says is believed: the file was not opened
    path.write_bytes(b"four")
    settle(path)
    assert embed(path) == [4]  # another size
    path.write_bytes(b"five")
    assert embed(path) == [4]  # another time
    assert model.seen == [b"one", b"four", b"five"]
    path.rename(moved)
    assert embed(moved) == [4]
    assert len(model.seen) == 3  # by its content


def test_a_file_that_was_changed_just_now_is_looked_at_again(tmp_path: Path) -> None:
    """Its time of change may stay the same when it changes once more."""
    path = tmp_path / "a"
    path.write_bytes(b"one")
    now = path.stat().st_mtime_ns
    model = Length()
    with VectorCache(tmp_path / "cache", "m", None) as cache:
        index_images([path], model, cache)  # type: ignore[arg-type]
        path.write_bytes(b"two")
        os.utime(path, ns=(now, now))
        index_images([path], model, cache)  # type: ignore[arg-type]
    assert model.seen == [b"one", b"two"]


def test_a_file_that_changes_while_it_is_embedded(tmp_path: Path) -> None:
    """The vector stays with the bytes that it was made from; the new ones get their own."""
    path = tmp_path / "a"
    path.write_bytes(b"one")
    settle(path)

    class Slow(Length):
        def stream(self, items: Iterable[Item], **options: Any) -> Iterator[Any]:
            path.write_bytes(b"longer")
            return super().stream(items, **options)

    with VectorCache(tmp_path / "cache", "m", None) as cache:
        assert sizes(index_images([path], Slow(), cache).vectors) == [3]  # type: ignore[arg-type]
        assert sizes(np.stack(list(cache.get([sha256(b"one")]).values()))) == [3]
        assert cache.get([sha256(b"longer")]) == {}
        assert sizes(index_images([path], Length(), cache).vectors) == [6]  # type: ignore[arg-type]


def test_many_bytes_are_read_in_pieces_and_a_huge_file_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder, "MAX_BYTES_IN_MEMORY", 10)
    for name, size in {"a": 4, "b": 6, "c": 1, "huge": 11, "z": 9}.items():
        (tmp_path / name).write_bytes(name.encode() * size if size < 11 else b"x" * size)
    pieces: list[list[object]] = []

    class Pieces(Length):
        def stream(self, items: Iterable[Item], **options: Any) -> Iterator[Any]:
            images = [item.image for item in items]
            pieces.append([len(i) if isinstance(i, bytes) else i for i in images])
            return (unit(number, 1) for number in range(len(images)))

    paths = [tmp_path / name for name in ("a", "b", "c", "huge", "z")]
    with VectorCache(tmp_path / "cache", "m", None) as cache:
        index = index_images(paths, Pieces(), cache)  # type: ignore[arg-type]
        assert pieces == [[4, 6], [1, tmp_path / "huge", 9]]
        assert sizes(index.vectors) == [0, 1, 0, 1, 2]
        assert index_images(paths, Pieces(), cache).from_cache == 4  # type: ignore[arg-type]
    assert [piece for piece in pieces[2:] if piece] == [[tmp_path / "huge"]]


@pytest.mark.skipif(os.name == "nt", reason="names are Unicode there")
def test_a_name_that_is_no_unicode_is_found_and_read_anew_each_time(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"caf\xe9.png")
    path.write_bytes(b"1")
    os.utime(path, (1, 1))
    with VectorCache(tmp_path / "cache", "m", None) as cache:
        for embedded in (1, 0):
            embedder = Length()
            index = index_images([path], embedder, cache)  # type: ignore[arg-type]
            assert (index.paths, index.cache_error) == ([path], None)
            assert len(embedder.seen) == embedded


def test_a_cache_that_cannot_be_written_does_not_end_the_work(
    files: list[Path], tmp_path: Path
) -> None:
    with VectorCache(tmp_path / "cache", "m", None) as cache:
        cache.query("PRAGMA query_only = 1")
        index = index_images(files, Length(), cache)  # type: ignore[arg-type]
    assert len(index.paths) == 4
    assert "readonly" in str(index.cache_error)
    with VectorCache(tmp_path / "cache", "m", None) as cache:
        assert index_images(files, Length(), cache).cache_error is None  # type: ignore[arg-type]


def test_the_best_come_first_and_equals_by_name() -> None:
    paths = [Path(name) for name in "abcd"]
    index = FolderIndex(paths, np.array([[0, 1], [1, 0], [1, 0], [0.6, 0.8]], np.float32), [], 0)
    hits = index.search(unit(1, 0), 3)
    assert [hit.path.name for hit in hits] == ["b", "c", "d"]
    assert [hit.score for hit in hits] == pytest.approx([1, 1, 0.6])
    assert len(index.search(unit(1, 0), 99)) == 4
