"""The folder that a job writes to: held by one driver at a time, and whole after any kill.

Workers write parts into a hidden folder of this run; only the driver, which holds the lock, gives
them their place. So whatever was killed, and whatever lives on for a moment, a part is there once
and as a whole, or not at all. What is done is read from the parts themselves.
"""

import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from abc_embed.data import Rejected
from abc_embed.errors import DataError, OutputError
from abc_embed.scale.source import key_of
from abc_embed.storage.files import (
    atomic_write,
    flush_to_disk,
    lock_file,
    make_folder,
    partial_path,
    rename_file,
    unwritable,
)
from abc_embed.storage.json_files import atomic_write_json, json_line
from abc_embed.storage.vector_folder import (
    FACTS_FILE,
    TABLE,
    VectorFolder,
    import_lancedb,
    is_vector_folder,
)

LOCK, REJECTS_FILE, RUN = ".lock", "rejects.jsonl", ".run-"


class BatchOutput:
    """Parts, facts and rejects of one job."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.run_folder = folder / f"{RUN}{uuid.uuid4().hex[:12]}"
        self.earlier = VectorFolder(folder).facts if is_vector_folder(folder) else None
        """What an earlier run wrote down of its vectors; None where there was none."""

    @classmethod
    @contextmanager
    def open(cls, folder: Path) -> Iterator["BatchOutput"]:
        """Hold a new folder, or one of an earlier run of the job; nothing stays of a false start.

        Raises:
            OutputError: it holds something else, cannot be written, or another job holds it.
        """
        folder = Path(os.path.abspath(folder))
        is_new = not folder.exists()
        if not is_new and not is_vector_folder(folder) and _content(folder):
            raise OutputError(f"{str(folder)!r} is there and no output of batch; choose a new one")
        make_folder(folder)
        try:
            lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise unwritable(folder / LOCK, error) from error
        try:
            if not lock_file(lock):
                raise OutputError(
                    f"another job is writing to {str(folder)!r}; wait until it is done, or give "
                    "another --out"
                )
            for left in folder.glob(f"{RUN}*"):
                shutil.rmtree(left, ignore_errors=True)
            output = cls(folder)
            make_folder(output.run_folder)
            try:
                yield output
            finally:
                shutil.rmtree(output.run_folder, ignore_errors=True)
                if not is_vector_folder(folder):
                    (folder / LOCK).unlink(missing_ok=True)
                    if is_new:
                        with suppress(OSError):
                            folder.rmdir()
        finally:
            os.close(lock)

    # -- what it is --------------------------------------------------------------------------------

    def is_complete(self, wanted: Mapping[str, Any]) -> bool:
        """Whether an earlier run came to its end, with these facts among others."""
        known = self.earlier
        if known is None or not known["complete"]:
            return False
        return all(known[name] == wanted[name] for name in wanted)

    def begin(self, facts: Mapping[str, Any]) -> None:
        """Write down what the vectors are; or compare it with what an earlier run wrote down.

        Raises:
            DataError: that run had another model, resolution or form.
        """
        known = self.earlier or facts
        for name in ("fingerprint", "max_pixels", "instruction", "dim", "output", "format"):
            if known.get(name) != facts[name]:
                what = "model" if name == "fingerprint" else name.replace("_", " ")
                raise DataError(
                    f"{str(self.folder)!r} was begun with another {what} ({known.get(name)}, now "
                    f"{facts[name]}); give the same, or another --out"
                )
        self._write_facts({**facts, "complete": False})

    def finish(self, facts: Mapping[str, Any]) -> None:
        """All rows are done: for Lance the parts become a table, and the facts say it is whole.

        Raises:
            OutputError: it cannot be written.
        """
        if facts["format"] == "lance" and VectorFolder(self.folder).parts():
            self._make_table()
        self._write_facts({**facts, "complete": True})

    def _write_facts(self, facts: Mapping[str, Any]) -> None:
        atomic_write_json(self.folder / FACTS_FILE, dict(facts))

    def _make_table(self) -> None:
        """One table of all parts, whole before the first of them goes.

        A table of an earlier run is in it too: the parts are those of rows that were added since.
        """
        lancedb, made = import_lancedb(), VectorFolder(self.folder)
        os.environ.setdefault("LANCE_LOG", "error")
        aside = partial_path(self.folder / f"{TABLE}.lance")
        shutil.rmtree(aside, ignore_errors=True)
        import pyarrow

        schema = pyarrow.parquet.read_schema(made.parts()[0])
        table = self.folder / f"{TABLE}.lance"

        def batches() -> Iterator[Any]:
            if table.is_dir():
                old = lancedb.connect(self.folder).open_table(TABLE)
                yield from old.search().to_batches()
            yield from made.batches()

        try:
            reader = pyarrow.RecordBatchReader.from_batches(schema, batches())
            lancedb.connect(aside).create_table(TABLE, data=reader)
            shutil.rmtree(table, ignore_errors=True)
            os.rename(aside / f"{TABLE}.lance", table)
        except (ValueError, RuntimeError, OSError) as error:
            raise OutputError(
                f"the table in {str(self.folder)!r} cannot be made: {error}"
            ) from error
        shutil.rmtree(aside, ignore_errors=True)
        for part in made.parts():
            part.unlink()

    # -- what is done ------------------------------------------------------------------------------

    def done(self, keys: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """`(N,)` which of the rows with these keys (`source.read_ids`) have their vector.

        Raises:
            DataError: a part is damaged, or holds ids that the source does not have.
        """
        done = np.zeros(len(keys), dtype=np.bool_)
        if self.earlier is None:
            return done
        order = np.argsort(keys, kind="stable")
        ordered = keys[order]
        for batch in VectorFolder(self.folder).batches(("id",)):
            names = batch["id"].to_pylist()
            wanted = np.array([key_of(name) for name in names], dtype=np.uint64)
            at = np.minimum(np.searchsorted(ordered, wanted), len(keys) - 1)
            strange = np.flatnonzero(ordered[at] != wanted)
            if len(strange):
                raise DataError(
                    f"{str(self.folder)!r} holds {names[strange[0]]!r}, which the source does not "
                    "have; give the source that it was begun with, or another --out"
                )
            done[order[at]] = True
        return done

    def commit(self, name: str) -> None:
        """Give a part that a worker wrote its place.

        Raises:
            OutputError: it cannot be renamed.
        """
        rename_file(self.run_folder / name, self.folder / name)
        flush_to_disk(self.folder)

    # -- what cannot be used -----------------------------------------------------------------------

    def start_rejects(self, rejected: Mapping[int, Rejected]) -> None:
        """Begin the list anew: every row that has no vector is tried again.

        Raises:
            OutputError: it cannot be written.
        """
        path = self.folder / REJECTS_FILE
        if not rejected and not path.exists():
            return
        with atomic_write(path) as file:
            file.writelines(_line(bad) for bad in rejected.values())

    def add_rejects(self, rejected: list[Rejected]) -> None:
        """Append to the list; raises `OutputError` where it cannot be written."""
        path = self.folder / REJECTS_FILE
        try:
            with path.open("ab") as file:
                file.writelines(map(_line, rejected))
        except OSError as error:
            raise unwritable(path, error) from error


def _line(bad: Rejected) -> bytes:
    return json_line({"place": bad.place, "why": bad.why})


def _content(folder: Path) -> list[Path]:
    """What lies there, but for what a run leaves that was killed before it wrote anything."""
    if not folder.is_dir():
        return [folder]
    return [p for p in folder.iterdir() if p.name != LOCK and not p.name.startswith(RUN)]
