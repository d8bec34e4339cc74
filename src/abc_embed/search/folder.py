"""The images of a folder, ranked by their cosine with a vector.

A file is read and hashed only where its size and time of change are not those of the last search,
and embedded only where its content is new: from the very bytes that were hashed, so that a file
which changes meanwhile never leaves its vector under another content.

Shapes: `N` images, `D` width.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

from abc_embed.errors import ImageError, ImageNotFoundError, InputError, OutputError
from abc_embed.inputs import Item, describe_image
from abc_embed.search.hits import Hit
from abc_embed.storage.files import read_file
from abc_embed.storage.hashing import sha256
from abc_embed.storage.vector_cache import FileStamp, VectorCache

if TYPE_CHECKING:
    from abc_embed.embedder import Embedder

SAVE_EVERY = 64
"""New vectors between two writes to the cache; a kill loses no more than these."""
MAX_BYTES_IN_MEMORY = 256 * 2**20
"""Of files read ahead. A larger file is embedded from its path, and is not remembered."""
SETTLED_NS = 2 * 10**9
"""A file changed less than this ago may change again within one tick of its file system's clock, so
that its time of change says nothing; its hash is not remembered yet."""

Vectors = NDArray[np.float32]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Bad:
    """An image that could not be embedded, and why."""

    path: Path
    error: InputError


@dataclass(frozen=True, slots=True)
class FolderIndex:
    """Images with their vectors."""

    paths: list[Path]
    vectors: Vectors
    """`(N, D)`, unit length."""
    bad: list[Bad]
    from_cache: int
    """How many of the vectors were remembered."""
    cache_error: OutputError | None = None
    """Why the cache could not be used to the end; the vectors are whole all the same."""

    def search(self, vector: Vectors, count: int) -> list[Hit]:
        """The `count` images closest to `vector` `(D,)`, best first."""
        scores = self.vectors @ vector
        best = np.argsort(-scores, kind="stable")[:count]
        return [Hit(self.paths[i], float(scores[i])) for i in best]


def index_images(
    paths: Sequence[Path],
    embedder: "Embedder",
    cache: VectorCache | None,
    *,
    max_pixels: int | None = None,
    batch_size: int | None = None,
    on_progress: Callable[[int], None] = lambda done: None,
) -> FolderIndex:
    """Embed images, without instruction; those that the cache knows are not opened.

    Equal files are embedded once. A bad one is left out and named in `FolderIndex.bad`. A cache
    that fails on the way is done without from there on, and named in `FolderIndex.cache_error`.
    `on_progress` is called with the number of images that are done.
    """
    memory = _Memory(cache)
    errors: dict[Path, InputError] = {}
    unread = memory.recall(paths)
    done = len(paths) - len(unread)
    on_progress(done)
    for files in read_files(unread, errors):
        new = memory.unknown(files)
        done += len(files) - len(new)
        results = embedder.stream(
            [Item(image=file.path if file.data is None else file.data) for file in new],
            max_pixels=max_pixels,
            batch_size=batch_size,
            on_error="skip",
        )
        failed: dict[str, InputError] = {}
        try:
            for file, result in zip(new, results, strict=True):
                if isinstance(result, np.ndarray):
                    memory.learn(file, result)
                else:
                    failed[file.content] = result.error
                done += 1
                on_progress(done)
        finally:
            memory.save()
        for file in files:
            if file.content in failed:
                errors[file.path] = error_of_file(file.path, failed[file.content])
        files.clear()  # lets go of their bytes before the next are read
        new.clear()
    on_progress(len(paths))
    good = [
        path for path in paths if path not in errors and memory.contents.get(path) in memory.vectors
    ]
    vectors = np.zeros((len(good), embedder.dim), dtype=np.float32)
    for row, path in enumerate(good):
        vectors[row] = memory.vectors[memory.contents[path]]
    bad = [Bad(path, errors[path]) for path in paths if path in errors]
    from_cache = sum(memory.contents[path] in memory.from_cache for path in good)
    return FolderIndex(good, vectors, bad, from_cache, memory.error)


@dataclass(frozen=True, slots=True)
class ImageFile:
    """A file that was read; without `data` it is too large to be held."""

    path: Path
    stamp: FileStamp
    data: bytes | None
    content: str
    """SHA-256, or what no other file has."""


def read_files(paths: Iterable[Path], errors: dict[Path, InputError]) -> Iterator[list[ImageFile]]:
    """Files with their bytes, as many at a time as may be in memory; the others go to `errors`."""
    files: list[ImageFile] = []
    held = 0
    for path in paths:
        try:
            stamp = FileStamp.of(path)  # before the bytes, so that a change in between is noticed
            fits = stamp.size <= MAX_BYTES_IN_MEMORY
            if files and fits and held + stamp.size > MAX_BYTES_IN_MEMORY:
                yield files
                files, held = [], 0
            data = read_file(path) if fits else None
        except FileNotFoundError:
            errors[path] = ImageNotFoundError(f"there is no file {str(path)!r}")
        except OSError as error:
            sentence = f"{str(path)!r} cannot be read ({error.strerror}); check it"
            errors[path] = ImageError(sentence)
        else:
            held += len(data or b"")
            content = f"path {path}" if data is None else sha256(data)
            files.append(ImageFile(path, stamp, data, content))
    if files:
        yield files


def error_of_file(path: Path, error: InputError) -> InputError:
    """The error of a file's bytes, as that of the file."""
    return type(error)(str(error).replace(describe_image(b""), repr(str(path))))


