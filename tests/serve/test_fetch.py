"""Images at addresses: from named hosts, at public addresses, within bytes and seconds."""

import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest
from serve_parts import png, running

from abc_embed import Embedder
from abc_embed.errors import RequestError, UsageError
from abc_embed.serve.fetch import Fetcher, is_public
from abc_embed.serve.settings import ServerSettings


class Host(BaseHTTPRequestHandler):
    """A host of images that also does what it should not."""

    def do_GET(self) -> None:
        if self.path.startswith("/to"):
            self.send_response(302)
            self.send_header("Location", self.path.partition("?")[2])
            self.end_headers()
        elif self.path == "/slow":
            self.wfile.write(b"HTTP/1.1 200 OK\r\n")
            for _ in range(100):
                self.wfile.write(b"X-Slow: 1\r\n")
                time.sleep(0.05)
        elif self.path == "/missing":
            self.send_error(404)
        else:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(png(3))

    def log_message(self, *_: Any) -> None:
        """Nothing is printed."""

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except OSError:  # the client cut the connection, as it should
            self.close_connection = True


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Host)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.server_address[1]
    server.shutdown()
    thread.join()
    server.server_close()


def fetcher(port: int, **options: Any) -> Fetcher:
    """One to which this machine is the open internet."""
    hosts = (f"localhost:{port}", f"images.example:{port}")
    here = {"resolve": lambda *_: ["127.0.0.1"], "is_allowed": lambda _: True}
    return Fetcher(hosts, **{**here, **options})


def test_an_image_of_a_named_host(port: int) -> None:
    assert fetcher(port)(f"http://localhost:{port}/a.png", "image") == png(3)
    there = f"http://images.example:{port}/to?/b.png"
    assert fetcher(port)(there, "image") == png(3)


@pytest.mark.parametrize(
    "url",
    [
        "http://other.example/a.png",
        "http://localhost/a.png",  # the usual port was not named
        "http://user@localhost:{port}/a.png",
        "ftp://localhost:{port}/a.png",
        "file:///etc/passwd",
        "http://localhost:{port}@other.example/",
        "http://localhost:99999/",
        "http://[::1]:{port}/",
        "http://localhost:{port}/to?http://other.example/a.png",
        "http://localhost:{port}/to?file:///etc/passwd",
        "http://localhost:{port}/to?/to?/to?/to?/to?/a.png",
        "http://localhost:{port}/missing",
        "http://localhost:{port}/ä.png",
    ],
)
def test_no_other_address(port: int, url: str) -> None:
    with pytest.raises(RequestError, match="image"):
        fetcher(port)(url.format(port=port), "image")


def test_a_host_that_points_to_this_machine_or_network(port: int) -> None:
    with pytest.raises(RequestError, match="not on the open internet"):
        Fetcher((f"localhost:{port}",))(f"http://localhost:{port}/a.png", "image")
    # After a redirect the name is resolved again, and asked again.
    answers = iter([["127.0.0.1"], ["10.0.0.1"]])
    turned = fetcher(
        port,
        resolve=lambda *_: next(answers),
        is_allowed=lambda address: address == "127.0.0.1",
    )
    with pytest.raises(RequestError, match="not on the open internet"):
        turned(f"http://images.example:{port}/to?/a.png", "image")
    # One address among several is enough to refuse a host.
    mixed = fetcher(port, resolve=lambda *_: ["93.184.215.14", "127.0.0.1"], is_allowed=is_public)
    with pytest.raises(RequestError, match="not on the open internet"):
        mixed(f"http://images.example:{port}/a.png", "image")


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "10.1.2.3", "192.168.0.1", "172.16.0.1", "169.254.169.254", "0.0.0.0"),
        *("100.64.0.1", "224.0.0.1", "255.255.255.255", "::1", "::", "fe80::1%eth0", "fc00::1"),
        *("::ffff:127.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::", "ff02::1"),
    ],
)
def test_addresses_that_are_not_public(address: str) -> None:
    assert not is_public(address)


def test_addresses_that_are_public() -> None:
    assert is_public("93.184.215.14") and is_public("2606:2800:21f:cb07:6820:80da:af6b:8b2c")


def test_bytes_and_seconds_are_bounded(port: int) -> None:
    with pytest.raises(RequestError, match="larger than 10 bytes"):
        fetcher(port, max_bytes=10)(f"http://localhost:{port}/a.png", "image")
    started = time.monotonic()
    with pytest.raises(RequestError, match=r"cannot be fetched|took longer"):
        fetcher(port, timeout_s=0.3)(f"http://localhost:{port}/slow", "image")
    assert time.monotonic() - started < 3


def test_hosts_are_names() -> None:
    ServerSettings(allow_urls=("Images.Example", "b.example:8443"))
    for wrong in ("https://images.example", "a b", "*.example", "images.example/path"):
        with pytest.raises(UsageError, match="--allow-urls"):
            ServerSettings(allow_urls=(wrong,))


def test_the_server_fetches_only_where_it_may(embedder: Embedder, port: int) -> None:
    body = {"input": [{"image": f"http://localhost:{port}/a.png"}]}
    with running(embedder, allow_urls=(f"localhost:{port}",)) as (url, server):
        refused = httpx.post(f"{url}/v1/embeddings", json=body)
        assert refused.status_code == 400 and "open internet" in refused.text
        assert refused.json()["error"]["param"] == "input[0].image"
        object.__setattr__(server._images._fetch, "is_allowed", lambda _: True)
        found = httpx.post(f"{url}/v1/embeddings", json=body, timeout=60).json()
        assert len(found["data"]) == 1
        many = httpx.post(f"{url}/v1/embeddings", json={"input": body["input"] * 17}, timeout=60)
        assert many.status_code == 413 and "more than 16 addresses" in many.text
