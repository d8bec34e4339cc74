"""A SQLite file made on first use, for several processes and threads; what is committed survives
a kill. What is kept is left to its uses, like `VectorCache` and `vlm.limits.ReplyCache`.
"""

import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, ClassVar, Self

from abc_embed.errors import OutputError

_WAIT_S = 30.0  # for another process that writes


class SqliteStore:
    """Base of those that name their tables, and say what to do when the file cannot be used.

    Whatever is asked of a file that cannot be used is an `OutputError`.
    """

    TABLES: ClassVar[tuple[str, ...]]
    """Statements that make what is absent."""
    ERROR: ClassVar[str]
    """The sentence, with {path} and {error}."""

    def __init__(self, path: Path | None = None) -> None:
        """Opens the file, which is made if absent; without a path, in memory."""
        self.path = path
        self._lock = threading.RLock()
        with self._reported():
            self._database = sqlite3.connect(
                path or ":memory:", timeout=_WAIT_S, check_same_thread=False
            )
        try:
            with self.transaction() as database:
                for table in self.TABLES:
                    database.execute(table)
        except OutputError:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file."""
        with suppress(sqlite3.Error):
            self._database.close()

    def query(self, statement: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """The rows of a SELECT."""
        with self._reported():
            return self._database.execute(statement, values).fetchall()

    def execute(self, statement: str, rows: Iterable[Sequence[Any]]) -> None:
        """A statement that changes something, once for each row, for all of them or none."""
        with self.transaction() as database:
            database.executemany(statement, rows)

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """What is done within is committed at the end, or undone."""
        with self._reported(), self._database:
            yield self._database

    @contextmanager
    def _reported(self) -> Iterator[None]:
        """One thread at a time, its errors as ours."""
        try:
            with self._lock:
                yield
        except (sqlite3.Error, OSError) as error:
            sentence = self.ERROR.format(path=repr(str(self.path)), error=error)
            raise OutputError(sentence) from error
