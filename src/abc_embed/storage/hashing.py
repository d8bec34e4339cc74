"""The name of a content: SHA-256 where it is kept or shown, a short BLAKE2 as a key in memory."""

import hashlib
import json
from pathlib import Path
from typing import Any

from abc_embed.storage.files import open_file


def sha256(data: bytes | str) -> str:
    """SHA-256 in hex; a text counts as UTF-8."""
    return hashlib.sha256(data.encode() if isinstance(data, str) else data).hexdigest()


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex, read in pieces.

    Raises:
        OSError: it cannot be read.
    """
    with open_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_json(value: Any) -> str:
    """SHA-256 of a JSON value, in hex, whatever the order of its keys."""
    return sha256(json.dumps(value, sort_keys=True))


def short_hash(data: bytes, size: int = 16) -> bytes:
    """A key of `size` bytes that stands for long data in memory."""
    return hashlib.blake2b(data, digest_size=size).digest()
