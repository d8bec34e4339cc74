"""The indexes of a server: opened once, named by their folders, their images by an id.

A client never sees a path and never sends one. An image's id is a hash of its path, looked up among
the images that the index has; what it names is what may be shown.

Shapes: `N` images.
"""

import io
import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from abc_embed.embedder import Embedder
from abc_embed.errors import InputError, RequestError, UsageError
from abc_embed.inputs import open_image
from abc_embed.pipeline import LRUCache
from abc_embed.search import Index
from abc_embed.storage.files import open_file
from abc_embed.storage.hashing import short_id

MAX_FILE_BYTES = 256 * 2**20
"""A larger file is not read for a client."""
THUMBNAIL_CACHE_BYTES = 64 * 2**20
SMALLEST, LARGEST = 32, 2048
"""Sides of a thumbnail, in pixels."""

OWN_COLUMNS = ("width", "height", "taken", "size")
"""What a filter may use beside the columns of a caption file: nothing that tells of the machine."""
HIDDEN_COLUMNS = {"path", "content", "mtime_ns", "vanished", "vector"}
MAX_DEPTH = 16
_WORDS = {
    *("and", "or", "not", "in", "is", "null", "like", "ilike", "between", "true", "false"),
    *("lower", "upper", "length", "abs", "starts_with", "ends_with", "contains"),
}
_TOKENS = re.compile(
    r"(?P<skip>\s+|'(?:[^']|'')*'|\d+(?:\.\d+)?(?:[eE][+-]?\d+)?|[(),%*/+<>=!-])"
    r"|(?P<name>[A-Za-z_][A-Za-z0-9_]*|`[^`]+`)"
)


@dataclass(frozen=True, slots=True)
class _Names:
    """Ids of the images and their rows, sorted by id: both `(N,)`."""

    ids: NDArray[np.uint64]
    rows: NDArray[np.int64]


class ServedIndex:
    """An index that follows what others write to it; safe with several threads."""

    def __init__(self, folder: Path, name: str, embedder: Embedder) -> None:
        self.name = name
        self.index = Index.open(folder, embedder)
        self.index.text_bank()  # written now, if ever
        self._lock = threading.Lock()
        self._names: _Names | None = None
        self._folders = self._open_folders()
        self.version = 0
        """Another one whenever the index has changed."""

    def _open_folders(self) -> list[Path]:
        folders = map(Path, self.index.settings["folders"])
        return sorted(folders, key=lambda folder: -len(folder.parts))

    def fresh(self) -> Index:
        """The index as it lies on disk now."""
        with self._lock:
            if self.index.refresh():
                self._names = None
                self._folders = self._open_folders()
                self.version += 1
        return self.index

    @property
    def filter_columns(self) -> list[str]:
        """Columns that a client's filter may use."""
        own = self.index.table.columns
        return [*OWN_COLUMNS, *(c for c in own if c not in HIDDEN_COLUMNS | {*OWN_COLUMNS})]

    def describe(self) -> dict[str, Any]:
        """What a client needs to know of it."""
        return {
            "id": self.name,
            "object": "index",
            "images": len(self.fresh()),
            "columns": self.filter_columns,
        }

    # -- images by their ids ---------------------------------------------------------------------

    def shown_name(self, path: str) -> str:
        """What an image is called for people: its path below the folder that was indexed."""
        for folder in self._folders:
            if Path(path).is_relative_to(folder):
                return Path(path).relative_to(folder).as_posix()
        return Path(path).name

    def _ids(self) -> _Names:
        with self._lock:
            if self._names is None:
                ids: list[int] = []
                rows: list[NDArray[np.int64]] = [np.zeros(0, np.int64)]
                for batch in self.index.table.scan(["path"], "NOT vanished", row_ids=True):
                    ids += [short_id(path) for path in batch["path"].to_pylist()]
                    rows.append(batch["_rowid"].to_numpy().astype(np.int64))
                array = np.array(ids, np.uint64)
                order = np.argsort(array, kind="stable")
                self._names = _Names(array[order], np.concatenate(rows)[order])
            return self._names

    def row_of(self, identity: str) -> int:
        """The row of an image in the table.

        Raises:
            RequestError: the index has no such image (404).
        """
        names = self._ids()
        if re.fullmatch(r"[0-9a-f]{16}", identity):
            wanted = np.uint64(int(identity, 16))
            at = int(np.searchsorted(names.ids, wanted))
            if at < len(names.ids) and names.ids[at] == wanted:
                return int(names.rows[at])
        raise RequestError("the index has no image of this id; search it again", "id", 404)

    def sample(self, count: int) -> tuple[list[str], NDArray[np.float32]]:
        """Paths and vectors of `count` images or all: in no order, and for a larger count more."""
        rows = self._ids().rows[:count].tolist()
        paths, vectors = self.index.table.take(rows)
        there = [row for row in rows if row in paths]
        stored = np.array([vectors[row] for row in there], np.float32)
        return [paths[row] for row in there], stored.reshape(-1, self.index.dim)

    def path_of(self, identity: str) -> str:
        """Where the image of an id lies: for the server alone.

        Raises:
            RequestError: the index has no such image (404).
        """
        row = self.row_of(identity)
        path = self.index.table.take([row])[0].get(row)
        if path is None:
            raise RequestError("the image of this id was just removed", "id", 404)
        return path

    def read(self, identity: str, place: str = "id") -> bytes:
        """The file of an image.

        Raises:
            RequestError: the index has no such image, or its file is gone.
        """
        return read_listed(self.path_of(identity), place)


