"""The published layouts: rows with their images out of the parts, complete or honestly not."""

import gzip
import json
import pickle
from pathlib import Path

import pytest
from published_sets import (
    make_pretrain,
    make_vg,
    noise,
    picture,
    pretrain_rows,
    split,
    tar_bytes,
    vg_rows,
    write_parquet,
)

from abc_embed.data.published.source import (
    is_inside,
    make_ready,
    open_images,
    open_source,
    own_file,
)
from abc_embed.data.published.unpack import unpack
from abc_embed.data.published.verify import check_complete
from abc_embed.data.records import Record
from abc_embed.errors import DataError, OutputError


@pytest.fixture
def pretrain(tmp_path: Path) -> tuple[Path, list[bytes]]:
    folder = tmp_path / "pretrain"
    images = make_pretrain(folder)
    make_ready(folder)
    return folder, images


@pytest.fixture
def vg(tmp_path: Path) -> tuple[Path, list[bytes]]:
    folder = tmp_path / "vg"
    images = make_vg(folder)
    make_ready(folder)
    return folder, images


def test_captions_and_published_negatives(pretrain: tuple[Path, list[bytes]]) -> None:
    folder, images = pretrain
    source = open_source(f"abc-pretrain:{folder}")
    assert source.name == "abc-pretrain"
    assert [source.image(i) for i in range(len(source))] == images
    rows = list(source)
    assert [row.caption for row in rows] == [f"caption {i}" for i in range(20)]
    assert list(rows[18].negatives) == ["caption 19", "caption 0", "caption 1"]
    assert rows[18].negatives[1:][0] == "caption 0"
    assert rows[3].meta == {"url": "http://example.com/3.jpg"}
    assert source[-1].id == rows[19].id == "000000019"
    assert [row.id for row in source[2:4]] == ["000000002", "000000003"]
    assert source.negative_numbers(18) == [19, 0, 1]


def test_regions_and_instructions(vg: tuple[Path, list[bytes]]) -> None:
    folder, images = vg
    source = open_source(folder)
    assert source.name == "abc-vg-instruct"
    assert [source.image(i) for i in range(len(source))] == images
    row = source.row(2)
    assert row.caption is None
    asked = [(ask.instruction, ask.answer, ask.region) for ask in row.instructions]
    assert asked == [(f"what is in corner {k}?", f"thing {k} of 2", k) for k in range(4)]
    assert [region.box for region in row.regions] == [(2 * k, k, 5, 6) for k in range(4)]


@pytest.mark.parametrize("make", [make_pretrain, make_vg])
def test_a_row_as_a_record(tmp_path: Path, make: object) -> None:
    make(tmp_path)  # type: ignore[operator]
    make_ready(tmp_path)
    source = open_source(tmp_path)
    record = source.record(1)
    assert isinstance(record, Record)
    assert (record.width, record.height) == (24, 24)
    unpack(open_images(tmp_path), tmp_path / "out")
    assert (tmp_path / "out" / record.image).read_bytes() == source.image(1)
    assert tuple(source.row(1).negatives) == record.negatives


def test_in_worker_processes(pretrain: tuple[Path, list[bytes]]) -> None:
    source = pickle.loads(pickle.dumps(open_source(pretrain[0])))
    assert source.image(7) == pretrain[1][7]
    assert source.row(7).negatives[0] == "caption 8"


