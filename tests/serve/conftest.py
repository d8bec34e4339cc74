"""A server of the golden model and a browser, for the tests of several files."""

import shutil
from collections.abc import Callable, Iterator
from typing import Any

import golden_parts
import pytest
from serve_parts import running

from abc_embed import Embedder
from abc_embed.serve.app import Server

FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)


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


@pytest.fixture(scope="session")
def bundled() -> Embedder:
    """The model whose answers a person can judge."""
    return Embedder.from_pretrained("bundled", device="cpu")


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("the pages are tested in Chromium")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=chromium, args=list(FLAGS))
        yield started
        started.close()


@pytest.fixture
def open_page(browser: Any) -> Iterator[Callable[..., Any]]:
    """Opens an address in a fresh context; anything on its console fails the test."""
    contexts, problems = [], []

    def open_at(address: str, **options: Any) -> Any:
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 800}, **options})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(60_000)  # of a machine that has other work too
        page.on("console", lambda m: problems.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.goto(address)
        return page

    yield open_at
    for context in contexts:
        context.close()
    # A refusal is on the page too, beside its field.
    assert not [text for text in problems if "the server responded with a status of 4" not in text]