def identity_of(path: str) -> str:
    """The id of an image: 16 hexadecimal digits that tell nothing of its path."""
    return f"{short_id(path):016x}"


def read_listed(path: str, place: str) -> bytes:
    """The bytes of a file that an index names.

    Raises:
        RequestError: it is gone, or cannot be read (410).
    """
    try:
        with open_file(path) as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError:
        raise RequestError(f"{place}: the file of this image is gone", place, 410) from None
    if len(data) > MAX_FILE_BYTES:
        raise RequestError(f"{place}: the file of this image is too large", place, 413)
    return data


class Indexes:
    """All indexes of a server.

    Raises:
        DataError: one is none, is damaged, or was made with another model.
        UsageError: two have the same name.
    """

    def __init__(self, folders: Sequence[Path], embedder: Embedder) -> None:
        self.by_name: dict[str, ServedIndex] = {}
        self._thumbnails: LRUCache[tuple[str, int, str, int], bytes] = LRUCache(
            THUMBNAIL_CACHE_BYTES
        )
        self._decode_limit = embedder.processor.decode_limit
        for folder in folders:
            name = folder.absolute().name
            if name in self.by_name:
                raise UsageError(f"two indexes are called {name!r}; rename the folder of one")
            self.by_name[name] = ServedIndex(folder, name, embedder)

    def get(self, name: str | None, place: str = "index") -> ServedIndex:
        """An index by its name; the only one needs no name.

        Raises:
            RequestError: there is no such index (404).
        """
        if not self.by_name:
            raise RequestError(
                "this server has no index; start it with: abc-embed serve --index INDEX", place, 404
            )
        if name is None and len(self.by_name) == 1:
            return next(iter(self.by_name.values()))
        if name is None or name not in self.by_name:
            known = ", ".join(self.by_name)
            raise RequestError(f"{place} must be one of: {known}", place, 404 if name else 400)
        return self.by_name[name]

    def thumbnail(self, name: str, identity: str, side: int) -> bytes:
        """An image of an index as JPEG, upright, no side longer than `side` pixels.

        Raises:
            RequestError: the index has no such image, or its file is gone or damaged.
        """
        if not SMALLEST <= side <= LARGEST:
            raise RequestError(f"side must be from {SMALLEST} to {LARGEST}", "side")
        served = self.get(name)
        key = (name, served.version, identity, side)
        if (known := self._thumbnails.get(key)) is not None:
            return known
        data = served.read(identity)
        try:
            picture = open_image(data, decode_limit=self._decode_limit)
        except InputError as error:
            raise RequestError(f"id: {error}", "id", 410) from None
        picture.thumbnail((side, side))
        stream = io.BytesIO()
        picture.save(stream, "JPEG", quality=85)
        self._thumbnails.put(key, stream.getvalue(), stream.tell())
        return stream.getvalue()


def check_filter(where: str, columns: Sequence[str]) -> str:
    """A client's filter, made of columns, values, comparisons and a few functions of texts.

    Raises:
        RequestError: it holds anything else.
    """
    if len(where) > 2000:
        raise RequestError("filter is longer than 2,000 characters; make it shorter", "filter")
    at = depth = 0
    while at < len(where):
        found = _TOKENS.match(where, at)
        if found:
            depth += {"(": 1, ")": -1}.get(found[0], 0)
        # A bracket that closes what the server opened would take its own conditions out.
        if not found or not 0 <= depth <= MAX_DEPTH or where[at : at + 2] in ("--", "/*"):
            raise RequestError(
                f"filter has {where[at : at + 20]!r}, which cannot be read; write it like: "
                "width > 1000 and taken >= '2025-01-01'",
                "filter",
            )
        name = found["name"]
        if name and name.strip("`") not in columns and name.lower() not in _WORDS:
            known = ", ".join(columns)
            raise RequestError(f"filter names {name!r}; the columns here are: {known}", "filter")
        at = found.end()
    if depth:
        raise RequestError("filter opens a bracket that it does not close", "filter")
    return where
