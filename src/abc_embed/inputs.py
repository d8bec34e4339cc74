"""What can be embedded, and how a picture is opened safely.

`open_image` stands in for `PIL.Image.open`, as Pillow keeps its decompression-bomb limit in a
process-wide variable and warns on stderr, and hands some formats to outside programs (EPS goes to
Ghostscript). Here the limit is an argument and the formats are a short list of plain pictures.
"""

import base64
import binascii
import contextlib
import io
import os
import re
import struct
import zlib
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import BinaryIO, TypeAlias
from urllib.parse import unquote_to_bytes

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile

from abc_embed.errors import (
    EmptyTextError,
    ImageError,
    ImageNotFoundError,
    ImageTooLargeError,
    InputError,
    NotAnImageError,
    RemoteImageError,
    TextError,
    TruncatedImageError,
)

ImageInput: TypeAlias = str | os.PathLike[str] | bytes | Image.Image | np.ndarray
"""A path, a `data:` URL, the bytes of a file, a picture, or an array: `(H, W)` or
`(H, W, 1 | 3 | 4)` of uint8, uint16, bool, or floats from 0 to 1."""

DECODE_LIMIT = 89_478_485
"""Largest picture that is unpacked, in pixels: Pillow's own warning line (256 MiB as RGB)."""

