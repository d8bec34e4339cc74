"""The image files of a folder, found by name; they are not opened."""

import logging
import os
from collections.abc import Callable
from pathlib import Path

from abc_embed.errors import ImageNotFoundError
from abc_embed.inputs import IMAGE_SUFFIXES

logger = logging.getLogger(__name__)


def find_images(
    folder: Path,
    *,
    required: bool = False,
    on_unreadable: Callable[[Path, ImageNotFoundError], None] | None = None,
) -> list[Path]:
    """All images below `folder`, in the order of their names; hidden ones are not looked at.

    Folders that are links are not entered, as they may lead round in a ring; that is said. A
    folder inside that may not be read is an error, or goes to `on_unreadable` and costs no other.

    Raises:
        ImageNotFoundError: no such folder, or one inside it may not be read; or, where some are
            `required`, it has none.
    """
    if not folder.is_dir():
        raise ImageNotFoundError(f"there is no folder {str(folder)!r}; check the path")

    def unreadable(problem: OSError) -> None:
        error = ImageNotFoundError(
            f"the folder {problem.filename!r} cannot be read ({problem.strerror}); "
            "check its permissions"
        )
        if on_unreadable is None or Path(problem.filename) == folder:
            raise error from None
        on_unreadable(Path(problem.filename), error)

    links: list[Path] = []
    files = visible_files(folder, unreadable, links.append)
    images = [path for path in files if path.suffix.lower() in IMAGE_SUFFIXES]
    hint = ""
    if links:
        hint = f"; linked folders are not entered ({len(links)}, the first {str(links[0])!r})"
    if required and not images:
        raise ImageNotFoundError(f"there is no image in the folder {str(folder)!r}{hint}")
    if links:
        logger.warning("%s: %d images%s", folder, len(images), hint)
    return images


def has_images(folder: Path) -> bool:
    """Whether there is any image below a folder."""
    return any(path.suffix.lower() in IMAGE_SUFFIXES for path in visible_files(folder))


def visible_files(
    folder: Path,
    on_error: Callable[[OSError], None] | None = None,
    on_link: Callable[[Path], None] = lambda link: None,
) -> list[Path]:
    """All files below a folder, folder by folder, but for hidden ones and hidden folders.

    Links to folders are not entered and go to `on_link`, folders that cannot be read to `on_error`.
    """
    found: list[Path] = []
    for parent, folders, names in os.walk(folder, onerror=on_error):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [Path(parent, name) for name in sorted(names) if not name.startswith(".")]
        for name in folders:
            if os.path.islink(os.path.join(parent, name)):
                on_link(Path(parent, name))
    return found
