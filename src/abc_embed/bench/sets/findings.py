"""What an evaluation gives, as JSON values in the shape that records have."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from abc_embed.bench.encoders.base import Encoder
from abc_embed.errors import DataError, UsageError
from abc_embed.inputs import Kind
from abc_embed.storage.files import read_file
from abc_embed.storage.hashing import sha256

Findings = dict[str, Any]

NAMED_IMAGES = 10
"""Missing images that a message names; the record has all."""


def missing_images_message(missing: Sequence[str]) -> str:
    """One line about images that are not there, or nothing."""
    if not missing:
        return ""
    names = ", ".join(missing[:NAMED_IMAGES]) + (" …" if len(missing) > NAMED_IMAGES else "")
    return f"{len(missing):,} images are missing and left out: {names}"


def check_not_empty(present: Sequence[object], missing: Sequence[str]) -> None:
    """Raise `DataError` if no image is there at all: the folder is the wrong one."""
    if not present:
        first = f", {missing[0]} for one" if missing else ""
        raise DataError(f"none of the set's images is there{first}; give the folder of the images")


def check_takes_both(encoder: Encoder) -> None:
    """Raise `UsageError` if a model does not take both images and texts."""
    if not {Kind.IMAGE, Kind.TEXT} <= encoder.supported_kinds:
        raise UsageError(f"{encoder.name} does not take both images and texts; measure another")


def content_hash(rows: Iterable[object], images: Iterable[Path | bytes]) -> str:
    """SHA-256 of what is asked (rows, as their `repr`) and of every image's bytes."""
    text = "".join(f"{row!r}\n" for row in rows).encode()
    contents = (image if isinstance(image, bytes) else read_file(image) for image in images)
    return sha256(text + b"".join(bytes.fromhex(sha256(content)) for content in contents))
