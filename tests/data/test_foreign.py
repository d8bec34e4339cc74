"""Data that others made: nothing is read wrongly, and what is not read is named."""

import datetime
import decimal
import gzip
import io
import json
import os
import pickle
import tarfile
import time
import unicodedata
from pathlib import Path
from typing import Any

import pyarrow as arrow
import pyarrow.parquet as parquet
import pytest
from PIL import Image

from abc_embed.data import Dataset, Rejected, Row, open_dataset
from abc_embed.data.formats.check import check
from abc_embed.data.formats.convert import convert
from abc_embed.errors import DataError

BOM = b"\xef\xbb\xbf"


def picture(shade: int = 0, kind: str = "PNG", size: tuple[int, int] = (8, 6)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, (shade, 10, 200)).save(file, kind)
    return file.getvalue()


def tar_of(*members: tuple[str, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return file.getvalue()


def table(path: Path, rows: list[dict[str, Any]], **options: Any) -> None:
    parquet.write_table(arrow.Table.from_pylist(rows), path, **options)


def captions(dataset: Dataset) -> list[tuple[str, tuple[str, ...]]]:
    rows = [row for row in dataset.rows() if isinstance(row, Row)]
    return [(row.record.image, row.record.captions) for row in rows]


def reasons(dataset: Dataset) -> list[str]:
    return [row.why for row in dataset.rows() if isinstance(row, Rejected)]


# -- several captions ------------------------------------------------------------------------------

SEVERAL = {
    "captions.txt": "a.png\tone\na.png\ttwo\nb.png\tother\na.png\tthree\n",
    "metadata.csv": "file_name,text\na.png,one\na.png,two\nb.png,other\na.png,three\n",
    "captions.csv": "image,caption,n\na.png,one,0\na.png,two,1\nb.png,other,0\na.png,three,2\n",
    "metadata.jsonl": '{"file_name":"a.png","text":["one","two"]}\n'
    '{"file_name":"b.png","text":"other"}\n{"file_name":"a.png","text":"three"}\n',
}


@pytest.mark.parametrize("name", SEVERAL)
@pytest.mark.parametrize("form", ["jsonl", "parquet", "webdataset", "folder"])
def test_several_captions_are_a_list_in_every_form(tmp_path: Path, name: str, form: Any) -> None:
    source = tmp_path / "from"
    source.mkdir()
    for number, image in enumerate(("a.png", "b.png")):
        (source / image).write_bytes(picture(number))
    (source / name).write_text(SEVERAL[name])
    right = [("a.png", ("one", "two", "three")), ("b.png", ("other",))]
    dataset = open_dataset(source)
    assert captions(dataset) == right
    found = check(dataset)
    assert (found.good, found.texts["captions"]) == (True, 4)
    convert(dataset, tmp_path / "to", form)
    again = open_dataset(tmp_path / "to")
    assert [texts for _, texts in captions(again)] == [texts for _, texts in right]
    assert again.captions(0) == ("one", "two", "three") and again.caption(0) == "one"


def test_lines_of_one_image_that_differ_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(picture())
    (tmp_path / "metadata.csv").write_text(
        "image,caption,id,who,width\na.png,x,1,me,\na.png,y,2,you,\n"
    )
    (row,) = open_dataset(tmp_path)
    assert (row.record.id, row.record.captions) == ("a.png", ("x", "y"))
    assert row.record.meta == {"ids": ["1", "2"], "who": ["me", "you"]}
    (tmp_path / "metadata.csv").write_text("image,caption,width\na.png,x,8\na.png,y,9\n")
    assert reasons(open_dataset(tmp_path)) == ["its 2 lines differ in width; give it one value"]


# -- folders ---------------------------------------------------------------------------------------


def test_names_and_sizes_as_others_write_them(tmp_path: Path) -> None:
    accent = unicodedata.normalize("NFD", "é.png")
    for name in ("a.png", accent, "sub/b.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(picture())
    (tmp_path / "captions.csv").write_text(
        "image,caption,width,height\n./a.png,red,8,6\né.png,green,8,6.0\n"
        f"{tmp_path}/sub/b.png,blue,,\n"
    )
    dataset = open_dataset(tmp_path)
    assert len(dataset) == 3 and check(dataset).good
    assert dict(captions(dataset)) == {
        "a.png": ("red",),
        accent: ("green",),
        "sub/b.png": ("blue",),
    }


def test_captions_in_subfolders_speak_of_their_own_images(tmp_path: Path) -> None:
    for name in ("train/a.png", "more/a.png", "c.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(picture())
    (tmp_path / "train/metadata.jsonl").write_text('{"file_name": "a.png", "text": "red"}\n')
    (tmp_path / "train/captions.csv").write_text("image,caption\na.png,blue\n")
    (tmp_path / "more/a.txt").write_bytes(BOM + b"green")
    (tmp_path / "train/a.txt").write_text("0 0.5 0.5 0.1 0.1")
    (tmp_path / "lost.txt").write_text("words")
    dataset = open_dataset(tmp_path)
    assert captions(dataset) == [
        ("c.png", ()),
        ("more/a.png", ("green",)),
        ("train/a.png", ("red",)),
    ]
    notes = [note.why for note in dataset.notes]
    assert notes == [
        "is not read, as metadata.jsonl is there",
        "1 texts have no image next to them (the first: 'lost.txt')",
        "1 texts are not read, as a file of captions is there (the first: 'train/a.txt')",
    ]
    assert check(dataset).counts["files not read"] == 3


def test_a_bad_line_of_captions_costs_that_line(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(picture())
    lines = {
        "metadata.jsonl": b'{"file_name": "a.png", "text": "x"}\n'
        + b"[" * 5000
        + b"\n[1]\n{\n\xff\n",
        "captions.txt": b"a.png\tx\nno tab\n\xff\xfe\ty\n",
        "metadata.csv": b"image,caption\na.png,x\na.png,y,z\na.png,\xff\n",
    }
    for name, content in lines.items():
        (tmp_path / name).write_bytes(content)
        dataset = open_dataset(tmp_path)
        assert captions(dataset) == [("a.png", ("x",))], name
        bad = [row for row in dataset.rows() if isinstance(row, Rejected)]
        assert len(bad) == content.count(b"\n") - (2 if name.endswith("csv") else 1)
        assert all(row.place.startswith(f"{tmp_path / name}:") for row in bad)
        (tmp_path / name).unlink()


def test_a_quote_that_is_never_closed_is_no_caption(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(picture())
    rows = "".join(f"{n}.png,text {n}\n" for n in range(300))
    (tmp_path / "metadata.csv").write_text(f'image,caption\na.png,"open\n{rows}')
    with pytest.raises(DataError, match=r"metadata\.csv:2: a quote opens here and is not closed"):
        open_dataset(tmp_path)


def test_a_long_file_of_captions_is_read_in_linear_time(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(picture())

    def seconds(rows: int) -> float:
        text = "".join(f"gone-{n}.png,text {n}\n" for n in range(rows))
        (tmp_path / "metadata.csv").write_text(f"image,caption\n{text}")
        start = time.process_time()
        assert len(reasons(open_dataset(tmp_path))) == rows
        return time.process_time() - start

    seconds(10)
    assert seconds(4000) < 8 * seconds(1000) + 0.2  # 16 times where it is quadratic


def test_captions_txt_of_flickr8k_is_a_csv(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(picture())
    (tmp_path / "captions.txt").write_text('image,caption\na.png,"one, two"\na.png,three\n')
    assert captions(open_dataset(tmp_path)) == [("a.png", ("one, two", "three"))]


def test_links_that_lead_out_are_not_followed(tmp_path: Path) -> None:
    inside, outside = tmp_path / "in", tmp_path / "out"
    inside.mkdir()
    outside.mkdir()
    (outside / "secret.png").write_bytes(picture())
    (outside / "secret.txt").write_text("a secret")
    (inside / "a.png").symlink_to(outside / "secret.png")
    (inside / "b.png").write_bytes(picture())
    (inside / "b.txt").symlink_to(outside / "secret.txt")
    (inside / "c.png").symlink_to("b.png")
    (inside / "folder").symlink_to(outside)
    dataset = open_dataset(inside)
    assert [name for name, _ in captions(dataset)] == ["c.png"]
    assert all("leads out of the folder" in why for why in reasons(dataset))
    assert [note.why for note in dataset.notes] == ["a linked folder, which is not entered"]
    record = {"id": "a", "image": "folder/secret.png", "width": 8, "height": 6}
    (inside / "records.jsonl").write_text(json.dumps(record))
    assert "leads out of the folder" in reasons(open_dataset(inside))[0]


def test_the_hubs_cache_of_links_is_no_way_out(tmp_path: Path) -> None:
    snapshot, blobs = tmp_path / "snapshots/abc", tmp_path / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    (blobs / "123").write_bytes(picture())
    (snapshot / "a.png").symlink_to("../../blobs/123")
    assert captions(open_dataset(snapshot)) == [("a.png", ())]


# -- byte-order marks, gzip, splits ----------------------------------------------------------------


def test_a_byte_order_mark_is_no_part_of_anything(tmp_path: Path) -> None:
    record = json.dumps({"id": "a", "image": "a.png", "width": 8, "height": 6, "caption": "x"})
    files = {
        "records.jsonl": record,
        "metadata.jsonl": '{"file_name": "a.png", "text": "x"}',
        "metadata.csv": "image,caption\na.png,x\n",
        "captions.txt": "a.png\tx\n",
        "a.txt": "x",
    }
    for name, content in files.items():
        folder = tmp_path / name.replace(".", "-")
        folder.mkdir()
        (folder / "a.png").write_bytes(picture())
        (folder / name).write_bytes(BOM + content.encode())
        assert captions(open_dataset(folder)) == [("a.png", ("x",))], name
    (tmp_path / "x.tar").write_bytes(tar_of(("0.png", picture()), ("0.txt", BOM + b"x")))
    assert captions(open_dataset(tmp_path / "x.tar")) == [("0.png", ("x",))]


def test_gzipped_records_and_tars(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(picture())
    lines = [
        json.dumps({"id": f"{n}", "image": "a.png", "width": 8, "height": 6, "caption": f"c{n}"})
        for n in range(50)
    ]
    packed = gzip.compress("\n".join(lines).encode())
    (tmp_path / "records.jsonl.gz").write_bytes(packed)
    dataset = pickle.loads(pickle.dumps(open_dataset(tmp_path)))
    assert [dataset.caption(n) for n in (49, 0, 7)] == ["c49", "c0", "c7"]
    assert open_dataset(tmp_path / "records.jsonl.gz").form == "jsonl"
    (tmp_path / "records.jsonl.gz").write_bytes(packed[:-30])
    (lost,) = reasons(open_dataset(tmp_path))
    assert "the gzip stream breaks off" in lost and "what follows line" in lost

    tar = tar_of(
        *(m for n in range(20) for m in ((f"{n}.png", os.urandom(2000)), (f"{n}.txt", b"x")))
    )
    tar = tar.replace(tar[512 : 512 + 2000], picture().ljust(2000, b"\0"))
    (tmp_path / "x.tar.gz").write_bytes(gzip.compress(tar))
    dataset = open_dataset(tmp_path / "x.tar.gz")
    assert (dataset.form, len(dataset), dataset.caption(0)) == ("webdataset", 20, "x")
    (tmp_path / "x.tar.gz").write_bytes(gzip.compress(tar)[:20_000])
    broken = open_dataset(tmp_path / "x.tar.gz")
    assert 5 < len(broken) < 12 and broken.caption(0) == "x"
    assert "the gzip stream breaks off" in reasons(broken)[-1]


def test_splits_are_not_read_as_one_set(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for name, text in (("train-00000-of-00001", "a"), ("test-00000-of-00001", "b"), ("val", "c")):
        table(tmp_path / f"data/{name}.parquet", [{"image": picture(), "caption": text}])
    with pytest.raises(DataError, match=r"several splits.* give .*/test or .*/train or .*/validat"):
        open_dataset(tmp_path)
    for split, text in (("train", "a"), ("test", "b"), ("validation", "c"), ("val", "c")):
        assert [texts for _, texts in captions(open_dataset(tmp_path / split))] == [(text,)]
    (tmp_path / "data/test-00000-of-00001.parquet").unlink()
    (tmp_path / "data/val.parquet").unlink()
    assert len(open_dataset(tmp_path)) == 1  # nested, and of one split
    with pytest.raises(DataError, match=r"no file of .* is of that split"):
        open_dataset(tmp_path / "test")
    for split in ("train", "test"):
        (tmp_path / f"photos/{split}").mkdir(parents=True)
        (tmp_path / f"photos/{split}/a.png").write_bytes(picture())
    with pytest.raises(DataError, match="several splits"):
        open_dataset(tmp_path / "photos")


# -- webdataset ------------------------------------------------------------------------------------


def test_which_member_is_the_image(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"

    def read(columns: dict[str, str], *members: tuple[str, bytes]) -> list[tuple[Any, ...]]:
        path.write_bytes(tar_of(*members))
        return [
            (row.record.image, row.record.caption, row.unused) if isinstance(row, Row) else row.why
            for row in open_dataset(path, columns).rows()
        ]  # type: ignore[return-value]

    jpg, png, text = ("0.jpg", picture(kind="JPEG")), ("0.mask.png", picture()), ("0.txt", b"red")
    for columns in ({}, {"image": "jpg"}, {"image": ".jpg"}, {"image": "JPG"}):
        for members in ((jpg, png, text), (png, text, jpg)):
            assert read(columns, *members) == [("0.jpg", "red", ("mask.png",))]
    assert read({"image": "mask.png"}, jpg, png, text) == [("0.mask.png", "red", ("jpg",))]
    assert read({}, ("0.png", picture()), jpg) == [("0.jpg", None, ("png",))]
    assert read({"image": "tif"}, jpg) == ["the sample has no 'tif'; it has jpg"]
    two = (("0.left.png", picture()), ("0.right.png", picture()), text)
    (why,) = read({}, *two)
    assert "several images, left.png, right.png; say which: --column image=left.png" in str(why)
    own = (("0.img", picture()), ("0.cap", b"red"))
    assert read({"image": "img", "caption": "cap"}, *own) == [("0.img", "red", ())]
    dots = [
        (f"v1.{n}.{end}", picture(n) if end == "jpg" else b"t%d" % n)
        for n in (0, 1)
        for end in ("jpg", "txt")
    ]
    assert read({}, *dots) == [("v1.0.jpg", "t0", ()), ("v1.1.jpg", "t1", ())]
    (why,) = read({}, jpg, text, ("0.txt", b"blue"))
    assert "two members of the sample are called '0.txt'" in str(why)
    (why,) = read({}, jpg, ("0.json", b'{"txt": "blue"}'), text)
    assert "two members of the sample say 'txt'" in str(why)


def test_members_of_no_sample_are_noted(tmp_path: Path) -> None:
    members = [(".", b"1"), ("", b"2"), ("README", b"3"), ("._0.png", b"4"), ("0.png", picture())]
    (tmp_path / "x.tar").write_bytes(tar_of(*members))
    dataset = open_dataset(tmp_path)
    assert captions(dataset) == [("0.png", ())]
    assert [note.why for note in dataset.notes] == [
        "4 members are of no sample and are not read: '.', '', 'README', …"
    ]


def samples(count: int = 10) -> bytes:
    return tar_of(
        *(m for n in range(count) for m in ((f"{n}.png", picture(n)), (f"{n}.txt", b"text %d" % n)))
    )


def damaged(kind: str) -> tuple[bytes, int]:
    """A damaged tar, and how many of its ten samples can still be read whole."""
    tar = bytearray(samples())
    size = 1024 + 512 + 512  # of a sample: two headers, two contents
    if kind == "cut at a header":
        return bytes(tar[: 3 * size]), 3
    if kind == "cut inside":
        return bytes(tar[: 3 * size + 520]), 3
    if kind == "a bit of a header":
        tar[3 * size + 5] ^= 1
        return bytes(tar), 9
    if kind == "zeros":
        tar[3 * size : 3 * size + 1024] = bytes(1024)
        return bytes(tar), 9
    tar[3 * size : 5 * size] = os.urandom(2 * size)
    return bytes(tar), 8


@pytest.mark.parametrize(
    "kind", ["cut at a header", "cut inside", "a bit of a header", "zeros", "noise"]
)
def test_damage_in_a_tar_is_named_and_read_past(tmp_path: Path, kind: str) -> None:
    content, whole = damaged(kind)
    (tmp_path / "x.tar").write_bytes(content)
    dataset = open_dataset(tmp_path)
    found = check(dataset)
    right = [text for _, (text,) in captions(dataset)]
    assert len(right) == whole and set(right) <= {f"text {n}" for n in range(10)}
    assert any("the tar is damaged" in bad.why and "at byte" in bad.why for bad in found.errors)
    assert found.rows == found.usable + len(found.errors) == len(dataset)
    done = convert(dataset, tmp_path / "to", "jsonl")
    assert (done.written, done.rejected) == (found.usable, len(found.errors))


def test_an_appended_tar_is_read_too(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(samples(2) + tar_of(("z.png", picture())))
    dataset = open_dataset(tmp_path)
    assert [name for name, _ in captions(dataset)] == ["0.png", "1.png", "z.png"]
    assert not reasons(dataset) and "further archives" in dataset.notes[0].why


# -- Parquet ---------------------------------------------------------------------------------------


def test_columns_of_other_types(tmp_path: Path) -> None:
    odd = {
        "price": decimal.Decimal("1.50"),
        "when": datetime.datetime(2025, 1, 31, 12),
        "flag": True,
        "score": float("nan"),
        "mask": b"\xff\x00",
    }
    table(tmp_path / "a.parquet", [{"image": picture(), "caption": "x", **odd}])
    (row,) = open_dataset(tmp_path)
    assert row.record.meta == {"price": "1.50", "when": "2025-01-31T12:00:00", "flag": True}
    assert row.unused == ("mask",)
    assert check(open_dataset(tmp_path)).unused == {"mask": 1}


WRONG = [
    ("negatives", 5, "negatives are numbers of rows"),
    ("negatives", "a text", "negatives is 'a text'; give a list"),
    ("regions", 1.5, "regions is 1.5; give a list"),
    ("instructions", True, "instructions is True; give a list"),
    ("regions", [7], r"regions[0]: found 7 where an object"),
    ("caption", 7, "caption is 7; give a text"),
    ("caption", datetime.date(2025, 1, 1), None),
    ("width", True, "width is True"),
    ("width", decimal.Decimal("8.5"), "width is '8.5'"),
    ("id", [1], "the id is [1]; give a text or a number"),
    ("license", 7, "license is 7; give a text"),
]


@pytest.mark.parametrize(("column", "value", "why"), WRONG)
def test_a_value_that_cannot_be_costs_its_row(
    tmp_path: Path, column: str, value: Any, why: str | None
) -> None:
    rows = [{"image": picture(), column: value}, {"image": picture(1), column: None}]
    table(tmp_path / "a.parquet", rows)
    found = list(open_dataset(tmp_path).rows())
    assert isinstance(found[1], Row)
    assert isinstance(found[0], Row) if why is None else why in getattr(found[0], "why", "")


@pytest.mark.parametrize(
    ("meta", "kept"),
    [
        ("shot on film", {"meta": "shot on film"}),
        ("[1]", {"meta": "[1]"}),
        ("{words", {"meta": "{words"}),
        (["p", "q"], {"meta": ["p", "q"]}),
        ('{"a": 1}', {"a": 1}),
        (5, {"meta": 5}),
    ],
)
def test_a_column_called_meta(tmp_path: Path, meta: Any, kept: dict[str, Any]) -> None:
    (tmp_path / "a.png").write_bytes(picture())
    line = {"file_name": "a.png", "text": "x", "meta": meta}
    (tmp_path / "metadata.jsonl").write_text(json.dumps(line))
    (row,) = open_dataset(tmp_path)
    assert row.record.meta == kept
    assert check(open_dataset(tmp_path)).good


def test_numbers_of_thousands_of_digits_and_deep_values(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(picture())
    deep = '{"file_name": "a.png", "x": ' + "[" * 90 + "]" * 90 + "}"
    for line in ('{"file_name": "a.png", "x": ' + "9" * 5000 + "}", deep):
        (tmp_path / "metadata.jsonl").write_text(line)
        assert len(reasons(open_dataset(tmp_path))) >= 1


def test_damaged_parquet_costs_its_own_rows(tmp_path: Path) -> None:
    rows = [{"image": picture(n), "caption": f"c{n} " * 40} for n in range(8)]
    good = {"compression": "none", "row_group_size": 2}
    table(tmp_path / "a.parquet", rows[:4], **good)
    table(tmp_path / "b.parquet", rows[4:], **good)
    content = bytearray((tmp_path / "b.parquet").read_bytes())
    content[-30:] = bytes(30)
    (tmp_path / "b.parquet").write_bytes(content)
    content = bytearray((tmp_path / "a.parquet").read_bytes())
    content[4:40] = os.urandom(36)  # pages of the first group
    (tmp_path / "a.parquet").write_bytes(content)
    dataset = open_dataset(tmp_path)
    found = list(dataset.rows())
    assert [isinstance(row, Row) for row in found] == [False, False, True, True, False]
    assert found[4].place == str(tmp_path / "b.parquet")


def test_text_that_is_no_utf8_costs_its_row(tmp_path: Path) -> None:
    texts = arrow.array([b"good", b"\xff\xfe", b"fine"], arrow.binary())
    bad = arrow.Array.from_buffers(arrow.string(), 3, texts.buffers())
    images = [picture(n) for n in range(3)]
    parquet.write_table(arrow.table({"image": images, "caption": bad}), tmp_path / "a.parquet")
    found = list(open_dataset(tmp_path).rows())
    assert [isinstance(row, Row) for row in found] == [True, False, True]


def test_paths_and_addresses_in_parquet(tmp_path: Path) -> None:
    inside = tmp_path / "in"
    inside.mkdir()
    (tmp_path / "secret.png").write_bytes(picture())
    (inside / "a.png").write_bytes(picture())
    names = [f"{inside}/a.png", f"{tmp_path}/secret.png", "../secret.png", "https://a.b/c.png"]
    table(inside / "a.parquet", [{"image": name} for name in names])
    dataset = open_dataset(inside)
    assert captions(dataset) == [("a.png", ())]
    outside, up, address = reasons(dataset)
    assert "outside the folder" in outside and "outside the folder" in up
    assert "img2dataset" in address
    table(inside / "a.parquet", [{"URL": "https://a.b/c.png", "TEXT": "x"}])
    with pytest.raises(DataError, match=r"no column 'image'.*img2dataset"):
        open_dataset(inside)
    (address,) = reasons(open_dataset([{"image": "http://a.b/c.png"}]))
    assert "img2dataset" in address


def test_a_row_without_id_among_those_that_have_one(tmp_path: Path) -> None:
    rows = [{"image": picture(n), "id": name} for n, name in enumerate((1, None, 0))]
    table(tmp_path / "a.parquet", rows)
    assert [row.record.id for row in open_dataset(tmp_path)] == ["1", "row-1", "0"]


@pytest.mark.parametrize("form", ["records.jsonl", "metadata.jsonl"])
def test_a_name_that_no_file_can_have_costs_its_row(tmp_path: Path, form: str) -> None:
    """Half a surrogate pair can stand in JSON, and in no file's name."""
    (tmp_path / "a.png").write_bytes(picture())
    name = "image" if form == "records.jsonl" else "file_name"
    values: list[dict[str, Any]] = [{name: "a.png"}, {name: "\ud800.png"}]
    if form == "records.jsonl":
        values = [
            row | {"id": str(i), "width": 8, "height": 6, "caption": "x"}
            for i, row in enumerate(values)
        ]
    else:
        values = [row | {"text": "x"} for row in values]
    (tmp_path / form).write_text("".join(json.dumps(row) + "\n" for row in values))
    report = check(open_dataset(tmp_path))
    assert (report.rows, report.usable) == (2, 1)
    assert "with half a character" in report.errors[0].why


@pytest.mark.parametrize("form", ["records.jsonl", "rows.parquet"])
def test_images_in_a_folder_of_their_own(tmp_path: Path, form: str) -> None:
    """Absolute paths and paths from it; nothing outside it, and nothing beside the records."""
    images, texts, beside = tmp_path / "coco" / "images", tmp_path / "texts", tmp_path / "b.png"
    images.mkdir(parents=True)
    texts.mkdir()
    for path in (images / "a.png", beside, texts / "c.png"):
        path.write_bytes(picture())
    names = [str(images / "a.png"), "a.png", str(beside), "c.png"]
    rows: list[dict[str, Any]] = [
        {"id": str(i), "image": name, "caption": "x"} for i, name in enumerate(names)
    ]
    if form == "records.jsonl":
        lines = [json.dumps(row | {"width": 8, "height": 6}) + "\n" for row in rows]
        (texts / form).write_text("".join(lines))
    else:
        parquet.write_table(arrow.Table.from_pylist(rows), texts / form)
    found = list(open_dataset(texts / form, image_folder=images).rows())
    assert [row.image if isinstance(row, Row) else None for row in found[:2]] == [
        images / "a.png"
    ] * 2
    assert isinstance(found[2], Rejected) and "lies outside the folder" in found[2].why
    report = check(open_dataset(texts / form, image_folder=images))
    assert (report.usable, len(report.errors)) == (2, 2)
    assert "image" in report.errors[1].why and "c.png" in report.errors[1].why
    convert(open_dataset(texts / form, image_folder=images), tmp_path / "out", "jsonl")
    assert check(open_dataset(tmp_path / "out")).usable == 2
    with pytest.raises(DataError, match="no folder"):
        open_dataset(texts / form, image_folder=tmp_path / "gone")
    with pytest.raises(DataError, match="no other folder"):
        open_dataset(images, image_folder=images)
