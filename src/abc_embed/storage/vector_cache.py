"""Vectors of images, remembered on disk by what decides them: model, resolution, content.

A file that is renamed, moved or copied is found again, one that is changed is not. To know a file
without reading it, the hash of its content is kept with its size and time of change.
"""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from abc_embed.errors import OutputError
from abc_embed.storage.files import is_unicode
from abc_embed.storage.sqlite import SqliteStore

FOLDER_VARIABLE = "ABC_EMBED_CACHE"
"""Environment variable that names another folder for the cache."""

_LENGTH_TOLERANCE = 1e-3


def default_folder() -> Path:
    """Where the cache lies: `$ABC_EMBED_CACHE`, else the user's cache folder."""
    if folder := os.environ.get(FOLDER_VARIABLE):
        return Path(folder)
    if base := os.environ.get("XDG_CACHE_HOME"):
        return Path(base) / "abc-embed"
    try:
        return Path.home() / ".cache" / "abc-embed"
    except RuntimeError:
        raise OutputError(
            "there is no home folder for the cache; name a folder in "
            f"{FOLDER_VARIABLE} or with --cache, or do without with --no-cache"
        ) from None


class FileStamp(NamedTuple):
    """What changes when a file does, without reading it."""

    size: int
    mtime_ns: int

    @classmethod
    def of(cls, path: Path) -> Self:
        """The stamp of a file as it is now; `OSError` where there is none."""
        status = path.stat()
        return cls(status.st_size, status.st_mtime_ns)


class VectorCache(SqliteStore):
    """The vectors of one model at one resolution, and the contents of files.

    `model` is `Embedder.fingerprint`, `max_pixels` that of the call (None: as the model says);
    contents are hashes of files.
    """

    TABLES = (
        "CREATE TABLE IF NOT EXISTS vectors (model TEXT, content TEXT, vector BLOB,"
        " PRIMARY KEY (model, content)) WITHOUT ROWID",
        "CREATE TABLE IF NOT EXISTS files (path TEXT PRIMARY KEY, size INTEGER,"
        " mtime_ns INTEGER, content TEXT) WITHOUT ROWID",
    )
    ERROR = (
        "the cache {path} cannot be used ({error}); delete it, choose another place with --cache, "
        "or do without it with --no-cache"
    )

    def __init__(self, folder: Path, model: str, max_pixels: int | None) -> None:
        """Opens the cache in `folder`; both are made if absent."""
        self._key = f"{model} {max_pixels or 0}"
        path = folder / "vectors.sqlite"
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(self.ERROR.format(path=repr(str(path)), error=error)) from error
        super().__init__(path)

    def get(self, contents: Iterable[str]) -> dict[str, NDArray[np.float32]]:
        """The vectors that are known, by content; one that is damaged is not known."""
        rows = self.query(
            "SELECT content, vector FROM vectors WHERE model = ? AND content IN"
            " (SELECT value FROM json_each(?))",
            (self._key, json.dumps(list(contents))),
        )
        vectors = ((content, _read_vector(blob)) for content, blob in rows)
        return {content: vector for content, vector in vectors if vector is not None}

    def put(self, vectors: Mapping[str, NDArray[np.float32]]) -> None:
        """Remember vectors by content, all or none of them."""
        rows = [(self._key, c, v.astype("<f4").tobytes()) for c, v in vectors.items()]
        self.execute("INSERT OR REPLACE INTO vectors VALUES (?, ?, ?)", rows)

    def known_contents(self, stamps: Mapping[Path, FileStamp]) -> dict[Path, str]:
        """The contents of the files that were last read with these stamps."""
        paths = {os.path.abspath(path): path for path in stamps}
        query = "SELECT * FROM files WHERE path IN (SELECT value FROM json_each(?))"
        rows = self.query(query, (json.dumps(list(paths)),))
        known = ((paths[name], (size, mtime), content) for name, size, mtime, content in rows)
        return {path: content for path, stamp, content in known if stamps[path] == stamp}

    def put_contents(self, files: Mapping[Path, tuple[FileStamp, str]]) -> None:
        """Remember the contents of files, each by its stamp from before it was read.

        A file whose name is no Unicode, which a database cannot hold, is read anew each time.
        """
        rows = [
            (name, *stamp, content)
            for path, (stamp, content) in files.items()
            if is_unicode(name := os.path.abspath(path))
        ]
        self.execute("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?)", rows)


def _read_vector(blob: object) -> NDArray[np.float32] | None:
    """What `put` wrote, or None: every vector here is finite and has length 1."""
    if not isinstance(blob, bytes) or len(blob) % 4:
        return None
    vector = np.frombuffer(blob, "<f4")
    with np.errstate(over="ignore", invalid="ignore"):
        length = float(np.linalg.norm(vector.astype(np.float64)))
    return vector if abs(length - 1) < _LENGTH_TOLERANCE else None  # NaN is not near 1
