"""Buckets by fsspec: what is copied, what is missing, and whatever a file system raises."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from batch_parts import draw_boxes

from abc_embed.data import open_dataset
from abc_embed.data.formats.convert import convert
from abc_embed.errors import DataError, MissingExtraError, UsageError
from abc_embed.scale.source import open_source, read_ids


@pytest.fixture
def bucket() -> Iterator[Any]:
    """A bucket in memory."""
    system = fsspec.filesystem("memory")
    system.store.clear()
    yield system
    system.store.clear()


def upload(system: Any, folder: Path, place: str) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            system.pipe(f"{place}/{path.relative_to(folder).as_posix()}", path.read_bytes())


def images(name: str, cache: Path) -> dict[str, bytes]:
    source = open_source(name, cache)
    assert not read_ids(source, lambda done, total=None: None).rejected
    return dict(source.read(number) for number in range(len(source)))


def test_records_bring_their_images_one_by_one(bucket: Any, tmp_path: Path) -> None:
    boxes = Path(draw_boxes(5, tmp_path / "boxes"))
    upload(bucket, boxes, "/data/set")
    known = images(str(boxes), tmp_path / "none")
    source = open_source("memory://data/set", tmp_path / "cache")
    copied = [p.name for p in (tmp_path / "cache").rglob("*") if p.is_file()]
    assert copied == ["records.jsonl"]
    source.read(3)
    assert len(list((tmp_path / "cache").rglob("*.jpg"))) == 1
    assert images("memory://data/set", tmp_path / "cache") == known
    assert images("memory://data/set/records.jsonl", tmp_path / "cache") == known
    assert images((tmp_path / "boxes").as_uri(), tmp_path / "cache") == known


@pytest.mark.parametrize("form", ["webdataset", "parquet"])
def test_tables_are_copied_whole(bucket: Any, tmp_path: Path, form: str) -> None:
    boxes = Path(draw_boxes(5, tmp_path / "boxes"))
    convert(open_dataset(boxes), tmp_path / form, form)  # type: ignore[arg-type]
    upload(bucket, tmp_path / form, "/data/set")
    assert images("memory://data/set", tmp_path / "cache") == images(str(boxes), tmp_path)


def test_images_in_another_folder_than_their_records(tmp_path: Path) -> None:
    boxes = Path(draw_boxes(2, tmp_path / "boxes"))
    texts = tmp_path / "texts"
    texts.mkdir()
    (boxes / "records.jsonl").rename(texts / "records.jsonl")
    source = open_source(str(texts), image_folder=boxes)
    assert source.read(0)[1] == (boxes / "images" / "000000.jpg").read_bytes()
    with pytest.raises(UsageError, match="leave --image-folder out"):
        open_source("memory://data/set", tmp_path / "cache", boxes)


def test_an_image_that_is_not_there_costs_its_row(bucket: Any, tmp_path: Path) -> None:
    boxes = Path(draw_boxes(2, tmp_path / "boxes"))
    (boxes / "images" / "000001.jpg").unlink()
    upload(bucket, boxes, "/data/set")
    source = open_source("memory://data/set", tmp_path / "cache")
    source.read(0)
    with pytest.raises(DataError, match=r"nothing at memory://data/set/images/000001.jpg"):
        source.read(1)


@pytest.mark.parametrize(
    ("raised", "sentence"),
    [
        (PermissionError("Forbidden"), r"cannot be read \(Forbidden\).*has credentials for it"),
        (RuntimeError("Unable to locate credentials"), "Unable to locate credentials"),
        (FileNotFoundError("no bucket"), "there is nothing at memory://data/set"),
    ],
)
def test_a_bucket_without_credentials(
    bucket: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    raised: Exception,
    sentence: str,
) -> None:
    def refuse(*_: object, **__: object) -> None:
        logging.getLogger("gcsfs").error("a traceback of forty lines")
        raise raised

    monkeypatch.setattr(type(bucket), "isfile", refuse)
    with pytest.raises(DataError, match=sentence):
        open_source("memory://data/set", tmp_path / "cache")
    assert not (tmp_path / "cache").exists()
    assert not caplog.records and logging.getLogger("gcsfs").level == logging.NOTSET


def test_a_package_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(*_: object, **__: object) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec.core, "url_to_fs", absent)
    with pytest.raises(MissingExtraError, match="pip install s3fs"):
        open_source("s3://bucket/set", tmp_path)
    with pytest.raises(DataError, match="nothing is fetched from the web"):
        open_source("https://example.org/set.tar", tmp_path)
    with pytest.raises(DataError, match="there is no"):
        open_source(str(tmp_path / "absent"))
