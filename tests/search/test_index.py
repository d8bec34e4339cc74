"""An index of images: what is embedded, what is found, and that it stays whole."""

import logging
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hashed_embedder import HashedEmbedder, draw, vector_of

from abc_embed.errors import (
    DataError,
    ImageNotFoundError,
    NotAnImageError,
    OutputError,
    UsageError,
)
from abc_embed.search import Index
from abc_embed.search import index as index_module
from abc_embed.search.metadata import describe, read_captions

KILLS = 5


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
    made.add([photos])
    return made


def content(index: Index) -> dict[str, tuple[str, bytes]]:
    """Path -> hash and vector of all images."""
    rows = {}
    for batch in index.table.scan(["path", "content", "vector"], "NOT vanished"):
        vectors = index.table.decode(batch["vector"], batch.num_rows)
        for row, vector in zip(batch.to_pylist(), vectors, strict=True):
            assert row["path"] not in rows
            rows[row["path"]] = (row["content"], vector.tobytes())
    return rows


def names(hits: Any) -> list[str]:
    return [hit.path.name for hit in hits]


def test_an_image_finds_itself(index: Index, photos: Path) -> None:
    for file in photos.iterdir():
        best = index.search(vector_of(file.read_bytes()), 1)[0]
        assert best.path == file
        assert best.score == pytest.approx(1, abs=1e-3)
    assert index.check() == []
    assert index.stale_paths() == []


@pytest.mark.parametrize("dtype", ["float16", "float32", "int8"])
def test_every_number_format_ranks_alike(tmp_path: Path, dtype: str) -> None:
    vectors = np.stack([vector_of(bytes([number])) for number in range(200)])
    index = Index.create(tmp_path / "index", dim=32, dtype=dtype)
    index.add_vectors([str(number) for number in range(200)], vectors)
    query = vector_of(b"query")
    best = np.argsort(-(vectors @ query))[:5]
    hits = index.search(query, 5)
    assert names(hits) == [str(number) for number in best]
    tolerance = {"float32": 1e-6, "float16": 1e-3, "int8": 1e-2}[dtype]
    assert [hit.score for hit in hits] == pytest.approx(vectors[best] @ query, abs=tolerance)


def test_unchanged_files_are_not_opened(index: Index, photos: Path, embedder: Any) -> None:
    file = photos / "0.png"
    data, times = file.read_bytes(), file.stat()
    file.write_bytes(data[:-1] + b"?")  # the size stays
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    embedder.seen.clear()
    assert index.add().unchanged == 6
    assert embedder.seen == []
    os.utime(file, (5, 5))  # now it is looked at
    file.write_bytes(data)
    assert index.add().unchanged == 6
    assert embedder.seen == []


def test_changed_vanished_moved_and_new(index: Index, photos: Path, embedder: Any) -> None:
    embedder.seen.clear()
    draw(photos / "0.png", 100)
    (photos / "1.png").unlink()
    (photos / "sub").mkdir()
    (photos / "2.png").rename(photos / "sub" / "moved.png")
    shutil.copy2(photos / "3.png", photos / "copy.png")
    draw(photos / "new.png", 101)
    report = index.add()
    assert (report.added, report.changed, report.found, report.vanished) == (1, 1, 2, 2)
    assert len(embedder.seen) == 2
    fresh = Index.create(index.folder.with_name("fresh"), embedder)
    fresh.add([photos])
    assert content(index) == content(fresh)
    assert index.info()["vanished"] == 2
    assert index.compact() == 2
    assert (index.info()["vanished"], index.table.count()) == (0, 7)
    assert content(index) == content(fresh)


def test_a_file_that_comes_back_is_known(index: Index, photos: Path, embedder: Any) -> None:
    (photos / "1.png").rename(photos.parent / "away.png")
    assert index.add().vanished == 1
    assert "1.png" not in names(index.search(vector_of(b""), 10))
    (photos.parent / "away.png").rename(photos / "1.png")
    embedder.seen.clear()
    index.add()
    assert (len(index), embedder.seen) == (6, [])


