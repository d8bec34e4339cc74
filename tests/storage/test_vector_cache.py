"""Vectors are found again by model, resolution and content, and files by their stamps."""

from pathlib import Path

import numpy as np
import pytest

from abc_embed.errors import OutputError
from abc_embed.storage.vector_cache import FileStamp, VectorCache, default_folder


def vectors(*values: float) -> np.ndarray:
    """As all vectors that are kept, of length 1."""
    vector = np.array([*values, 1.0], dtype=np.float32)
    return vector / np.linalg.norm(vector)


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


@pytest.mark.parametrize(
    "blob",
    [
        b"",
        b"abc",
        "text",
        None,
        7,
        vectors(1, 2).tobytes()[:-4],
        np.array([np.nan, 1], np.float32).tobytes(),
        np.array([np.inf, 1], np.float32).tobytes(),
        np.array([3e38, 3e38], np.float32).tobytes(),
        np.zeros(3, np.float32).tobytes(),
    ],
)
def test_a_damaged_vector_is_not_known(tmp_path: Path, blob: object) -> None:
    with VectorCache(tmp_path, "m", None) as cache:
        cache.put({"x": vectors(1, 2), "y": vectors(3, 4)})
        with cache.transaction() as database:
            database.execute("UPDATE vectors SET vector = ? WHERE content = 'x'", (blob,))
        assert cache.get(["x", "y"]).keys() == {"y"}


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


def test_no_home_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("ABC_EMBED_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    with pytest.raises(OutputError, match="ABC_EMBED_CACHE"):
        default_folder()


def test_where_it_lies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("ABC_EMBED_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "abc-embed"
    monkeypatch.setenv("ABC_EMBED_CACHE", str(tmp_path / "mine"))
    assert default_folder() == tmp_path / "mine"


def test_contents_of_files_by_their_stamps(tmp_path: Path) -> None:
    paths = [tmp_path / str(number) for number in range(600)]
    for path in paths:
        path.write_text(path.name)
    stamps = {path: FileStamp.of(path) for path in paths}
    with VectorCache(tmp_path, "m", None) as cache:
        cache.put_contents({path: (stamps[path], f"hash of {path.name}") for path in paths})
    other = {paths[0]: FileStamp(9, stamps[paths[0]].mtime_ns), paths[1]: FileStamp(1, 0)}
    with VectorCache(tmp_path, "another model", 784) as cache:
        known = cache.known_contents(stamps | other | {tmp_path / "new": FileStamp(1, 1)})
    assert known == {path: f"hash of {path.name}" for path in paths[2:]}


def test_a_cache_from_before_files_were_remembered(tmp_path: Path) -> None:
    with VectorCache(tmp_path, "m", None) as cache:
        cache.put({"x": vectors(1)})
        with cache.transaction() as database:
            database.execute("DROP TABLE files")
    with VectorCache(tmp_path, "m", None) as cache:
        assert cache.get(["x"]).keys() == {"x"}
        assert cache.known_contents({tmp_path / "x": FileStamp(1, 1)}) == {}
