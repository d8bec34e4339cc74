"""A picture in any format -> upright RGB: limits asked first, and one kind of error.

It stands in for `PIL.Image.open`, as Pillow keeps its decompression-bomb limit in a process-wide
variable and warns on stderr, and hands some formats to outside programs (EPS goes to Ghostscript).
Here the limits are arguments and the formats are a short list of plain pictures.
"""

import contextlib
import ctypes
import logging
import os
import re
import struct
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

import PIL
from PIL import Image, ImageFile, ImageMode

from abc_embed.errors import (
    ImageError,
    ImageTooLargeError,
    InputError,
    NotAnImageError,
    TruncatedImageError,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

DECODE_BYTES = 2**30
"""Memory that pictures take while they are unpacked, over all threads of the process."""
_BYTES_PER_PIXEL = 12
"""`DECODE_BYTES` for a picture of `inputs.DECODE_LIMIT`; a higher limit allows so much a pixel."""
_FORMATS = (
    *("PNG", "JPEG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "ICO", "QOI"),
    *("JPEG2000", "AVIF", "HEIF"),  # HEIF only where the package for it is installed
)
# Bytes per pixel at the height of unpacking, as measured; what is not here takes its mode's.
_DECODER_BYTES = {"WEBP": 16, "JPEG2000": 20, "AVIF": 12, "HEIF": 12, "ICO": 12, "TIFF": 12}
_SMALL_MODES = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2, "I;16L": 2, "I;16N": 2}
_READ_WHOLE = ("WEBP", "AVIF", "HEIF")  # their readers begin with all bytes of the file
_TILE = 2048
"""Side of the pieces in which colours are converted: what that takes is small then."""
_HEIC_BRANDS = {b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis"}
_TRANSPOSED = (5, 6, 7, 8)  # EXIF orientations whose sides change places
# EXIF orientation (1 = upright) -> the transposition that undoes it.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ORIENTATION_TAG, _DATE_TAG, _EXIF_IFD, _TAKEN_TAG = 0x0112, 0x0132, 0x8769, 0x9003

_PIL = re.compile(r"PIL\.")

T = TypeVar("T")
Box = tuple[int, int, int, int]
"""Left, top, right, bottom."""


# -- what can go wrong -------------------------------------------------------------------------


def guard(label: str, read: Callable[[], T]) -> T:
    """What `read` gives; all that a reader of pictures raises becomes the picture's own error.

    That error is made anew: the first one holds the frames it came through, and they the pixels.

    Raises:
        InputError: mostly an `ImageError`; begins with `label`.
    """
    _silence_readers()
    try:
        return read()
    except Exception as problem:  # noqa: BLE001  (of Pillow's readers and its plugins, anything)
        error = _as_input_error(problem, label)
    try:
        raise error
    finally:
        del error  # which would hold itself through this frame


def _as_input_error(problem: Exception, label: str) -> InputError:
    if isinstance(problem, InputError):
        return type(problem)(str(problem))
    if isinstance(problem, Image.DecompressionBombError):
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        return ImageTooLargeError(
            f"{label} would unpack to more than Pillow's own limit of {limit:,} pixels; "
            "if you trust it, raise PIL.Image.MAX_IMAGE_PIXELS, else make it smaller"
        )
    if isinstance(problem, MemoryError):
        return ImageTooLargeError(f"{label} does not fit into memory; make it smaller")
    if isinstance(problem, OSError) and problem.errno is not None:  # not one of Pillow's own
        return ImageError(f"{label} cannot be read ({problem.strerror}); check its disk")
    why = (str(problem).strip() or type(problem).__name__).splitlines()[0][:150]
    return TruncatedImageError(f"{label} is damaged or cut short ({why}); get the file again")


def _silence_readers() -> None:
    """Keep readers from writing what they think of a file to stderr; what matters is raised."""
    _silence_for_good()
    # Not `catch_warnings`, which threads cannot share. Warnings of bombs are no UserWarning.
    if not any(entry[2] is UserWarning and entry[3] == _PIL for entry in warnings.filters):
        warnings.filterwarnings("ignore", category=UserWarning, module=_PIL.pattern)


@cache
def _silence_for_good() -> None:
    logging.getLogger("PIL").addHandler(logging.NullHandler())  # else what is logged is printed
    folder = Path(PIL.__file__).parent
    for path in (*folder.parent.glob("pillow.libs/libtiff*"), *folder.glob(".dylibs/libtiff*")):
        with contextlib.suppress(OSError, AttributeError):  # linked otherwise
            library = ctypes.CDLL(str(path))
            library.TIFFSetErrorHandler(None)
            library.TIFFSetWarningHandler(None)


# -- limits ------------------------------------------------------------------------------------


class _MemoryBudget:
    """Bytes in use by threads that unpack; who would exceed the total waits, or is alone."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """As new; for a forked child, where the other threads are gone."""
        self._changed = threading.Condition()
        self._used = 0
        self._thread = threading.local()

    @contextlib.contextmanager
    def hold(self) -> Iterator[None]:
        """What this thread takes inside is given back at the end of the block, not before."""
        if getattr(self._thread, "amounts", None) is not None:
            yield
            return
        self._thread.amounts = []
        try:
            yield
        finally:
            amounts, self._thread.amounts = self._thread.amounts, None
            self._give_back(sum(amounts))

    def take(self, amount: int) -> None:
        """Wait until there is room; a thread that holds some already does not wait."""
        amounts: list[int] = self._thread.amounts
        with self._changed:
            while not amounts and self._used and self._used + amount > DECODE_BYTES:
                self._changed.wait()
            self._used += amount
        amounts.append(amount)

    def _give_back(self, amount: int) -> None:
        with self._changed:
            self._used -= amount
            self._changed.notify_all()


_budget = _MemoryBudget()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_budget.reset)
hold_memory = _budget.hold
"""A block that opens a picture and makes it small: its memory counts until the block ends."""


def _check_size(size: tuple[int, int], label: str, decode_limit: int) -> None:
    width, height = size
    if width * height > decode_limit:
        raise ImageTooLargeError(
            f"{label} would unpack to {width} x {height} = {width * height:,} pixels, more than "
            f"the limit of {decode_limit:,} pixels; "
            "if you trust it, raise decode_limit (--decode-limit), else make it smaller"
        )
    if width * height == 0:
        raise NotAnImageError(f"{label} has no pixels; give an image of at least 1 x 1")


def unpack_bytes(pixels: int, mode: str = "RGB", kind: str = "") -> int:
    """Memory that unpacking so many pixels takes: as they are, and turned or as RGB."""
    return pixels * max(_SMALL_MODES.get(mode, 4) + 4, _DECODER_BYTES.get(kind, 0))


def _take_memory(picture: Image.Image, label: str, decode_limit: int) -> None:
    """Count what unpacking takes, which the header says; wait for other threads if need be."""
    needed = unpack_bytes(picture.width * picture.height, picture.mode, picture.format or "")
    most = max(DECODE_BYTES, _BYTES_PER_PIXEL * decode_limit)
    if needed > most:
        raise ImageTooLargeError(
            f"{label} would take {needed / 1e9:.1f} GB to unpack ({picture.width} x "
            f"{picture.height} pixels as {picture.format}), more than the limit of "
            f"{most / 1e9:.1f} GB; "
            "if you trust it, raise decode_limit (--decode-limit), else make it smaller"
        )
    _budget.take(needed)


def _icon_sizes(stream: BinaryIO) -> Iterator[tuple[int, int]]:
    """Of all pictures in an ICO as they say themselves; what its head says need not be true."""
    count = struct.unpack("<H", stream.read(6)[4:].ljust(2, b"\0"))[0]
    entries = stream.read(16 * count)
    for start in range(0, len(entries) - 15, 16):
        stream.seek(struct.unpack_from("<I", entries, start + 12)[0])
        head = stream.read(24).ljust(24, b"\0")
        if head.startswith(b"\x89PNG\r\n\x1a\n"):
            yield struct.unpack_from(">II", head, 16)
        else:  # a bitmap, whose height is that of its colours and its mask
            old = head.startswith(b"\x0c\0\0\0")
            width, height = struct.unpack_from("<HH" if old else "<ii", head, 4)
            yield abs(width), abs(height) // 2


# -- opening -----------------------------------------------------------------------------------


def decode_stream(stream: BinaryIO, label: str, decode_limit: int) -> Image.Image:
    """A picture that is the caller's alone; see `inputs.open_image`. Call it inside a `guard`."""
    with hold_memory():
        # Not through a variable, which would hold the first picture while it is turned.
        result = _unpack(_identify(stream, label, decode_limit), label, decode_limit)
        # A reader may hold the file and more; the pixels alone go on.
        return result._new(result.im) if isinstance(result, ImageFile.ImageFile) else result


def decode_picture(picture: Image.Image, label: str, decode_limit: int) -> Image.Image:
    """The same of a Pillow image, which is left as it was, but for being unpacked."""
    with hold_memory():
        result = _unpack(picture, label, decode_limit)
        return result.copy() if result is picture else result


@dataclass(frozen=True, slots=True)
class Header:
    """What a picture's file says before it is unpacked."""

    format: str
    width: int
    """As it is seen, turned as its EXIF data say; so is `height`."""
    height: int
    taken: str | None
    """EXIF's date, as it stands there."""
    plain: bool
    """Whether every program sees in the file what is seen here: one upright picture, opaque, of
    8-bit grey or RGB."""
    bits: int
    """Of a pixel."""


def decode_header(stream: BinaryIO, label: str, decode_limit: int) -> Header:
    """The header of a picture; call it inside a `guard`."""
    with hold_memory():
        picture = _identify(stream, label, decode_limit)
        width, height = picture.size
        _check_size(picture.size, label, decode_limit)
        _take_memory(picture, label, decode_limit)  # EXIF may stand behind the pixels
        kind, taken = str(picture.format), None
        orientation = _orientation(picture)
        if kind != "TIFF" and orientation in _TRANSPOSED:  # TIFF's reader turns itself
            width, height = height, width
        plain = orientation not in _UPRIGHT and picture.mode in ("L", "P", "RGB")
        plain = plain and picture.info.get("transparency") is None
        # Further pictures in a JPEG are passed over by every program.
        plain = plain and not (kind != "MPO" and getattr(picture, "is_animated", False))
        with contextlib.suppress(Exception):  # as `_orientation`
            exif = picture.getexif()
            taken = exif.get_ifd(_EXIF_IFD).get(_TAKEN_TAG) or exif.get(_DATE_TAG)
        mode = ImageMode.getmode(picture.mode)
        bits = len(mode.bands) * (1 if mode.typestr == "|b1" else 8 * int(mode.typestr[2:]))
        return Header(kind, width, height, taken if isinstance(taken, str) else None, plain, bits)


def _identify(stream: BinaryIO, label: str, decode_limit: int) -> ImageFile.ImageFile:
    """Read the header with the first reader that knows it; no pixel is unpacked yet."""
    prefix = stream.read(16)
    if not prefix:
        raise NotAnImageError(f"{label} is empty; give an image file")
    tried: set[str] = set()
    # The common readers first: the rest cost time.
    for register in (Image.preinit, Image.init, _register_heif):
        register()
        for name in _FORMATS:
            if name in tried or name not in Image.OPEN:
                continue
            tried.add(name)
            factory, accept = Image.OPEN[name]
            if accept is None or accept(prefix.ljust(16, b"\0")) is not True:
                continue
            if name == "AVIF" and _is_heic(stream):
                continue
            stream.seek(0)
            if name == "ICO":  # its reader unpacks at once
                for width, height in _icon_sizes(stream):
                    if width * height:
                        _check_size((width, height), label, decode_limit)
                        _budget.take(_DECODER_BYTES["ICO"] * width * height)
            if name in _READ_WHOLE and stream.seek(0, os.SEEK_END) > DECODE_BYTES // 4:
                raise ImageTooLargeError(
                    f"{label} is a {name} file of more than {DECODE_BYTES // 4:,} bytes; "
                    "make it smaller"
                )
            stream.seek(0)
            return factory(stream, "")
    if _is_heic(stream):
        raise NotAnImageError(
            f"{label} is a HEIC picture, which needs an optional package; run: "
            "pip install 'abc-embed[heif]', or convert it to JPEG"
        )
    raise NotAnImageError(f"{label} is not an image of a known format; convert it to PNG or JPEG")


@cache
def _register_heif() -> None:
    with contextlib.suppress(ImportError):
        import pillow_heif

        pillow_heif.register_heif_opener()


def _is_heic(stream: BinaryIO) -> bool:
    """Whether a file says so, and not that it is AVIF, which may begin alike."""
    stream.seek(0)
    head = stream.read(64)
    box = head[: int.from_bytes(head[:4], "big")]
    brands = {box[start : start + 4] for start in range(8, len(box), 4)}
    return box[4:8] == b"ftyp" and not _HEIC_BRANDS.isdisjoint(brands) and b"avif" not in brands


def _unpack(picture: Image.Image, label: str, decode_limit: int) -> Image.Image:
    """RGB, upright; the picture itself where it is that already."""
    _check_size(picture.size, label, decode_limit)
    _take_memory(picture, label, decode_limit)
    key = _colour_key(picture)
    picture.load()
    if key is not None and key != picture.info.get("transparency"):
        picture = picture.copy()
        picture.info["transparency"] = key
    method = _UPRIGHT.get(_orientation(picture))
    if method is not None:
        picture = picture.transpose(method)
    return _to_rgb(picture, label)


def _orientation(picture: Image.Image) -> int:
    value = None
    with contextlib.suppress(Exception):  # damaged EXIF is no reason to refuse the picture
        value = picture.getexif().get(_ORIENTATION_TAG)
    return value if isinstance(value, int) else 1  # no int where EXIF is damaged, too


def _colour_key(picture: Image.Image) -> Any:
    """A PNG's transparent colour in values of the unpacked picture; Pillow has it as stored."""
    key = picture.info.get("transparency")
    tiles = getattr(picture, "tile", None)
    raw = tiles[0][3] if tiles else None
    if raw in ("L;2", "L;4") and isinstance(key, int):
        return key * (85 if raw == "L;2" else 17)
    if raw == "RGB;16B" and isinstance(key, tuple):
        return tuple(value >> 8 for value in key)
    return key


# -- colours -----------------------------------------------------------------------------------


def _to_rgb(picture: Image.Image, label: str) -> Image.Image:
    """The picture itself where it is plain RGB."""
    if picture.mode == "RGB" and not picture.has_transparency_data:
        return picture
    return _by_tiles(picture.size, lambda box: _tile_to_rgb(picture, box, label))


def _by_tiles(size: tuple[int, int], make: Callable[[Box], Image.Image]) -> Image.Image:
    """An RGB picture whose tiles are made one by one, so that what making takes stays small."""
    width, height = size
    if width <= _TILE and height <= _TILE:
        return make((0, 0, width, height))
    result = Image.new("RGB", size)
    for top in range(0, height, _TILE):
        for left in range(0, width, _TILE):
            box = (left, top, min(left + _TILE, width), min(top + _TILE, height))
            result.paste(make(box), box)
    return result


def _tile_to_rgb(picture: Image.Image, box: Box, label: str) -> Image.Image:
    if box != (0, 0, *picture.size):
        picture = picture.crop(box)
    mode = picture.mode
    if mode.startswith("I;16") or mode in ("I", "F"):
        import numpy as np

        return _from_values(np.asarray(picture), picture.info.get("transparency"), label)
    try:
        if not picture.has_transparency_data:
            return picture.convert("RGB")
        if mode == "La":  # Pillow knows no direct way from here to RGBA
            picture = picture.convert("LA")
        white = Image.new("RGBA", picture.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, picture.convert("RGBA")).convert("RGB")
    except ValueError:
        raise NotAnImageError(
            f"{label} has the colour mode {mode}; convert it to RGB first"
        ) from None


def _from_values(values: "NDArray[Any]", key: object, label: str) -> Image.Image:
    """A picture of grey values in more than 8 bits; those that equal `key` are transparent."""
    if values.dtype.kind == "f":
        return _from_eight_bits(values, label)
    if values.min() < 0 or values.max() > 0xFFFF:  # wider ones have no agreed white
        raise NotAnImageError(f"{label} has 32-bit values; convert it to 8 or 16 bits first")
    values = values.astype("uint16")
    if isinstance(key, int):
        values[values == key] = 0xFFFF
    return _from_eight_bits(values, label)


def decode_array(array: "NDArray[np.generic]", label: str) -> Image.Image:
    """An array `(H, W)` or `(H, W, 1 | 3 | 4)` as RGB."""
    shape = "x".join(map(str, array.shape))
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim != 2 and (array.ndim != 3 or array.shape[2] not in (3, 4)):
        raise NotAnImageError(
            f"{label} has the shape {shape}; give height x width, or height x width x 1, 3 or 4"
        )
    if array.size == 0:
        raise NotAnImageError(f"{label} has no pixels (shape {shape}); give at least 1 x 1")

    def make(box: Box) -> Image.Image:
        left, top, right, bottom = box
        return _from_eight_bits(array[top:bottom, left:right], label)

    return _by_tiles((array.shape[1], array.shape[0]), make)


def _from_eight_bits(array: "NDArray[Any]", label: str) -> Image.Image:
    import numpy as np

    picture = Image.fromarray(np.ascontiguousarray(_eight_bits(array, label)))
    return _tile_to_rgb(picture, (0, 0, *picture.size), label)


def _eight_bits(array: "NDArray[Any]", label: str) -> "NDArray[np.uint8]":
    import numpy as np

    if array.dtype == np.uint8:
        return array.astype(np.uint8, copy=False)
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * np.uint8(255)
    if array.dtype.newbyteorder("=") == np.uint16:  # rounded to nearest: 65535 -> 255, 257 -> 1
        return ((array.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)
    if np.issubdtype(array.dtype, np.floating):
        with np.errstate(invalid="ignore"):  # of a NaN that signals, which is refused below
            values = array.astype(np.float64)
        if not (values.min() >= 0 and values.max() <= 1):  # written so that NaN fails too
            raise NotAnImageError(f"{label} has float values outside 0 to 1; scale them first")
        return np.rint(values * 255).astype(np.uint8)
    raise NotAnImageError(f"{label} holds {array.dtype}; use uint8, uint16, bool or float 0 to 1")
