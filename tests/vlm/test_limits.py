"""Limits hold in every span of a minute, and the budget never pays more than it may."""

import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from abc_embed.errors import CostLimitError, OutputError, UsageError
from abc_embed.vlm.limits import Budget, Limits, RateLimiter, ReplyCache


class Time:
    def __init__(self) -> None:
        self.at = 1000.0

    def __call__(self) -> float:
        return self.at


def go(limiter: RateLimiter, time: Time, tokens: int) -> tuple[float, list[float]]:
    """When a request goes, waiting as told, and its ticket."""
    for _ in range(100):
        wait, ticket = limiter.acquire(tokens)
        if ticket is not None:
            return time.at, ticket
        assert wait > 0
        time.at += wait
    raise AssertionError("it never goes")


@given(
    st.lists(st.tuples(st.integers(1, 50), st.floats(0, 30)), min_size=1, max_size=40),
    st.none() | st.integers(1, 6),
    st.none() | st.integers(50, 120),
)
def test_no_minute_has_more_than_is_allowed(
    requests: list[tuple[int, float]], per_minute: int | None, tokens: int | None
) -> None:
    time = Time()
    limiter = RateLimiter(Limits(requests_per_minute=per_minute, tokens_per_minute=tokens), time)
    sent = []
    for used, pause in requests:
        sent.append((go(limiter, time, used)[0], used))
        time.at += pause
    for start, _ in sent:
        inside = [used for at, used in sent if start <= at < start + 60]
        assert per_minute is None or len(inside) <= per_minute
        assert tokens is None or sum(inside) <= tokens


def test_nothing_waits_longer_than_it_must() -> None:
    time = Time()
    limiter = RateLimiter(Limits(requests_per_minute=2), time)
    assert [go(limiter, time, 1)[0] - 1000 for _ in range(5)] == [0, 0, 60, 60, 120]
    late = Time()
    limiter = RateLimiter(Limits(requests_per_minute=2, tokens_per_minute=30), late)
    assert go(limiter, late, 10)[0] == 1000
    late.at += 10
    assert go(limiter, late, 10)[0] == 1010
    assert go(limiter, late, 10)[0] == 1060  # for the count, the first has to be a minute ago
    assert go(limiter, late, 25)[0] == 1120  # for the tokens, the third as well


def test_what_was_used_counts_and_not_what_was_feared() -> None:
    time = Time()
    limiter = RateLimiter(Limits(tokens_per_minute=100), time)
    _, ticket = go(limiter, time, 90)
    assert limiter.acquire(50)[1] is None
    limiter.settle(ticket, 20)
    assert limiter.acquire(50)[1] is not None


def test_a_wait_that_was_asked_for_holds_all() -> None:
    time = Time()
    limiter = RateLimiter(Limits(), time)
    limiter.hold(7)
    limiter.hold(3)  # a shorter one does not shorten it
    assert limiter.acquire(1) == (7, None)
    time.at += 7
    assert limiter.acquire(1)[1] is not None


def test_a_request_that_no_minute_has_room_for() -> None:
    with pytest.raises(UsageError, match="about 200 tokens but 100 a minute"):
        RateLimiter(Limits(tokens_per_minute=100), Time()).acquire(200)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"concurrency": 0}, "concurrency is 0"),
        ({"price_in": -1.0}, "price_in is -1"),
        ({"max_cost": float("nan"), "price_in": 1.0, "price_out": 1.0}, "max_cost is nan"),
        ({"timeout_s": float("inf")}, "timeout_s is inf"),
        ({"max_cost": 1.0}, "needs prices"),
        ({"max_cost": 1.0, "price_in": 1.0}, "needs prices"),
    ],
)
def test_limits_that_cannot_be(values: dict[str, float], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        Limits(**values)  # type: ignore[arg-type]


def test_cost() -> None:
    assert Limits(price_in=2, price_out=8).cost(500_000, 250_000) == 3.0
    assert Limits().cost(1, 1) is None


PRICED = Limits(price_in=1_000_000, price_out=1_000_000, max_cost=100)  # a token costs one


def test_the_budget_never_pays_more_than_it_may(tmp_path: Path) -> None:
    """Whatever requests turn out to cost, and whichever are killed before they are answered."""
    chance = random.Random(0)
    for _ in range(6):
        path = tmp_path / f"{chance.random()}"
        paid = 0
        for _ in range(3):  # three processes, one after the other
            with ReplyCache(path) as ledger:
                budget = Budget(PRICED, ledger)
                try:
                    for _ in range(chance.randrange(1, 10)):
                        number = budget.reserve(10, 5)
                        paid += 15
                        if chance.random() < 0.3:
                            break  # killed
                        used = chance.randrange(16)
                        budget.settle(number, used, 0)
                        paid += used - 15
                except CostLimitError:
                    assert paid + 15 > 100
        assert paid <= 100
        with ReplyCache(path) as ledger:
            assert sum(ledger.total_charges()) == paid


def test_once_empty_it_stays_empty() -> None:
    with ReplyCache() as ledger:
        budget = Budget(PRICED, ledger)
        budget.settle(budget.reserve(90, 0), 90, 0)
        with pytest.raises(CostLimitError, match="limit of 100 is reached; raise it"):
            budget.reserve(11, 0)
        with pytest.raises(CostLimitError):
            budget.reserve(1, 0)
        assert budget.spent() == (90, 0)


def test_a_file_that_is_no_cache(tmp_path: Path) -> None:
    path = tmp_path / "replies.sqlite"
    path.write_text("not a database, but long enough to be looked at" * 30)
    with pytest.raises(OutputError, match="cannot be used"):
        ReplyCache(path)
    with pytest.raises(OutputError, match="cannot be used"):
        ReplyCache(tmp_path / "no" / "folder" / "x.sqlite")