def test_drawing_reads_only_what_is_drawn(
    pretrain: tuple[Path, list[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = open_source(pretrain[0])
    negatives = source.row(0).negatives
    asked: list[int] = []
    value = source._rows.value
    monkeypatch.setattr(source._rows, "value", lambda n, c: (asked.append(n), value(n, c))[1])
    assert negatives[2] == "caption 3"
    assert asked == [3]


def test_an_unpacked_copy(tmp_path: Path) -> None:
    """As the published script leaves it: the parts are gone, the files are there."""
    images = make_pretrain(tmp_path)
    for part in tmp_path.glob("*.part_*"):
        part.unlink()
    (tmp_path / "train").mkdir()
    for row, image in zip(pretrain_rows(20), images, strict=True):
        (tmp_path / row["image"]).write_bytes(image)
    make_ready(tmp_path)
    source = open_source(tmp_path)
    assert source.image(4) == images[4]
    (tmp_path / "train/000000005.jpg").unlink()
    found = check_complete(tmp_path)
    assert found.images is None
    assert found.missing == [(5, "train/000000005.jpg")]


def test_complete_is_checked_row_by_row(tmp_path: Path) -> None:
    rows = pretrain_rows(12)
    rows[2]["caption"] = " "
    rows[3]["negatives"] = [1, 12]
    rows[4]["image"] = None
    write_parquet(tmp_path / "data/train-0.parquet", rows)
    write_parquet(tmp_path / "data/test-0.parquet", rows[:1])  # another split is not taken
    held = [(f"train/{i:09}.jpg", picture(i)) for i in range(12) if i not in (6, 9)]
    split(gzip.compress(tar_bytes(held)), tmp_path, "abc-pretrain.tar.gz", 9)
    make_ready(tmp_path)
    source = open_source(tmp_path)
    with pytest.raises(DataError, match="was not checked; run: abc-embed data complete"):
        source.usable()
    found = check_complete(tmp_path)
    assert not found.ok
    assert found.missing == [(6, "train/000000006.jpg"), (9, "train/000000009.jpg")]
    assert found.bad == [
        (2, "it has no caption; leave it out"),
        (3, "it names row 12 as a negative, and there is no such row"),
        (4, "it names no image; leave it out"),
    ]
    assert source.usable() == [0, 1, 5, 7, 8, 10, 11]
    assert ("rows with their image", "7") in found.counts()
    with pytest.raises(DataError, match="row 6: its image is not among the images"):
        source.image(6)
    with pytest.raises(DataError, match="row 2: it has no caption"):
        source.row(2)
    with pytest.raises(DataError, match="row 2 is named as a negative and has no caption"):
        list(source.row(1).negatives)
    kept = json.loads(own_file(tmp_path, "complete.json").read_text())
    assert kept["complete"] is False


def test_all_there(pretrain: tuple[Path, list[bytes]], vg: tuple[Path, list[bytes]]) -> None:
    for folder, images in (pretrain, vg):
        found = check_complete(folder)
        assert found.ok
        assert found.images == len(images)
        assert found.problems() == []
        assert open_source(folder).usable() == list(range(len(images)))


def test_bad_instructions_are_named(tmp_path: Path) -> None:
    rows = vg_rows(5)
    rows[1]["2"]["width"] = 0
    rows[2]["0"]["instruction"] = None
    rows[3]["1"]["image"] = 999
    rows[4] = {str(k): None for k in range(4)}
    write_parquet(tmp_path / "train.parquet", rows)
    files = [(f"ABC-VG-Instruct/{100 + i}.jpg", picture(i)) for i in range(5)]
    (tmp_path / "abc-vg-instruct.tar.gz").write_bytes(gzip.compress(tar_bytes(files)))
    make_ready(tmp_path)
    found = check_complete(tmp_path)
    assert [row for row, _ in found.bad] == [1, 2, 3, 4]
    why = " ".join(reason for _, reason in found.bad)
    for part in ("above 0", "instruction is missing", "different images", "it is empty"):
        assert part in why


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("abc-pretrain", "is a name without a folder"),
        ("abc-pretrain:gone", "there is no folder gone"),
        ("gone", "there is no folder gone"),
    ],
)
def test_names_that_lead_nowhere(
    name: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=says):
        open_source(name)


def test_not_ready_or_not_it(tmp_path: Path, vg: tuple[Path, list[bytes]]) -> None:
    with pytest.raises(DataError, match="which are not those of abc-pretrain"):
        open_source(f"abc-pretrain:{vg[0]}")
    folder = tmp_path / "new"
    make_pretrain(folder)
    with pytest.raises(DataError, match="is not indexed; make it ready with: abc-embed data index"):
        open_source(folder)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(DataError, match=r"neither \.parquet nor \.tar"):
        make_ready(empty)
    with pytest.raises(DataError, match=r"holds no \.parquet"):
        open_source(empty)


def test_changed_rows_are_refused(pretrain: tuple[Path, list[bytes]]) -> None:
    folder, images = pretrain
    write_parquet(folder / "data/train-00001-of-00002.parquet", pretrain_rows(20)[:10])
    with pytest.raises(DataError, match="not those that were indexed; index them anew"):
        open_source(folder)
    make_ready(folder, again=True)
    assert open_source(folder).row(10).caption == "caption 0"
    assert open_source(folder).image(10) == images[0]


def test_damaged_parquet(tmp_path: Path) -> None:
    make_pretrain(tmp_path)
    file = tmp_path / "data/train-00001-of-00002.parquet"
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(DataError, match="is no whole Parquet file; fetch it again"):
        make_ready(tmp_path)
    write_parquet(file, vg_rows(2))
    with pytest.raises(DataError, match="has other columns than"):
        make_ready(tmp_path)


# -- unpacking -------------------------------------------------------------------------------------

EVIL = ["../out.jpg", "/abs.jpg", "a/../../out.jpg", "a//b.jpg", "C:x.jpg", "a\\..\\b.jpg", "a/."]


def test_names_that_lead_out_are_not_written(tmp_path: Path) -> None:
    files = [(name, noise(i, 50)) for i, name in enumerate([*EVIL, "good/a.jpg"])]
    (tmp_path / "x.tar").write_bytes(tar_bytes(files))
    make_ready(tmp_path)
    out = tmp_path / "deep" / "out"
    done = unpack(open_images(tmp_path), out)
    assert done.written == 1
    written = {p.relative_to(tmp_path) for p in tmp_path.rglob("*.jpg")}
    assert written == {Path("deep/out/good/a.jpg")}
    assert sorted(name for name, _ in done.left_out) == sorted(EVIL)
    assert not any(is_inside(name) for name in EVIL)


def test_a_link_in_the_way_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(tar_bytes([("sub/a.jpg", b"a"), ("b.jpg", b"b")]))
    make_ready(tmp_path)
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    out.mkdir()
    elsewhere.mkdir()
    (elsewhere / "b.jpg").write_bytes(b"!")
    (out / "sub").symlink_to(elsewhere)
    (out / "b.jpg").symlink_to(elsewhere / "b.jpg")
    done = unpack(open_images(tmp_path), out)
    assert done.left_out == [("sub/a.jpg", "a link in the folder leads out of it")]
    assert (elsewhere / "b.jpg").read_bytes() == b"!"
    assert (out / "b.jpg").read_bytes() == b"b"
    assert not (out / "b.jpg").is_symlink()
    assert [path.name for path in elsewhere.iterdir()] == ["b.jpg"]


def test_unpacking_goes_on(pretrain: tuple[Path, list[bytes]], tmp_path: Path) -> None:
    folder, images = pretrain
    out = tmp_path / "out"
    assert unpack(open_images(folder), out).written == 20
    (out / "train/000000003.jpg").unlink()
    wrong = out / "train/000000004.jpg"
    wrong.write_bytes(wrong.read_bytes()[::-1])
    done = unpack(open_images(folder), out)
    assert (done.written, done.kept) == (2, 18)
    assert wrong.read_bytes() == images[4]


def test_no_more_than_allowed(pretrain: tuple[Path, list[bytes]], tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"more than the limit of 0 MB; raise --limit"):
        unpack(open_images(pretrain[0]), tmp_path / "out", limit=20_000)
    assert not list((tmp_path / "out").iterdir())
