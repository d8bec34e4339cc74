"""Figures for people, drawn by matplotlib without a window: panels, bars with intervals, one file.

What is drawn in them, each room says itself. Texts may be in any script: in the own typeface of
what draws them, else in one of matplotlib's or of the system that has the letters.
"""

import importlib.util
import logging
import os
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from itertools import groupby
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any

from PIL import ImageDraw, ImageFont

from abc_embed.errors import MissingExtraError
from abc_embed.storage.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, RED, GREY = "#266ec8", "#c96a14", "#b42318", "#6e727a"
INK, BOUND = "#202226", "#444444"
"""Error bars, and lines that mark a bound."""

Font = ImageFont.ImageFont | ImageFont.FreeTypeFont

_FONT_FOLDERS = {
    "win32": ("~/AppData/Local/Microsoft/Windows/Fonts", "C:/Windows/Fonts"),
    "darwin": ("~/Library/Fonts", "/Library/Fonts", "/System/Library/Fonts"),
}.get(
    sys.platform, ("~/.fonts", "~/.local/share/fonts", "/usr/local/share/fonts", "/usr/share/fonts")
)
LABEL_WIDTH = 40
"""Letters of a row's name in a line; a longer one is broken."""
_NO_LETTER = "\U0010ffff"
_PLAIN = ("regular", "sans", "book", "medium")  # in the names of faces that are good to read

logger = logging.getLogger(__name__)


def new_figure(width: float, height: float) -> "Figure":
    """An empty figure, in inches.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        # No pyplot: it would choose a window system for the whole process.
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtraError.of("bench", "drawing a figure") from None
    return Figure(figsize=(width, height), layout="constrained")


def save_figure(figure: "Figure", path: Path, *, dpi: int, kind: str = "png") -> None:
    """Write the figure whole or not at all; `kind` is png, svg or pdf.

    Raises:
        OutputError: the file cannot be written.
    """
    metadata = {"Software": None} if kind == "png" else None  # equal figures make equal bytes
    _choose_faces(figure)
    with atomic_write(path) as file, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # `_warn_of` has said it, in a sentence
        figure.savefig(file, format=kind, dpi=dpi, metadata=metadata)


def _choose_faces(figure: "Figure") -> None:
    """Let the texts that need it fall back to typefaces of the system that have their letters."""
    from matplotlib.font_manager import FontProperties, fontManager
    from matplotlib.text import Text

    texts = [text for text in figure.findobj(Text) if not text.get_text().isascii()]
    letters = frozenset(c for text in texts for c in text.get_text() if not c.isspace())
    faces = _faces_for(letters)
    _warn_of(frozenset(c for c in letters if not any(_has(face, c) for face in faces)))
    files = [_font_files()[face - 1] for face in faces if face]
    for file in files:
        fontManager.addfont(file)
    names = [FontProperties(fname=file).get_name() for file in files]
    for text in texts:
        text.set_fontfamily([*text.get_fontfamily(), *names])


def score_axes(axes: "Axes", names: Sequence[str]) -> None:
    """Scores from 0 to 1 to the right, one row for each name, the first on top."""
    axes.set_yticks(range(len(names)), [fill(name, LABEL_WIDTH) for name in names])
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlim(0, 1)
    axes.spines[["top", "right"]].set_visible(False)


def score_bars(
    axes: "Axes",
    row: int,
    shares: Mapping[str, Mapping[str, Any] | None],
    colours: Mapping[str, str],
    *,
    fontsize: int,
) -> None:
    """One bar for each colour, by label, with the interval of its share; None: not taken."""
    height = 0.84 / len(colours)
    for number, (label, colour) in enumerate(colours.items()):
        share = shares.get(label)
        y = row - 0.42 + (number + 0.5) * height
        if share is None or share["value"] is None:
            axes.text(0.005, y, f"{label}: not taken", va="center", fontsize=fontsize - 1)
            continue
        value, (low, high) = share["value"], share["interval"]
        error = [[max(0.0, value - low)], [max(0.0, high - value)]]
        axes.barh(y, value, height * 0.92, color=colour, label=label)
        axes.errorbar(value, y, xerr=error, color=INK, linewidth=1, capsize=2)
        label_box = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}  # over dashed lines
        axes.text(high + 0.01, y, f"{value:.2f}", va="center", fontsize=fontsize, bbox=label_box)


def legend_below(figure: "Figure", *, columns: int, fontsize: int) -> None:
    """The labels of the first panel, each once, under the figure."""
    handles, labels = figure.axes[0].get_legend_handles_labels()
    first = dict(zip(labels, handles, strict=True))
    figure.legend(
        list(first.values()),
        list(first),
        loc="outside lower center",
        ncols=min(columns, len(first)),
        frameon=False,
        fontsize=fontsize,
    )


def draw_shares(
    rows: Mapping[str, Mapping[str, Any]],
    labels: Mapping[str, str],
    colours: Mapping[str, str],
    title: str,
    path: Path,
    *,
    row_height: float,
) -> None:
    """One group of bars a row, its shares by `labels` (field -> words), `row_height` inches each.

    Raises:
        OutputError: the file cannot be written.
        MissingExtraError: matplotlib is not installed.
    """
    figure = new_figure(8, row_height * len(rows) + 1)
    axes = figure.add_subplot()
    score_axes(axes, list(rows))
    for number, shares in enumerate(rows.values()):
        named = {label: shares[name] for name, label in labels.items()}
        score_bars(axes, number, named, colours, fontsize=7)
    axes.set_title(title)
    legend_below(figure, columns=2, fontsize=8)
    save_figure(figure, path, dpi=130)


# -- texts, drawn by Pillow ------------------------------------------------------------------------


def draw_text(
    pen: ImageDraw.ImageDraw,
    place: tuple[float, float],
    text: str,
    colour: str | tuple[int, int, int],
    size: int,
    *,
    anchor: str = "la",
) -> None:
    """One line of text, in whatever script; `anchor` as Pillow has it."""
    left, top = place
    if anchor[0] != "l":
        left -= text_width(text, size) / (2 if anchor[0] == "m" else 1)
    for font, part in _parts(text, size):
        pen.text((left, top), part, colour, font, anchor=f"l{anchor[1]}")
        left += font.getlength(part)


def text_width(text: str, size: int) -> float:
    """The pixels that `draw_text` takes."""
    return sum(font.getlength(part) for font, part in _parts(text, size))


def wrap_text(text: str, size: int, width: float) -> list[str]:
    """`text` in lines that fit `width`, broken between words, else within one."""
    lines = [""]
    for word in text.split():
        joined = f"{lines[-1]} {word}".strip()
        if text_width(joined, size) <= width:
            lines[-1] = joined
            continue
        lines += [""] if lines[-1] else []
        for letter in word:
            if lines[-1] and text_width(lines[-1] + letter, size) > width:
                lines.append("")
            lines[-1] += letter
    return lines


def _parts(text: str, size: int) -> Iterator[tuple[Font, str]]:
    """The text with the face it is drawn in: one for all of it, if one has all its letters."""
    letters = frozenset(c for c in text if not c.isspace())
    chosen: dict[str, int] = {}
    for number in _faces_for(letters):
        missing = [c for c in letters if c not in chosen]
        has = {c: number for c in missing if _has(number, c)}
        if len(has) == len(letters):
            yield _font(number, size), text
            return
        chosen |= has
    _warn_of(frozenset(letters - chosen.keys()))
    faces = [chosen.get(c, 0) for c in text]
    for number in range(1, len(text)):
        if text[number].isspace():  # goes with the word before
            faces[number] = faces[number - 1]
    for face, pairs in groupby(zip(faces, text, strict=True), key=lambda pair: pair[0]):
        yield _font(face, size), "".join(letter for _, letter in pairs)


@cache
def _faces_for(letters: frozenset[str]) -> tuple[int, ...]:
    """The faces to try, until all letters are found: often the first alone."""
    if all(_has(0, letter) for letter in letters):
        return (0,)
    needed, tried = set(letters), []
    for number in range(1 + len(_font_files())):
        found = {letter for letter in needed if _has(number, letter)}
        if number == 0 or found:
            tried.append(number)
        if all(_has(number, letter) for letter in letters):
            return (number,)
        needed -= found
        if not needed:
            break
    return tuple(tried)


@cache
def _font(number: int, size: int) -> Font:
    """Pillow's own face (0), or one of `_font_files`."""
    if number == 0:
        return ImageFont.load_default(size)
    return ImageFont.truetype(_font_files()[number - 1], size)


