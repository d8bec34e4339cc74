"""What every measured model has in common: the protocol, and keys of what an item shows.

Does: say what an encoder is, refuse items that one does not take, name an item by its content, make
vectors unit. Does not: know any library.

Shapes: `N` items, `D` width.
"""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from abc_embed.errors import ImageError, ImageNotFoundError, NotFiniteError, UsageError
from abc_embed.inputs import ImageInput, Item, Kind, as_item, describe_image, open_image
from abc_embed.pipeline import image_key

Vectors = NDArray[np.float32]

_NAMES = {
    Kind.TEXT: "a text",
    Kind.IMAGE: "an image alone",
    Kind.INSTRUCTED: "an image with an instruction",
}


class Encoder(Protocol):
    """A model as a benchmark sees it."""

    @property
    def name(self) -> str:
        """What records call it; no path."""
        ...

    @property
    def fingerprint(self) -> str:
        """SHA-256 in hex of the weights and of what else decides a vector."""
        ...

    @property
    def dim(self) -> int:
        """`D`, the length of a vector."""
        ...

    @property
    def takes(self) -> frozenset[Kind]:
        """The kinds of item that it can embed."""
        ...

    def embed(
        self,
        items: Sequence[str | Item],
        *,
        max_pixels: int | None = None,
        progress: bool = False,
    ) -> Vectors:
        """`N` items -> `(N, D)` of unit length, in their order.

        Args:
            items: any mix of the kinds in `takes`.
            max_pixels: the largest area at which a picture is seen; None: as the model says.
            progress: draw a bar on stderr.

        Raises:
            UsageError: an item is of a kind that it does not take.
            InputError: an item cannot be embedded.
            NotFiniteError: a vector is not finite.
        """
        ...

    def describe(self) -> dict[str, Any]:
        """JSON values for a record: config, dtype, device, prompt hash, what it takes."""
        ...


class WrappedEncoder:
    """Another encoder, the same but for `embed`, which those that derive from this one write."""

    def __init__(self, inner: Encoder) -> None:
        self.inner = inner

    @property
    def name(self) -> str:
        """That of the other encoder."""
        return self.inner.name

    @property
    def fingerprint(self) -> str:
        """That of the other encoder."""
        return self.inner.fingerprint

    @property
    def dim(self) -> int:
        """That of the other encoder."""
        return self.inner.dim

    @property
    def takes(self) -> frozenset[Kind]:
        """That of the other encoder."""
        return self.inner.takes

    def describe(self) -> dict[str, Any]:
        """That of the other encoder."""
        return self.inner.describe()


def checked(items: Sequence[str | Item], takes: frozenset[Kind], name: str) -> list[Item]:
    """The items as `Item`s.

    Raises:
        UsageError: one is of a kind that the model does not take.
        InputError: one is no item.
    """
    values = [as_item(item) for item in items]
    for number, item in enumerate(values):
        if item.kind not in takes:
            known = ", ".join(_NAMES[kind] for kind in Kind if kind in takes)
            raise UsageError(
                f"item {number} is {_NAMES[item.kind]}, and {name} takes only {known}; "
                "measure it with what it takes"
            )
    return values


def unit(vectors: ArrayLike, name: str) -> Vectors:
    """`(N, D)` -> the same at unit length, float32.

    Raises:
        NotFiniteError: a vector is not finite, or zero.
    """
    array = np.asarray(vectors, dtype=np.float64)
    norms = np.linalg.norm(array, axis=-1, keepdims=True)
    if not (np.isfinite(norms) & (norms > 0)).all():
        raise NotFiniteError(
            f"{name} gave a vector that is zero or not finite, so it has no direction; "
            "load it with dtype='float32'"
        )
    return np.asarray(array / norms, dtype=np.float32)


def no_path(name: str) -> str:
    """A name fit for a record: of a path its last part; "owner/name" of a hub stays."""
    is_path = Path(name).is_absolute() or name.startswith((".", "~")) or Path(name).exists()
    return Path(name).resolve().name if is_path else name


def takes_in_words(takes: frozenset[Kind]) -> list[str]:
    """The kinds in a fixed order, as JSON values."""
    return [kind.value for kind in Kind if kind in takes]


def kept_area(picture: Image.Image, max_pixels: int | None) -> Image.Image:
    """A picture of at most `max_pixels`, its shape kept; for models without such a dial."""
    width, height = picture.size
    if max_pixels is None or width * height <= max_pixels:
        return picture
    scale = (max_pixels / (width * height)) ** 0.5
    size = (max(1, int(width * scale)), max(1, int(height * scale)))
    return picture.resize(size, Image.Resampling.BICUBIC, reducing_gap=3.0)


# -- content ---------------------------------------------------------------------------------------


def content_keys(items: Sequence[Item]) -> list[str]:
    """For each item a key of what it shows and says; equal for equal files, whatever their path.

    The keys of a text and of an image file are those under which `abc-embed search` and
    `abc-embed mine` keep them, so that vectors are shared.

    Raises:
        ImageError: an image file cannot be read.
    """
    images: dict[Any, str] = {}  # a picture that many items show is hashed once
    return [_key(item, images) for item in items]


def _key(item: Item, images: dict[Any, str]) -> str:
    if item.image is None:
        return "text " + hashlib.sha256(str(item.text).encode()).hexdigest()
    source = image_key(item)
    if source not in images:
        images[source] = image_hash(item.image)
    if item.instruction is None:
        return images[source]
    words = hashlib.sha256(item.instruction.encode()).hexdigest()
    return f"asked {words} {images[source]}"


def image_hash(image: ImageInput) -> str:
    """SHA-256 of an image: of the bytes of a file, of the pixels of a picture or an array.

    Raises:
        ImageError: the file cannot be read, or it is no picture.
    """
    if isinstance(image, bytes):
        return hashlib.sha256(image).hexdigest()
    if isinstance(image, str) and image[:5].lower() == "data:":
        return "url " + hashlib.sha256(image.encode()).hexdigest()
    if isinstance(image, str | os.PathLike):
        return _file_hash(image)
    picture = open_image(image)  # upright RGB: what the model will see
    head = f"{picture.width} x {picture.height} RGB\n".encode()
    return "pixels " + hashlib.sha256(head + picture.tobytes()).hexdigest()


def _file_hash(path: str | os.PathLike[str]) -> str:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        raise ImageNotFoundError(
            f"there is no file {describe_image(path)}; check the path"
        ) from None
    except OSError as error:
        raise ImageError(
            f"{describe_image(path)} cannot be read ({error.strerror}); check the file"
        ) from None
