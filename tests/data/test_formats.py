"""Four forms of data set: read alike, written and read back, bad rows named and none lost."""

import io
import json
import pickle
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as arrow
import pyarrow.parquet as parquet
import pytest
from PIL import Image

from abc_embed.data import Rejected, Row, open_dataset
from abc_embed.data.formats.check import check
from abc_embed.data.formats.convert import convert
from abc_embed.data.records import Instruction, Record, Region, write_records
from abc_embed.errors import DataError, OutputError


def png(shade: int, size: tuple[int, int] = (8, 6), kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, (shade, 10, 200)).save(file, kind)
    return file.getvalue()


def make(folder: Path, count: int = 5) -> list[Record]:
    """A data set of records in `folder`, with everything that a record can hold."""
    (folder / "images").mkdir(parents=True)
    records = []
    for number in range(count):
        (folder / f"images/{number}.png").write_bytes(png(number))
        records.append(
            Record(
                id=f"r{number}",
                image=f"images/{number}.png",
                width=8,
                height=6,
                caption=None if number == 2 else f"a “picture”, {number}\twith a tab",
                regions=(Region(phrase="a dot", box=(1.5, 2, 3, 4)),) if number else (),
                instructions=(
                    Instruction(instruction="what?", answer="a dot", kind="kind", region=0),
                )
                if number == 1
                else (),
                negatives=("no", "not this") if number == 3 else (),
                source="here",
                license="MIT",
                meta={"seed": number, "deep": {"a": [1, None]}} if number % 2 else {},
            )
        )
    write_records(folder / "records.jsonl", records)
    return records


def lines_of(path: Path) -> list[str]:
    return path.read_text().splitlines()


def content(rows: list[Row | Rejected]) -> list[tuple[Any, ...]]:
    """What must survive a change of form: all but the image's name."""
    found = []
    for row in rows:
        assert isinstance(row, Row), row
        image = row.read_image()
        r = row.record
        found.append(
            (
                *(r.id, r.width, r.height, r.caption, r.regions, r.instructions, r.negatives),
                *(r.source, r.license, dict(r.meta), image),
            )
        )
    return found


@pytest.mark.parametrize("form", ["jsonl", "parquet", "webdataset"])
@pytest.mark.parametrize("part_size", [2, 100])
def test_a_data_set_survives_each_form(tmp_path: Path, form: Any, part_size: int) -> None:
    make(tmp_path / "from")
    before = open_dataset(tmp_path / "from")
    done = convert(before, tmp_path / "to", form, part_size=part_size)
    assert (done.written, done.rejected) == (5, 0)
    after = open_dataset(tmp_path / "to")
    assert (after.form, len(after)) == (form, 5)
    assert content(list(after.rows())) == content(list(before.rows()))
    # Rows by number, in any order, and in another process.
    again = pickle.loads(pickle.dumps(after))
    assert content([again.row(n) for n in (4, 0, 2)]) == [
        content([after.row(n)])[0] for n in (4, 0, 2)
    ]
    assert not list(tmp_path.glob("to/.*")), "nothing of the work is left"


def test_a_folder_keeps_images_and_captions(tmp_path: Path) -> None:
    records = make(tmp_path / "from")
    convert(open_dataset(tmp_path / "from"), tmp_path / "to", "folder")
    after = open_dataset(tmp_path / "to")
    assert after.form == "folder"
    rows = [row for row in after.rows() if isinstance(row, Row)]
    assert [row.record.caption for row in rows] == [record.caption for record in records]
    assert [row.image.read_bytes() for row in rows if isinstance(row.image, Path)] == [
        png(n) for n in range(5)
    ]


def test_bad_rows_are_kept_with_their_reasons(tmp_path: Path) -> None:
    make(tmp_path / "from")
    path = tmp_path / "from" / "records.jsonl"
    lines = path.read_text().splitlines()
    lines[1] = lines[1][:40]
    lines[3] = lines[3].replace('"r3"', '"r0"')
    path.write_text("\n".join([*lines, "", lines[4].replace("r4", "r5").replace("4.png", "9.png")]))
    done = convert(open_dataset(path), tmp_path / "to", "jsonl", part_size=2)
    assert (done.written, done.rejected) == (3, 3)
    rejects = [json.loads(line) for line in lines_of(tmp_path / "to/rejects.jsonl")]
    assert [(r["place"].rsplit(":", 1)[1], r["why"].split(";")[0][:22]) for r in rejects] == [
        ("2", "the line is not JSON ("),
        ("4", "the id 'r0' comes twic"),
        ("7", "the image 9.png cannot"),
    ]