@cache
def _has(number: int, letter: str) -> bool:
    """Whether a face has a letter: it is drawn otherwise than what no face has."""
    try:
        font = _font(number, 16)
        drawn, box = (bytes(font.getmask(c)) for c in (letter, _NO_LETTER))
    except (OSError, ValueError):  # a file that is no font after all
        return False
    return drawn != box


@cache
def _font_files() -> list[str]:
    """Font files of matplotlib, where it is installed, and of the system; plain faces first."""
    folders = [Path(folder).expanduser() for folder in _FONT_FOLDERS]
    if (spec := importlib.util.find_spec("matplotlib")) and spec.origin:
        folders.insert(0, Path(spec.origin).parent / "mpl-data" / "fonts" / "ttf")
    files = []
    for place, folder in enumerate(folders):
        for where, _, names in os.walk(folder):
            for name in names:
                lower = name.lower()
                if lower.endswith((".ttf", ".otf", ".ttc")) and "lastresort" not in lower:
                    styled = any(
                        s in lower for s in ("bold", "italic", "oblique", "mono", "condens")
                    )
                    rank = (styled, place, not any(s in lower for s in _PLAIN), "serif" in lower)
                    files.append((rank, len(name), os.path.join(where, name)))
    return [path for *_, path in sorted(files)]


@cache
def _warn_of(letters: frozenset[str]) -> None:
    """Say once what stays a box."""
    if letters:
        shown = "".join(sorted(letters)[:10])
        logger.warning(
            "no font on this machine has %s, so they are boxes in the picture; "
            "install one that has them, such as Noto Sans",
            shown,
        )
