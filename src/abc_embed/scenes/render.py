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


def _shown(placed: Placed, width: int, height: int) -> tuple[Image.Image, tuple[int, int]]:
    """The thing as RGBA, and where its top left corner is in a picture of that size."""
    # The size is a share of the picture's shorter side.
    longest = max(8, round(placed.size * min(width, height)))
    picture = _picture(placed.thing, longest, placed.flip)
    across, down = picture.size
    return picture, (round(placed.x * width - across / 2), round(placed.y * height - down / 2))


def render(scene: Scene, width: int = 112, height: int | None = None) -> Image.Image:
    """The picture: RGB, `width` × `height` pixels (square when no height is given)."""
    height = width if height is None else height
    canvas = Image.fromarray(np.clip(_background(scene, width, height), 0, 255).astype(np.uint8))
    for placed in scene.placed:
        picture, corner = _shown(placed, width, height)
        canvas.paste(picture, corner, picture)
    return canvas


def box(placed: Placed, width: int, height: int) -> tuple[int, int, int, int]:
    """`(x, y, width, height)` in pixels of the thing in a picture of that size."""
    picture, corner = _shown(placed, width, height)
    return *corner, *picture.size


def which_thing(scene: Scene, width: int, height: int) -> NDArray[np.uint8]:
    """`(height, width)`: number of the thing that each pixel shows, from 1; 0 is the ground."""
    canvas = Image.new("L", (width, height))
    for number, placed in enumerate(scene.placed, start=1):
        picture, corner = _shown(placed, width, height)
        canvas.paste(number, corner, picture.getchannel("A").point(lambda a: 255 if a > 96 else 0))
    return np.asarray(canvas)
