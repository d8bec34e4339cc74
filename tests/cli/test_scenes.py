"""`scenes`: a drawn data set and its sheet."""

import json
from pathlib import Path

import pytest
from cli_parts import Cli
from PIL import Image


def test_scenes_writes_a_data_set_and_a_sheet(cli: Cli, here: Path) -> None:
    done = cli("scenes", "--count", "3", "--out", "drawn", "--seed", "5", "--side", "56")
    assert done.code == 0
    assert done.out == "3 scenes in drawn; drawn-contact-sheet.png shows them\n"
    records = [json.loads(line) for line in Path("drawn/records.jsonl").read_text().splitlines()]
    assert len(records) == 3
    for record in records:
        with Image.open(Path("drawn", record["image"])) as image:
            assert image.size == (56, 56)
    assert Path("drawn-contact-sheet.png").is_file()
    summary = json.loads(cli("scenes", "-n", "1", "--out", "other", "--json").out)
    assert summary["count"] == 1


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("--out", "photos"), 1),
        (("--out", "photo.jpg"), 1),
        (("--out", "x", "--count", "0"), 2),
        (("--out", "x", "--side", "4"), 2),
        ((), 2),
    ],
)
def test_scenes_refuses(cli: Cli, here: Path, words: tuple[str, ...], code: int) -> None:
    done = cli("scenes", *words)
    assert (done.code, done.out) == (code, "")
    assert "Error: " in done.err
