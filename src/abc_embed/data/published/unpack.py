"""Images out of tar archives into files: nothing outside of the folder, no links, no devices, no
more than was allowed, and nothing over a file that is there and right."""

import shutil
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from abc_embed.data.published.dataset import is_inside
from abc_embed.data.published.tar_images import Member, TarImages
from abc_embed.errors import OutputError
from abc_embed.storage.files import atomic_write, make_folder


@dataclass(slots=True)
class UnpackReport:
    """What was written."""

    written: int = 0
    kept: int = 0
    """Files that were there already, with the right content."""
    left_out: list[tuple[str, str]] = field(default_factory=list)
    """(name, why)."""


def unpack(
    images: TarImages,
    out: Path,
    *,
    limit: int | None = None,
    on_progress: Callable[[int, int], None] = lambda done, of: None,
) -> UnpackReport:
    """Write every indexed file below `out`; `limit` is in bytes (None: as much as the disk has).

    Stopped and called again, it keeps what is there. `on_progress` gets bytes.

    Raises:
        OutputError: all together are more than the limit or the free disk, or a file cannot be
            written.
        DataError: an archive is damaged.
    """
    total = images.counts()["image_bytes"]
    make_folder(out)
    free = shutil.disk_usage(out).free
    if limit is not None and total > limit:
        raise OutputError(
            f"the images have {total / 1e6:,.0f} MB, more than the limit of "
            f"{limit / 1e6:,.0f} MB; raise --limit if you trust them"
        )
    members = (member for member in images.members() if is_inside(member.name))
    there = sum(member.size for member in members if _size(out / member.name) == member.size)
    if total - there > free:
        raise OutputError(
            f"the images have {total / 1e6:,.0f} MB and {out} has "
            f"{free / 1e6:,.0f} MB free; make room, or read them without unpacking"
        )
    report = UnpackReport(left_out=images.left_out())
    root, done = out.resolve(), 0
    for member, content in images.in_order():
        path = root / member.name
        if not is_inside(member.name):
            report.left_out.append((member.name, "its name leads out of the folder"))
        # A link that is there already could lead anywhere, whatever the name says.
        elif not path.parent.resolve().is_relative_to(root):
            report.left_out.append((member.name, "a link in the folder leads out of it"))
        elif _is_there(path, member):
            report.kept += 1
        else:
            make_folder(path.parent)
            if path.is_symlink():  # or what it points to would be written
                path.unlink()
            with atomic_write(path) as file:
                file.write(content)
            report.written += 1
        done += member.size
        on_progress(done, total)
    return report


def _size(path: Path) -> int:
    try:
        return path.lstat().st_size
    except OSError:
        return -1


def _is_there(path: Path, member: Member) -> bool:
    if path.is_symlink() or _size(path) != member.size:
        return False
    return zlib.crc32(path.read_bytes()) == member.crc
