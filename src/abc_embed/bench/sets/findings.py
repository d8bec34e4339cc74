"""What an evaluation found, as JSON values, in the shape that records have.

Does: shares with intervals, and the size of what they stand on. Does not: know a set.

Shapes: `Q` queries.
"""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from abc_embed.errors import DataError

Findings = dict[str, Any]

DRAWS = 2000
"""Bootstrap resamples behind each 95 % interval."""
NAMED = 10
"""Missing images that a message names; the record has all."""


def say_missing(missing: Sequence[str]) -> str:
    """One line about images that are not there, or nothing."""
    if not missing:
        return ""
    some = ", ".join(missing[:NAMED]) + (" …" if len(missing) > NAMED else "")
    return f"{len(missing):,} images are missing and left out: {some}"


def check_any(there: int, missing: Sequence[str]) -> None:
    """Raise `DataError` if no image is there at all: the folder is the wrong one."""
    if not there:
        first = f", {missing[0]} for one" if missing else ""
        raise DataError(f"none of the set's images is there{first}; give the folder of the images")


def content_hash(rows: Iterable[object], images: Iterable[Path | bytes]) -> str:
    """SHA-256 of what is asked (rows, as their `repr`) and of every image's bytes."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(repr(row).encode() + b"\n")
    for image in images:
        held = image if isinstance(image, bytes) else image.read_bytes()
        digest.update(hashlib.sha256(held).digest())
    return digest.hexdigest()