@dataclass(slots=True)
class _Memory:
    """What is known of files and contents: now, and in the cache as long as that can be used."""

    cache: VectorCache | None
    contents: dict[Path, str] = field(default_factory=dict)
    vectors: dict[str, Vectors] = field(default_factory=dict)
    from_cache: set[str] = field(default_factory=set)
    error: OutputError | None = None
    _unsaved: dict[str, Vectors] = field(default_factory=dict)
    _stamps: dict[Path, tuple[FileStamp, str]] = field(default_factory=dict)

    def recall(self, paths: Sequence[Path]) -> list[Path]:
        """The files that have to be read: changed since, or without a vector."""
        stamps: dict[Path, FileStamp] = {}
        for path in paths:
            with suppress(OSError):  # reading it says why
                stamps[path] = FileStamp.of(path)
        self.contents.update(self._try(lambda cache: cache.known_contents(stamps)) or {})
        self._remember(self.contents.values())
        return [path for path in paths if self.contents.get(path) not in self.vectors]

    def unknown(self, files: Sequence[ImageFile]) -> list[ImageFile]:
        """The files whose content has no vector yet, one of each content."""
        self._remember(file.content for file in files)
        new: dict[str, ImageFile] = {}
        for file in files:
            self.contents[file.path] = file.content
            if file.data is not None and time.time_ns() - file.stamp.mtime_ns > SETTLED_NS:
                self._stamps[file.path] = (file.stamp, file.content)
            if file.content not in self.vectors:
                new.setdefault(file.content, file)
        return list(new.values())

    def learn(self, file: ImageFile, vector: Vectors) -> None:
        """The vector of a file's content; saved with others."""
        self.vectors[file.content] = vector
        if file.data is not None:
            self._unsaved[file.content] = vector
        if len(self._unsaved) >= SAVE_EVERY:
            self.save()

    def save(self) -> None:
        """Write what is new to the cache."""
        vectors, stamps = self._unsaved, self._stamps
        self._unsaved, self._stamps = {}, {}

        def write(cache: VectorCache) -> None:
            cache.put(vectors)
            cache.put_contents(stamps)

        self._try(write)

    def _remember(self, contents: Iterable[str]) -> None:
        wanted = [content for content in contents if content not in self.vectors]
        known = self._try(lambda cache: cache.get(wanted)) or {}
        self.vectors.update(known)
        self.from_cache.update(known)

    def _try(self, use: Callable[[VectorCache], T]) -> T | None:
        """What `use` makes of the cache; None where there is none, or none any more."""
        if self.cache is not None:
            try:
                return use(self.cache)
            except OutputError as error:
                self.error, self.cache = error, None
        return None
