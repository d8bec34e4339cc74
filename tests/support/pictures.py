"""Small pictures for tests, and files that are none."""

import io
import struct
import zlib

import numpy as np
from PIL import Image, ImageDraw

from abc_embed.inputs import ImageInput, open_image

RED = (200, 30, 40)


def painted(width: int = 30, height: int = 20) -> Image.Image:
    """A picture without symmetry: its upper left corner is red, the rest a ramp of blue."""
    picture = Image.new("RGB", (width, height))
    picture.putdata([(0, 0, (7 * n) % 256) for n in range(width * height)])
    ImageDraw.Draw(picture).rectangle((0, 0, width // 3, height // 4), fill=RED)
    return picture


def encoded(picture: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


def pixels(image: ImageInput, **options: int) -> np.ndarray:
    opened = open_image(image, **options)
    assert opened.mode == "RGB"
    return np.asarray(opened)


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds next to nothing."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IDAT", zlib.compress(b"\0" * 100))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + body + chunk(b"IEND", b"")
