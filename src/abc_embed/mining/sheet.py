"""A page of examples: image, own caption in green, mined ones in red, each with its score.

Does: draw it with Pillow as a PNG. Does not: choose what was mined.
"""

import textwrap
import unicodedata
from functools import cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from abc_embed.data.files import written_aside
from abc_embed.inputs import open_image
from abc_embed.mining.mine import Drawn, Mined
from abc_embed.mining.rows import Rows

_SIDE, _GAP, _TEXT, _LINE, _COLUMNS = 200, 16, 460, 15, 2
_CHARACTERS, _LINES = 74, 2
_GREEN, _RED = "#1a7f37", "#b42318"


def draw_sheet(mined: Mined, out: Path, count: int = 12) -> int:
    """Draw `count` of the mined rows, spread evenly over the file; returns how many there were.

    Raises:
        OutputError: the page cannot be written.
    """
    every = len(mined.good)
    count = min(count, every)
    shown = {int(mined.good[place * every // count]) for place in range(count)}
    cells = [_cell(mined.rows, one) for one in mined.drawn() if one.row in shown]
    columns = min(_COLUMNS, len(cells))
    lines = [cells[start : start + columns] for start in range(0, len(cells), columns)]
    heights = [max(cell.height for cell in line) for line in lines]
    width = columns * (_SIDE + _TEXT + 2 * _GAP) + _GAP
    sheet = Image.new("RGB", (width, sum(heights) + _GAP * (len(lines) + 1)), "white")
    top = _GAP
    for line, height in zip(lines, heights, strict=True):
        for column, cell in enumerate(line):
            sheet.paste(cell, (_GAP + column * (_SIDE + _TEXT + 2 * _GAP), top))
        top += height + _GAP
    with written_aside(out) as file:
        sheet.save(file, format="PNG")
    return count


def _cell(rows: Rows, one: Drawn) -> Image.Image:
    """One row: the image, and its captions beside it."""
    texts = [(rows.captions[rows.caption_of[one.row]], one.own, _GREEN)]
    found = zip(one.captions, one.scores, strict=True)
    texts += [(rows.captions[caption], score, _RED) for caption, score in found]
    row = rows.records.row(one.row)
    lines = [(row.record.id, "#777777")]
    for text, score, colour in texts:
        wrapped = textwrap.wrap(
            f"{score:.3f}  {_plain(text)}",
            _CHARACTERS,
            max_lines=_LINES,
            placeholder=" …",
            subsequent_indent="            ",
        )
        lines += [(line, colour) for line in wrapped]
    height = max(_SIDE, len(lines) * _LINE + 4)
    cell = Image.new("RGB", (_SIDE + _TEXT + _GAP, height), "white")
    picture = open_image(row.image)
    scale = _SIDE / max(picture.size)
    cell.paste(picture.resize([max(1, round(side * scale)) for side in picture.size]))
    pen = ImageDraw.Draw(cell)
    for number, (line, colour) in enumerate(lines):
        pen.text((_SIDE + _GAP, number * _LINE), line, fill=colour, font=_font())
    return cell


def _plain(text: str) -> str:
    """Without accents, which Pillow's own font does not have."""
    parts = unicodedata.normalize("NFKD", text)
    return "".join(part for part in parts if not unicodedata.combining(part))


@cache
def _font() -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(size=12)
