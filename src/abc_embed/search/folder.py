"""The images of a folder, ranked by their cosine with a vector.

Does: hash and embed what is new, take the rest from the cache, compare with all of it.
Does not: load a model, or show anything.

Shapes: `N` images, `D` width.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from abc_embed.errors import ImageError, ImageNotFoundError, InputError
from abc_embed.inputs import Item
from abc_embed.storage.hashing import sha256_file
from abc_embed.storage.vector_cache import VectorCache

if TYPE_CHECKING:
    from abc_embed.embedder import Embedder

SAVE_EVERY = 64
"""New vectors between two writes to the cache; a kill loses no more than these."""

Vectors = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Hit:
    """An image that was found."""

    path: Path
    score: float
    """Cosine with what was asked for."""


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

    def search(self, vector: Vectors, count: int) -> list[Hit]:
        """The `count` images closest to `vector` `(D,)`, best first."""
        scores = self.vectors @ vector
        best = np.argsort(-scores, kind="stable")[:count]
        return [Hit(self.paths[i], float(scores[i])) for i in best]


def index_pictures(
    paths: Sequence[Path],
    embedder: "Embedder",
    cache: VectorCache | None,
    *,
    max_pixels: int | None = None,
    batch_size: int = 32,
    counted: Callable[[int], None] = lambda done: None,
) -> FolderIndex:
    """Embed images, without instruction; those that the cache knows are not opened.

    Equal files are embedded once. A bad one is left out and named in `FolderIndex.bad`. `counted`
    is told how many are done.

    Raises:
        OutputError: the cache cannot be used.
    """
    contents, bad = _hashes(paths)
    known = {} if cache is None else cache.get(contents.values())
    remembered = sum(content in known for content in contents.values())
    new: dict[str, Path] = {}
    for path, content in contents.items():
        if content not in known:
            new.setdefault(content, path)
    done = len(paths) - len(new)
    counted(done)
    results = embedder.stream(
        (Item(image=path) for path in new.values()),
        max_pixels=max_pixels,
        batch_size=batch_size,
        on_error="skip",
    )
    errors: dict[str, InputError] = {}
    unsaved: dict[str, Vectors] = {}
    try:
        for content, result in zip(new, results, strict=True):
            if isinstance(result, np.ndarray):
                known[content] = unsaved[content] = result
            else:
                errors[content] = result.error
            done += 1
            counted(done)
            if cache is not None and len(unsaved) == SAVE_EVERY:
                cache.put(unsaved)
                unsaved = {}
    finally:
        if cache is not None and unsaved:
            cache.put(unsaved)
    bad += [Bad(path, errors[content]) for path, content in contents.items() if content in errors]
    good = [path for path, content in contents.items() if content in known]
    vectors = np.zeros((len(good), embedder.dim), dtype=np.float32)
    for row, path in enumerate(good):
        vectors[row] = known[contents[path]]
    return FolderIndex(good, vectors, bad, remembered)


def _hashes(paths: Sequence[Path]) -> tuple[dict[Path, str], list[Bad]]:
    """The content hash of each file, in order, and those that cannot be read."""
    contents: dict[Path, str] = {}
    bad: list[Bad] = []
    for path in paths:
        try:
            contents[path] = sha256_file(path)
        except FileNotFoundError:
            bad.append(Bad(path, ImageNotFoundError(f"there is no file {str(path)!r}")))
        except OSError as error:
            sentence = f"{str(path)!r} cannot be read ({error.strerror}); check its permissions"
            bad.append(Bad(path, ImageError(sentence)))
    return contents, bad
