"""Every row looked at: what is found, where it stands, and that the work goes on."""

import os
from pathlib import Path

import pytest
from PIL import Image

from abc_embed.data import open_dataset
from abc_embed.data.formats.check import check
from abc_embed.data.records import Record, write_records
from abc_embed.scenes.dataset import write_dataset


def record(number: int, **values: object) -> Record:
    known = {"id": f"r{number}", "image": f"{number}.png", "width": 8, "height": 6}
    return Record(**{**known, "caption": f"caption {number}", **values})  # type: ignore[arg-type]


def test_each_fault_is_found_and_counted_once(tmp_path: Path) -> None:
    for number in range(8):
        Image.new("RGB", (8, 6), (number * 30, 0, 0)).save(tmp_path / f"{number}.png")
    (tmp_path / "3.png").write_bytes((tmp_path / "3.png").read_bytes()[:45])  # cut off
    write_records(
        tmp_path / "records.jsonl",
        [
            record(0),
            record(1, caption="caption 0"),
            record(2, image="gone.png"),
            record(3),
            record(4, width=9),
            record(5, image="0.png"),
            record(6, caption="long " * 30),
            record(7, caption=None),
        ],
    )
    with (tmp_path / "records.jsonl").open("a") as file:
        first = (tmp_path / "records.jsonl").read_text().splitlines()[0]
        file.write(first.replace("0.png", "7.png") + "\n{broken\n")
    found = check(open_dataset(tmp_path), longest=100)
    assert (found.rows, found.usable) == (10, 5)
    assert found.as_json()["counts"] == {
        "rows that cannot be read": 1,
        "images that cannot be read": 2,
        "wrong sizes": 1,
        "ids twice": 1,
        "images twice": 1,
        "captions twice": 1,
        "long texts": 1,
        "rows without any text": 1,
    }
    lines = [error.place.rsplit(":", 1)[1] for error in found.errors]
    assert lines == ["3", "4", "5", "9", "10"]
    assert "8 x 6; write these" in found.errors[2].why
    assert found.texts["captions"] == 4


def test_what_the_generator_writes_is_good(tmp_path: Path) -> None:
    write_dataset(tmp_path / "scenes", 6, seed=3)
    found = check(open_dataset(tmp_path / "scenes"))
    assert found.good and found.usable == 6 and found.texts["regions"] >= 6


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_special_files_and_turned_pictures_in_a_folder(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[274] = 6
    Image.new("RGB", (8, 6)).save(tmp_path / "turned.tif", exif=exif)
    Image.new("RGB", (8, 6)).save(tmp_path / "turned.png", exif=exif)
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "endless.png").symlink_to("/dev/zero")
    found = check(open_dataset(tmp_path))
    assert (found.rows, found.usable) == (4, 2)
    assert [bad.place for bad in found.errors] == [
        str(tmp_path / "endless.png"),
        str(tmp_path / "pipe.png"),
    ]
    assert all("no ordinary file" in bad.why for bad in found.errors)
