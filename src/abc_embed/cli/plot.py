"""Rankings as a picture: the image on the left, a bar for each text on the right."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw

from abc_embed.cli.output import print_message
from abc_embed.cli.rankings import Ranking
from abc_embed.figures import draw_text, text_width, wrap_text
from abc_embed.storage.files import atomic_write

INK, FAINT, PAPER = (32, 34, 38), (110, 114, 122), (255, 255, 255)
BEST, BAR = (38, 110, 200), (184, 204, 228)

PHOTO = 448  # pixels: the box that the image is fitted into; all others are pixels too
MARGIN = 28
LABELS = 190
WIDEST_LABELS = 400
SPACE = 14  # between a label and its bar
BARS = 300
VALUES = 60
TITLE_LINE = 34
LINE = 30
GAP = 22
LARGE, SMALL = 19, 17
"""Sizes of letters."""

MOST_LINES = 3
"""Lines of one text."""
MOST = 20
"""Texts that are drawn of one ranking, the best ones; the table has them all."""


def write_plot(
    path: Path,
    photo: Image.Image,
    rankings: Sequence[Ranking],
    overlays: Sequence[Image.Image] = (),
) -> None:
    """Draw and write the picture; with `overlays`, each ranking stands beside its own."""
    if overlays:
        panels = zip(overlays, rankings, strict=True)
        picture = stack([draw(overlay, [ranking]) for overlay, ranking in panels])
    else:
        picture = draw(photo, rankings)
    with atomic_write(path) as file:
        picture.save(file, Image.registered_extensions()[path.suffix.lower()])
    print_message(f"drawn in {path}")


def draw(photo: Image.Image, rankings: Sequence[Ranking]) -> Image.Image:
    """The picture: the photo at most `PHOTO` pixels a side, one block of bars per ranking."""
    scale = PHOTO / max(photo.size)
    size = [max(1, round(side * scale)) for side in photo.size]
    photo = photo.resize((size[0], size[1]), Image.Resampling.BICUBIC)
    labels = _label_width(rankings)
    blocks = sum(_height(ranking, labels) for ranking in rankings)
    height = max(photo.height, blocks + GAP * (len(rankings) - 1))
    left = MARGIN + photo.width + MARGIN
    width = left + labels + BARS + VALUES + MARGIN
    canvas = Image.new("RGB", (width, height + 2 * MARGIN), PAPER)
    canvas.paste(photo, (MARGIN, MARGIN + (height - photo.height) // 2))
    pen = ImageDraw.Draw(canvas)
    highest = max(1e-6, *(max(ranking.scores) for ranking in rankings))
    y = MARGIN + (height - blocks - GAP * (len(rankings) - 1)) // 2
    for ranking in rankings:
        _block(pen, left, y, ranking, highest, labels)
        y += _height(ranking, labels) + GAP
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


def _label_width(rankings: Sequence[Ranking]) -> int:
    """As wide as the longest text, within bounds; a longer one takes several lines."""
    texts = [text for ranking in rankings for text in ranking.texts[:MOST]]
    widest = max((text_width(" ".join(text.split()), SMALL) for text in texts), default=0)
    return round(min(max(widest, LABELS - SPACE), WIDEST_LABELS)) + SPACE


def _height(ranking: Ranking, labels: int) -> int:
    lines = len(_title(ranking, labels)) * TITLE_LINE
    rows = sum(len(_label(text, labels)) for text in ranking.texts[:MOST])
    return lines + LINE * (rows + (len(ranking.texts) > MOST))


def _label(text: str, labels: int) -> list[str]:
    """A text in at most `MOST_LINES` lines; one that has more ends in dots."""
    lines = wrap_text(text, SMALL, labels - SPACE)
    if len(lines) > MOST_LINES:
        lines = [*lines[: MOST_LINES - 1], f"{lines[MOST_LINES - 1][:-2]}…"]
    return lines


def _title(ranking: Ranking, labels: int) -> list[str]:
    return wrap_text(ranking.title, LARGE, labels + BARS + VALUES)


def _block(
    pen: ImageDraw.ImageDraw, left: int, y: float, ranking: Ranking, highest: float, labels: int
) -> None:
    """A title and its bars; a cosine below zero has no bar."""
    for line in _title(ranking, labels):
        draw_text(pen, (left, y + TITLE_LINE / 2), line, INK, LARGE, anchor="lm")
        y += TITLE_LINE
    rows = list(zip(ranking.texts, ranking.scores, strict=True))
    for rank, (text, score) in enumerate(rows[:MOST]):
        lines = _label(text, labels)
        for number, line in enumerate(lines):
            middle = y + LINE * (number + 0.5)
            draw_text(pen, (left + labels - SPACE, middle), line, INK, SMALL, anchor="rm")
        middle = y + LINE * len(lines) / 2
        length = BARS * max(0.0, score) / highest
        bar = (left + labels, middle - 9, left + labels + max(length, 1), middle + 9)
        pen.rectangle(bar, BAR if rank else BEST)
        draw_text(pen, (bar[2] + 8, middle), f"{score:.3f}", FAINT, SMALL, anchor="lm")
        y += LINE * len(lines)
    if len(rows) > MOST:
        note = f"and {len(rows) - MOST} more, which the table has"
        draw_text(pen, (left + labels, y + LINE / 2), note, FAINT, SMALL, anchor="lm")