def test_bad_images_are_named_and_left_out(index: Index, photos: Path) -> None:
    (photos / "bad.png").write_bytes(b"no picture")
    (photos / "5.png").write_bytes(b"no picture either")
    report = index.add()
    assert sorted(bad.path.name for bad in report.bad) == ["5.png", "bad.png"]
    assert "bad.png" in str(report.bad[-1].error)
    assert len(index) == 5
    with pytest.raises(NotAnImageError):
        index.add(raise_errors=True)


def test_filters_and_columns(index: Index, photos: Path, embedder: Any) -> None:
    draw(photos / "old.png", 50, (300, 200), taken="2019:05:06 07:08:09")
    (photos / "captions.csv").write_text("file,title,stars\n0.png,it's red,3\nold.png,old,5\n")
    embedder.seen.clear()
    index.add(captions=read_captions(photos / "captions.csv"))
    assert len(embedder.seen) == 1  # columns of the others come without the model
    query = vector_of(b"query")

    def found(where: str) -> set[str]:
        return set(names(index.search(query, 10, where=where)))

    assert found("width > 30") == {"3.png", "4.png", "5.png", "old.png"}
    assert found("taken >= '2019-01-01' AND taken < '2020'") == {"old.png"}
    assert found("stars >= 3") == {"0.png", "old.png"}
    assert found("title = 'it''s red'") == {"0.png"}
    assert found("stars > 9") == set()
    (photos / "captions.csv").write_text("file,title,stars\n0.png,blue,3\n")
    index.add(captions=read_captions(photos / "captions.csv"))
    assert found("title = 'blue'") == {"0.png"}
    draw(photos / "0.png", 77)  # a changed image keeps its columns
    index.add()
    assert found("title = 'blue'") == {"0.png"}


@pytest.mark.parametrize(
    ("exif", "date"),
    [
        ("2025:03:01 10:00:00", "2025-03-01T10:00:00"),
        ("2025:03:01 10:00:00\0", "2025-03-01T10:00:00"),
        ("2025-09-01T10:00:00", "2025-09-01T10:00:00"),
        ("2025:07:01", "2025-07-01T00:00:00"),
        ("2025:07:01   :  :  ", "2025-07-01T00:00:00"),
        ("0000:00:00 00:00:00", None),
        ("2025:13:45 10:00:00", None),
        ("    :  :     :  :  ", None),
        ("yesterday at noon", None),
        ("2025", None),
        ("", None),
        (None, None),
    ],
)
def test_only_a_date_counts_as_one(tmp_path: Path, exif: str | None, date: str | None) -> None:
    draw(tmp_path / "x.jpg", 1, taken=exif)
    assert describe(tmp_path / "x.jpg") == {"width": 8, "height": 6, "taken": date}


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("height_ > 3", "No field named height_"),
        ("width >", "Expected: an expression"),
        ("width > 'wide'", "could not convert"),
        ("width", "does not return a boolean"),
        ("vector = 1", "LanceDB refuses the filter"),
    ],
)
def test_a_refused_filter_is_one_sentence(index: Index, where: str, message: str) -> None:
    with pytest.raises(UsageError, match="LanceDB refuses the filter") as raised:
        index.search(vector_of(b""), where=where)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)
    assert ".rs" not in str(raised.value)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.txt", "", "neither in .csv nor in .jsonl"),
        ("a.csv", "title\nx\n", "no column"),
        ("a.csv", "file\nx.png\n", "no column beside"),
        ("a.csv", "file,width\nx.png,3\n", "which the index has itself"),
        ("a.jsonl", '{"file": "x.png", "tags": ["a"]}\n', "lists or objects"),
        ("a.jsonl", "{", "cannot be read"),
        ("gone.csv", None, "cannot be read"),
    ],
)
def test_bad_caption_files(tmp_path: Path, name: str, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message):
        read_captions(tmp_path / name)


