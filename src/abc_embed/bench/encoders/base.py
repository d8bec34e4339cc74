"""What every measured model has in common: the base class, and keys of what an item shows.

Shapes: `N` items, `D` width.
"""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence
from copy import copy
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from abc_embed.errors import ImageError, ImageNotFoundError, NotFiniteError, UsageError
from abc_embed.inputs import ImageInput, Item, Kind, as_item, describe_image, image_key, open_image
from abc_embed.storage.files import read_file
from abc_embed.storage.hashing import sha256, sha256_file

Vectors = NDArray[np.float32]
Parts = tuple[Item, ...]
"""What is embedded as one: an item, several whose vectors are added, or none where nothing is."""
T = TypeVar("T")

_KIND_PHRASES = {
    Kind.TEXT: "a text",
    Kind.IMAGE: "an image alone",
    Kind.INSTRUCTED: "an image with an instruction",
}


class Encoder(ABC):
    """A model as a benchmark sees it."""

    name: str
    """What records call it; no path."""
    dim: int
    """`D`, the length of a vector."""
    supported_kinds: frozenset[Kind]
    """The kinds of item that it can embed."""
    library: str
    """What records call the kind of model."""
    max_pixels: int | None = None
    """The largest area at which a picture is seen; None: as the model says."""
    progress: bool = False
    """Whether a bar is drawn on stderr while it embeds."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """SHA-256 in hex of the weights and of what else decides a vector."""

    def describe(self) -> dict[str, Any]:
        """JSON values for a record: library, kinds, dtype, device, prompt hash, config."""
        kinds = [kind.value for kind in Kind if kind in self.supported_kinds]
        return {"kind": self.library, "takes": kinds, **self._details()}

    @abstractmethod
    def _details(self) -> dict[str, Any]:
        """`dtype`, `device`, `prompt_hash`, and `config`: what decides a vector besides weights."""

    def at(self, max_pixels: int | None) -> Self:
        """The same model, seeing pictures at most at that area."""
        other = copy(self)
        other.max_pixels = max_pixels
        return other

    def embed(self, items: Sequence[str | Item]) -> Vectors:
        """`N` items -> `(N, D)` of unit length, in their order.

        Raises:
            UsageError: an item is of a kind that is not supported.
            InputError: an item cannot be embedded.
            NotFiniteError: a vector is not finite.
        """
        values = [as_item(item) for item in items]
        for number, item in enumerate(values):
            if item.kind not in self.supported_kinds:
                known = ", ".join(_KIND_PHRASES[k] for k in Kind if k in self.supported_kinds)
                raise UsageError(
                    f"item {number} is {_KIND_PHRASES[item.kind]}, and {self.name} takes only "
                    f"{known}; measure it with what it takes"
                )
        return self._embed(values)

    @abstractmethod
    def _embed(self, items: list[Item]) -> Vectors:
        """As `embed`, of items whose kinds are supported."""

    def embed_sums(self, groups: Mapping[str, Sequence[Parts]]) -> dict[str, Vectors]:
        """`N` parts of each name -> `(N, D)`: the sum of their items' vectors, zeros of none.

        Everything goes through `embed` in one call, equal items once, so that a model of ours
        encodes each picture once. Vectors that are added have unit length, so none outweighs
        another.

        Raises:
            AbcError: as `embed`.
        """
        items: list[Item] = []
        places: dict[Hashable, int] = {}

        def place(item: Item) -> int:
            key = item_key(item)
            if key not in places:
                places[key] = len(items)
                items.append(item)
            return places[key]

        rows = {
            name: [[place(item) for item in parts] for parts in group]
            for name, group in groups.items()
        }
        vectors = np.pad(self.embed(items), ((0, 1), (0, 0)))  # below them zeros, at -1
        sums = {}
        for name, numbers in rows.items():
            width = max(map(len, numbers), default=0)
            padded = [each + [-1] * (width - len(each)) for each in numbers]
            table = np.array(padded, dtype=np.intp).reshape(len(numbers), width)
            sums[name] = vectors[table].sum(axis=1)
        return sums


def item_key(item: Item) -> Hashable:
    """Equal for items that surely show and say the same, as long as they are held."""
    return image_key(item), item.instruction, item.text


def no_direction(name: str) -> NotFiniteError:
    """The error for a vector of the encoder `name` that `l2_normalize` cannot scale."""
    return NotFiniteError(
        f"{name} gave a vector that is zero or not finite, so it has no direction; "
        "load it with dtype='float32'"
    )


def strip_path(name: str) -> str:
    """A name fit for a record: of a path its last part, of what lies in a training run the run's,
    with the step for a checkpoint; "owner/name" of a hub stays."""
    is_path = Path(name).is_absolute() or name.startswith((".", "~")) or Path(name).exists()
    if not is_path:
        return name
    path = Path(name).expanduser().resolve()
    if path.name == "model":
        return path.parent.name
    if path.parent.name == "checkpoints":
        return f"{path.parent.parent.name}-{path.name}"
    return path.name


def shrink(picture: Image.Image, max_pixels: int | None) -> Image.Image:
    """A picture of at most `max_pixels`, its shape kept; for models without such a dial."""
    width, height = picture.size
    if max_pixels is None or width * height <= max_pixels:
        return picture
    scale = (max_pixels / (width * height)) ** 0.5
    size = (max(1, int(width * scale)), max(1, int(height * scale)))
    return picture.resize(size, Image.Resampling.BICUBIC, reducing_gap=3.0)


def content_keys(items: Sequence[Item]) -> list[str]:
    """For each item a key of what it shows and says; equal for equal files, whatever their path.

    The keys of a text and of an image file are those under which `abc-embed search` and
    `abc-embed mine` keep them, so that vectors are shared.

    Raises:
        ImageError: an image file cannot be read.
    """
    hashes: dict[Any, str] = {}  # a picture that many items show is hashed once
    keys = []
    for item in items:
        if item.image is None:
            keys.append(f"text {sha256(str(item.text))}")
            continue
        source = image_key(item)
        if source not in hashes:
            hashes[source] = image_hash(item.image)
        asked = "" if item.instruction is None else f"asked {sha256(item.instruction)} "
        keys.append(asked + hashes[source])
    return keys


def image_hash(image: ImageInput) -> str:
    """SHA-256 of an image: of the bytes of a file, of the pixels of a picture or an array.

    Raises:
        ImageError: the file cannot be read, or it is no picture.
    """
    if isinstance(image, bytes):
        return sha256(image)
    if isinstance(image, str) and image[:5].lower() == "data:":
        return f"url {sha256(image)}"
    if not isinstance(image, str | os.PathLike):
        picture = open_image(image)  # upright RGB: what the model will see
        head = f"{picture.width} x {picture.height} RGB\n".encode()
        return f"pixels {sha256(head + picture.tobytes())}"
    return _of_file(image, sha256_file)


def read_image(image: str | os.PathLike[str]) -> bytes:
    """The bytes of an image file, to be hashed and embedded both.

    Raises:
        ImageError: it cannot be read.
    """
    return _of_file(image, read_file)


def _of_file(image: str | os.PathLike[str], read: Callable[[Path], T]) -> T:
    try:
        return read(Path(image))
    except FileNotFoundError:
        raise ImageNotFoundError(
            f"there is no file {describe_image(image)}; check the path"
        ) from None
    except OSError as error:
        raise ImageError(
            f"{describe_image(image)} cannot be read ({error.strerror}); check the file"
        ) from None
