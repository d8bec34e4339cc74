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

from abc_embed.data import open_dataset
from abc_embed.data.formats.check import check
from abc_embed.data.formats.convert import convert
from abc_embed.data.published.dataset import open_images, own_file, prepare
from abc_embed.data.published.layouts import ArrowTable
from abc_embed.data.published.tar_images import is_inside, unpack
from abc_embed.data.published.verify import verify
from abc_embed.data.records import Record, Region
from abc_embed.errors import DataError, OutputError


@pytest.fixture
def pretrain(tmp_path: Path) -> tuple[Path, list[bytes]]:
    folder = tmp_path / "pretrain"
    images = make_pretrain(folder)
    prepare(folder)
    return folder, images


@pytest.fixture
def vg(tmp_path: Path) -> tuple[Path, list[bytes]]:
    folder = tmp_path / "vg"
    images = make_vg(folder)
    prepare(folder)
    return folder, images


def test_captions_and_published_negatives(pretrain: tuple[Path, list[bytes]]) -> None:
    folder, images = pretrain
    dataset = open_dataset(f"abc-pretrain:{folder}")
    assert dataset.name == "abc-pretrain"
    assert [row.image for row in dataset] == images
    rows = [row.record for row in dataset]
    assert [row.caption for row in rows] == [f"caption {i}" for i in range(20)]
    assert list(rows[18].negatives) == ["caption 19", "caption 0", "caption 1"]
    assert rows[18].negatives[1:][0] == "caption 0"
    assert rows[3].meta == {"url": "http://example.com/3.jpg"}
    assert dataset[-1].record.id == rows[19].id == "000000019"
    assert dataset.caption(5) == "caption 5"
    assert dataset.negative_numbers(18) == [19, 0, 1]


def test_regions_and_instructions(vg: tuple[Path, list[bytes]]) -> None:
    folder, images = vg
    dataset = open_dataset(folder)
    assert dataset.name == "abc-vg-instruct"
    assert [row.image for row in dataset] == images
    row = dataset[2].record
    assert row.caption is None
    asked = [(ask.instruction, ask.answer, ask.region) for ask in row.instructions]
    assert asked == [(f"what is in corner {k}?", f"thing {k} of 2", k) for k in range(4)]
    assert [region.box for region in row.regions] == [(2 * k, k, 5, 6) for k in range(4)]


@pytest.mark.parametrize("make", [make_pretrain, make_vg])
def test_a_row_as_a_record(tmp_path: Path, make: object) -> None:
    make(tmp_path)  # type: ignore[operator]
    prepare(tmp_path)
    dataset = open_dataset(tmp_path)
    record = dataset[1].record
    assert isinstance(record, Record)
    assert (record.width, record.height) == (24, 24)
    unpack(open_images(tmp_path), tmp_path / "out")
    assert (tmp_path / "out" / record.image).read_bytes() == dataset[1].image


def test_regions_are_cut_off_at_the_edge_of_the_image(tmp_path: Path) -> None:
    rows = vg_rows(1)
    for part, box in (("0", (-3, 20, 10, 10)), ("1", (30, 2, 5, 5)), ("2", (0, 0, 24, 24))):
        rows[0][part] |= dict(zip(("x", "y", "width", "height"), box, strict=True))
    write_parquet(tmp_path / "train.parquet", rows)
    files = [("ABC-VG-Instruct/100.jpg", picture(0))]
    (tmp_path / "x.tar.gz").write_bytes(gzip.compress(tar_bytes(files)))
    prepare(tmp_path)
    record = open_dataset(tmp_path)[0].record
    boxes = [(0, 20, 7, 4), (0, 0, 24, 24), (6, 3, 5, 6)]
    assert record.regions == tuple(
        Region(phrase=f"thing {k} of 0", box=box) for k, box in zip((0, 2, 3), boxes, strict=True)
    )
    asked = [(ask.instruction[-2], ask.region) for ask in record.instructions]
    assert asked == [("0", 0), ("1", None), ("2", 1), ("3", 2)]


