"""The contact sheet: images with their boxes, and what is said of them beside."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from abc_embed.data import Row
from abc_embed.data.contact_sheet import write_rows
from abc_embed.data.records import Instruction, Record, Region
from abc_embed.errors import ImageError


def row(folder: Path, **values: object) -> Row:
    record = Record(id="a", image="a.png", width=40, height=20, **values)  # type: ignore[arg-type]
    return Row("a", record, folder / "a.png")


def colours(path: Path) -> set[tuple[int, ...]]:
    with Image.open(path) as sheet:
        return {tuple(c) for c in np.asarray(sheet.convert("RGB")).reshape(-1, 3).tolist()}


def test_images_boxes_and_words_are_on_it(tmp_path: Path) -> None:
    Image.new("RGB", (40, 20), (1, 2, 3)).save(tmp_path / "a.png")
    plain, full = (
        row(tmp_path),
        row(
            tmp_path,
            caption="été: a caption",
            regions=(Region(phrase="a dot", box=(2, 3, 10, 10)),),
            instructions=(Instruction(instruction="what?", answer="a dot", kind="kind"),) * 8,
            negatives=("not this",),
        ),
    )
    write_rows([plain], tmp_path / "plain.png")
    write_rows([full] * 3, tmp_path / "full.png")
    with Image.open(tmp_path / "plain.png") as one, Image.open(tmp_path / "full.png") as three:
        assert three.width > 1.9 * one.width and three.height > 1.9 * one.height
        assert three.getpixel((16 + 100, 16 + 90)) == (1, 2, 3)
        # The box, at five times the size of the image.
        assert three.getpixel((16 + 10, 16 + 40)) == (0x1F, 0x6F, 0xD0)
    assert (0x1F, 0x6F, 0xD0) not in colours(tmp_path / "plain.png")
    assert {(0x1A, 0x7F, 0x37), (0xB4, 0x23, 0x18)} <= colours(tmp_path / "full.png")


def test_an_image_that_cannot_be_read_leaves_no_page(tmp_path: Path) -> None:
    with pytest.raises(ImageError):
        write_rows([row(tmp_path)], tmp_path / "sheet.png")
    assert not (tmp_path / "sheet.png").exists()
