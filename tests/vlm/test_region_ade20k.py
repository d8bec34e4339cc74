"""ADE20K's folders: whole objects by name, boxes around polygons, bad files told."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from vlm_parts import RejectList

from abc_embed.data.records import Record, write_records
from abc_embed.vlm.region_files import are_records, read_regions
from abc_embed.vlm.rejects import Reason, Rejects


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
