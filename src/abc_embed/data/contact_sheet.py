"""A contact sheet: some rows of a data set on one page, each image with its boxes and texts."""

import textwrap
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from PIL import Image, ImageDraw

from abc_embed.data.dataset import Row
from abc_embed.data.records import Record
from abc_embed.errors import ImageError
from abc_embed.figures import draw_text
from abc_embed.inputs import open_image
from abc_embed.storage.files import atomic_write

Line = tuple[str, str]
"""A text and its colour."""

INK, FAINT, GREEN, RED = "#202226", "#777777", "#1a7f37", "#b42318"
BOXES = ("#1f6fd0", "#b42318", "#1a7f37", "#a15c00", "#7a3fb0", "#00808a", "#c2187a", "#5b6b00")

_SIDE, _GAP, _TEXT, _LINE = 200, 16, 460, 15
_CHARACTERS, _LINES = 74, 2


def write_rows(
    rows: Iterable[Row], out: Path, *, on_bad_row: Callable[[str, str], None] | None = None
) -> int:
    """Rows of a data set as a PNG; returns how many are on it, and writes none where none is.

    Args:
        rows: What is drawn.
        out: The file to write.
        on_bad_row: Given place and reason of a row whose image cannot be read, which is left out.

    Raises:
        ImageError: an image cannot be read, and there is no `on_bad_row`.
        OutputError: the file cannot be written.
    """
    cells = []
    for row in rows:
        try:
            cells.append(draw_cell(_with_boxes(row), row.record.id, _lines(row.record)))
        except ImageError as wrong:
            if on_bad_row is None:
                raise
            on_bad_row(row.place, str(wrong))
    if cells:
        write_sheet(cells, out)
    return len(cells)


def write_sheet(cells: Sequence[Image.Image], out: Path) -> None:
    """Cells of `draw_cell` in two columns, as a PNG."""
    columns = max(1, min(2, len(cells)))
    rows = [cells[start : start + columns] for start in range(0, len(cells), columns)]
    heights = [max(cell.height for cell in row) for row in rows]
    width = columns * (_SIDE + _TEXT + 2 * _GAP) + _GAP
    sheet = Image.new("RGB", (width, sum(heights) + _GAP * (len(rows) + 1)), "white")
    top = _GAP
    for row, height in zip(rows, heights, strict=True):
        for column, cell in enumerate(row):
            sheet.paste(cell, (_GAP + column * (_SIDE + _TEXT + 2 * _GAP), top))
        top += height + _GAP
    with atomic_write(out) as file:
        sheet.save(file, format="PNG")


def draw_cell(picture: Image.Image, name: str, lines: Sequence[Line]) -> Image.Image:
    """One image, its name, and lines of text beside it; a line is cut after two."""
    wrapper = textwrap.TextWrapper(
        _CHARACTERS, max_lines=_LINES, placeholder=" …", subsequent_indent=" " * 12
    )
    wrapped = [(name, FAINT)]
    for text, colour in lines:
        wrapped += [(part, colour) for part in wrapper.wrap(text)]
    cell = Image.new("RGB", (_SIDE + _TEXT + _GAP, max(_SIDE, len(wrapped) * _LINE + 4)), "white")
    scale = _SIDE / max(picture.size)
    cell.paste(picture.resize([max(1, round(side * scale)) for side in picture.size]))
    pen = ImageDraw.Draw(cell)
    for number, (line, colour) in enumerate(wrapped):
        draw_text(pen, (_SIDE + _GAP, number * _LINE), line, colour, 12)
    return cell


def _with_boxes(row: Row) -> Image.Image:
    """The image with its regions outlined, in colours that their phrases have too."""
    picture = open_image(row.image)
    picture = picture.resize(
        [round(side * _SIDE / max(picture.size)) or 1 for side in picture.size]
    )
    scale = picture.width / row.record.width
    pen = ImageDraw.Draw(picture)
    for number, region in enumerate(row.record.regions[: len(BOXES)]):
        x, y, width, height = (value * scale for value in region.box)
        pen.rectangle((x, y, x + width, y + height), outline=BOXES[number])
    return picture


def _lines(record: Record) -> list[Line]:
    lines = [(caption, INK) for caption in record.captions[:5]] or [("(no caption)", FAINT)]
    hidden = max(0, len(record.captions) - 5)
    lines += [(f"and {hidden} more captions", FAINT)] if hidden else []
    lines += [
        (f"[] {region.phrase}", BOXES[number])
        for number, region in enumerate(record.regions[: len(BOXES)])
    ]
    lines += [(f"{ask.instruction} -> {ask.answer}", GREEN) for ask in record.instructions[:6]]
    hidden = max(0, len(record.instructions) - 6)
    lines += [(f"and {hidden} more instructions", FAINT)] if hidden else []
    lines += [(f"not: {text}", RED) for text in record.negatives[:4]]
    return lines
