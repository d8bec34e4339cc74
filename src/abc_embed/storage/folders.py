"""Folders, whole or not there: filled aside, flushed, then put into their place as a whole.

Where a folder stood before, the two swap names in one step, so that one of them is there at every
moment. Not every file system can do that; there the old one steps aside first, and a process killed
between the two renames leaves it to `recover_folder`. A folder that cannot be renamed at all (a
mount point, a volume of a container) is filled in its own inside and its files then move one level
up; that, too, is finished by `recover_folder` after a kill.
"""

import ctypes
import errno
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from abc_embed.errors import OutputError
from abc_embed.storage.files import flush_to_disk, is_at, lock_file, partial_path

_READY, _MOVING = ".ready", ".moving"
"""Inside a folder that cannot be renamed: whole new files; the same, the old ones being gone."""
_IN_MOUNT = ".part"
_KEPT = frozenset({"lost+found", _IN_MOUNT, _READY, _MOVING})
"""What belongs to a file system, or to us, and not to the content of a folder."""

_SWAP = 2  # RENAME_EXCHANGE of Linux, RENAME_SWAP of macOS
_AT_FDCWD = -100
_NO_SWAP = frozenset({errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP})
_NO_RENAME = frozenset({errno.EBUSY, errno.EXDEV})


@contextmanager
def atomic_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """An empty folder to fill, which becomes `path` when the block ends without an error.

    Until then, and after an error, whatever was at `path` is untouched. A symbolic link stays one:
    the folder that it points to is replaced. What a killed process left is removed.

    Raises:
        OSError: the system does not let us write or rename.
        OutputError: another process is writing the same folder.
    """
    folder = Path(os.path.realpath(path))
    folder.parent.mkdir(parents=True, exist_ok=True)
    recover_folder(folder)
    partial = folder / _IN_MOUNT if _is_fixed(folder) else partial_path(folder)
    partial.mkdir(exist_ok=True)
    with _locked(partial):
        try:
            for left in partial.iterdir():
                _remove(left)
            shutil.rmtree(_old_path(folder), ignore_errors=True)
            yield partial
            if partial.parent == folder:
                _commit_inside(partial, folder)
            else:
                replace_folder(partial, folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def content_of(folder: Path) -> list[Path]:
    """What a folder holds, but for what belongs to its file system or to an unfinished save."""
    return [path for path in folder.iterdir() if path.name not in _KEPT]


def replace_folder(new: Path, folder: Path) -> None:
    """Rename the folder `new` to `folder`, flushed first; what stood there goes after, or stays.

    Raises:
        OSError: it cannot be renamed; what stood there stands there again.
    """
    _flush_all(new)
    if not folder.exists():
        os.rename(new, folder)
    else:
        try:
            _swap(new, folder)
        except OSError as error:
            if error.errno not in _NO_RENAME:
                raise
            inside = folder / _IN_MOUNT
            shutil.rmtree(inside, ignore_errors=True)
            shutil.copytree(new, inside)
            _commit_inside(inside, folder)
    flush_to_disk(folder.parent)
    shutil.rmtree(new, ignore_errors=True)


def recover_folder(path: str | os.PathLike[str]) -> None:
    """Finish what a kill in the last step of saving left; asked before a folder is read.

    Raises:
        OSError: there is something to finish, and the system does not let us.
    """
    folder = Path(os.path.realpath(path))
    old = _old_path(folder)
    if not folder.exists() and old.is_dir():
        partial = partial_path(folder)  # if its writer lives, it is between two renames
        with _locked(partial, wait=True) if partial.is_dir() else nullcontext():
            if not folder.exists() and old.is_dir():
                os.rename(old, folder)
    if (folder / _READY).is_dir() or (folder / _MOVING).is_dir():
        _finish_inside(folder)


def _old_path(folder: Path) -> Path:
    return folder.parent / f".{folder.name}.old"


def _is_fixed(folder: Path) -> bool:
    """Whether a folder is there and cannot change its name."""
    may_rename = os.access(folder.parent, os.W_OK | os.X_OK)
    return folder.is_dir() and (os.path.ismount(folder) or not may_rename)


@contextmanager
def _locked(folder: Path, wait: bool = False) -> Iterator[None]:
    """Keep other processes from writing into a folder; the lock goes with the process."""
    if os.name == "nt":  # folders cannot be opened there
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        if not (lock_file(descriptor, wait=wait) and (wait or is_at(descriptor, folder))):
            raise OutputError(
                f"another process is writing {str(folder.parent)!r}; wait until it is done"
            )
        yield
    finally:
        os.close(descriptor)


def _flush_all(folder: Path) -> None:
    for path in (*folder.rglob("*"), folder):
        flush_to_disk(path)


def _swap(new: Path, folder: Path) -> None:
    """Let two folders take each other's name; in two steps where the system has no single one."""
    if _swap_at_once(new, folder):
        return
    old = _old_path(folder)
    shutil.rmtree(old, ignore_errors=True)
    os.rename(folder, old)
    try:
        os.rename(new, folder)
    except OSError:
        os.rename(old, folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _swap_at_once(one: Path, other: Path) -> bool:
    """Exchange two names; False where the system, or the file system, does not know how.

    Raises:
        OSError: it knows, and does not let us.
    """
    paths = os.fsencode(one), os.fsencode(other)
    try:
        library = ctypes.CDLL(None, use_errno=True)
        if sys.platform == "darwin":
            failed = library.renamex_np(*paths, _SWAP)
        else:
            failed = library.renameat2(_AT_FDCWD, paths[0], _AT_FDCWD, paths[1], _SWAP)
    except (AttributeError, OSError, TypeError):  # no such call here
        return False
    code = ctypes.get_errno() if failed else 0
    if code in _NO_SWAP:
        return False
    if code:
        raise OSError(code, os.strerror(code), str(other))
    return True


def _commit_inside(partial: Path, folder: Path) -> None:
    """Put the files of a folder's hidden inside into the folder."""
    _flush_all(partial)
    os.rename(partial, folder / _READY)  # from here on the new files count
    flush_to_disk(folder)
    _finish_inside(folder)


def _finish_inside(folder: Path) -> None:
    """The old files go, then the new ones move up; after a kill, the next process goes on."""
    ready, moving = folder / _READY, folder / _MOVING
    if ready.is_dir():
        for path in content_of(folder):
            _remove(path)
        os.rename(ready, moving)
    for path in list(moving.iterdir()):
        _remove(folder / path.name)
        os.rename(path, folder / path.name)
    moving.rmdir()
    flush_to_disk(folder)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
