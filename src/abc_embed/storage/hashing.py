"""The name of a content: SHA-256 where it is kept or shown, a short BLAKE2 as a key in memory."""

import hashlib
import json
from pathlib import Path
from typing import Any

from abc_embed.storage.files import open_file

_SAMPLES, _SAMPLE = 16, 1 << 16


def sha256(data: bytes | str) -> str:
    """SHA-256 in hex; a text counts as UTF-8."""
    return hashlib.sha256(data.encode() if isinstance(data, str) else data).hexdigest()


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex, read in pieces; `OSError` when it cannot be read."""
    with open_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_json(value: Any) -> str:
    """SHA-256 of a JSON value, in hex, whatever the order of its keys."""
    return sha256(json.dumps(value, sort_keys=True))


def short_hash(data: bytes, size: int = 16) -> bytes:
    """A key of `size` bytes that stands for long data in memory."""
    return hashlib.blake2b(data, digest_size=size).digest()


def short_id(text: str) -> int:
    """64 bits that stand for a text, like a path, and tell nothing of it."""
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big")


def sample_hash(path: Path) -> str:
    """A hash of a file's size and of pieces spread over it: quick, whatever the size.

    Another file, a cut one or one that was filled in part has another hash; a few changed bytes
    between the pieces are found when the image there is read.
    """
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with open_file(path) as file:
        for number in range(_SAMPLES):
            file.seek(max(size - _SAMPLE, 0) * number // (_SAMPLES - 1))
            digest.update(file.read(_SAMPLE))
    return digest.hexdigest()