def test_another_model_or_resolution_is_refused(index: Index) -> None:
    other: Any = HashedEmbedder("a" * 64)
    with pytest.raises(DataError, match="made with another model "):
        Index.open(index.folder, other)
    with pytest.raises(DataError, match="not at 100 pixels; leave out"):
        Index.open(index.folder, max_pixels=100)
    assert len(Index.open(index.folder)) == 6


def test_what_is_no_index(tmp_path: Path, index: Index, embedder: Any) -> None:
    with pytest.raises(DataError, match="is no index"):
        Index.open(tmp_path)
    with pytest.raises(OutputError, match="is there and no index"):
        Index.create(tmp_path, embedder)
    with pytest.raises(DataError, match="is empty"):
        Index.create(tmp_path / "new", embedder).search("a dog")
    (tmp_path / "none").mkdir()
    with pytest.raises(ImageNotFoundError, match="no image in"):
        index.add([tmp_path / "none"])
    with pytest.raises(UsageError, match="opened without a model"):
        Index.open(index.folder).search("a dog")
    for file in (index.folder / "images.lance").rglob("*.lance"):
        file.write_bytes(file.read_bytes()[:20])
    with pytest.raises(OutputError, match="cannot be used"):
        Index.open(index.folder).check()
    (index.folder / "index.json").write_text("{")
    with pytest.raises(DataError, match="damaged"):
        Index.open(index.folder)


def test_the_lines_are_drawn_without_the_model_too(index: Index) -> None:
    lines = dict(index.settings["cutoffs"])
    other = Index.open(index.folder)
    other.compact()
    assert Index.open(index.folder).settings["cutoffs"] == lines
    assert other.remove(["gone"]) == 0


def test_counts_follow_every_change(index: Index, photos: Path, embedder: Any) -> None:
    assert (index.table.count("width > 30"), len(index)) == (3, 6)
    draw(photos / "more.png", 60, (99, 6))
    Index.open(index.folder, embedder).add()
    assert index.table.count("width > 30") == 3  # the state that it has open
    index.refresh()
    assert (index.table.count("width > 30"), len(index)) == (4, 7)
    index.remove([photos / "more.png"])
    assert (index.table.count("width > 30"), len(index)) == (3, 6)


def test_removed_images(index: Index, photos: Path) -> None:
    assert index.remove([photos / "0.png"]) == 1
    assert index.remove([photos / "0.png"]) == 0
    assert index.remove([photos / os.fsdecode(b"\xe9.png")]) == 0  # no Unicode: in no index
    assert index.remove([photos]) == 5
    assert index.settings["folders"] == []


def test_vectors_made_elsewhere(tmp_path: Path) -> None:
    index = Index.create(tmp_path / "index", dim=32)
    vectors = np.stack([vector_of(b"a"), vector_of(b"b")])
    index.add_vectors(["a", "b"], 3 * vectors)
    index.add_vectors(["b", "c"], vectors)
    assert len(index) == 3
    assert sorted(names(index.search(vector_of(b"a"), 2))) == ["a", "b"]
    for paths, wrong, message in (
        (["x"], vectors, "for 1 names"),
        (["x", "x"], vectors, "twice"),
        (["x", "y"], 0 * vectors, "zero"),
    ):
        with pytest.raises(DataError, match=message):
            index.add_vectors(paths, wrong)
    assert len(index) == 3


