"""Which images of a folder go in: a filter that an index remembers for each of its folders."""

from pathlib import Path
from typing import Any

import pytest
from hashed_embedder import HashedEmbedder, draw

from abc_embed.errors import UsageError
from abc_embed.search import Index
from abc_embed.search.metadata import read_captions


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for number in range(6):
        draw(tmp_path / "photos" / f"{number}.png", number, (10 * (number + 1), 6))
    return tmp_path / "photos"


@pytest.fixture
def embedder() -> HashedEmbedder:
    return HashedEmbedder()


@pytest.fixture
def index(tmp_path: Path, photos: Path, embedder: Any) -> Index:
    made = Index.create(tmp_path / "index", embedder)
    report = made.add([photos], where="width > 30 and height = 6")
    assert (report.added, report.left_out) == (3, 3)
    return made


def held(index: Index) -> set[str]:
    return {Path(path).name for path in index.paths()}


def test_what_is_left_out_is_not_embedded(index: Index, embedder: Any) -> None:
    assert held(index) == {"3.png", "4.png", "5.png"}
    assert len(embedder.seen) == 3


def test_a_filter_is_remembered_until_another_is_given(
    index: Index, photos: Path, embedder: Any
) -> None:
    draw(photos / "new.png", 60, (90, 6))
    draw(photos / "small.png", 61, (20, 6))
    again = Index.open(index.folder, embedder)
    report = again.add()
    assert (report.added, report.left_out, report.unchanged) == (1, 4, 3)
    assert again.add(where="width > 1000").left_out == 4  # what is in stays
    assert len(again) == 4
    assert again.add([photos], where="true").left_out == 0
    assert len(again) == 8
    again.remove([photos])
    assert again.info()["filters"] == {}


def test_each_folder_has_its_own(index: Index, tmp_path: Path) -> None:
    draw(tmp_path / "more" / "tiny.png", 70, (5, 6))
    assert index.add([tmp_path / "more"]).left_out == 0
    assert index.add().left_out == 3
    assert index.add([tmp_path / "photos" / "0.png"]).added == 1  # named by itself
    assert "tiny.png" in held(index)


def test_a_changed_image_that_no_longer_passes_goes_out(index: Index, photos: Path) -> None:
    draw(photos / "5.png", 80, (8, 6))
    report = index.add()
    assert (report.left_out, report.vanished) == (4, 1)
    assert held(index) == {"3.png", "4.png"}


def test_captions_and_dates_count_and_bad_images_are_named(
    index: Index, photos: Path, tmp_path: Path
) -> None:
    draw(photos / "old.png", 50, (300, 200), taken="2019:05:06 07:08:09")
    (photos / "bad.png").write_bytes(b"no picture")
    (tmp_path / "captions.csv").write_text("file,stars\n0.png,5\n1.png,1\n")
    captions = read_captions(tmp_path / "captions.csv")
    report = index.add(captions=captions, where="stars > 3 or taken < '2020'")
    assert (report.added, report.left_out) == (2, 2)
    assert [bad.path.name for bad in report.bad] == ["bad.png"]
    assert held(index) == {"0.png", "3.png", "4.png", "5.png", "old.png"}


@pytest.mark.parametrize("where", ["nope > 1", "width >", "width > 'a'", "vector = 1", "width"])
def test_a_refused_filter_changes_nothing(index: Index, photos: Path, where: str) -> None:
    draw(photos / "new.png", 60, (90, 6))
    before = index.info()
    with pytest.raises(UsageError, match="LanceDB refuses the filter"):
        index.add(where=where)
    assert Index.open(index.folder).info() == before
