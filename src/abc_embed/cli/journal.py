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
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from abc_embed.cli.output import print_message
from abc_embed.storage.files import lock_file, unwritable
from abc_embed.storage.hashing import sha256_json

if TYPE_CHECKING:
    from abc_embed.cli.options import VectorSettings
    from abc_embed.inputs import Item
    from abc_embed.pipeline import Vector

KEPT_AFTER_S = 5.0
"""A run that is broken off sooner is not worth a file that nobody asked for."""


class Journal:
    """Vectors by item; context manager, closed with the run and gone with `remove`."""

    def __init__(self, out: Path, job: str) -> None:
        """Read what an earlier run for this file left; one of another job is not used.

        Args:
            out: the file that is written in the end.
            job: whatever else decides a vector, as one word.

        Raises:
            OutputError: the journal cannot be read or written.
        """
        target = Path(os.path.realpath(out))
        self.path = target.parent / f".{target.name}.journal"
        self._job = job
        self._places: dict[str, tuple[int, int]] = {}
        """Where in the file an item's line begins, and how long it is."""
        self._waiting: list[bytes] = []
        self._started_s = time.monotonic()
        self._file: BinaryIO | None = None
        if self.path.is_file():
            self._open()

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if self._file is None:
            return
        self._file.close()
        if kind is not None:
            print_message(
                f"what is embedded is kept in {str(self.path)!r}: the same command goes on from it"
            )

    def __len__(self) -> int:
        return len(self._places)

    def get(self, key: str) -> "Vector | None":
        """The vector of an item, if it is there.

        Raises:
            OutputError: the journal cannot be read.
        """
        import numpy as np

        if key not in self._places or self._file is None:
            return None
        start, size = self._places[key]
        try:
            self._file.seek(start)
            entry = json.loads(self._file.read(size))
        except OSError as error:
            raise unwritable(self.path, error) from error
        vector: Vector = np.frombuffer(base64.b64decode(entry["vector"]), entry["dtype"])
        return vector

    def __contains__(self, key: str) -> bool:
        return key in self._places

    def add(self, key: str, vector: "Vector") -> None:
        """Keep the vector of an item.

        Raises:
            OutputError: the journal cannot be written.
        """
        coded = base64.b64encode(vector.tobytes()).decode()
        entry = {"key": key, "dtype": vector.dtype.str, "vector": coded}
        self._waiting.append(json.dumps(entry).encode() + b"\n")
        if time.monotonic() - self._started_s < KEPT_AFTER_S:
            return
        if self._file is None:
            self._open()
        if self._file is not None:
            try:
                self._file.seek(0, os.SEEK_END)
                self._file.writelines(self._waiting)
                self._file.flush()
            except OSError as error:
                raise unwritable(self.path, error) from error
        self._waiting.clear()

    def remove(self) -> None:
        """The file is written: nothing of this is needed any more."""
        if self._file is not None:
            self.path.unlink(missing_ok=True)

    def _open(self) -> None:
        """Read the lines that are whole; without a lock on the file it is another run's."""
        try:
            self._file = open(self.path, "a+b")  # noqa: SIM115  (closed with the run)
            if not lock_file(self._file.fileno()):
                self._file.close()
                self._file = None
                return
            end = self._read(self._file)
            self._file.truncate(end)
            if not end:
                self._file.write(json.dumps({"job": self._job}).encode() + b"\n")
        except OSError as error:
            raise unwritable(self.path, error) from error

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


def job_of(settings: "VectorSettings") -> str:
    """The job of `Journal`: the model's files, sampled, and all settings.

    Raises:
        AbcError: as `hub.locate`.
    """
    from abc_embed import __version__, hub
    from abc_embed.storage.hashing import sample_hash

    files = hub.fingerprint(settings.model, sample_hash)
    return sha256_json([__version__, files, repr(settings)])
