"""Replies of a VLM, remembered on disk by what decides them, and a ledger of what was paid.

Does: keep both in one SQLite file, each reply committed as it comes, so that a killed process loses
only what was under way. Does not: know what a reply means.
"""

import threading
from pathlib import Path

from abc_embed.storage.sqlite import Store


class ReplyCache(Store):
    """Replies by key; for several threads and processes at once. Without a path, in memory."""

    TABLES = (
        "CREATE TABLE IF NOT EXISTS replies (key TEXT PRIMARY KEY, model TEXT, prompt TEXT,"
        " image TEXT, reply TEXT) WITHOUT ROWID",
        "CREATE TABLE IF NOT EXISTS charges (number INTEGER PRIMARY KEY, input_tokens INTEGER,"
        " output_tokens INTEGER)",
    )
    TROUBLE = (
        "the replies in {path} cannot be used ({error}); make room or choose another place; "
        "deleting the file means asking and paying again"
    )

    def __init__(self, path: Path | None = None) -> None:
        """Opens the file, which is made if absent.

        Raises:
            OutputError: it cannot be made, or is no cache of replies.
        """
        self._lock = threading.Lock()
        super().__init__(path, any_thread=True)

    def get(self, key: str) -> str | None:
        """The reply of that key, as JSON text."""
        with self._lock, self._reported():
            row = self._database.execute("SELECT reply FROM replies WHERE key = ?", (key,))
            found = row.fetchone()
        return None if found is None else str(found[0])

    def put(self, key: str, reply: str, *, model: str, prompt: str, image: str) -> None:
        """Remember a reply, with what it answered for people who look into the file."""
        with self._lock, self._reported(), self._database:
            self._database.execute(
                "INSERT OR REPLACE INTO replies VALUES (?, ?, ?, ?, ?)",
                (key, model, prompt, image, reply),
            )

    def open_charge(self, input_tokens: int, output_tokens: int) -> int:
        """Note the most that a request can cost, before it is sent; the note's number."""
        with self._lock, self._reported(), self._database:
            note = self._database.execute(
                "INSERT INTO charges (input_tokens, output_tokens) VALUES (?, ?)",
                (input_tokens, output_tokens),
            )
        return int(note.lastrowid or 0)

    def settle_charge(self, number: int, input_tokens: int, output_tokens: int) -> None:
        """Put what it did cost in its place."""
        with self._lock, self._reported(), self._database:
            self._database.execute(
                "UPDATE charges SET input_tokens = ?, output_tokens = ? WHERE number = ?",
                (input_tokens, output_tokens, number),
            )

    def charged(self) -> tuple[int, int]:
        """All tokens of prompt and of reply in the ledger."""
        with self._lock, self._reported():
            row = self._database.execute(
                "SELECT TOTAL(input_tokens), TOTAL(output_tokens) FROM charges"
            ).fetchone()
        return int(row[0]), int(row[1])
