"""Files, whole or not there: written beside their place, flushed, then renamed."""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader
from itertools import count
from pathlib import Path
from typing import BinaryIO

from abc_embed.errors import OutputError

with suppress(ImportError):  # Windows, where it is not asked for
    import fcntl


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A binary file to write to, which becomes `path` when the block ends without an error.

    Until then, and after an error, whatever was at `path` is untouched. A symbolic link stays one:
    what it points to is replaced. What a killed process left is overwritten by the next one.

    Raises:
        OutputError: the folder is not there or cannot be written, or the disk is full.
    """
    target = Path(os.path.realpath(path))
    try:
        with _open_partial(target) as file:
            try:
                yield file
                _close_flushed(file)
                os.replace(file.name, target)
            except BaseException:  # Ctrl-C too: nothing half-written stays
                with suppress(OSError):
                    os.unlink(file.name)
                raise
    except OSError as error:
        raise unwritable(Path(path), error) from error


def _close_flushed(file: BinaryIO) -> None:
    """All of it on the disk; closed only where an open file could not be renamed."""
    if file.closed:  # by whoever wrote it
        flush_to_disk(Path(file.name))
        return
    file.flush()
    os.fsync(file.fileno())
    if os.name == "nt":
        file.close()


def _open_partial(path: Path) -> BinaryIO:
    """The first of a file's hidden names that no living process writes to, empty and locked."""
    for attempt in count():
        partial = partial_path(path, attempt)
        file = open(partial, "wb", opener=_without_emptying)  # noqa: SIM115  (handed out)
        if lock_file(file.fileno()) and is_at(file.fileno(), partial):
            file.truncate(0)
            _remove_left(path, attempt + 1)
            return file
        file.close()
    raise AssertionError("unreachable")


def _without_emptying(path: str, flags: int) -> int:
    return os.open(path, flags & ~os.O_TRUNC, 0o666)  # another process may be writing to it


def _remove_left(path: Path, attempt: int) -> None:
    """Take away what killed processes left under a file's further hidden names."""
    while (partial := partial_path(path, attempt)).exists():
        with suppress(OSError), partial.open("ab") as file:
            if lock_file(file.fileno()):
                partial.unlink()
        attempt += 1


def lock_file(descriptor: int, *, wait: bool = False) -> bool:
    """Whether this process has the file or folder for itself now, until it is closed or killed."""
    if os.name == "nt":  # it lets nobody else rename or delete an open file anyway
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks: two writers at once are not told apart
        return True
    return True


def is_at(descriptor: int, path: Path) -> bool:
    """Whether an open file or folder still has this name: it may have been renamed meanwhile."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


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


def partial_path(path: Path, attempt: int = 0) -> Path:
    """Where a file or folder lies while it is being written: next to its place, hidden.

    The name is the same for every process, so that the next one overwrites what a killed one left;
    `attempt` counts those who write at the same time.
    """
    return path.parent / f".{path.name}.{f'{attempt}.' if attempt else ''}part"


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
    path = Path(os.path.realpath(path))
    try:
        with _open_partial(path) as file:
            os.unlink(file.name)
    except OSError as error:
        raise unwritable(path, error) from error


def unwritable(path: Path, error: OSError) -> OutputError:
    """The sentence for a file that the system does not let us write."""
    why = error.strerror or type(error).__name__
    return OutputError(
        f"{str(path)!r} cannot be written ({why}); choose another place, or make room"
    )


def is_unicode(name: str) -> bool:
    """Whether a file's name is text; bytes that are none are halves of surrogate pairs in it."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
