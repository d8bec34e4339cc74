"""Regions are read from every layout, and bad rows are told; large JSON never whole."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from vlm_parts import RejectList

from abc_embed.data.records import Record, Region, write_records
from abc_embed.errors import DataError, UsageError
from abc_embed.storage import json_stream
from abc_embed.storage.json_stream import stream_json
from abc_embed.vlm.region_files import read_regions
from abc_embed.vlm.rejects import Reason, Rejects

# -- large JSON ------------------------------------------------------------------------------------

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.lists(values, max_size=6), st.dictionaries(st.text(), values, max_size=4))
def test_any_json_comes_back_in_pieces(listed: list[Any], named: dict[str, Any]) -> None:
    """Read three characters at a time, so that every value is broken somewhere."""
    text = json.dumps(listed, indent=1)
    assert [value for _, _, value in pieces(text)] == listed
    expected = []
    for name, value in named.items():
        rows = enumerate(value) if isinstance(value, list) else [(0, value)]
        expected += [(name, number, row) for number, row in rows]
    assert list(pieces(json.dumps(named))) == expected


def pieces(text: str) -> Iterator[tuple[str, int, Any]]:
    at = 0

    def read(_: int) -> str:
        nonlocal at
        at += 3
        return text[at - 3 : at]

    reader = json_stream._Reader(read, "text")
    if reader.next() == "[":
        yield from (("", number, value) for number, value in reader.elements())
    else:
        yield from reader.fields()


def test_a_file_is_never_whole_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "big.json"
    path.write_text(json.dumps([{"number": i, "text": "x" * 90} for i in range(5000)]))
    monkeypatch.setattr(json_stream, "_CHUNK", 1000)
    longest = 0
    more = json_stream._Reader._more

    def measured(reader: Any) -> bool:
        nonlocal longest
        found = more(reader)
        longest = max(longest, len(reader._text))
        return found

    monkeypatch.setattr(json_stream._Reader, "_more", measured)
    assert [row["number"] for _, _, row in stream_json(path)] == list(range(5000))
    assert longest < 3000


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[{"a": 1}, {"b": ', "damaged at element 1 of the list"),
        ('[{"a": 1} {"b": 2}]', "damaged at element 0"),
        ('[{"a": 1}, {"b": nope, "c": "a long rest of the file"}]', "damaged at element 1"),
        ('{"images": [1, 2', "damaged at element 1 of images"),
        ('{"images": [1, 2]', "damaged"),
        ('{"images" [1]}', "damaged"),
        ('"text"', "no JSON list or object"),
        ("", "no JSON list or object"),
        ("[", "damaged at element 0"),
    ],
)
def test_damage_is_named(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "damaged.json"
    path.write_text(text)
    with pytest.raises(DataError, match=words) as caught:
        list(stream_json(path))
    assert str(path) in str(caught.value)


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_bytes(b'["\xff"]')
    with pytest.raises(DataError, match="not UTF-8"):
        list(stream_json(tmp_path / "x.json"))


# -- the layouts -----------------------------------------------------------------------------------


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (100, 80), "red").save(path)


def vg_region(number: int, phrase: object, *box: object) -> dict[str, object]:
    names = ("x", "y", "width", "height")
    return {"region_id": number, "phrase": phrase, **dict(zip(names, box, strict=True))}


@pytest.fixture
def genome(tmp_path: Path) -> Path:
    """Visual Genome in small: three good images, and one of everything that goes wrong."""
    folder = tmp_path / "vg"
    picture(folder / "VG_100K" / "1.jpg")
    picture(folder / "VG_100K_2" / "2.jpg")
    picture(folder / "3.jpg")
    place = "https://example.com/people/VG_100K"
    sizes = {"width": 100, "height": 80}
    images: list[object] = [
        {"image_id": 1, "url": f"{place}/1.jpg", "coco_id": None, **sizes},
        {"image_id": 2, "url": f"{place}_2/2.jpg", **sizes},
        {"image_id": 3, **sizes},
        {"image_id": 4, "url": f"{place}/4.jpg", **sizes},
        {"image_id": 6},
        "nonsense",
    ]
    regions: list[object] = [
        {"id": 1, "regions": [vg_region(1, " a red hat ", 10, 10, 20, 20)]},
        {
            "id": 2,
            "regions": [
                vg_region(2, "a dog", -5, 70, 20, 20),
                vg_region(3, "", 1, 1, 5, 5),
                vg_region(4, None, 1, 1, 5, 5),
                vg_region(5, "outside", 100, 0, 10, 10),
                vg_region(6, "flat", 5, 5, 0, 10),
                vg_region(7, "no number", "x", 5, 5, 5),
                "nonsense",
            ],
        },
        {"id": 3, "regions": []},
        {"id": 4, "regions": [vg_region(8, "no file", 1, 1, 5, 5)]},
        {"id": 5, "regions": [vg_region(9, "no facts", 1, 1, 5, 5)]},
        {"regions": []},
    ]
    (folder / "image_data.json").write_text(json.dumps(images))
    (folder / "region_descriptions.json").write_text(json.dumps(regions))
    return folder


@pytest.mark.parametrize("given_file", [False, True], ids=["folder", "file"])
def test_visual_genome(genome: Path, given_file: bool) -> None:
    rejects = RejectList()
    source = genome / "region_descriptions.json" if given_file else genome
    one, two, three = read_regions(source, genome, rejects)
    assert (one.id, one.image, one.width, one.height) == ("vg-1", "VG_100K/1.jpg", 100, 80)
    assert one.regions == (Region(phrase="a red hat", box=(10, 10, 20, 20)),)
    assert (one.source, one.license, one.meta) == ("Visual Genome", "CC BY 4.0", {"image_id": 1})
    assert two.image == "VG_100K_2/2.jpg"
    assert two.regions == (Region(phrase="a dog", box=(0, 70, 15, 10)),)  # cut at the edges
    assert (three.image, three.regions) == ("3.jpg", ())
    reasons = [(reject["reason"], reject["where"].rpartition(": ")[2]) for reject in rejects.rows]
    assert reasons == [
        ("row cannot be read", "element 4"),
        ("row cannot be read", "element 5"),
        ("phrase says nothing", "vg-2, region 3"),
        ("phrase says nothing", "vg-2, region 4"),
        ("box outside the image", "vg-2, region 5"),
        ("box outside the image", "vg-2, region 6"),
        ("box outside the image", "vg-2, region 7"),
        ("phrase says nothing", "vg-2, region ?"),
        ("image cannot be used", "image 4"),
        ("row cannot be read", "image 5"),
        ("row cannot be read", "element 5"),
    ]


def test_an_address_cannot_lead_out_of_the_folder(genome: Path) -> None:
    picture(genome.parent / "secret.jpg")
    rows = [{"image_id": 7, "url": "https://x/a/../secret.jpg", "width": 100, "height": 80}]
    (genome / "image_data.json").write_text(json.dumps(rows))
    (genome / "region_descriptions.json").write_text(json.dumps([{"id": 7, "regions": []}]))
    rejects = RejectList()
    assert not list(read_regions(genome, genome, rejects))
    assert rejects.rows[0]["reason"] == Reason.IMAGE


def test_coco_style(tmp_path: Path) -> None:
    picture(tmp_path / "images" / "a.jpg")
    rows = {
        "info": {"year": 2026},
        "annotations": [
            {"id": 1, "image_id": 7, "bbox": [1, 2, 30, 40], "caption": "a dog"},
            {"id": 2, "image_id": 8, "bbox": [1, 2, 30, 40], "caption": "elsewhere"},
            {"id": 3, "image_id": "7", "bbox": [50, 2, 60, 40], "phrase": "a cat"},
            {"id": 4, "image_id": 7, "bbox": [1, 2, 30, 40]},
            {"id": 5, "image_id": 7, "bbox": 3, "caption": "no box"},
            {"id": 6, "image_id": 99, "bbox": [1, 2, 3, 4], "caption": "no image"},
            None,
        ],
        "images": [
            {"id": 7, "file_name": "a.jpg", "width": 100, "height": 80, "license": 2},
            {"id": 8, "file_name": "gone.jpg", "width": 100, "height": 80},
        ],
        "licenses": [{"id": 2, "name": "CC BY 2.0"}],
    }
    (tmp_path / "boxes.json").write_text(json.dumps(rows))
    rejects = RejectList()
    images = tmp_path / "images"
    (record,) = read_regions(tmp_path / "boxes.json", tmp_path, rejects, images)
    assert (record.id, record.image, record.license) == ("boxes-7", "images/a.jpg", "CC BY 2.0")
    assert [r.phrase for r in record.regions] == ["a dog", "a cat"]
    assert record.regions[1].box == (50, 2, 50, 40)
    assert sorted(reject["reason"] for reject in rejects.rows) == [
        "box outside the image",
        "image cannot be used",
        "phrase says nothing",
        "row cannot be read",
        "row cannot be read",
    ]


def test_our_records_and_bad_lines_among_them(tmp_path: Path) -> None:
    records = [Record(id=name, image=f"{name}.png", width=9, height=9) for name in "ab"]
    inner = tmp_path / "inner"
    inner.mkdir()
    write_records(inner / "records.jsonl", records)
    with (inner / "records.jsonl").open("a") as file:
        file.write('{"id": "c"}\n\n{"id": "b", "image": "x", "width": 1, "height": 1}\nnonsense\n')
    rejects = RejectList()
    found = list(read_regions(inner, tmp_path, rejects))
    assert [(r.id, r.image) for r in found] == [("a", "inner/a.png"), ("b", "inner/b.png")]
    assert [reject["where"].rpartition(":")[2] for reject in rejects.rows] == ["3", "5", "6"]


def test_sources_that_cannot_be(tmp_path: Path, genome: Path) -> None:
    with pytest.raises(DataError, match="there is no"):
        read_regions(tmp_path / "none.json", tmp_path, Rejects())
    with pytest.raises(DataError, match="there is no folder"):
        read_regions(genome, genome, Rejects(), tmp_path / "none")
    with pytest.raises(UsageError, match="is not above"):
        read_regions(genome, tmp_path / "elsewhere", Rejects())
    (tmp_path / "other.json").write_text('{"a": [1]}')
    with pytest.raises(DataError, match='has no "images"'):
        list(read_regions(tmp_path / "other.json", tmp_path, Rejects()))
