"""Limits, colours and damage of a picture, as its file says them and as it is unpacked."""

import io
import struct
import subprocess
import sys
import threading
import time
import traceback
import tracemalloc
import types
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from pictures import chunk, encoded, painted, pixels, png_header
from PIL import Image, ImageFile

from abc_embed import decoding, errors
from abc_embed.inputs import ImageInput, open_image


def png(depth: int, colour: int, row: bytes, width: int, *chunks: bytes) -> bytes:
    """A PNG of one row."""
    header = struct.pack(">IIBBBBB", width, 1, depth, colour, 0, 0, 0)
    body = chunk(b"IDAT", zlib.compress(b"\0" + row))
    head = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    return head + b"".join(chunks) + body + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("depth", "colour", "row", "key"),
    [
        (1, 0, b"\x40", b"\0\1"),
        (2, 0, b"\x10", b"\0\1"),
        (4, 0, b"\x03", b"\0\3"),
        (8, 0, b"\0\3", b"\0\3"),
        (16, 0, b"\0\0\x12\x34", b"\x12\x34"),
        (8, 2, b"\0\0\0\1\2\3", b"\0\1\0\2\0\3"),
        (16, 2, bytes(6) + b"\x12\x34" * 3, b"\x12\x34" * 3),
    ],
)
def test_the_transparent_colour_of_a_png_in_every_depth(
    depth: int, colour: int, row: bytes, key: bytes
) -> None:
    data = png(depth, colour, row, 2, chunk(b"tRNS", key))
    assert pixels(data)[0].tolist() == [[0, 0, 0], [255, 255, 255]]


def test_a_palette_that_is_missing_is_damage() -> None:
    with pytest.raises(errors.TruncatedImageError, match="damaged or cut short"):
        open_image(png(8, 3, b"\0\1", 2))


def test_a_picture_that_memory_does_not_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(ImageFile.ImageFile, "load", fail)
    with pytest.raises(errors.ImageTooLargeError, match="does not fit into memory"):
        open_image(encoded(painted(), "BMP"))


def webp_header(width: int, height: int) -> bytes:
    """34 bytes that unpack to anything."""
    size = struct.pack("<I", (width - 1) | (height - 1) << 14)
    body = b"WEBPVP8L" + struct.pack("<I", 13) + b"\x2f" + size + b"\x88\x88\x08" + bytes(6)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def icon(width: int, height: int) -> bytes:
    """An ICO that says 16 x 16 of a PNG of another size."""
    data = png_header(width, height)
    entry = struct.pack("<BBBBHHII", 16, 16, 0, 0, 1, 32, len(data), 22)
    return struct.pack("<HHH", 0, 1, 1) + entry + data


def test_limits_are_asked_before_anything_is_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[object] = []
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: loaded.append(self))
    with pytest.raises(errors.ImageTooLargeError, match=r"1.4 GB to unpack .* as WEBP"):
        open_image(webp_header(16_000, 5_500))
    with pytest.raises(errors.ImageTooLargeError, match="9000 x 9999"):
        open_image(icon(9_000, 9_999))
    assert not loaded


def test_a_higher_limit_is_one_of_memory_too(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(painted(), "WEBP")
    monkeypatch.setattr(decoding, "DECODE_BYTES", 8 * len(data))
    with pytest.raises(errors.ImageTooLargeError, match="raise decode_limit"):
        open_image(data, decode_limit=600)
    assert open_image(data, decode_limit=900).size == (30, 20)


def test_colours_are_the_same_piece_by_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    grey = painted(33, 21).convert("L")
    pictures = [
        painted(33, 21).convert("RGBA").rotate(20),
        painted(33, 21).quantize(),
        Image.fromarray(np.asarray(grey).astype(np.uint16) * 257),
        Image.fromarray(np.asarray(grey).astype(np.float32) / 255),
    ]
    pictures[1].info["transparency"] = 0
    sources: list[ImageInput] = [*pictures, np.asarray(pictures[0])]
    whole = [pixels(source) for source in sources]
    monkeypatch.setattr(decoding, "_TILE", 8)
    for source, expected in zip(sources, whole, strict=True):
        np.testing.assert_array_equal(pixels(source), expected)


def test_threads_share_the_memory_for_unpacking(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "DECODE_BYTES", 8_000)  # one picture of 30 x 20 at 8 bytes, not 2
    budget = decoding._MemoryBudget()
    inside, most = [], []
    lock = threading.Lock()

    def unpack(_: int) -> None:
        with budget.hold():
            budget.take(4_800)
            with lock:
                inside.append(1)
                most.append(len(inside))
            time.sleep(0.002)
            with lock:
                inside.pop()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(unpack, range(12)))
    assert most == [1] * 12
    with budget.hold():
        budget.take(99_999)  # more than all, but alone


def test_an_error_holds_no_pixels() -> None:
    data = encoded(painted(3000, 2000), "BMP")[:-5]
    caught = []
    tracemalloc.start()
    for _ in range(5):
        try:
            open_image(data)
        except errors.ImageError as error:
            caught.append(error)
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert [error.__context__ for error in caught] == [None] * 5
    frames = [frame for error in caught for frame, _ in traceback.walk_tb(error.__traceback__)]
    held_pictures = [v for f in frames for v in f.f_locals.values() if isinstance(v, Image.Image)]
    assert not held_pictures and held < 1e6


QUIET = """
import io, sys
from PIL import Image
from abc_embed.errors import ImageError
from abc_embed.inputs import open_image
for data in sys.stdin.buffer.read().split(b"--next--"):
    try:
        open_image(data)
    except ImageError:
        pass
"""


def test_readers_write_nothing_to_stderr() -> None:
    exif = encoded(painted(), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\x7fgarbage")
    tiff = bytearray(encoded(painted(300, 200), "TIFF", compression="tiff_lzw"))
    tiff[20:400] = bytes(380)
    count = b"\x15\x01\x03\0\1\0\0\0"  # the tag that says how many colours there are
    samples = encoded(painted(), "TIFF").replace(count + b"\x03", count + b"\x30")
    data = b"--next--".join([exif, bytes(tiff), samples, encoded(painted(), "TIFF")[:-40]])
    done = subprocess.run([sys.executable, "-c", QUIET], input=data, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("brands", [b"heic\0\0\0\0mif1heic", b"mif1\0\0\0\0mif1heic"])
def test_heic_names_the_package(brands: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    decoding._register_heif.cache_clear()
    with pytest.raises(errors.NotAnImageError, match=r"pip install 'abc-embed\[heif\]'"):
        open_image(b"\0\0\0\x18ftyp" + brands + bytes(40))


def test_heic_is_read_where_the_package_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def register() -> None:  # a stand-in: what is HEIC is a PNG behind 24 bytes
        def open_it(stream: io.BytesIO, name: str) -> Image.Image:
            return Image.open(io.BytesIO(stream.read()[24:]))

        monkeypatch.setitem(Image.OPEN, "HEIF", (open_it, lambda prefix: prefix[4:8] == b"ftyp"))

    module = types.SimpleNamespace(register_heif_opener=register)
    monkeypatch.setitem(sys.modules, "pillow_heif", module)  # type: ignore[arg-type]
    decoding._register_heif.cache_clear()
    data = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + encoded(painted())
    assert open_image(data).size == (30, 20)
    decoding._register_heif.cache_clear()
