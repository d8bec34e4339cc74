"""The image files of a folder, found by name. Does not open them; needs no torch."""

import os
from dataclasses import dataclass
from pathlib import Path

from abc_embed.errors import ImageNotFoundError

SUFFIXES = frozenset(
    {
        *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".gif", ".bmp", ".dib"),
        *(".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".ico", ".qoi"),
        *(".jp2", ".j2k", ".jpx", ".avif", ".heic", ".heif"),
    }
)
"""What the formats that `inputs.open_image` reads are called on disk."""


@dataclass(frozen=True, slots=True)
class Pictures:
    """What a folder holds."""

    files: list[Path]
    """The images, in the order of their names, those of subfolders too."""
    others: int
    """How many files were left out because their names are not those of images."""


def find_images(folder: Path) -> Pictures:
    """All images below `folder`; hidden files and folders are not looked at.

    Raises:
        ImageNotFoundError: no such folder, or one inside it may not be read.
    """
    if not folder.is_dir():
        raise ImageNotFoundError(f"there is no folder {str(folder)!r}; check the path")
    files: list[Path] = []
    others = 0
    for place, inner, names in os.walk(folder, onerror=_refuse):
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        for name in sorted(names):
            if name.startswith("."):
                continue
            if Path(name).suffix.lower() in SUFFIXES:
                files.append(Path(place, name))
            else:
                others += 1
    return Pictures(files, others)


def _refuse(error: OSError) -> None:
    raise ImageNotFoundError(
        f"the folder {error.filename!r} cannot be read ({error.strerror}); check its permissions"
    ) from error
