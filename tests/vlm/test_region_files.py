"""Regions are read from every layout, and bad rows are counted and named."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from vlm_parts import RejectList

from abc_embed.data.records import Record, Region, write_records
from abc_embed.errors import DataError, UsageError
from abc_embed.vlm.region_files import are_records, read_regions
from abc_embed.vlm.rejects import Reason, Rejects


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


# -- ADE20K ----------------------------------------------------------------------------------------


def thing(number: int, name: str, x: list[int], y: list[int], **more: Any) -> dict[str, Any]:
    return {"id": number, "name": name, "polygon": {"x": x, "y": y}} | more


@pytest.fixture
def ade(tmp_path: Path) -> Path:
    folder = tmp_path / "ade" / "training" / "street"
    folder.mkdir(parents=True)
    objects = [
        thing(0, "building, edifice", [0, 40, 40], [5, 0, 30], raw_name="building"),
        thing(1, "car, auto, automobile", [10, 70, 10], [20, 20, 60]),  # reaches out of the image
        thing(2, "wheel", [1, 9, 5], [1, 9, 5], parts={"part_level": 1}),
        thing(3, "", [1, 9, 5], [1, 9, 5]),
        thing(4, "sky", [], []),
    ]
    annotation = {"imsize": [48, 64, 3], "object": objects}
    Image.new("RGB", (64, 48)).save(folder / "ADE_train_00000001.jpg")
    (folder / "ADE_train_00000001.json").write_text(json.dumps({"annotation": annotation}))
    (folder / "ADE_train_00000002.json").write_text(json.dumps({"annotation": annotation}))
    Image.new("RGB", (64, 48)).save(folder / "ADE_train_00000003.jpg")
    (folder / "ADE_train_00000003.json").write_bytes(b'{"annotation": \xff')
    return tmp_path / "ade"


def test_objects_become_regions(ade: Path) -> None:
    rejects = RejectList()
    (record,) = read_regions(ade, ade.parent, rejects)
    assert not are_records(ade)
    assert record.id == "ADE_train_00000001"
    assert record.image == "ade/training/street/ADE_train_00000001.jpg"
    assert (record.width, record.height, record.source) == (64, 48, "ADE20K")
    assert [(r.phrase, r.box) for r in record.regions] == [
        ("building", (0, 0, 40, 30)),
        ("car", (10, 20, 54, 28)),
    ]
    assert [
        (reject["reason"], reject["detail"].split(" (")[0].split(" in /")[0])
        for reject in rejects.rows
    ] == [
        (Reason.PHRASE, "no phrase"),
        (Reason.BOX, "[] in an image of 64 x 48"),
        (Reason.IMAGE, "no file for it"),
        (Reason.ROW, "it is no annotation of ADE20K"),
    ]


def test_records_of_the_same_folder_come_first(ade: Path) -> None:
    image = "training/street/ADE_train_00000001.jpg"
    write_records(
        ade / "records.jsonl", [Record(id="mine", image=image, width=64, height=48, caption="a")]
    )
    assert are_records(ade)
    assert [record.id for record in read_regions(ade, ade, Rejects())] == ["mine"]
