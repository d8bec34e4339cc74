"""What an index says of itself, in `index.json`: model, resolution, width, folders, cut-offs."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from abc_embed.errors import DataError
from abc_embed.storage.files import atomic_write
from abc_embed.storage.json_files import read_json, write_json

if TYPE_CHECKING:
    from abc_embed.embedder import Embedder
    from abc_embed.search.table import ImageTable, Vectors

FILE = "index.json"
FORMAT = 1
TOKENS = "tokens.sqlite"
TOKEN_LIMIT_BYTES = 2 * 10**9
"""All kept visual tokens together; those that were not used for longest go first."""
PARTS = 16
"""Parts of an image that have a vector of their own, in an index with detail."""


class IndexParts(Protocol):
    """What bringing an index up to date and its cut-offs ask of the `Index`."""

    settings: dict[str, Any]
    table: "ImageTable"
    embedder: "Embedder | None"

    @property
    def max_pixels(self) -> int | None: ...

    def nearest(
        self, vectors: "Vectors", count: int, where: str | None = None
    ) -> "list[tuple[list[str], Vectors]]": ...

    def shortened(self, vector: "Vectors") -> "Vectors": ...

    def paths(self, where: str | None = None) -> list[str]: ...

    def text_bank(self) -> "Vectors | None": ...

    def needed_embedder(self) -> "Embedder": ...

    def save_settings(self) -> None: ...


def is_index(folder: Path) -> bool:
    """Whether an index lies there."""
    return (folder / FILE).is_file()


def read_settings(folder: Path) -> dict[str, Any]:
    """The settings of an index.

    Raises:
        DataError: there is none, or it is damaged or of another version.
    """
    if not is_index(folder):
        raise DataError(f"{str(folder)!r} is no index; make one with: abc-embed index build")
    settings = read_json(folder / FILE, error=DataError, mend="build the index anew")
    if settings.get("format") != FORMAT:
        raise DataError(f"the index {str(folder)!r} is of another version; build it anew")
    return settings


def write_settings(folder: Path, settings: dict[str, Any]) -> None:
    """Write them, whole or not at all.

    Raises:
        OutputError: the folder cannot be written, or the disk is full.
    """
    with atomic_write(folder / FILE) as file:
        write_json(Path(file.name), settings)
