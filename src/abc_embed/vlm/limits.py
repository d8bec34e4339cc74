"""How fast and how far a VLM may be asked, and what was asked and paid, kept in one SQLite file.

Each reply is committed as it comes, so that a killed process loses only what was under way.
"""

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from abc_embed.errors import CostLimitError, UsageError
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


MINUTE_S = 60.0
MILLION = 1_000_000
_SMALLEST = {
    **dict.fromkeys(("concurrency", "requests_per_minute", "tokens_per_minute"), 1),
    **dict.fromkeys(("price_in", "price_out", "max_cost", "retries"), 0),
    "timeout_s": 0.001,
}


class Clock:
    """Time as the client sees it; `stopped` ends all waits."""

    def __init__(self) -> None:
        self.stopped = threading.Event()

    def now(self) -> float:
        """Seconds, from anywhere, never going back."""
        return time.monotonic()

    def wait(self, seconds: float) -> None:
        """Let time pass, unless all is stopped."""
        self.stopped.wait(seconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What the user allows, in one currency; `UsageError` for values that cannot be."""

    concurrency: int = 4
    """Requests under way at once."""
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    """Of prompt and reply together."""
    price_in: float | None = None
    """For a million tokens of prompt, images included."""
    price_out: float | None = None
    """For a million tokens of reply."""
    max_cost: float | None = None
    """Over all runs that share a cache; a request that could go beyond it is not sent."""
    retries: int = 6
    """Of one request, after a fault that may pass; together their waits are about a minute."""
    timeout_s: float = 120.0
    """From sending a request to the last byte of its reply."""

    def __post_init__(self) -> None:
        for name, smallest in _SMALLEST.items():
            value = getattr(self, name)
            if value is not None and not smallest <= value < float("inf"):
                raise UsageError(f"{name} is {value}; give at least {smallest}")
        if self.max_cost is not None and (self.price_in is None or self.price_out is None):
            raise UsageError(
                "a cost limit needs prices; give both, for a million tokens of prompt and of reply"
            )

    def cost(self, input_tokens: int, output_tokens: int) -> float | None:
        """What so many tokens cost; None when no price was given."""
        if self.price_in is None or self.price_out is None:
            return None
        return (input_tokens * self.price_in + output_tokens * self.price_out) / MILLION


class RateLimiter:
    """Keeps every span of 60 seconds within the limits; for several threads at once."""

    def __init__(self, limits: Limits, now: Callable[[], float]) -> None:
        self._limits = limits
        self._now = now
        self._lock = threading.Lock()
        self._sent: deque[list[float]] = deque()  # time, tokens; the oldest first
        self._held_until = 0.0

    def acquire(self, tokens: int) -> tuple[float, list[float] | None]:
        """(0, ticket) if a request of about `tokens` goes now, else (seconds to wait, None).

        More tokens than a minute allows are a `UsageError`.
        """
        max_requests = self._limits.requests_per_minute
        max_tokens = self._limits.tokens_per_minute
        if max_tokens is not None and tokens > max_tokens:
            raise UsageError(
                f"one request has about {tokens} tokens but {max_tokens} a minute are allowed; "
                "raise the tokens per minute, or lower those of a reply"
            )
        with self._lock:
            now = self._now()
            while self._sent and self._sent[0][0] + MINUTE_S <= now:
                self._sent.popleft()
            free_at = self._held_until
            if max_requests is not None and len(self._sent) >= max_requests:
                free_at = max(free_at, self._sent[-max_requests][0] + MINUTE_S)
            if max_tokens is not None:
                excess = sum(used for _, used in self._sent) + tokens - max_tokens
                for sent_at, used in self._sent:
                    if excess <= 0:
                        break
                    excess -= used
                    free_at = max(free_at, sent_at + MINUTE_S)
            if free_at > now:
                return free_at - now, None
            ticket = [now, float(tokens)]
            self._sent.append(ticket)
            return 0.0, ticket

    def settle(self, ticket: list[float], tokens: int) -> None:
        """The request had so many tokens after all."""
        with self._lock:
            ticket[1] = float(tokens)

    def hold(self, seconds: float) -> None:
        """No request of any thread goes for so long: the endpoint asked for it."""
        with self._lock:
            self._held_until = max(self._held_until, self._now() + seconds)


class Budget:
    """Keeps the cost below its limit, whatever happens to a request; for several threads at once.

    The most that a request can cost is written to the cache's ledger before it is sent, and
    corrected by what it did cost. A process that is killed in between leaves the larger figure.
    """

    def __init__(self, limits: Limits, ledger: ReplyCache) -> None:
        self._limits = limits
        self._ledger = ledger
        self._spent = list(ledger.total_charges())
        self._reserved: dict[int, tuple[int, int]] = {}
        self._exhausted = False
        self._changed = threading.Condition()

    def spent(self) -> tuple[int, int]:
        """Tokens of prompt and of reply so far, over all runs; without what is under way."""
        with self._changed:
            return self._spent[0], self._spent[1]

    def reserve(self, input_tokens: int, output_tokens: int) -> int:
        """The charge under which a request may be sent; waits for others to settle if need be.

        Raises:
            CostLimitError: it could cost more than is left.
        """
        max_cost = self._limits.max_cost
        with self._changed:
            while max_cost is not None and not self._exhausted:
                charges = [*self._reserved.values(), (input_tokens, output_tokens)]
                total_in = self._spent[0] + sum(charge[0] for charge in charges)
                total_out = self._spent[1] + sum(charge[1] for charge in charges)
                if (self._limits.cost(total_in, total_out) or 0.0) <= max_cost:
                    break
                if self._reserved:
                    self._changed.wait()
                else:
                    self._exhausted = True  # a smaller one might fit, but the end is one end
            if self._exhausted:
                raise CostLimitError(
                    f"the cost limit of {max_cost:g} is reached; raise it and run the same command "
                    "again: what was answered is not asked again"
                )
            charge_id = self._ledger.open_charge(input_tokens, output_tokens)
            self._reserved[charge_id] = (input_tokens, output_tokens)
            return charge_id

    def settle(self, charge_id: int, input_tokens: int, output_tokens: int) -> None:
        """The request was answered, or was not and costs nothing (0, 0)."""
        with self._changed:
            self._ledger.settle_charge(charge_id, input_tokens, output_tokens)
            del self._reserved[charge_id]
            self._spent[0] += input_tokens
            self._spent[1] += output_tokens
            self._changed.notify_all()


# -- before anything is asked ----------------------------------------------------------------------


def estimate_tokens(prompt: str, size: tuple[int, int] | None, image_tokens: int | None) -> int:
    """Tokens of a prompt with its image, rather too many than too few.

    A token has three or more bytes of common text. An image has one for 28 × 28 pixels
    (Qwen), or 170 for each 512 × 512 begun and 85 on top (OpenAI), whichever is more.
    """
    text_tokens = math.ceil(len(prompt.encode()) / 3) + 16  # and what the chat template adds
    if size is None:
        return text_tokens
    if image_tokens is None:
        width, height = size
        tiles = math.ceil(width / 512) * math.ceil(height / 512)
        image_tokens = max(math.ceil(width / 28) * math.ceil(height / 28), 85 + 170 * tiles)
    return text_tokens + image_tokens


@dataclass(frozen=True, slots=True)
class PlannedRequest:
    """A request that somebody would make: its image file, with width and height, and its prompt."""

    image: Path
    size: tuple[int, int]
    prompt: str
    schema: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a run would ask: `known` requests are in the cache and cost nothing.

    Tokens, cost and minutes are for one try of each of the others; `most_requests` and `most_cost`
    are for the case that every try fails.
    """

    images: int
    requests: int
    known: int
    most_requests: int
    input_tokens: int
    output_tokens: int
    cost: float | None
    most_cost: float | None
    minutes: float | None
    example: str
