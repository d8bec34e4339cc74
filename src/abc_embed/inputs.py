"""What can be embedded: texts, and pictures however they are given.

Pillow is imported when a picture is opened; of items that a server embeds none is.
"""

import base64
import binascii
import errno
import io
import logging
import os
import re
import sys
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol, TypeAlias, TypeGuard, TypeVar, Union
from urllib.parse import unquote_to_bytes

from abc_embed.errors import (
    EmptyTextError,
    ImageError,
    ImageNotFoundError,
    InputError,
    NotAnImageError,
    RemoteImageError,
    TextError,
)
from abc_embed.storage.files import open_file
from abc_embed.storage.hashing import short_hash

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image

    from abc_embed.decoding import Header

DECODE_LIMIT = 89_478_485
"""Largest picture that is unpacked, in pixels: Pillow's own warning line (256 MiB as RGB)."""
IMAGE_SUFFIXES = frozenset(
    {
        *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".gif", ".bmp", ".dib"),
        *(".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".ico", ".qoi"),
        *(".jp2", ".j2k", ".jpx", ".avif", ".heic", ".heif"),
    }
)
"""What the formats that are read here are called on disk."""


class TensorLike(Protocol):
    """What a torch tensor has that is needed here; torch is not imported for it."""

    @property
    def ndim(self) -> int: ...
    def detach(self) -> Any: ...


ImageInput: TypeAlias = Union[
    str,
    os.PathLike[str],
    bytes,
    BinaryIO,
    "Image.Image",
    "np.ndarray",
    TensorLike,
    Mapping[str, Any],
]
"""A path, a `data:` URL, the bytes of a file, a file opened for reading, a Pillow image, an array
`(H, W)` or `(H, W, 1 | 3 | 4)` of uint8, uint16, bool, or floats from 0 to 1, a tensor
`(1 | 3 | 4, H, W)` of the same, or the `{"bytes": ..., "path": ...}` of Hugging Face."""

logger = logging.getLogger(__name__)

T = TypeVar("T")

_PIECE = 1 << 14
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")


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


@dataclass(frozen=True, slots=True, eq=False)
class Skipped:
    """An item that could not be embedded, and why."""

    index: int
    """Its place among the items, from 0."""
    item: object
    """The item as it was given."""
    error: InputError
    """What is wrong with it; `str(error)` is one plain sentence."""

    def __post_init__(self) -> None:
        # Its frames would hold what was being read, for as long as this is held.
        self.error.__traceback__ = self.error.__context__ = self.error.__cause__ = None

    def __str__(self) -> str:
        return f"item {self.index}: {self.error}"


def as_item(value: object) -> Item:
    """An `Item` as it is; a text, or a picture that cannot be anything else, as one.

    Such pictures are a Pillow image, a file opened for reading, an array `(H, W, 3)`, a tensor
    `(3, H, W)` and the dict of Hugging Face's data sets.

    Raises:
        InputError: anything else, or an empty text.
    """
    if isinstance(value, Item):
        return value
    if _is_array(value) and value.ndim == 0:
        value = value.item()
    if isinstance(value, str):
        return Item(text=value)
    if _is_picture(value):
        return Item(image=value)  # type: ignore[arg-type]
    kind, mend = type(value).__name__, "give a str, or wrap an image as Item(image=...)"
    if isinstance(value, Mapping):
        names = ", ".join(f"{name!s:.20}" for name in list(value)[:5])
        kind = f"{kind} (of {names})" if names else kind
        mend = "give Item(text=...), or Item(image=..., instruction=...)"
    elif _is_table(value):
        mend = "give one of its columns, as a list"
    elif isinstance(value, set | frozenset):
        mend = "it has no order, so that its vectors could not be told apart; give a list"
    elif _is_array(value) or _is_tensor(value):
        kind = f"{kind} and shape {tuple(value.shape)}"  # type: ignore[attr-defined]
    raise InputError(f"cannot embed a value of type {kind}; {mend}")


