"""Rankings as a picture: the image on the left, a bar for each text on the right.

Drawn with Pillow alone, whose typeface has few letters beyond Latin: texts in other scripts show as
boxes here, and are right in the tables.
"""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from abc_embed.cli.rankings import Ranking
from abc_embed.errors import UsageError
from abc_embed.storage.files import atomic_write, check_writable

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
"""End of a file's name -> what Pillow calls the format."""

INK, FAINT, PAPER = (32, 34, 38), (110, 114, 122), (255, 255, 255)
BEST, BAR = (38, 110, 200), (184, 204, 228)

PHOTO = 448  # pixels: the box that the image is fitted into; all others are pixels too
MARGIN = 28
LABELS = 190
BARS = 300
VALUES = 60
TITLE_LINE = 34
LINE = 30
GAP = 22

MOST = 20
"""Texts that are drawn of one ranking, the best ones; the table has them all."""


def check_plot(path: Path) -> None:
    """Find out before the work whether the picture can be written.

    Raises:
        UsageError: no such format.
        OutputError: the file cannot be written there.
    """
    if path.suffix.lower() not in FORMATS:
        raise UsageError(f"{str(path)!r} does not end in {', '.join(FORMATS)}; give one of these")
    check_writable(path)


def write_plot(
    path: Path,
    photo: Image.Image,
    rankings: Sequence[Ranking],
    overlays: Sequence[Image.Image] = (),
) -> None:
    """Draw and write the picture; with `overlays`, each ranking stands beside its own.

    Raises:
        OutputError: the file cannot be written.
    """
    if overlays:
        panels = zip(overlays, rankings, strict=True)
        picture = stack([draw(overlay, [ranking]) for overlay, ranking in panels])
    else:
        picture = draw(photo, rankings)
    with atomic_write(path) as file:
        picture.save(file, FORMATS[path.suffix.lower()])


def draw(photo: Image.Image, rankings: Sequence[Ranking]) -> Image.Image:
    """The picture: the photo at most `PHOTO` pixels a side, one block of bars per ranking."""
    scale = PHOTO / max(photo.size)
    size = [max(1, round(side * scale)) for side in photo.size]
    photo = photo.resize((size[0], size[1]), Image.Resampling.BICUBIC)
    blocks = sum(_height(ranking) for ranking in rankings)
    height = max(photo.height, blocks + GAP * (len(rankings) - 1))
    left = MARGIN + photo.width + MARGIN
    width = left + LABELS + BARS + VALUES + MARGIN
    canvas = Image.new("RGB", (width, height + 2 * MARGIN), PAPER)
    canvas.paste(photo, (MARGIN, MARGIN + (height - photo.height) // 2))
    pen = ImageDraw.Draw(canvas)
    highest = max(1e-6, *(max(ranking.scores) for ranking in rankings))
    y = MARGIN + (height - blocks - GAP * (len(rankings) - 1)) // 2
    for ranking in rankings:
        _block(pen, left, y, ranking, highest)
        y += _height(ranking) + GAP
    return canvas


def stack(pictures: Sequence[Image.Image]) -> Image.Image:
    """Pictures below each other."""
    size = (max(p.width for p in pictures), sum(p.height for p in pictures))
    canvas = Image.new("RGB", size, PAPER)
    top = 0
    for picture in pictures:
        canvas.paste(picture, (0, top))
        top += picture.height
    return canvas


def _height(ranking: Ranking) -> int:
    return TITLE_LINE + LINE * min(MOST, len(ranking.texts))


def _block(pen: ImageDraw.ImageDraw, left: int, y: int, ranking: Ranking, highest: float) -> None:
    """A title and its bars; a cosine below zero has no bar."""
    large, small = ImageFont.load_default(19), ImageFont.load_default(17)
    title = _cut(pen, ranking.title, large, LABELS + BARS + VALUES)
    pen.text((left, y + TITLE_LINE / 2), title, INK, large, anchor="lm")
    y += TITLE_LINE
    rows = list(zip(ranking.texts, ranking.scores, strict=True))
    for rank, (text, score) in enumerate(rows[:MOST]):
        middle = y + LINE / 2
        label = _cut(pen, text, small, LABELS - 14)
        pen.text((left + LABELS - 14, middle), label, INK, small, anchor="rm")
        length = BARS * max(0.0, score) / highest
        bar = (left + LABELS, middle - 9, left + LABELS + max(length, 1), middle + 9)
        pen.rectangle(bar, BAR if rank else BEST)
        pen.text((bar[2] + 8, middle), f"{score:.3f}", FAINT, small, anchor="lm")
        y += LINE


Font = ImageFont.ImageFont | ImageFont.FreeTypeFont


def _cut(pen: ImageDraw.ImageDraw, text: str, font: Font, width: float) -> str:
    """`text` in one line, shortened until it fits."""
    line = text = " ".join(text.split())
    while text and pen.textlength(line, font) > width:
        text = text[:-1]
        line = f"{text}..."
    return line
