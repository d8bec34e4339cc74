"""A server of the golden model, for the tests of several files."""

from collections.abc import Iterator

import golden_parts
import pytest
from serve_parts import running

from abc_embed import Embedder
from abc_embed.serve.app import Server


@pytest.fixture(scope="session")
def embedder() -> Embedder:
    return Embedder(*golden_parts.shared())


@pytest.fixture(scope="session")
def served(embedder: Embedder) -> Iterator[tuple[str, Server]]:
    with running(embedder) as server:
        yield server


@pytest.fixture(scope="session")
def url(served: tuple[str, Server]) -> str:
    return served[0]
