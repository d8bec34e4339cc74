"""How fast and how far a VLM may be asked: requests and tokens a minute, and money.

Does: `Limits` (what the user allows), `RateLimiter` (when the next request may go) and `Budget`
(whether it may go at all); the `Clock` they share. Does not: send anything.
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from abc_embed.errors import CostLimitError, UsageError
from abc_embed.vlm.reply_cache import ReplyCache

MINUTE_S = 60.0
MILLION = 1_000_000


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
    """What the user allows. Prices and `max_cost` are in one currency, whichever it is.

    Raises:
        UsageError: a value that cannot be, or a cost limit without prices.
    """

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
        least = {
            "concurrency": 1,
            "requests_per_minute": 1,
            "tokens_per_minute": 1,
            "price_in": 0,
            "price_out": 0,
            "max_cost": 0,
            "retries": 0,
            "timeout_s": 0.001,
        }
        for name, value in least.items():
            given = getattr(self, name)
            if given is not None and not value <= given < float("inf"):
                raise UsageError(f"{name} is {given}; give at least {value}")
        if self.max_cost is not None and (self.price_in is None or self.price_out is None):
            raise UsageError(
                "a cost limit needs prices; give both, for a million tokens of prompt and of reply"
            )

    def cost(self, input_tokens: int, output_tokens: int) -> float | None:
        """What so many tokens cost; None when no price was given."""
        if self.price_in is None or self.price_out is None:
            return None
        return (input_tokens * self.price_in + output_tokens * self.price_out) / MILLION


@dataclass(frozen=True, slots=True)
class Tally:
    """What a client did: requests sent, replies from the cache, faults by kind, tokens now."""

    sent: int
    cached: int
    faults: dict[str, int]
    input_tokens: int
    output_tokens: int


class RateLimiter:
    """Keeps every span of 60 seconds within the limits; for several threads at once."""

    def __init__(self, limits: Limits, now: Callable[[], float]) -> None:
        self._limits = limits
        self._now = now
        self._lock = threading.Lock()
        self._sent: deque[list[float]] = deque()  # time, tokens; the oldest first
        self._held_until = 0.0

    def turn(self, tokens: int) -> tuple[float, list[float] | None]:
        """(0, ticket) if a request of about `tokens` goes now, else (seconds to wait, None).

        Raises:
            UsageError: it has more tokens than a minute allows.
        """
        per_minute, most = self._limits.requests_per_minute, self._limits.tokens_per_minute
        if most is not None and tokens > most:
            raise UsageError(
                f"one request has about {tokens} tokens but {most} a minute are allowed; "
                "raise the tokens per minute, or lower those of a reply"
            )
        with self._lock:
            now = self._now()
            while self._sent and self._sent[0][0] + MINUTE_S <= now:
                self._sent.popleft()
            free_at = self._held_until
            if per_minute is not None and len(self._sent) >= per_minute:
                free_at = max(free_at, self._sent[len(self._sent) - per_minute][0] + MINUTE_S)
            if most is not None:
                over = sum(used for _, used in self._sent) + tokens - most
                for time, used in self._sent:
                    if over <= 0:
                        break
                    over -= used
                    free_at = max(free_at, time + MINUTE_S)
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
        self._spent = list(ledger.charged())
        self._under_way: dict[int, tuple[int, int]] = {}
        self._empty = False
        self._changed = threading.Condition()

    def spent(self) -> tuple[int, int]:
        """Tokens of prompt and of reply so far, over all runs; without what is under way."""
        with self._changed:
            return self._spent[0], self._spent[1]

    def reserve(self, input_tokens: int, output_tokens: int) -> int:
        """A number under which the request may be sent; waits for others to settle if need be.

        Raises:
            CostLimitError: it could cost more than is left.
        """
        most = self._limits.max_cost
        with self._changed:
            while most is not None and not self._empty:
                under_way = [sum(part) for part in zip(*self._under_way.values(), strict=True)]
                used_in, used_out = under_way or (0, 0)
                total_in = self._spent[0] + used_in + input_tokens
                total_out = self._spent[1] + used_out + output_tokens
                if (self._limits.cost(total_in, total_out) or 0.0) <= most:
                    break
                if self._under_way:
                    self._changed.wait()
                else:
                    self._empty = True  # a smaller one might fit, but the end should be one end
            if self._empty:
                raise CostLimitError(
                    f"the cost limit of {most:g} is reached; raise it and run the same command "
                    "again: what was answered is not asked again"
                )
            number = self._ledger.open_charge(input_tokens, output_tokens)
            self._under_way[number] = (input_tokens, output_tokens)
            return number

    def settle(self, number: int, input_tokens: int, output_tokens: int) -> None:
        """The request was answered, or was not and costs nothing (0, 0)."""
        with self._changed:
            self._ledger.settle_charge(number, input_tokens, output_tokens)
            del self._under_way[number]
            self._spent[0] += input_tokens
            self._spent[1] += output_tokens
            self._changed.notify_all()
