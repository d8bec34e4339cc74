"""Replies of a VLM by what decides them, and a ledger of what was paid, in one SQLite file.

Each reply is committed as it comes, so that a killed process loses only what was under way.
"""

from abc_embed.storage.sqlite import SqliteStore


class ReplyCache(SqliteStore):
    """Replies by key; for several threads and processes at once. Without a path, in memory."""

    TABLES = (
        "CREATE TABLE IF NOT EXISTS replies (key TEXT PRIMARY KEY, model TEXT, prompt TEXT,"
        " image TEXT, reply TEXT) WITHOUT ROWID",
        "CREATE TABLE IF NOT EXISTS charges (number INTEGER PRIMARY KEY, input_tokens INTEGER,"
        " output_tokens INTEGER)",
    )
    ERROR = (
        "the replies in {path} cannot be used ({error}); make room or choose another place; "
        "deleting the file means asking and paying again"
    )

    def get(self, key: str) -> str | None:
        """The reply of that key, as JSON text."""
        rows = self.query("SELECT reply FROM replies WHERE key = ?", (key,))
        return str(rows[0][0]) if rows else None

    def put(self, key: str, reply: str, *, model: str, prompt: str, image: str) -> None:
        """Remember a reply, with what it answered for people who look into the file."""
        values = (key, model, prompt, image, reply)
        self.execute("INSERT OR REPLACE INTO replies VALUES (?, ?, ?, ?, ?)", [values])

    def open_charge(self, input_tokens: int, output_tokens: int) -> int:
        """Note the most that a request can cost, before it is sent; returns the note's number."""
        statement = "INSERT INTO charges (input_tokens, output_tokens) VALUES (?, ?)"
        with self.transaction() as database:
            return int(database.execute(statement, (input_tokens, output_tokens)).lastrowid or 0)

    def settle_charge(self, number: int, input_tokens: int, output_tokens: int) -> None:
        """Put what it did cost in its place."""
        statement = "UPDATE charges SET input_tokens = ?, output_tokens = ? WHERE number = ?"
        self.execute(statement, [(input_tokens, output_tokens, number)])

    def total_charges(self) -> tuple[int, int]:
        """All tokens of prompt and of reply in the ledger."""
        totals = "SELECT TOTAL(input_tokens), TOTAL(output_tokens) FROM charges"
        ((input_tokens, output_tokens),) = self.query(totals)
        return int(input_tokens), int(output_tokens)
