"""A page of examples: image, own caption in green, mined ones in red, each with its score.

Does: say what is on it; data/sheet.py draws. Does not: choose what was mined.
"""

from pathlib import Path

from PIL import Image

from abc_embed.data.contact_sheet import GREEN, RED, draw_cell, write_sheet
from abc_embed.inputs import open_image
from abc_embed.mining.mine import Drawn, Mined
from abc_embed.mining.rows import Rows


def draw_sheet(mined: Mined, out: Path, count: int = 12) -> int:
    """Draw `count` of the mined rows, spread evenly over the file; returns how many there were.

    Raises:
        OutputError: the page cannot be written.
    """
    every = len(mined.good)
    count = min(count, every)
    shown = {int(mined.good[place * every // count]) for place in range(count)}
    write_sheet([_cell(mined.rows, one) for one in mined.drawn() if one.row in shown], out)
    return count


def _cell(rows: Rows, one: Drawn) -> Image.Image:
    """One row: the image, and its captions beside it."""
    texts = [(rows.captions[rows.caption_of[one.row]], one.own, GREEN)]
    found = zip(one.captions, one.scores, strict=True)
    texts += [(rows.captions[caption], score, RED) for caption, score in found]
    row = rows.dataset.row(one.row)
    lines = [(f"{score:.3f}  {text}", colour) for text, score, colour in texts]
    return draw_cell(open_image(row.image), row.record.id, lines)
