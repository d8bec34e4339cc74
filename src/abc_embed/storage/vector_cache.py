"""Vectors of images, remembered on disk by what decides them: model, resolution, content.

Does: keep them in one SQLite file (in the standard library, safe with several processes at once,
and what is committed survives a kill). Does not: know paths: a file that is renamed, moved or
copied is found again, one that is changed is not.
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from abc_embed.storage.sqlite import SqliteStore

VARIABLE = "ABC_EMBED_CACHE"
"""Environment variable that names another folder for the cache."""

_AT_ONCE = 500  # SQLite takes about a thousand values in one statement


def default_folder() -> Path:
    """Where the cache lies: `$ABC_EMBED_CACHE`, else the user's cache folder."""
    if named := os.environ.get(VARIABLE):
        return Path(named)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "abc-embed"


class VectorCache(SqliteStore):
    """The vectors of one model at one resolution.

    `model` is `Embedder.fingerprint`, `max_pixels` that of the call (None: as the model says);
    contents are hashes of files.
    """

    TABLES = (
        "CREATE TABLE IF NOT EXISTS vectors (model TEXT, content TEXT, vector BLOB,"
        " PRIMARY KEY (model, content)) WITHOUT ROWID",
    )
    ERROR = (
        "the cache {path} cannot be used ({error}); delete it, choose another place with --cache, "
        "or do without it with --no-cache"
    )

    def __init__(self, folder: Path, model: str, max_pixels: int | None) -> None:
        """Opens the cache in `folder`, which is made if absent.

        Raises:
            OutputError: it cannot be made or opened.
        """
        self._key = f"{model} {max_pixels or 0}"
        self.path = folder / "vectors.sqlite"
        with self._reported():
            folder.mkdir(parents=True, exist_ok=True)
        super().__init__(self.path)

    def get(self, contents: Iterable[str]) -> dict[str, NDArray[np.float32]]:
        """The vectors that are known, by content."""
        wanted = list(dict.fromkeys(contents))
        found: dict[str, NDArray[np.float32]] = {}
        with self._reported():
            for part in _parts(wanted):
                marks = ", ".join("?" * len(part))
                rows = self._database.execute(
                    f"SELECT content, vector FROM vectors WHERE model = ? AND content IN ({marks})",
                    (self._key, *part),
                )
                found.update((content, np.frombuffer(blob, "<f4")) for content, blob in rows)
        return found

    def put(self, vectors: Mapping[str, NDArray[np.float32]]) -> None:
        """Remember vectors by content, all or none of them."""
        rows = [(self._key, c, v.astype("<f4").tobytes()) for c, v in vectors.items()]
        with self._reported(), self._database:
            self._database.executemany("INSERT OR REPLACE INTO vectors VALUES (?, ?, ?)", rows)


def _parts(values: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(values), _AT_ONCE):
        yield values[start : start + _AT_ONCE]
