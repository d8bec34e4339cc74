"""`abc-embed search`: the right images in the right order, and what is remembered."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from cli_parts import Cli, Done, picture

from abc_embed import Embedder, Item
from abc_embed.errors import OutputError
from abc_embed.storage.vector_cache import VectorCache

FILES = ["photos/a.JPG", "photos/b.png", "photos/more/c.webp"]


def hits(done: Done) -> list[tuple[str, float]]:
    assert done.code == 0, done.err
    shown = json.loads(done.out)["hits"]
    assert [hit["rank"] for hit in shown] == list(range(1, len(shown) + 1))
    return [(hit["path"], hit["score"]) for hit in shown]


@pytest.mark.parametrize(
    ("words", "item"),
    [
        (("a dog",), "a dog"),
        (("--image", "photo.jpg"), Item(image="photo.jpg")),
        (
            ("--image", "photo.jpg", "--instruction", "left?"),
            Item(image="photo.jpg", instruction="left?"),
        ),
    ],
    ids=["text", "image", "image and instruction"],
)
def test_the_closest_come_first(
    cli: Cli, tiny: Path, embedder: Embedder, here: Path, words: tuple[str, ...], item: str | Item
) -> None:
    found = hits(cli("search", "photos", *words, "--json", "--model", tiny))
    scores = embedder.similarity(
        embedder.embed(item), embedder.embed([Item(image=path) for path in FILES])
    )
    order = np.argsort(-scores)
    assert [path for path, _ in found] == [FILES[i] for i in order]
    np.testing.assert_allclose([score for _, score in found], scores[order], atol=1e-5)


def test_a_table_of_no_more_than_asked_for(cli: Cli, tiny: Path, here: Path) -> None:
    done = cli("search", "photos", "a dog", "-k", "2", "--model", tiny)
    assert sum(path in done.out for path in FILES) == 2


def test_an_image_finds_itself(cli: Cli, tiny: Path, here: Path) -> None:
    words = ("--image", "photos/b.png", "-k", "1", "--json", "--model", tiny)
    ((path, score),) = hits(cli("search", "photos", *words))
    assert path == "photos/b.png"
    assert score == pytest.approx(1.0, abs=1e-5)


def test_vectors_are_remembered_by_content(cli: Cli, tiny: Path, here: Path) -> None:
    words = ("search", "photos", "a dog", "--json", "--model", tiny)
    first = cli(*words)
    assert "3 images, 0 of them remembered" in first.err
    again = cli(*words)
    assert "3 images, 3 of them remembered" in again.err
    assert hits(again) == hits(first)

    shutil.move("photos/b.png", "photos/renamed.png")
    assert "3 images, 3 of them remembered" in cli(*words).err
    picture(9).save("photos/renamed.png")
    assert "3 images, 2 of them remembered" in cli(*words).err
    assert "3 images, 0 of them remembered" in cli(*words, "--max-pixels", "1 token").err


def test_without_a_cache(cli: Cli, tiny: Path, here: Path, tmp_path: Path) -> None:
    words = ("search", "photos", "a dog", "--no-cache", "--model", tiny)
    for _ in range(2):
        assert "3 images, 0 of them remembered" in cli(*words).err
    assert not (tmp_path / "cache").exists()


def test_a_cache_elsewhere(cli: Cli, tiny: Path, here: Path, tmp_path: Path) -> None:
    words = ("search", "photos", "a dog", "--cache", tmp_path / "mine", "--model", tiny)
    cli(*words)
    assert "3 of them remembered" in cli(*words).err
    assert not (tmp_path / "cache").exists()


def test_a_damaged_cache(cli: Cli, tiny: Path, here: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "vectors.sqlite").write_bytes(b"this is no database" * 100)
    words = ("search", "photos", "a dog", "--model", tiny)
    done = cli(*words)
    assert done.code == 0  # nobody asked for this cache: a search goes without
    assert "nothing is remembered: the cache" in done.err
    done = cli(*words, "--cache", tmp_path / "cache")
    assert (done.code, done.out) == (1, "")
    assert "vectors.sqlite' cannot be used" in done.error
    assert "delete it" in done.error


def test_a_cache_that_cannot_be_written(
    cli: Cli, tiny: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OutputError("the cache is full")

    monkeypatch.setattr(VectorCache, "put", fail)
    done = cli("search", "photos", "a dog", "--json", "--model", tiny)
    assert len(hits(done)) == 3
    assert (
        done.err.count("not all of them are remembered for the next time: the cache is full") == 1
    )


def test_bad_images_are_left_out_and_listed(cli: Cli, tiny: Path, here: Path) -> None:
    for name in ("photos/bad.png", "photos/bad2.png"):
        Path(name).write_bytes(b"no picture")
    done = cli("search", "photos", "a dog", "--json", "--model", tiny)
    assert len(hits(done)) == 3
    assert "skipped 2 of 5:" in done.err
    assert "photos/bad.png: 'photos/bad.png' is not an image" in done.err
    done = cli("search", "photos", "a dog", "--on-error", "raise", "--model", tiny)
    assert (done.code, done.out) == (1, "")
    assert "is not an image" in done.error


def test_only_bad_images(cli: Cli, tiny: Path, here: Path) -> None:
    Path("only").mkdir()
    Path("only/bad.png").write_bytes(b"no picture")
    assert cli("search", "only", "a dog", "--model", tiny).code == 1


@pytest.mark.parametrize(
    "words",
    [
        ("photos",),
        ("photos", "a dog", "--image", "photo.jpg"),
        ("photos", "a dog", "--instruction", "left?"),
        ("photos", "a dog", "-k", "0"),
    ],
)
def test_wrong_usage(cli: Cli, here: Path, words: tuple[str, ...]) -> None:
    done = cli("search", *words)
    assert (done.code, done.out) == (2, "")
