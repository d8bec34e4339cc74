"""A SQLite file that is made on first use, safe with several processes at once; what is committed
survives a kill.

Does: open it, make its tables, let go of it, and turn what goes wrong into one sentence. Does not:
know what is kept (``cache`` and ``data.vlm_cache`` do).
"""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import ClassVar, Self

from abc_embed.errors import OutputError

_WAIT_S = 30.0  # for another process that writes


class Store:
    """Those that derive from it say what its tables are and what to do when it cannot be used."""

    TABLES: ClassVar[tuple[str, ...]]
    """Statements that make what is absent."""
    TROUBLE: ClassVar[str]
    """The sentence, with {path} and {error}."""

    def __init__(self, path: Path | None, *, any_thread: bool = False) -> None:
        """Opens the file, which is made if absent; without a path, in memory.

        With `any_thread` threads may share it; the caller keeps them apart.

        Raises:
            OutputError: it cannot be made or opened, or holds something else.
        """
        self.path = path
        with self._reported():
            self._database = sqlite3.connect(
                path or ":memory:", timeout=_WAIT_S, check_same_thread=not any_thread
            )
        try:
            with self._reported(), self._database:
                for table in self.TABLES:
                    self._database.execute(table)
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

    @contextmanager
    def _reported(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            sentence = self.TROUBLE.format(path=repr(str(self.path)), error=error)
            raise OutputError(sentence) from error