def test_a_conversion_that_was_stopped_goes_on(tmp_path: Path) -> None:
    make(tmp_path / "from")
    before = open_dataset(tmp_path / "from")
    convert(before, tmp_path / "whole", "parquet", part_size=2)

    def stop(done: int, of: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(before, tmp_path / "to", "parquet", part_size=2, on_progress=stop)
    with pytest.raises(DataError, match="parts of another conversion"):
        convert(before, tmp_path / "to", "parquet", part_size=3)
    done = convert(before, tmp_path / "to", "parquet", part_size=2)
    assert (done.written, done.parts) == (5, 2)
    names = sorted(p.name for p in (tmp_path / "whole").iterdir())
    assert names == sorted(p.name for p in (tmp_path / "to").iterdir())
    assert all(
        (tmp_path / "to" / n).read_bytes() == (tmp_path / "whole" / n).read_bytes() for n in names
    )
    with pytest.raises(OutputError, match="not empty"):
        convert(before, tmp_path / "from", "jsonl")


def test_parts_of_a_source_that_was_changed_are_not_joined(tmp_path: Path) -> None:
    make(tmp_path / "from")
    path = tmp_path / "from/records.jsonl"

    def stop(done: int, of: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(open_dataset(path), tmp_path / "to", "jsonl", part_size=2, on_progress=stop)
    path.write_text(path.read_text().replace("not this", "not that"))
    with pytest.raises(DataError, match="or of a source that was changed since"):
        convert(open_dataset(path), tmp_path / "to", "jsonl", part_size=2)


def test_a_kill_while_it_cleans_up_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path / "from")
    dataset = open_dataset(tmp_path / "from")
    convert(dataset, tmp_path / "whole", "jsonl", part_size=2)

    def killed(path: Path, **_: object) -> None:
        (path / "plan.json").unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("abc_embed.data.formats.convert.shutil.rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            convert(dataset, tmp_path / "to", "jsonl", part_size=2)
    for _ in range(2):  # what is whole is accepted, however often it is asked for
        done = convert(dataset, tmp_path / "to", "jsonl", part_size=2)
        assert (done.written, done.rejected, done.parts) == (5, 0, 0)

    def content(folder: Path) -> dict[str, bytes]:
        files = (path for path in folder.rglob("*") if path.is_file())
        return {str(path.relative_to(folder)): path.read_bytes() for path in files}

    assert content(tmp_path / "to") == content(tmp_path / "whole")


def test_convert_keeps_what_check_finds_good_and_no_more(tmp_path: Path) -> None:
    make(tmp_path / "from")
    image = tmp_path / "from/images/3.png"
    image.write_bytes(image.read_bytes()[:50])  # its head is whole
    (tmp_path / "from/images/4.png").write_bytes(png(4, (9, 9)))
    dataset = open_dataset(tmp_path / "from")
    report = check(dataset)
    done = convert(dataset, tmp_path / "to", "parquet")
    assert (done.written, done.rejected) == (report.usable, len(report.errors)) == (3, 2)
    rejects = [json.loads(line) for line in lines_of(tmp_path / "to/rejects.jsonl")]
    assert [r["why"] for r in rejects] == [error.why for error in report.errors]
    assert check(open_dataset(tmp_path / "to")).good


# -- data that others made -------------------------------------------------------------------------


def test_parquet_of_the_hub_is_read(tmp_path: Path) -> None:
    rows = [
        {"jpg": {"bytes": png(1, kind="JPEG"), "path": "../up.jpg"}, "title": "one", "url": "u1"},
        {"jpg": {"bytes": b"no image", "path": None}, "title": "two", "url": "u2"},
        {"jpg": {"bytes": None, "path": "there.png"}, "title": "three", "url": None},
        {"jpg": None, "title": "four", "url": None},
    ]
    (tmp_path / "there.png").write_bytes(png(3, (5, 7)))
    parquet.write_table(arrow.Table.from_pylist(rows), tmp_path / "a.parquet", row_group_size=3)
    found = list(open_dataset(tmp_path / "a.parquet", {"caption": "title"}).rows())
    assert isinstance(found[0], Row) and isinstance(found[2], Row)
    one, three = found[0].record, found[2].record
    assert (one.id, one.image, one.caption, one.meta) == (
        "0",
        "images/00000000.jpg",
        "one",
        {"url": "u1"},
    )
    assert (three.width, three.height, three.caption) == (5, 7, "three")
    assert [r for r in found if isinstance(r, Rejected)] == [
        Rejected(f"{tmp_path}/a.parquet: row 1", found[1].why),
        Rejected(f"{tmp_path}/a.parquet: row 3", "jpg is empty; give bytes or a path"),
    ]
    with pytest.raises(DataError, match="no column 'text'; it has jpg, title, url"):
        open_dataset(tmp_path / "a.parquet", {"caption": "text"})


def test_numbers_of_rows_are_no_negatives(tmp_path: Path) -> None:
    rows = [{"image": png(1), "caption": "one", "negatives": [0]}]
    parquet.write_table(arrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    (found,) = open_dataset(tmp_path).rows()
    assert isinstance(found, Rejected) and "abc-pretrain:FOLDER" in found.why


def add(tar: tarfile.TarFile, name: str, held: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(held)
    tar.addfile(info, io.BytesIO(held))


def test_webdataset_of_others_is_read(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "00.tar", "w") as tar:
        add(tar, "a/one.jpg", png(1, kind="JPEG"))
        add(tar, "a/one.txt", b" a caption\n")
        add(tar, "a/one.cls", b"7")
        add(tar, "b/one.json", b'{"caption": "another", "lang": "en"}')
        add(tar, "b/one.png", png(2))
        add(tar, "b/one.npy", b"\x93NUMPY\xff")
    with tarfile.open(tmp_path / "01.tar", "w") as tar:
        add(tar, "no.txt", b"words alone")
        add(tar, "l" * 150 + ".png", png(3))  # a long name: two headers
    found = list(open_dataset(tmp_path).rows())
    assert [r.why for r in found if isinstance(r, Rejected)] == [
        "the sample has no image; leave it out, or add one"
    ]
    records = [row.record for row in found if isinstance(row, Row)]
    assert [(r.id, r.caption, dict(r.meta)) for r in records] == [
        ("a/one", "a caption", {"cls": "7"}),
        ("b/one", "another", {"lang": "en"}),
        ("l" * 150, None, {}),
    ]
    (tmp_path / "01.tar").write_bytes(b"not a tar file" * 100)
    with pytest.raises(DataError, match="no plain tar file"):
        open_dataset(tmp_path)


CAPTIONS = {
    "metadata.csv": "file_name,text\na.png,one\nsub/b.png,two\ngone.png,three\n",
    "captions.txt": "a.png\tone\nsub/b.png\ttwo\ngone.png\tthree\n",
    "metadata.jsonl": '{"file_name": "a.png", "text": "one"}\n'
    '{"file_name": "sub/b.png", "text": "two"}\n{"file_name": "gone.png", "text": "three"}\n',
}


@pytest.mark.parametrize("name", CAPTIONS)
def test_a_folder_of_images_with_a_file_of_captions(tmp_path: Path, name: str) -> None:
    (tmp_path / "sub").mkdir()
    for image in ("a.png", "sub/b.png", "sub/c.png"):
        (tmp_path / image).write_bytes(png(1))
    (tmp_path / name).write_text(CAPTIONS[name])
    found = list(open_dataset(tmp_path).rows())
    said = [(r.record.id, r.record.caption) for r in found if isinstance(r, Row)]
    assert said == [("a.png", "one"), ("sub/b.png", "two"), ("sub/c.png", None)]
    (missing,) = [r for r in found if isinstance(r, Rejected)]
    assert missing.place.startswith(f"{tmp_path / name}:") and "there is no image" in missing.why


def test_a_folder_of_images_with_texts_beside_them(tmp_path: Path) -> None:
    for name, text in {"a": "one", "b": "", "c": None}.items():
        (tmp_path / f"{name}.png").write_bytes(png(1))
        if text is not None:
            (tmp_path / f"{name}.txt").write_text(text)
    rows = [row for row in open_dataset(tmp_path).rows() if isinstance(row, Row)]
    assert [row.record.caption for row in rows] == ["one", None, None]


def test_an_image_that_lies_on_its_side_has_the_size_that_is_seen(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (30, 20)).save(tmp_path / "a.jpg", exif=exif)
    (row,) = open_dataset(tmp_path).rows()
    assert isinstance(row, Row) and (row.record.width, row.record.height) == (20, 30)


@pytest.mark.parametrize("name", ["../up.png", "/etc/passwd"])
def test_no_row_leads_out_of_its_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "up.png").write_bytes(png(1))
    (tmp_path / "in/a.png").write_bytes(png(1))
    (tmp_path / "in/captions.txt").write_text(f"{name}\tone\n")
    found = list(open_dataset(tmp_path / "in").rows())
    assert isinstance(found[1], Rejected) and "outside the folder" in found[1].why


def test_what_is_no_data_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no"):
        open_dataset(tmp_path / "nowhere")
    with pytest.raises(DataError, match="is no data set"):
        open_dataset(tmp_path)
    (tmp_path / "a.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(DataError, match="damaged or no Parquet"):
        open_dataset(tmp_path)