def test_in_worker_processes(pretrain: tuple[Path, list[bytes]]) -> None:
    dataset = pickle.loads(pickle.dumps(open_dataset(pretrain[0])))
    assert dataset[7].image == pretrain[1][7]
    assert dataset[7].record.negatives[0] == "caption 8"


def test_drawing_reads_only_what_is_drawn(
    pretrain: tuple[Path, list[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = open_dataset(pretrain[0])
    negatives = dataset[0].record.negatives
    asked: list[int] = []
    value = ArrowTable.value
    monkeypatch.setattr(ArrowTable, "value", lambda t, n, c: (asked.append(n), value(t, n, c))[1])
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
    prepare(tmp_path)
    dataset = open_dataset(tmp_path)
    assert dataset[4].image == images[4]
    (tmp_path / "train/000000005.jpg").unlink()
    found = verify(tmp_path)
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
    prepare(tmp_path)
    dataset = open_dataset(tmp_path)
    with pytest.raises(DataError, match="was not checked; run: abc-embed data complete"):
        dataset.scan("caption")
    found = verify(tmp_path)
    assert not found.ok
    assert found.missing == [(6, "train/000000006.jpg"), (9, "train/000000009.jpg")]
    assert found.bad == [
        (2, "it has no caption; leave it out"),
        (3, "it names row 12 as a negative, and there is no such row"),
        (4, "it names no image; leave it out"),
    ]
    assert dataset.scan("caption").numbers.tolist() == [0, 1, 5, 7, 8, 10, 11]
    assert ("rows with their image", "7") in found.counts()
    with pytest.raises(DataError, match="row 6: its image is not among the images"):
        dataset[6]
    with pytest.raises(DataError, match="row 2: it has no caption"):
        dataset[2]
    with pytest.raises(DataError, match="row 2 is named as a negative and has no caption"):
        list(dataset[1].record.negatives)
    kept = json.loads(own_file(tmp_path, "complete.json").read_text())
    assert kept["complete"] is False


def test_all_there(pretrain: tuple[Path, list[bytes]], vg: tuple[Path, list[bytes]]) -> None:
    for (folder, images), field in ((pretrain, "caption"), (vg, "instructions")):
        found = verify(folder)
        assert found.ok
        assert found.images == len(images)
        assert found.problems() == []
        dataset = open_dataset(folder)
        assert dataset.scan(field).numbers.tolist() == list(range(len(images)))
        other = {"caption": "instructions", "instructions": "caption"}[field]
        assert len(dataset.scan(other).numbers) == 0


def test_bad_instructions_are_named(tmp_path: Path) -> None:
    rows = vg_rows(5)
    rows[1]["2"]["width"] = 0
    rows[2]["0"]["instruction"] = None
    rows[3]["1"]["image"] = 999
    rows[4] = {str(k): None for k in range(4)}
    write_parquet(tmp_path / "train.parquet", rows)
    files = [(f"ABC-VG-Instruct/{100 + i}.jpg", picture(i)) for i in range(5)]
    (tmp_path / "abc-vg-instruct.tar.gz").write_bytes(gzip.compress(tar_bytes(files)))
    prepare(tmp_path)
    found = verify(tmp_path)
    assert [row for row, _ in found.bad] == [1, 2, 3, 4]
    why = " ".join(reason for _, reason in found.bad)
    for part in ("above 0", "instruction is missing", "different images", "it is empty"):
        assert part in why


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("abc-pretrain", "is a name without a folder"),
        ("abc-pretrain:gone", "there is no folder gone"),
        ("gone", "there is no gone"),
    ],
)
def test_names_that_lead_nowhere(
    name: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=says):
        open_dataset(name)


def test_not_ready_or_not_it(tmp_path: Path, vg: tuple[Path, list[bytes]]) -> None:
    with pytest.raises(DataError, match="which are not those of abc-pretrain"):
        open_dataset(f"abc-pretrain:{vg[0]}")
    folder = tmp_path / "new"
    make_pretrain(folder)
    with pytest.raises(DataError, match="is not indexed; make it ready with: abc-embed data index"):
        open_dataset(f"abc-pretrain:{folder}")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(DataError, match=r"neither \.parquet nor \.tar"):
        prepare(empty)
    with pytest.raises(DataError, match=r"holds no \.parquet"):
        open_dataset(f"abc-pretrain:{empty}")


def test_changed_rows_are_refused(pretrain: tuple[Path, list[bytes]]) -> None:
    folder, images = pretrain
    write_parquet(folder / "data/train-00001-of-00002.parquet", pretrain_rows(20)[:10])
    with pytest.raises(DataError, match="not those that were indexed; index them anew"):
        open_dataset(folder)
    prepare(folder, again=True)
    assert open_dataset(folder)[10].record.caption == "caption 0"
    assert open_dataset(folder)[10].image == images[0]


def test_damaged_parquet(tmp_path: Path) -> None:
    make_pretrain(tmp_path)
    file = tmp_path / "data/train-00001-of-00002.parquet"
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(DataError, match="is no whole Parquet file; fetch it again"):
        prepare(tmp_path)
    write_parquet(file, vg_rows(2))
    with pytest.raises(DataError, match="has other columns than"):
        prepare(tmp_path)


# -- unpacking -------------------------------------------------------------------------------------

EVIL = ["../out.jpg", "/abs.jpg", "a/../../out.jpg", "a//b.jpg", "C:x.jpg", "a\\..\\b.jpg", "a/."]


def test_names_that_lead_out_are_not_written(tmp_path: Path) -> None:
    files = [(name, noise(i, 50)) for i, name in enumerate([*EVIL, "good/a.jpg"])]
    (tmp_path / "x.tar").write_bytes(tar_bytes(files))
    prepare(tmp_path)
    out = tmp_path / "deep" / "out"
    done = unpack(open_images(tmp_path), out)
    assert done.written == 1
    written = {p.relative_to(tmp_path) for p in tmp_path.rglob("*.jpg")}
    assert written == {Path("deep/out/good/a.jpg")}
    assert sorted(name for name, _ in done.left_out) == sorted(EVIL)
    assert not any(is_inside(name) for name in EVIL)


def test_a_link_in_the_way_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(tar_bytes([("sub/a.jpg", b"a"), ("b.jpg", b"b")]))
    prepare(tmp_path)
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


# -- read as any data set is -----------------------------------------------------------------------


def test_checked_and_converted_like_any_other(vg: tuple[Path, list[bytes]], tmp_path: Path) -> None:
    dataset = open_dataset(f"abc-vg-instruct:{vg[0]}")
    assert check(dataset).good
    convert(dataset, tmp_path / "to", "parquet")
    converted = open_dataset(tmp_path / "to")
    assert [row.image for row in converted] == vg[1]
    for before, after in zip(dataset, converted, strict=True):
        assert after.record.instructions == before.record.instructions
        assert after.record.regions == before.record.regions


def test_a_negative_without_a_caption_spoils_its_row_alone(tmp_path: Path) -> None:
    rows = pretrain_rows(6)
    rows[2]["caption"] = " "
    write_parquet(tmp_path / "in/train.parquet", rows)
    files = [(row["image"], picture(i)) for i, row in enumerate(rows)]
    (tmp_path / "in/x.tar").write_bytes(tar_bytes(files))
    prepare(tmp_path / "in")
    dataset = open_dataset(tmp_path / "in")
    report = check(dataset)
    assert [error.place[-1] for error in report.errors] == ["0", "1", "2", "5"]
    assert "row 2 is named as a negative" in report.errors[0].why
    done = convert(dataset, tmp_path / "to", "jsonl")
    assert (done.written, done.rejected) == (2, 4)
