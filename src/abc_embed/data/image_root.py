"""The folder that the images of a data set lie in: names as others write them -> files inside it.

Nothing outside is opened: not by an absolute path, not by `..`, not through a link. Web addresses
are refused, since nothing is fetched.
"""

import os
import unicodedata
from pathlib import Path

from abc_embed.data.fields import FETCH_HINT, is_address, short, stays_inside
from abc_embed.errors import DataError


class ImageRoot:
    """A folder, and how its files are called in data that others wrote."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._real = os.path.realpath(_hub_cache(Path(os.path.realpath(folder))) or folder)

    def plain_name(self, name: str) -> str:
        """A path from the folder with forward slashes, whatever way it was written.

        Raises:
            DataError: it is a web address, or leads out of the folder.
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
