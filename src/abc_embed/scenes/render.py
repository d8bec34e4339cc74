"""What a scene looks like: an RGB picture of any side, and the box of each thing in it.

Fast on purpose, since training draws scenes for every step: a sprite is shrunk once per size and
kept.
"""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from abc_embed.scenes.layout import Placed, Scene
from abc_embed.scenes.things import Thing, sprite


@lru_cache(maxsize=16384)
def _picture(thing: Thing, longest: int, flip: bool) -> Image.Image:
    """The sprite as RGBA with its longest side `longest` pixels, mirrored if `flip`."""
    picture = sprite(thing)
    scale = longest / max(picture.size)
    width, height = (max(1, round(s * scale)) for s in picture.size)
    picture = picture.resize((width, height), Image.Resampling.BICUBIC)
    return picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else picture


def _background(scene: Scene, width: int, height: int) -> NDArray[np.float32]:
    """`(height, width, 3)`: the tint, brighter or darker towards one side, with a little grain."""
    across = np.linspace(-26.0, 26.0, width, dtype=np.float32) * scene.shade[0]
    down = np.linspace(-26.0, 26.0, height, dtype=np.float32) * scene.shade[1]
    ground = np.asarray(scene.tint, dtype=np.float32) + (across + down[:, None])[:, :, None]
    if scene.grain:
        rng = np.random.default_rng(scene.seed)
        ground += rng.standard_normal((height, width, 1), dtype=np.float32) * scene.grain
    return ground


def render(scene: Scene, width: int = 112, height: int | None = None) -> Image.Image:
    """The picture: RGB, `width` × `height` pixels (square when no height is given)."""
    height = width if height is None else height
    canvas = Image.fromarray(np.clip(_background(scene, width, height), 0, 255).astype(np.uint8))
    for placed in scene.placed:
        picture = _picture(placed.thing, _longest(placed, width, height), placed.flip)
        x, y, _, _ = box(placed, width, height)
        canvas.paste(picture, (x, y), picture)
    return canvas


def box(placed: Placed, width: int, height: int) -> tuple[int, int, int, int]:
    """`(x, y, width, height)` in pixels of the thing in a picture of that size."""
    w, h = _picture(placed.thing, _longest(placed, width, height), placed.flip).size
    return round(placed.x * width - w / 2), round(placed.y * height - h / 2), w, h


def which_thing(scene: Scene, width: int, height: int) -> NDArray[np.uint8]:
    """`(height, width)`: number of the thing that each pixel shows, from 1; 0 is the ground."""
    canvas = Image.new("L", (width, height))
    for number, placed in enumerate(scene.placed, start=1):
        picture = _picture(placed.thing, _longest(placed, width, height), placed.flip)
        x, y, _, _ = box(placed, width, height)
        canvas.paste(number, (x, y), picture.getchannel("A").point(lambda a: 255 if a > 96 else 0))
    return np.asarray(canvas)


def _longest(placed: Placed, width: int, height: int) -> int:
    """Pixels of the thing's longest side: its size is a share of the picture's shorter side."""
    return max(8, round(placed.size * min(width, height)))
