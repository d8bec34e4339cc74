"""Many items -> a file of vectors, of which only a part is ever in memory.

Does: ask the cache first, embed what it does not know, remember it at once. Does not: keep the file
after the work: it has no name, so nothing is left behind, not even by a kill. What lasts is the
cache (index/cache.py): a second run, or one after a kill, embeds only what is missing.

Shapes: `N` items, `D` width.
"""

import hashlib
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from abc_embed.errors import InputError, OutputError
from abc_embed.index.cache import VectorCache
from abc_embed.inputs import Item

if TYPE_CHECKING:
    from abc_embed.embedder import Embedder

AT_ONCE = 64
"""Items between two writes to the cache; a kill loses no more than these."""


def text_key(text: str) -> str:
    """Under which the cache keeps a text; no image has such a key."""
    return "text " + hashlib.sha256(text.encode("utf-8")).hexdigest()


def new_vectors(folder: Path, count: int, width: int) -> NDArray[np.float32]:
    """`(count, width)` zeros in a file without a name in `folder`, gone when it is let go.

    Raises:
        OutputError: there is no room, or the folder cannot be written.
    """
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            size = max(count * width, 1) * 4
            file.truncate(size)
            if hasattr(os, "posix_fallocate"):  # a disk that is too full says so now
                os.posix_fallocate(file.fileno(), 0, size)
            return np.memmap(file, dtype=np.float32, mode="r+", shape=(count, width))
    except OSError as problem:
        why = problem.strerror or type(problem).__name__
        raise OutputError(f"no vectors can be kept in {folder}: {why}; make room") from problem


def fill(
    vectors: NDArray[np.float32],
    items: Sequence[tuple[str, Item]],
    embedder: "Embedder",
    cache: VectorCache | None,
    *,
    max_pixels: int | None = None,
    batch_size: int = 32,
    counted: Callable[[int], None] = lambda done: None,
) -> tuple[dict[int, InputError], int]:
    """Embed items, each with its key, into `vectors` `(N, D)`.

    Returns the errors of those that cannot be embedded, by number, and how many were remembered.

    Raises:
        OutputError: the cache cannot be used.
    """
    errors: dict[int, InputError] = {}
    remembered = 0
    for start in range(0, len(items), AT_ONCE):
        part = items[start : start + AT_ONCE]
        known = {} if cache is None else cache.get(key for key, _ in part)
        remembered += sum(key in known for key, _ in part)
        new = {key: item for key, item in part if key not in known}
        made, skipped = embedder.embed(
            list(new.values()), max_pixels=max_pixels, batch_size=batch_size, on_error="skip"
        )
        bad = {list(new)[one.index]: one.error for one in skipped}
        fresh = dict(zip((key for key in new if key not in bad), made, strict=True))
        if cache is not None and fresh:
            cache.put(fresh)
        for number, (key, _) in enumerate(part, start):
            if key in bad:
                errors[number] = bad[key]
            else:
                vectors[number] = known[key] if key in known else fresh[key]
        counted(min(start + AT_ONCE, len(items)))
    return errors, remembered
