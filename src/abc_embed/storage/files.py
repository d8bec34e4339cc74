"""Files and folders, whole or not there: written beside their place, flushed, then renamed."""

import errno
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO

from abc_embed.errors import OutputError


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A binary file to write to, which becomes `path` when the block ends without an error.

    Until then, and after an error, whatever was at `path` is untouched.

    Raises:
        OutputError: the folder is not there or cannot be written, or the disk is full.
    """
    path = Path(path)
    partial = partial_path(path)
    try:
        with partial.open("wb") as file:
            yield file
        flush_to_disk(partial)
        os.replace(partial, path)
    except OSError as error:
        _remove(partial)
        raise unwritable(path, error) from error
    except BaseException:  # Ctrl-C too: nothing half-written stays
        _remove(partial)
        raise


def open_file(path: str | os.PathLike[str]) -> BufferedReader:
    """A regular file for reading; a pipe, a socket or a device is never opened nor waited for.

    Raises:
        OSError: it cannot be opened, or is no regular file.
    """
    _check_regular(os.stat(path), path)  # first of all: to open a device may do something
    file = open(path, "rb", opener=_without_waiting)  # noqa: SIM115  (handed out)
    try:
        _check_regular(os.fstat(file.fileno()), path)  # what was opened may be another one
    except OSError:
        file.close()
        raise
    return file


def read_file(path: str | os.PathLike[str]) -> bytes:
    """All bytes of a regular file; as `open_file`."""
    with open_file(path) as file:
        return file.read()


def _check_regular(status: os.stat_result, path: str | os.PathLike[str]) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "it is no ordinary file", os.fspath(path))


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))  # which Windows does not have


def rename_file(old: Path, new: Path) -> None:
    """Rename a file, over another one if need be.

    Raises:
        OutputError: the system does not let us.
    """
    try:
        os.replace(old, new)
    except OSError as error:
        raise unwritable(new, error) from error


def replace_folder(new: Path, folder: Path) -> None:
    """Rename the folder `new` to `folder`, flushed first; what stood there goes after, or stays.

    Raises:
        OSError: it cannot be renamed; what stood there stands there again.
    """
    for path in (*new.rglob("*"), new):
        flush_to_disk(path)
    old = new.with_suffix(".old")
    replaces = folder.exists()
    if replaces:
        folder.rename(old)
    try:
        new.rename(folder)
    except OSError:
        if replaces:
            old.rename(folder)
        raise
    flush_to_disk(folder.parent)
    if replaces:
        shutil.rmtree(old)


def partial_path(path: Path) -> Path:
    """Where a file or folder lies while it is being written: next to its place, hidden."""
    return path.parent / f".{path.name}.{os.getpid()}.part"


def is_partial(path: Path) -> bool:
    """Whether it was being written when a process was killed; such files may be passed over."""
    return path.name.endswith(".part")


def flush_to_disk(path: Path) -> None:
    """Wait until the content of a file, or a folder's list of names, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def make_folder(path: str | os.PathLike[str]) -> Path:
    """The folder, made if need be with those above it.

    Raises:
        OutputError: it cannot be made, or a file is in its place.
    """
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        why = "there is a file of that name" if path.is_file() else error.strerror
        raise OutputError(f"{path} cannot be made: {why}; choose another folder") from error
    return path


def check_writable(path: Path) -> None:
    """Find out now, before an hour of work, that a file could be written there.

    Raises:
        OutputError: there is no such folder, or it may not be written, or `path` is a folder.
    """
    if path.is_dir():
        raise OutputError(f"{str(path)!r} is a folder; give the name of a file to write")
    if not path.parent.is_dir():
        raise OutputError(f"there is no folder {str(path.parent)!r} to write to; make it first")
    try:
        partial_path(path).touch()
        partial_path(path).unlink()
    except OSError as error:
        raise unwritable(path, error) from error


def unwritable(path: Path, error: OSError) -> OutputError:
    """The sentence for a file that the system does not let us write."""
    why = error.strerror or type(error).__name__
    return OutputError(
        f"{str(path)!r} cannot be written ({why}); choose another place, or make room"
    )


def _remove(partial: Path) -> None:
    with suppress(OSError):
        partial.unlink(missing_ok=True)
