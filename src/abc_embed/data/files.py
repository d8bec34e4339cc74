"""Files that are written aside and renamed when they are whole.

Does: make sure that a half-written file never has its final name, whatever stops the writing. Does
not: know what is in the file.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from abc_embed.errors import OutputError


@contextmanager
def written_aside(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A binary file to write to, which becomes `path` when the block ends without an error.

    Until then, and after an error, whatever was at `path` is untouched.

    Raises:
        OutputError: the folder is not there or cannot be written, or the disk is full.
    """
    path = Path(path)
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with aside.open("wb") as file:
            yield file
        os.replace(aside, path)
    except OSError as problem:
        _forget(aside)
        why = problem.strerror or type(problem).__name__
        raise OutputError(f"{path} cannot be written: {why}; choose another place") from problem
    except BaseException:  # Ctrl-C too: nothing half-written stays
        _forget(aside)
        raise


def make_folder(path: str | os.PathLike[str]) -> Path:
    """The folder, made if need be with those above it.

    Raises:
        OutputError: it cannot be made, or a file is in its place.
    """
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        why = "there is a file of that name" if path.is_file() else problem.strerror
        raise OutputError(f"{path} cannot be made: {why}; choose another folder") from problem
    return path


def _forget(aside: Path) -> None:
    with suppress(OSError):
        aside.unlink(missing_ok=True)
