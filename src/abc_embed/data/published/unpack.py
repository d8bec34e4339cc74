"""Images out of tar archives into files, safely.

Does: write the plain files that an index knows into a folder, and name what is left out. Does not:
make links, devices or anything outside of the folder, write more than was allowed, or write over
a file that is there and whole.
"""

import shutil
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from abc_embed.data.published.dataset import is_inside
from abc_embed.data.published.tar_images import Member, TarImages
from abc_embed.errors import OutputError
from abc_embed.storage.files import atomic_write, make_folder


@dataclass(slots=True)
class Unpacked:
    """What was written."""

    written: int = 0
    kept: int = 0
    """Files that were there already, with the right content."""
    left_out: list[tuple[str, str]] = field(default_factory=list)
    """(name, why)."""

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        return {"written": self.written, "kept": self.kept, "left_out": self.left_out}


def unpack(
    images: TarImages,
    out: Path,
    *,
    limit: int | None = None,
    counted: Callable[[int, int], None] = lambda done, of: None,
) -> Unpacked:
    """Write every indexed file below `out`; `limit` is in bytes (None: as much as the disk has).

    Stopped and called again, it keeps what is there. `counted` is told bytes.

    Raises:
        OutputError: all together are more than the limit or the free disk, or a file cannot be
            written.
        DataError: an archive is damaged.
    """
    summary = images.summary()
    make_folder(out)
    free = shutil.disk_usage(out).free
    if limit is not None and summary.image_bytes > limit:
        raise OutputError(
            f"the images have {summary.image_bytes / 1e6:,.0f} MB, more than the limit of "
            f"{limit / 1e6:,.0f} MB; raise --limit if you trust them"
        )
    done = Unpacked(left_out=list(summary.left_out))
    listed = (member for member in images.members() if is_inside(member.name))
    there = sum(member.size for member in listed if _size(out / member.name) == member.size)
    if summary.image_bytes - there > free:
        raise OutputError(
            f"the images have {summary.image_bytes / 1e6:,.0f} MB and {out} has "
            f"{free / 1e6:,.0f} MB free; make room, or read them without unpacking"
        )
    root = out.resolve()
    count = 0
    for member, content in images.in_order():
        why = _unsafe(root, member)
        if why is not None:
            done.left_out.append((member.name, why))
        elif _is_there(root / member.name, member):
            done.kept += 1
        else:
            _write(root / member.name, content)
            done.written += 1
        count += member.size
        counted(count, summary.image_bytes)
    return done


def _unsafe(root: Path, member: Member) -> str | None:
    """Why a file is not written, or None."""
    if not is_inside(member.name):
        return "its name leads out of the folder"
    # A link that is there already could lead anywhere, whatever the name says.
    if not (root / member.name).parent.resolve().is_relative_to(root):
        return "a link in the folder leads out of it"
    return None


def _size(path: Path) -> int:
    try:
        return path.lstat().st_size
    except OSError:
        return -1


def _is_there(path: Path, member: Member) -> bool:
    if path.is_symlink() or _size(path) != member.size:
        return False
    return zlib.crc32(path.read_bytes()) == member.crc


def _write(path: Path, content: bytes) -> None:
    make_folder(path.parent)
    with atomic_write(path) as file:
        file.write(content)