def is_single(value: object) -> bool:
    """Whether this is one thing, of whatever type, and not many things to embed."""
    if _is_array(value):  # of texts, of objects, or of pictures
        return value.ndim == 0 or (value.dtype.kind not in "UO" and value.ndim < 4)
    if _is_tensor(value):
        return bool(value.ndim < 4)  # type: ignore[attr-defined]
    one = (str, bytes, Item, Mapping, set, frozenset)
    return (
        isinstance(value, one)
        or _is_table(value)
        or _is_picture(value)
        or not isinstance(value, Iterable)
    )


def _is_picture(value: object) -> bool:
    """Whether this can be nothing but a picture."""
    if _is_array(value):
        return value.ndim == 3 and value.shape[2] in (1, 3, 4)
    if _is_tensor(value):
        return bool(value.ndim == 3)  # type: ignore[attr-defined]
    return _is_pillow(value) or _is_file(value) or _is_image_dict(value)


def _is_array(value: object) -> "TypeGuard[np.ndarray]":
    """Of NumPy, which is not imported for it: before that there is no array."""
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, numpy.ndarray)


def _is_pillow(value: object) -> "TypeGuard[Image.Image]":
    """As `_is_array`."""
    pillow = sys.modules.get("PIL.Image")
    return pillow is not None and isinstance(value, pillow.Image)


def _is_tensor(value: object) -> bool:
    return hasattr(value, "detach") and hasattr(value, "ndim")


def _is_file(value: object) -> bool:
    return hasattr(value, "read") and not isinstance(value, io.TextIOBase)


def _is_image_dict(value: object) -> bool:
    return isinstance(value, Mapping) and len(value) > 0 and set(value) <= {"bytes", "path"}


def _is_table(value: object) -> bool:
    return hasattr(value, "columns") or hasattr(value, "column_names")


def warn_of_paths(values: Iterable[T]) -> Iterator[T]:
    """The values as they are; the first text among them that names an image file is warned of."""
    warned = False
    for value in values:
        text = value.text if isinstance(value, Item) else value
        if not warned and isinstance(text, str) and _names_image(text):
            logger.warning(
                "%r is embedded as words, though there is an image file of that name; "
                "to embed the picture, give Item(image=%r)",
                *(text, text),
            )
            warned = True
        yield value


def _names_image(text: str) -> bool:
    if len(text) > 1000 or os.path.splitext(text)[1].lower() not in IMAGE_SUFFIXES:
        return False
    try:
        return os.path.isfile(text)
    except ValueError:  # a text that cannot be a path
        return False


def describe_image(image: ImageInput) -> str:
    """A short name of an image for messages: its path in quotes, or what it was given as."""
    if isinstance(image, Mapping) and image.get("path"):
        image = image["path"]
    if isinstance(image, str) and image[:5].lower() == "data:":
        return "the image given as data: URL"
    if isinstance(image, str | os.PathLike):
        name = str(image)
        return repr(name if len(name) <= 200 else f"{name[:120]}...{name[-40:]}")
    if _is_pillow(image):
        return "the image given as Pillow image"
    kind = type(image).__name__
    return f"the image given as {'array' if _is_array(image) else kind}"


def open_image(image: ImageInput, *, decode_limit: int = DECODE_LIMIT) -> "Image.Image":
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
    from abc_embed.decoding import guard

    label = describe_image(image)
    return guard(label, lambda: _open(image, label, decode_limit))


def read_header(image: ImageInput, *, decode_limit: int = DECODE_LIMIT) -> "Header":
    """What an image file says of itself, as `open_image` would show it.

    Raises:
        ImageError: as `open_image`, as far as the header tells.
    """
    from abc_embed.decoding import decode_header, guard

    label = describe_image(image)

    def read() -> "Header":
        with _open_stream(image, label) as stream:
            return decode_header(stream, label, decode_limit)

    return guard(label, read)


def _open(image: ImageInput, label: str, decode_limit: int) -> "Image.Image":
    from abc_embed.decoding import decode_array, decode_picture, decode_stream

    if _is_tensor(image):
        image = _tensor_values(image)
    if _is_array(image):
        return decode_array(image, label)
    if _is_pillow(image):
        return decode_picture(image, label, decode_limit)
    with _open_stream(image, label) as stream:
        return decode_stream(stream, label, decode_limit)


