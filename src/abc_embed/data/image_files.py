"""The image files of a folder: found by name and not opened, or named as others write them.

Nothing outside a data set's folder is opened: not by an absolute path, not by `..`, not through a
link. Web addresses are refused, since nothing is fetched.
"""

import logging
import os
import unicodedata
from collections.abc import Callable
from pathlib import Path

from abc_embed.data.fields import FETCH_HINT, is_address, short, stays_inside
from abc_embed.errors import DataError, ImageNotFoundError
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


# -- images by the names that others write ---------------------------------------------------------


class ImageRoot:
    """A folder, and how its files are called in data that others wrote."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._real = os.path.realpath(_hub_cache(Path(os.path.realpath(folder))) or folder)

    def plain_name(self, name: str) -> str:
        """A path from the folder with forward slashes, whatever way it was written.

        A web address, or what leads out of the folder, is a `DataError`.
        """
        if is_address(name):
            raise DataError(f"the image {short(name)} is a web address{FETCH_HINT}")
        plain = name.strip()
        for folder in dict.fromkeys((os.path.abspath(self.folder), os.path.realpath(self.folder))):
            if os.path.isabs(plain) and plain.startswith(folder.rstrip(os.sep) + os.sep):
                plain = plain[len(folder.rstrip(os.sep)) + 1 :]
                break
        if "\\" in plain and not os.path.lexists(self.folder / plain):
            plain = plain.replace("\\", "/")
        parts = [part for part in plain.split("/") if part != "."]
        plain = "/".join(part for number, part in enumerate(parts) if part or not number)
        if not stays_inside(plain):
            raise DataError(f"the image {short(name)} lies outside the folder; move it inside")
        return plain

    def find(self, name: str) -> tuple[str, Path]:
        """The name and path of the file that a plain name means; it need not be there.

        A name whose accents are written another way (NFC, NFD) finds its file.

        Raises:
            DataError: it is reached through a link that leads out of the folder, or no file can
                have such a name.
        """
        try:
            os.fsencode(name)
        except UnicodeEncodeError:
            why = "with half a character; mend its escapes"
            raise DataError(f"image is {short(name)}, {why}") from None
        path = self.folder / name
        if not name.isascii() and not os.path.lexists(path):
            for form in ("NFC", "NFD"):
                other = unicodedata.normalize(form, name)
                if os.path.lexists(self.folder / other):
                    name, path = other, self.folder / other
                    break
        self.check_link(path)
        return name, path

    def check_link(self, path: Path) -> None:
        """Raises `DataError` for a path that leads out of the folder through a link."""
        real = os.path.realpath(path)
        inside = real == self._real or real.startswith(self._real.rstrip(os.sep) + os.sep)
        if not inside and os.path.isfile(real):  # to open anything else is refused in any case
            raise DataError(
                f"{short(path.name)} is reached through a link that leads out of the folder; "
                "put a copy there"
            )


def _hub_cache(folder: Path) -> Path | None:
    """The hub's own folder around a snapshot, whose files are links to its `blobs`."""
    for parent in folder.parents:
        if parent.name == "snapshots" and (parent.parent / "blobs").is_dir():
            return parent.parent
    return None