def test_an_approximate_index_from_many_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(index_module, "EXACT_ROWS", 1000)
    monkeypatch.setattr("abc_embed.search.table.FEW_ROWS", 20)
    caplog.set_level(logging.INFO, "abc_embed")
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((40, 32))[rng.integers(0, 40, 3000)]
    vectors = (vectors + 0.3 * rng.standard_normal(vectors.shape)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    index = Index.create(tmp_path / "index", dim=32)
    index.add_vectors([str(n) for n in range(3000)], vectors, {"width": list(range(3000))})
    assert index.settings["ann"]["recall_at_10"] >= 0.98
    assert "IVF_RQ: recall@10 against exact" in caplog.text
    for where, rows in (
        (None, slice(0, 3000)),
        ("width < 1500", slice(0, 1500)),
        ("width < 9", slice(0, 9)),
    ):
        query = vectors[5] + 0.01
        best = np.argsort(-(vectors[rows] @ query))[:5]
        assert len(set(names(index.search(query, 5, where=where))) & set(map(str, best))) >= 4
    index.add_vectors(["late"], vectors[:1] + 0.001)
    assert "late" in names(index.search(vectors[0], 2))


def test_pieces_are_joined(
    tmp_path: Path, photos: Path, embedder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("abc_embed.search.table.MAX_FRAGMENTS", 3)
    monkeypatch.setattr("abc_embed.search.update.SAVE_EVERY_S", -1)
    index = Index.create(tmp_path / "index", embedder)
    index.add([photos])
    assert index.table.fragments() <= 3
    assert len(index) == 6


def test_a_second_writer_waits_and_says_so(
    index: Index, photos: Path, embedder: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "abc_embed")
    draw(photos / "new.png", 60)
    second = Index.open(index.folder, embedder)
    thread = threading.Thread(target=second.add)
    with index.writing():
        thread.start()
        deadline = time.monotonic() + 10
        while "waiting until it is done" not in caplog.text and time.monotonic() < deadline:
            time.sleep(0.01)
        assert thread.is_alive()
        index.table.delete("path LIKE '%0.png'")
    thread.join()
    assert "another process writes" in caplog.text
    assert len(second) == 7  # it saw what the first had done, and mended it


WORK = """
import sys
from hashed_embedder import HashedEmbedder
from abc_embed.search import Index, table, update
from abc_embed.search.settings import is_index
from pathlib import Path
update.SAVE_EVERY_S, table.MAX_FRAGMENTS = 0.02, 4
folder, photos = map(Path, sys.argv[1:])
embedder = HashedEmbedder(seconds=0.01)
index = Index.open(folder, embedder) if is_index(folder) else Index.create(folder, embedder)
print("begun", flush=True)
index.add([photos])
index.compact()
"""


def run_and_kill(folder: Path, photos: Path, after_s: float) -> bool:
    """Whether it was killed before its end."""
    words = [sys.executable, "-c", WORK, str(folder), str(photos)]
    paths = os.pathsep.join(path for path in sys.path if path)
    process = subprocess.Popen(
        words, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": paths}
    )
    with process:
        assert process.stdout and process.stdout.readline() == b"begun\n"
        time.sleep(after_s)
        process.send_signal(signal.SIGKILL)
        return process.wait() != 0


def test_kills_at_random_moments_leave_an_equal_index(tmp_path: Path, embedder: Any) -> None:
    photos = tmp_path / "photos"
    for number in range(60):
        draw(photos / f"{number}.png", number)
    folder, moments = tmp_path / "index", random.Random(0)
    sizes = []
    for turn in range(KILLS):
        if turn == KILLS // 2:  # from here on an update of what changed
            for number in range(0, 60, 7):
                draw(photos / f"{number}.png", 100 + number)
            (photos / "1.png").rename(photos / "x.png")
        run_and_kill(folder, photos, moments.uniform(0, 1.2))
        index = Index.open(folder, embedder)
        assert index.check() == []
        sizes.append(index.table.count())
    assert max(sizes) > 0
    index.add([photos])
    index.compact()
    fresh = Index.create(tmp_path / "fresh", embedder)
    fresh.add([photos])
    assert content(index) == content(fresh)


def test_a_full_disk_is_a_sentence(index: Index, photos: Path) -> None:
    """A limit on the size of a file stands for the disk."""
    before = content(index)
    rng = np.random.default_rng(0)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    try:
        with pytest.raises(OutputError) as raised:
            index.add_vectors([str(n) for n in range(500)], rng.standard_normal((500, 32)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert "\n" not in str(raised.value)
    assert content(Index.open(index.folder)) == before