_FORMATS = (
    *("PNG", "JPEG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "ICO", "QOI"),
    *("JPEG2000", "AVIF", "HEIF"),  # HEIF only where the user has registered a plugin for it
)
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
# What Pillow's readers are seen to raise on damaged data; a UserWarning where warnings are errors.
_DAMAGE = (
    *(OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError),
    *(OverflowError, RuntimeError, struct.error, zlib.error, UserWarning),
)
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
_ORIENTATION_TAG = 274


class Kind(StrEnum):
    """The three kinds of item; the kind decides the prompt and the adapter (paper, section 3)."""

    TEXT = "text"
    IMAGE = "image"
    INSTRUCTED = "instructed"


@dataclass(frozen=True, slots=True, eq=False)
class Item:
    """One thing to embed: a text, an image, or an image with an instruction.

    An image is opened when it is embedded, not here; it must not change until then.

    Raises:
        InputError: neither text nor image, or both; an instruction without an image.
        EmptyTextError: a text or an instruction without a visible character.
        TextError: a text that is no valid Unicode.

    >>> Item("a dog").kind, Item(image="dog.jpg", instruction="what breed is it?").kind
    (<Kind.TEXT: 'text'>, <Kind.INSTRUCTED: 'instructed'>)
    """

    text: str | None = None
    image: ImageInput | None = None
    instruction: str | None = None

    def __post_init__(self) -> None:
        if self.text is not None and (self.image is not None or self.instruction is not None):
            raise InputError(
                "an item is a text or an image, not both; "
                "to ask something about an image, give Item(image=..., instruction=...)"
            )
        if self.image is None and self.instruction is not None:
            raise InputError("an instruction needs an image; give Item(image=..., instruction=...)")
        if self.image is None and self.text is None:
            raise InputError("the item is empty; give it a text or an image")
        if self.text is not None:
            _check_text(self.text, "text", "give at least one word")
        if self.instruction is not None:
            _check_text(self.instruction, "instruction", "leave it out to embed the image alone")

    @property
    def kind(self) -> Kind:
        """Which of the three kinds this item is."""
        if self.image is None:
            return Kind.TEXT
        return Kind.IMAGE if self.instruction is None else Kind.INSTRUCTED


def _check_text(text: str, what: str, mend: str) -> None:
    if not isinstance(text, str):
        raise TextError(f"the {what} is of type {type(text).__name__}; give a str")
    if not text.strip():
        raise EmptyTextError(f"the {what} is empty; {mend}")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise TextError(
            f"the {what} holds half a surrogate pair, which is no valid Unicode; decode it again"
        ) from None


def as_item(value: object) -> Item:
    """An `Item` as it is; a plain `str` as a text item.

    Raises:
        InputError: anything else, or an empty text.
    """
    if isinstance(value, Item):
        return value
    if isinstance(value, str):
        return Item(text=value)
    raise InputError(
        f"cannot embed a value of type {type(value).__name__}; "
        "give a str, or wrap an image as Item(image=...)"
    )


def describe_image(image: ImageInput) -> str:
    """A short name of an image for messages: its path in quotes, or what it was given as."""
    if isinstance(image, str) and image[:5].lower() == "data:":
        return "the image given as data: URL"
    if isinstance(image, str | os.PathLike):
        name = str(image)
        return repr(name if len(name) <= 200 else f"{name[:120]}...{name[-40:]}")
    kinds = {bytes: "bytes", np.ndarray: "array"}
    return f"the image given as {kinds.get(type(image), 'Pillow image')}"


def open_image(image: ImageInput, *, decode_limit: int = DECODE_LIMIT) -> Image.Image:
    """Open any accepted image as an upright 8-bit RGB picture, read to its last byte.

    The EXIF rotation is applied; transparency is laid on white; grey, palette and CMYK become
    RGB; 16-bit values are scaled to 8; of an animation the first frame is taken (of a Pillow
    image, the frame at which it stands). Colour profiles are not applied.

    `decode_limit` is in pixels: a file that would unpack to more is refused unread.

    Raises:
        ImageNotFoundError: no such file, or a folder.
        RemoteImageError: a web address; nothing is fetched.
        NotAnImageError: not a picture, or of a format, shape or value range not accepted.
        TruncatedImageError: the data breaks off or is damaged.
        ImageTooLargeError: more pixels than `decode_limit`.
    """
    label = describe_image(image)
    if isinstance(image, np.ndarray):
        return _from_array(image, label)
    if isinstance(image, Image.Image):
        return _decode(image, label, decode_limit)
    with _open_stream(image, label) as stream:
        return _decode(_identify(stream, label), label, decode_limit)


def _open_stream(image: str | os.PathLike[str] | bytes, label: str) -> BinaryIO:
    if isinstance(image, bytes):
        return io.BytesIO(image)
    if not isinstance(image, str | os.PathLike):
        raise NotAnImageError(
            f"cannot read an image from a value of type {type(image).__name__}; "
            "give a path, bytes, a Pillow image, a NumPy array or a data: URL"
        )
    if isinstance(image, str) and image[:5].lower() == "data:":
        return io.BytesIO(_data_url(image))
    if isinstance(image, str) and _URL.match(image):
        raise RemoteImageError(
            f"{label} is an address, and nothing is fetched for an item; "
            "download the file and give its path or its bytes"
        )
    try:
        if not os.fspath(image):
            raise ImageNotFoundError("the path of the image is empty; give the path of a file")
        if Path(image).is_dir():
            raise ImageNotFoundError(f"{label} is a folder; give the path of an image file")
        if Path(image).exists() and not Path(image).is_file():
            raise ImageNotFoundError(f"{label} is no ordinary file; give the path of an image file")
        return open(image, "rb")
    except FileNotFoundError:
        raise ImageNotFoundError(f"there is no file {label}; check the path") from None
    except PermissionError:
        raise ImageError(f"{label} may not be read; check its permissions") from None
    except (OSError, ValueError) as error:  # a name too long, or with a NUL in it
        why = getattr(error, "strerror", None) or error
        raise ImageNotFoundError(f"{label} cannot be opened as a path ({why})") from None


def _data_url(url: str) -> bytes:
    header, comma, body = url.partition(",")
    if not comma:
        raise NotAnImageError("the data: URL has no comma, so it holds no data; give a whole one")
    data = unquote_to_bytes(body)
    if not header.lower().endswith(";base64"):
        return data
    try:
        return base64.b64decode(b"".join(data.split()), validate=True)
    except binascii.Error:
        raise NotAnImageError(
            "the data: URL is not valid base64; encode the bytes of the file again"
        ) from None


def _identify(stream: BinaryIO, label: str) -> ImageFile.ImageFile:
    """Read the header with the first reader that knows it; no pixel is unpacked yet."""
    prefix = stream.read(16)
    if not prefix:
        raise NotAnImageError(f"{label} is empty; give an image file")
    tried: set[str] = set()
    for register in (Image.preinit, Image.init):  # the common readers first: the rest cost time
        register()
        for name in _FORMATS:
            if name in tried or name not in Image.OPEN:
                continue
            tried.add(name)
            factory, accept = Image.OPEN[name]
            if accept is None or accept(prefix.ljust(16, b"\0")) is not True:
                continue
            stream.seek(0)
            try:
                return factory(stream, "")
            except Image.DecompressionBombError:
                raise _bomb(label, None, 2 * (Image.MAX_IMAGE_PIXELS or 0)) from None
            except _DAMAGE:
                raise TruncatedImageError(
                    f"{label} begins like a {name} file but its header is damaged or cut short; "
                    "get the file again"
                ) from None
    raise NotAnImageError(f"{label} is not an image of a known format; convert it to PNG or JPEG")


def _bomb(label: str, size: tuple[int, int] | None, limit: int) -> ImageTooLargeError:
    what = "more" if size is None else f"{size[0]} x {size[1]} = {size[0] * size[1]:,} pixels, more"
    return ImageTooLargeError(
        f"{label} would unpack to {what} than the limit of {limit:,} pixels; "
        "if you trust it, raise decode_limit, else make it smaller"
    )


def _decode(picture: Image.Image, label: str, decode_limit: int) -> Image.Image:
    width, height = picture.size
    if width * height > decode_limit:
        raise _bomb(label, picture.size, decode_limit)
    if width * height == 0:
        raise NotAnImageError(f"{label} has no pixels; give an image of at least 1 x 1")
    try:
        picture.load()
    except Image.DecompressionBombError:
        raise _bomb(label, None, 2 * (Image.MAX_IMAGE_PIXELS or 0)) from None
    except _DAMAGE as error:
        raise TruncatedImageError(
            f"{label} is damaged or cut short ({str(error) or type(error).__name__}); "
            "get the file again"
        ) from None
    return _to_rgb(_upright(picture), label)


def _upright(picture: Image.Image) -> Image.Image:
    orientation = None
    with contextlib.suppress(*_DAMAGE):  # damaged EXIF is no reason to refuse the picture
        orientation = picture.getexif().get(_ORIENTATION_TAG)
    # A value that is no int comes from damaged EXIF too.
    method = _UPRIGHT.get(orientation) if isinstance(orientation, int) else None
    return picture if method is None else picture.transpose(method)


def _to_rgb(picture: Image.Image, label: str) -> Image.Image:
    mode = picture.mode
    if mode.startswith("I;16"):
        return _from_array(np.asarray(picture).astype(np.uint16), label)
    if mode == "I":  # 16-bit values in a 32-bit frame (PGM); wider ones have no agreed white
        values = np.asarray(picture)
        if values.min() < 0 or values.max() > 0xFFFF:
            raise NotAnImageError(f"{label} has 32-bit values; convert it to 8 or 16 bits first")
        return _from_array(values.astype(np.uint16), label)
    if mode == "F":
        return _from_array(np.asarray(picture), label)
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


def _from_array(array: NDArray[np.generic], label: str) -> Image.Image:
    shape = "x".join(map(str, array.shape))
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim != 2 and (array.ndim != 3 or array.shape[2] not in (3, 4)):
        raise NotAnImageError(
            f"{label} has the shape {shape}; give height x width, or height x width x 1, 3 or 4"
        )
    if array.size == 0:
        raise NotAnImageError(f"{label} has no pixels (shape {shape}); give at least 1 x 1")
    return _to_rgb(Image.fromarray(np.ascontiguousarray(_eight_bits(array, label))), label)


def _eight_bits(array: NDArray[np.generic], label: str) -> NDArray[np.uint8]:
    if array.dtype == np.uint8:
        return array.astype(np.uint8, copy=False)
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * np.uint8(255)
    if array.dtype.newbyteorder("=") == np.uint16:  # rounded to nearest: 65535 -> 255, 257 -> 1
        return ((array.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)
    if np.issubdtype(array.dtype, np.floating):
        values = array.astype(np.float64)
        if not (values.min() >= 0 and values.max() <= 1):  # written so that NaN fails too
            raise NotAnImageError(f"{label} has float values outside 0 to 1; scale them first")
        return np.rint(values * 255).astype(np.uint8)
    raise NotAnImageError(f"{label} holds {array.dtype}; use uint8, uint16, bool or float 0 to 1")
