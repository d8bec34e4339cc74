"""The server's process: a socket, uvicorn, and an end that finishes what runs."""

import asyncio
import gc
import socket
from collections.abc import Callable

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from abc_embed.embedder import Embedder
from abc_embed.serve.app import Server
from abc_embed.serve.settings import ServerSettings

HEADER_TIMEOUT_S = 10.0
"""The head of a request must be whole so long after its first byte, and that of the first one so
long after the connection was made."""
READ_TIMEOUT_S = 60.0
"""So long a client may take nothing of an answer."""
KEEP_ALIVE_S = 75
"""So long a connection is kept between two requests: proxies let go after 60, and go first."""
MAX_HEAD = 2**16
"""Bytes of a head: its address and its headers."""
OPEN_FILES = 65_536
"""Connections and files that the process may have open, where the system lets it."""


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's HTTP, which closes a connection that is slow to ask or to read, or asks at length.

    On the parser that is written in C: the other one takes a third of the time of a short request.
    """

    _head: asyncio.TimerHandle | None = None
    _reader: asyncio.TimerHandle | None = None
    _is_in_head = False
    _head_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch_head()

    def on_message_begin(self) -> None:
        self._is_in_head = True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._is_in_head, self._head_bytes = False, 0
        super().on_headers_complete()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._is_in_head:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD:  # the parser itself would keep any length
                self.send_400_response(f"The head is larger than {MAX_HEAD:,} bytes.")
        self._watch_head()

    def _watch_head(self) -> None:
        """Count the time while no request is answered: a head, or what is left of a refused body.

        Between two requests, when nothing was sent, uvicorn's own limit counts.
        """
        cycle: RequestResponseCycle | None = self.cycle
        if cycle is not None and not cycle.response_complete:
            self._stop_head()
        elif self._head is None:
            self._head = self.loop.call_later(HEADER_TIMEOUT_S, self.transport.close)

    def on_response_complete(self) -> None:
        self._stop_head()
        super().on_response_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._reader = self.loop.call_later(READ_TIMEOUT_S, self.transport.abort)

    def resume_writing(self) -> None:
        self._stop_reader()
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_head()
        self._stop_reader()
        super().connection_lost(exc)

    def _stop_head(self) -> None:
        if self._head is not None:
            self._head.cancel()
            self._head = None

    def _stop_reader(self) -> None:
        if self._reader is not None:
            self._reader.cancel()
            self._reader = None


def allow_open_files() -> None:
    """Let the process have many connections at a time: many systems begin with 1,024 files."""
    try:
        import resource
    except ImportError:  # Windows, which has no such limit
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


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
    allow_open_files()
    gc.freeze()  # the model and the libraries stay: no collection has to look at them again
    server = Server(embedder, name, settings)
    with listen(settings) as bound:
        port = bound.getsockname()[1]
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        on_start(f"http://{host}:{port}")
        config = uvicorn.Config(
            server.app,
            http=BoundedProtocol,
            ws="none",
            timeout_keep_alive=KEEP_ALIVE_S,
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,  # nothing here asks who the client is
            timeout_graceful_shutdown=settings.stop_timeout_s,
        )
        uvicorn.Server(config).run(sockets=[bound])


def listen(settings: ServerSettings) -> socket.socket:
    """A socket bound to the address, before anything says that the server is there."""
    family, kind, protocol, _, address = socket.getaddrinfo(
        settings.host, settings.port, type=socket.SOCK_STREAM
    )[0]
    # With its protocol: asyncio sends without delay (TCP_NODELAY) only where that says TCP.
    bound = socket.socket(family, kind, protocol)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        bound.listen(2048)
    except OSError:
        bound.close()
        raise
    return bound
