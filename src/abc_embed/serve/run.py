"""The server's process: a socket, uvicorn, and an end that finishes what runs."""

import asyncio
import socket
from collections.abc import Callable

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from abc_embed.embedder import Embedder
from abc_embed.serve.app import Server
from abc_embed.serve.settings import ServerSettings

HEADER_TIMEOUT_S = 10.0
"""A connection must have sent the head of its first request in this time."""


class BoundedProtocol(H11Protocol):
    """uvicorn's HTTP, which closes a connection that sends no whole head."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.loop.call_later(HEADER_TIMEOUT_S, self._close_if_silent)

    def _close_if_silent(self) -> None:
        first_request: object = self.cycle
        if first_request is None and not self.transport.is_closing():
            self.transport.close()


def run_server(
    embedder: Embedder,
    name: str,
    settings: ServerSettings,
    *,
    on_start: Callable[[str], None] = lambda address: None,
) -> None:
    """Serve until Ctrl-C or SIGTERM; then finish what runs, within `settings.stop_timeout_s`.

    Raises:
        OSError: the address cannot be listened on.
    """
    server = Server(embedder, name, settings)
    with listen(settings) as bound:
        port = bound.getsockname()[1]
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        on_start(f"http://{host}:{port}")
        config = uvicorn.Config(
            server.app,
            http=BoundedProtocol,
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=settings.stop_timeout_s,
        )
        uvicorn.Server(config).run(sockets=[bound])


def listen(settings: ServerSettings) -> socket.socket:
    """A socket bound to the address, before anything says that the server is there."""
    family, kind, _, _, address = socket.getaddrinfo(
        settings.host, settings.port, type=socket.SOCK_STREAM
    )[0]
    bound = socket.socket(family, kind)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        bound.listen(2048)
    except OSError:
        bound.close()
        raise
    return bound
