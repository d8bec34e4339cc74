"""Items to be fast with: drawn photos, texts of made-up words, and mixtures of both.

`tools/bench_engine.py` reads this file beside the package of an older commit, so nothing but `Item`
is taken from the package.
"""

import io
import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from abc_embed import Item

WORDS = [
    "a",
    "small",
    "red",
    "dog",
    "left",
    "of",
    "the",
    "big",
    "blue",
    "house",
    "and",
    "one",
    "cat",
]


@dataclass(frozen=True, slots=True)
class Workload:
    """Items that are embedded in one call."""

    name: str
    items: list[str | Item]


def draw_photos(count: int, width: int = 640, height: int = 480) -> list[bytes]:
    """Different JPEGs with some structure."""
    rng = np.random.default_rng(0)
    photos = []
    for _ in range(count):
        small = rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)
        picture = Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)
        stream = io.BytesIO()
        picture.save(stream, "JPEG", quality=90)
        photos.append(stream.getvalue())
    return photos


def text(rng: random.Random, most: int) -> str:
    """Two to `most` words."""
    return " ".join(rng.choices(WORDS, k=rng.randint(2, most)))


def texts(count: int, most: int = 10) -> Workload:
    """Texts alone."""
    rng = random.Random("single texts")
    return Workload("texts", [text(rng, most) for _ in range(count)])


def images(photos: Sequence[bytes]) -> Workload:
    """Pictures alone."""
    return Workload("images", [Item(image=photo) for photo in photos])


def mixed(photos: Sequence[bytes]) -> Workload:
    """Of six items four texts, a picture, and a picture with an instruction, shuffled."""
    rng = random.Random("mixed list")
    quarter = max(1, len(photos) // 4)
    items: list[str | Item] = [text(rng, 40) for _ in range(4 * quarter)]
    items += [Item(image=photo) for photo in photos[:quarter]]
    asked = photos[quarter // 2 : quarter // 2 + quarter]
    items += [Item(image=photo, instruction=text(rng, 8)) for photo in asked]
    rng.shuffle(items)
    return Workload("mixed", items)


def instructed(photos: Sequence[bytes], instructions: int) -> Workload:
    """Each picture under several instructions."""
    rng = random.Random("instructions")
    items: list[str | Item] = [
        Item(image=photo, instruction=text(rng, 8)) for photo in photos for _ in range(instructions)
    ]
    return Workload(f"images x {instructions} instructions", items)
