"""What exists in the generated world: sprites with their names and kinds, and the backgrounds.

The sprites are from a set under the MIT licence, which lies next to them.
"""

import json
import zlib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from PIL import Image

SPRITES = files("abc_embed") / "bundled" / "sprites"


@dataclass(frozen=True, slots=True)
class Thing:
    """One nameable thing: `name` ("dog"), `phrase` ("a dog"), `kind` ("animal"), sprite `file`."""

    name: str
    phrase: str
    kind: str
    file: str


def _read_index() -> tuple[Thing, ...]:
    rows = json.loads((SPRITES / "index.json").read_text(encoding="utf-8"))
    return tuple(Thing(r["name"], r["phrase"], r["kind"], r["file"]) for r in rows)


THINGS: tuple[Thing, ...] = _read_index()
BY_NAME: dict[str, Thing] = {thing.name: thing for thing in THINGS}

# How a kind is spoken of. "object" holds what fits nowhere else, so nobody can ask for it by kind.
KIND_WORDS: dict[str, str] = {
    "animal": "animal",
    "food": "food",
    "drink": "drink",
    "plant": "plant",
    "vehicle": "vehicle",
    "building": "building",
    "clothing": "piece of clothing",
    "instrument": "musical instrument",
    "tool": "tool",
    "ball": "ball",
    "toy": "toy",
    "furniture": "piece of furniture",
    "device": "device",
}

# The colours' middle values, as (red, green, blue); each scene draws its own tint around one.
BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "white": (246, 246, 244),
    "grey": (150, 152, 156),
    "black": (28, 28, 32),
    "red": (204, 62, 58),
    "orange": (238, 150, 62),
    "yellow": (242, 216, 92),
    "green": (88, 166, 84),
    "turquoise": (92, 200, 192),
    "blue": (70, 116, 208),
    "purple": (134, 88, 182),
    "pink": (244, 172, 196),
    "brown": (132, 92, 62),
}


def kept_apart(a: Thing, b: Thing) -> bool:
    """Whether this pair never shares a training scene: one in twelve, the same on every machine.

    Held-out scenes are built around such pairs, so that what is measured there is composition, not
    memory.
    """
    return zlib.crc32("|".join(sorted((a.name, b.name))).encode()) % 12 == 0


@cache
def sprite(thing: Thing) -> Image.Image:
    """The thing's picture: RGBA, cropped to its outline, longest side 128 pixels."""
    with (SPRITES / thing.file).open("rb") as handle:
        picture = Image.open(handle).convert("RGBA")
    return picture
