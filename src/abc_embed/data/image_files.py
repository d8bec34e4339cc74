"""The image files of a folder, found by name; they are not opened."""

import os
from collections.abc import Callable
from pathlib import Path

from abc_embed.decoding import IMAGE_SUFFIXES
from abc_embed.errors import ImageNotFoundError


def find_images(folder: Path, *, required: bool = False) -> list[Path]:
    """All images below `folder`, in the order of their names; hidden ones are not looked at.

    Raises:
        ImageNotFoundError: no such folder, or one inside it may not be read; or, where some are
            `required`, it has none.
    """
    if not folder.is_dir():
        raise ImageNotFoundError(f"there is no folder {str(folder)!r}; check the path")
    files = visible_files(folder, _refuse)
    images = [path for path in files if path.suffix.lower() in IMAGE_SUFFIXES]
    if required and not images:
        raise ImageNotFoundError(f"there is no image in the folder {str(folder)!r}")
    return images


def visible_files(folder: Path, on_error: Callable[[OSError], None] | None = None) -> list[Path]:
    """All files below a folder, folder by folder, but for hidden ones and hidden folders."""
    found: list[Path] = []
    for parent, folders, names in os.walk(folder, onerror=on_error):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [Path(parent, name) for name in sorted(names) if not name.startswith(".")]
    return found


def _refuse(error: OSError) -> None:
    raise ImageNotFoundError(
        f"the folder {error.filename!r} cannot be read ({error.strerror}); check its permissions"
    ) from error
