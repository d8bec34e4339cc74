"""A stand-in for a VLM's endpoint, on loopback."""

from collections.abc import Iterator

import pytest
from vlm_server import VlmServer


@pytest.fixture
def server() -> Iterator[VlmServer]:
    with VlmServer() as running:
        yield running
