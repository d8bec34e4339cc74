"""A stand-in for a VLM's endpoint, on loopback."""

from collections.abc import Iterator

import pytest
from vlm_parts import set_environment
from vlm_server import VlmServer


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    set_environment(monkeypatch)


@pytest.fixture
def server() -> Iterator[VlmServer]:
    with VlmServer() as running:
        yield running
