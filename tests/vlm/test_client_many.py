"""The key stays secret, many are asked at once, nothing is asked twice, and the cost is bounded."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from vlm_parts import client, picture
from vlm_server import KEY, Fault, VlmServer

from abc_embed.errors import (
    AskError,
    CostLimitError,
    EndpointError,
    MissingExtraError,
    UsageError,
)
from abc_embed.vlm.client import VlmClient
from abc_embed.vlm.limits import Limits, ReplyCache

pytest.importorskip("openai")


# -- the key ---------------------------------------------------------------------------------------


def test_the_key_is_told_to_nobody(
    server: VlmServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "replies.sqlite"
    with ReplyCache(cache) as kept, client(server, cache=kept) as vlm:
        vlm.ask(picture(), "What now?")
        assert KEY not in repr(vlm) + vlm.endpoint
    assert KEY.encode() not in cache.read_bytes()
    monkeypatch.setenv("OPENAI_API_KEY", "wrong-key-0123456789")
    with client(server) as vlm, pytest.raises(EndpointError) as caught:
        vlm.ask(None, "What now?")
    assert "wrong-key" not in str(caught.value)
    assert "[key]" in str(caught.value)  # the server did repeat it


def test_secrets_in_an_address_are_not_kept() -> None:
    with VlmClient("https://user:pass@example.com:8/v1?token=x", "m") as vlm:
        assert vlm.endpoint == "https://example.com/v1"


def test_a_key_is_needed_but_for_local_servers(
    server: VlmServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    with (
        VlmClient("https://example.com/v1", "m") as vlm,
        pytest.raises(UsageError, match="set OPENAI_API_KEY"),
    ):
        vlm.ask(None, "What now?")
    server.key = None
    with client(server) as vlm:
        assert vlm.ask(None, "What now?").text
    monkeypatch.setenv("OTHER_KEY", "another")
    with client(server, key_variable="OTHER_KEY") as vlm:
        vlm.ask(None, "What now?")
    assert server.requests[1].headers["authorization"] == "Bearer another"


def test_the_address_may_stand_in_the_environment(
    server: VlmServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    with VlmClient(None, "m") as vlm:
        assert vlm.ask(None, "What now?").text


def test_wrong_arguments() -> None:
    with pytest.raises(UsageError, match="base URL"):
        VlmClient("localhost:8000", "m")
    with pytest.raises(UsageError, match="json_mode"):
        VlmClient("http://localhost/v1", "m", json_mode="yaml")


def test_without_the_package(server: VlmServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "openai", None)
    with (
        client(server) as vlm,
        pytest.raises(MissingExtraError, match=r"pip install 'abc-embed\[instruct\]'"),
    ):
        vlm.connect()


# -- many at once ----------------------------------------------------------------------------------


def test_many_at_once_in_order_and_bounded(server: VlmServer) -> None:
    server.answer = lambda request: f"answer {request.prompt}"
    server.when = lambda request, number: Fault("slow", seconds=0.02)
    limits = Limits(concurrency=3, timeout_s=5)
    taken: list[int] = []

    def numbers() -> Iterator[str]:
        for number in range(30):
            taken.append(number)
            yield str(number)

    with client(server, limits=limits) as vlm:
        replies = vlm.map(lambda prompt: vlm.ask(None, prompt).text, numbers())
        assert next(replies) == "answer 0"
        assert len(taken) <= 12  # four for each that may be under way
        assert list(replies) == [f"answer {i}" for i in range(1, 30)]
    assert 2 <= server.most_at_once <= 3


def test_the_same_is_asked_once_at_a_time(server: VlmServer) -> None:
    server.when = lambda request, number: Fault("slow", seconds=0.05)
    with client(server, limits=Limits(concurrency=4, timeout_s=5)) as vlm:
        replies = list(vlm.map(lambda _: vlm.ask(picture(), "What now?"), range(8)))
    assert len(server.requests) == 1
    assert sorted(reply.cached for reply in replies) == [False] + [True] * 7


def test_an_error_ends_the_others(server: VlmServer) -> None:
    server.when = lambda request, number: Fault("status", 401) if number == 3 else None
    with client(server, limits=Limits(concurrency=2, timeout_s=5)) as vlm:
        replies = vlm.map(lambda prompt: vlm.ask(None, prompt), map(str, range(1000)))
        with pytest.raises(EndpointError, match="check key"):
            list(replies)
    assert len(server.requests) < 20
    assert not [t for t in threading.enumerate() if t.name.startswith("vlm")]


def test_ctrl_c_waits_for_what_is_paid_for(server: VlmServer) -> None:
    server.when = lambda request, number: Fault("slow", seconds=0.1)
    with ReplyCache() as cache:
        with client(server, cache=cache, limits=Limits(concurrency=2, timeout_s=5)) as vlm:
            replies = vlm.map(lambda prompt: vlm.ask(None, prompt), map(str, range(1000)))
            next(replies)
            with pytest.raises(KeyboardInterrupt):
                replies.throw(KeyboardInterrupt())  # type: ignore[attr-defined]
        with client(server, cache=cache) as kept:
            assert all(kept.is_cached(None, request.prompt) for request in server.requests)


# -- the cache -------------------------------------------------------------------------------------


def test_a_reply_is_remembered_by_what_decides_it(server: VlmServer, tmp_path: Path) -> None:
    with ReplyCache(tmp_path / "replies.sqlite") as cache:
        with client(server, cache=cache) as vlm:
            first = vlm.ask(picture(), "one")
            assert not vlm.is_cached(picture(), "two")
            for image, prompt in ((picture(), "two"), (picture("blue"), "one"), (None, "one")):
                assert not vlm.ask(image, prompt).cached
        with client(server, cache=cache, max_tokens=5) as other:
            assert not other.ask(picture(), "one").cached
        with VlmClient(server.url, "another", cache=cache) as other:
            assert not other.ask(picture(), "one").cached
    assert len(server.requests) == 6
    with ReplyCache(tmp_path / "replies.sqlite") as cache, VlmServer() as moved:
        with client(moved, cache=cache) as vlm:
            again = vlm.ask(picture(), "one")
        assert (again.text, again.cached) == (first.text, True)
        assert not moved.requests


def test_faults_are_not_remembered(server: VlmServer) -> None:
    server.faults = [Fault("no_choices")]
    with client(server, limits=Limits(retries=0, timeout_s=5)) as vlm:
        with pytest.raises(AskError):
            vlm.ask(None, "one")
        assert vlm.ask(None, "one").text


def test_the_cost_is_never_more_than_allowed(server: VlmServer, tmp_path: Path) -> None:
    """Each reply costs 5 in, 5 out as the server counts; the client must allow for 10 more."""
    server.answer = lambda request: "w" * 20
    limits = Limits(
        concurrency=4, timeout_s=5, price_in=10_000, price_out=10_000, max_cost=2.0, retries=0
    )
    path = tmp_path / "replies.sqlite"
    prompts = [f"{number:020}" for number in range(200)]

    def spend(limits: Limits) -> int:
        answered = 0
        with (
            ReplyCache(path) as cache,
            client(server, cache=cache, limits=limits, max_tokens=10) as vlm,
        ):

            def ask(prompt: str) -> bool:
                try:
                    return bool(vlm.ask(None, prompt).text)
                except CostLimitError:
                    return False

            answered = sum(vlm.map(ask, prompts))
            cost = limits.cost(*vlm.budget.spent())
            assert cost is not None
            assert cost <= (limits.max_cost or 0)
        return answered

    answered = spend(limits)
    assert 10 <= answered < 30  # 10 tokens each, of 200; estimates leave some unused
    assert spend(limits) == answered  # over all runs
    assert len(server.requests) == answered
    assert spend(Limits(**{**_fields(limits), "max_cost": 4.0})) > answered


def _fields(limits: Limits) -> dict[str, Any]:
    return {name: getattr(limits, name) for name in Limits.__dataclass_fields__}
