"""The vectors that `abc-embed embed` has so far, beside the file that it writes.

A run that is broken off, by Ctrl-C, a kill or a bad item, so goes on when the same command is given
again: what is in the journal is not embedded a second time. An item is known by its words and, for
a file, its size and time of change, and all of it by the model's files and the settings: what was
changed meanwhile is embedded anew. Runs of a few seconds leave no journal.
"""

import base64
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from abc_embed import __version__
from abc_embed.cli.output import print_message
from abc_embed.storage.files import lock_file, unwritable
from abc_embed.storage.hashing import sample_hash, sha256_json

if TYPE_CHECKING:
    from abc_embed.cli.options import VectorSettings
    from abc_embed.inputs import Item
    from abc_embed.pipeline import Vector

KEPT_AFTER_S = 5.0
"""A run that is broken off sooner is not worth a file that nobody asked for."""


class Journal:
    """Vectors by item; context manager, closed with the run and gone with `remove`.

    Raises:
        OutputError: by all methods, where the journal cannot be read or written.
    """

    def __init__(self, out: Path | None, settings: "VectorSettings") -> None:
        """Read what an earlier run left for this file; one of another job is not used.

        Without a file nothing is kept.
        """
        self._path = None
        self._places: dict[str, tuple[int, int]] = {}
        """Where in the file an item's line begins, and how long it is."""
        self._waiting: list[bytes] = []
        self._started_s = time.monotonic()
        self._file: BinaryIO | None = None
        if out is not None:
            self._job = _job_of(settings)
            target = Path(os.path.realpath(out))
            self._path = target.parent / f".{target.name}.journal"
            if self._path.is_file():
                self._file = self._open(self._path)

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if self._file is None:
            return
        self._file.close()
        if kind is not None:
            print_message(
                f"what is embedded is kept in {str(self._path)!r}: the same command goes on from it"
            )

    def __len__(self) -> int:
        return len(self._places)

    def get(self, key: str) -> "Vector | None":
        """The vector of an item, if it is there."""
        if key not in self._places or self._path is None or self._file is None:
            return None
        import numpy as np

        start, size = self._places[key]
        with _errors_of(self._path):
            self._file.seek(start)
            entry = json.loads(self._file.read(size))
        vector: Vector = np.frombuffer(base64.b64decode(entry["vector"]), entry["dtype"])
        return vector

    def __contains__(self, key: str) -> bool:
        return key in self._places

    def add(self, key: str, vector: "Vector") -> None:
        """Keep the vector of an item."""
        if self._path is None:
            return
        coded = base64.b64encode(vector.tobytes()).decode()
        entry = {"key": key, "dtype": vector.dtype.str, "vector": coded}
        self._waiting.append(json.dumps(entry).encode() + b"\n")
        if time.monotonic() - self._started_s < KEPT_AFTER_S:
            return
        self._file = self._file or self._open(self._path)
        if self._file is not None:
            with _errors_of(self._path):
                self._file.seek(0, os.SEEK_END)
                self._file.writelines(self._waiting)
                self._file.flush()
        self._waiting.clear()

    def remove(self) -> None:
        """The file is written: nothing of this is needed any more."""
        if self._path is not None and self._file is not None:
            self._path.unlink(missing_ok=True)

    def _open(self, path: Path) -> BinaryIO | None:
        """Read the lines that are whole; without a lock on the file it is another run's."""
        with _errors_of(path):
            file = open(path, "a+b")  # noqa: SIM115  (closed with the run)
            if not lock_file(file.fileno()):
                file.close()
                return None
            end = self._read(file)
            file.truncate(end)
            if not end:
                file.write(json.dumps({"job": self._job}).encode() + b"\n")
            return file

    def _read(self, file: BinaryIO) -> int:
        """Where the last whole line of this job ends; 0 where there is none."""
        file.seek(0)
        end = 0
        for line in file:
            try:
                entry = json.loads(line)
                if not end and entry != {"job": self._job}:
                    return 0
                if end:
                    base64.b64decode(entry["vector"], validate=True)
                    self._places[entry["key"]] = (end, len(line))
            except (ValueError, KeyError, TypeError, RecursionError):
                return end  # cut off by a kill
            if not line.endswith(b"\n"):
                return end
            end += len(line)
        return end


@contextmanager
def _errors_of(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise unwritable(path, error) from error


def item_key(item: "Item") -> str:
    """What an item is: equal for equal words about the same state of the same file."""
    image = item.image if isinstance(item.image, str | os.PathLike) else None
    state: list[object] = [item.text, item.instruction, None if image is None else str(image)]
    if image is not None:
        try:
            status = os.stat(image)
            state += [status.st_size, status.st_mtime_ns]
        except (OSError, ValueError):  # a data: URL
            pass
    return sha256_json(state)


def _job_of(settings: "VectorSettings") -> str:
    """Whatever decides a vector besides its item: the model's files, sampled, and all settings."""
    from abc_embed import hub  # huggingface_hub comes with it

    files = hub.fingerprint(settings.model, sample_hash)
    return sha256_json([__version__, files, repr(settings)])