def _tensor_values(tensor: Any) -> "NDArray[np.generic]":
    tensor = tensor.detach().cpu()
    values: NDArray[np.generic] = (tensor.float() if tensor.is_floating_point() else tensor).numpy()
    colours_first = values.ndim == 3 and values.shape[0] in (1, 3, 4)
    return values.transpose(1, 2, 0) if colours_first else values


def _open_stream(image: object, label: str) -> BinaryIO:
    if _is_image_dict(image):
        image = image.get("bytes") or image.get("path")  # type: ignore[attr-defined]
        if image is None:
            raise NotAnImageError("the image's dict holds neither bytes nor a path; give one")
    if isinstance(image, bytes):
        return io.BytesIO(image)
    if hasattr(image, "read"):
        return io.BytesIO(_all_bytes(image, label))
    if not isinstance(image, str | os.PathLike):
        raise NotAnImageError(
            f"cannot read an image from a value of type {type(image).__name__}; give a path, "
            "bytes, a file, a Pillow image, a NumPy array, a tensor or a data: URL"
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
        return open_file(image)
    except FileNotFoundError:
        raise ImageNotFoundError(f"there is no file {label}; check the path") from None
    except IsADirectoryError:
        raise ImageNotFoundError(f"{label} is a folder; give the path of an image file") from None
    except PermissionError:
        raise ImageError(f"{label} may not be read; check its permissions") from None
    except (OSError, ValueError) as error:  # a pipe, a name too long, or with a NUL in it
        if getattr(error, "errno", None) == errno.EIO:
            raise
        why = getattr(error, "strerror", None) or error
        raise ImageNotFoundError(f"{label} cannot be opened as a path ({why})") from None


def _all_bytes(file: Any, label: str) -> bytes:
    """A file's bytes from its beginning, so that it can be embedded twice."""
    if file.seekable():
        file.seek(0)
    data = file.read()
    if not isinstance(data, bytes):
        raise NotAnImageError(f"{label} was not opened to read bytes; open it with 'rb'")
    return data


def _data_url(url: str) -> bytes:
    header, comma, body = url.partition(",")
    if not comma:
        raise NotAnImageError("the data: URL has no comma, so it holds no data; give a whole one")
    data = _unquote(body.encode("utf-8", "surrogatepass"))
    if not header.lower().endswith(";base64"):
        return data
    try:
        return base64.b64decode(data.translate(None, b" \t\n\r\v\f"), validate=True)
    except binascii.Error:
        raise NotAnImageError(
            "the data: URL is not valid base64; encode the bytes of the file again"
        ) from None


def _unquote(body: bytes) -> bytes:
    """Percent codes as their bytes; piece by piece, as `unquote_to_bytes` makes long lists."""
    if b"%" not in body:
        return body
    pieces, start = [], 0
    while start < len(body):
        end = start + _PIECE
        code = body.find(b"%", end - 2, end)  # one that the end of the piece would cut
        end = end if code < 0 else code
        pieces.append(unquote_to_bytes(body[start:end]))
        start = end
    return b"".join(pieces)


def image_key(value: object) -> Hashable | None:
    """Equal for values that surely show the same picture; None for a text.

    Paths and bytes compare by content. Pictures and arrays compare by identity, which holds only
    as long as the value itself is held: see `is_stable_key`.
    """
    image = value.image if isinstance(value, Item) else None
    if isinstance(image, str | os.PathLike):
        name = os.fspath(image)
        return (
            name if len(name) < 1000 else short_hash(name.encode("utf-8", "surrogatepass"))
        )  # a data: URL
    if isinstance(image, bytes):
        return short_hash(image)
    return None if image is None else id(image)


def is_stable_key(source: Hashable) -> bool:
    """Whether a key still means the same picture when its value is gone."""
    return not isinstance(source, int)


def group_by_image(images: Sequence[Hashable | None]) -> list[int]:
    """Indices in an order in which those of one picture follow each other; texts likewise."""
    groups: dict[Hashable | None, list[int]] = {}
    for index, image in enumerate(images):
        groups.setdefault(image, []).append(index)
    return [index for group in groups.values() for index in group]
