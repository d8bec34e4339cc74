"""Pictures of one shape of one colour on a plain ground, and two questions about each."""

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from abc_embed.data.records import RECORDS_FILE, Instruction, Record, write_records
from abc_embed.storage.files import atomic_write, make_folder

SHAPES = ("circle", "square", "triangle")
COLOURS = {
    "red": (200, 40, 40),
    "green": (50, 150, 60),
    "blue": (50, 80, 200),
    "yellow": (235, 205, 60),
    "orange": (240, 140, 40),
    "purple": (130, 60, 160),
    "brown": (120, 80, 45),
    "black": (25, 25, 28),
}
QUESTIONS = {"shape": "what shape is it?", "colour": "what colour is it?"}
"""What is asked of every picture, by kind."""
ANSWERS = {"shape": [f"a {shape}" for shape in SHAPES], "colour": list(COLOURS)}
SIDE = 224
"""Of a picture, in pixels: twice what the bundled model looks at."""
_OVERSAMPLING = 2


def write_shapes(out: Path, count: int, seed: int) -> Path:
    """Write `count` pictures and their records into a folder; the same bytes for the same seed.

    Shapes and colours are drawn independently, so that neither tells the other.
    """
    images = make_folder(out / "images")

    def records() -> Iterator[Record]:
        for number in range(count):
            random = np.random.default_rng([seed, number])
            answers = {kind: str(random.choice(texts)) for kind, texts in ANSWERS.items()}
            shape, colour = answers["shape"].removeprefix("a "), answers["colour"]
            path = images / f"{number:05}.png"
            with atomic_write(path) as file:
                draw(shape, COLOURS[colour], random).save(file, format="PNG")
            yield Record(
                id=f"shape-{seed}-{number:05}",
                image=f"images/{path.name}",
                width=SIDE,
                height=SIDE,
                caption=f"a {colour} {shape}",
                instructions=tuple(
                    Instruction(instruction=QUESTIONS[kind], answer=answer, kind=kind)
                    for kind, answer in answers.items()
                ),
            )

    write_records(out / RECORDS_FILE, records())
    return out


def draw(shape: str, colour: tuple[int, int, int], random: np.random.Generator) -> Image.Image:
    """One picture: the shape at any place, 0.25 to 0.6 of the side wide, turned by any angle."""
    side = SIDE * _OVERSAMPLING
    radius = random.uniform(0.125, 0.3) * side
    x, y = random.uniform(radius, side - radius, 2)
    ground = tuple(int(value) for value in random.integers(190, 256, 3))
    tint = tuple(int(v) for v in np.clip(np.array(colour) + random.integers(-18, 19, 3), 0, 255))
    picture = Image.new("RGB", (side, side), ground)
    pen = ImageDraw.Draw(picture)
    if shape == "circle":
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=tint)
    else:
        corners = {"square": 4, "triangle": 3}[shape]
        turn = random.uniform(0, math.tau)
        angles = [turn + math.tau * corner / corners for corner in range(corners)]
        points = [(x + radius * math.cos(a), y + radius * math.sin(a)) for a in angles]
        pen.polygon(points, fill=tint)
    return picture.resize((SIDE, SIDE), Image.Resampling.LANCZOS)
