"""Images at web addresses, from hosts that the operator named and from nowhere else.

A host's name is resolved once for each request, every address that comes of it must be a public
one, and the connection goes to that very address, so that a name which points elsewhere a moment
later changes nothing. A redirect is a request of its own, with all checks again.
"""

import http.client
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import SplitResult, urljoin, urlsplit

from abc_embed.errors import RequestError

MAX_BYTES = 32 * 2**20
TIMEOUT_S = 10.0
"""For one image, redirects included."""
REDIRECTS = 3
_PORTS = {"http": 80, "https": 443}


def is_public(address: str) -> bool:
    """Whether an IP address is one of the open internet, and so none of this machine or network."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        # Addresses that carry another one, by which a translator would reach it.
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo or (None, None))[1]
        if inner is None and ip in ipaddress.ip_network("64:ff9b::/96"):
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
    return ip.is_global and not ip.is_multicast


@dataclass(frozen=True, slots=True)
class Fetcher:
    """Fetches images from `hosts` (`example.org`, or `example.org:8443`), in small letters."""

    hosts: tuple[str, ...]
    max_bytes: int = MAX_BYTES
    timeout_s: float = TIMEOUT_S
    resolve: Callable[[str, int], list[str]] = lambda host, port: [
        str(entry[4][0]) for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    ]
    is_allowed: Callable[[str], bool] = is_public

    def __call__(self, url: str, place: str) -> bytes:
        """The bytes behind an address.

        Raises:
            RequestError: the host was not named or is no public one, or it gives no image in time.
        """
        deadline = time.monotonic() + self.timeout_s
        for _ in range(REDIRECTS + 1):
            answer = self._get(url, place, deadline)
            if isinstance(answer, bytes):
                return answer
            url = urljoin(url, answer)
        raise RequestError(f"{place} is redirected more than {REDIRECTS} times", place)

    def _target(self, url: str, place: str) -> tuple[SplitResult, str, int]:
        """The parts of an address, its host and port.

        Raises:
            RequestError: it is none, or its host was not named.
        """
        try:
            parts = urlsplit(url)
            host, port = (parts.hostname or "").lower(), parts.port
        except ValueError:
            raise RequestError(f"{place} is no address; send a data: URL", place) from None
        usual = _PORTS.get(parts.scheme)
        allowed = f"{host}:{port or usual}" in self.hosts
        allowed = allowed or (host in self.hosts and port in (None, usual))
        if usual is None or parts.username is not None or not allowed or not url.isascii():
            raise RequestError(
                f"{place} is an address from which this server fetches nothing; send the image "
                "itself as a data: URL in base64",
                place,
            )
        return parts, host, port or usual

    def _get(self, url: str, place: str, deadline: float) -> bytes | str:
        """The bytes at an address, or where it redirects to."""
        parts, host, port = self._target(url, place)
        failed = RequestError(f"{place} cannot be fetched from its host", place, 400)
        try:
            addresses = self.resolve(host, port)
        except OSError:
            raise failed from None
        if not addresses or not all(map(self.is_allowed, addresses)):
            raise RequestError(f"{place}: its host is not on the open internet", place)
        connection: http.client.HTTPConnection | None = None
        watch: threading.Timer | None = None
        try:
            connection = _connected(parts.scheme, host, port, addresses[0], deadline)
            # Whatever it sends, and however slowly: at the deadline the connection is cut.
            watch = threading.Timer(deadline - time.monotonic(), _cut, [connection.sock])
            watch.start()
            target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
            connection.request("GET", target, headers={"Accept": "image/*", "Connection": "close"})
            answer = connection.getresponse()
            if answer.status in (301, 302, 303, 307, 308):
                return answer.headers.get("Location", "")
            if answer.status != 200:
                raise RequestError(f"{place}: its host answers {answer.status}", place)
            data = answer.read(self.max_bytes + 1)
        except (OSError, http.client.HTTPException, ValueError):
            raise failed from None
        finally:
            if watch is not None:
                watch.cancel()
            if connection is not None:
                connection.close()
        if time.monotonic() > deadline:
            raise RequestError(f"{place} took longer than {self.timeout_s:g} s", place)
        if len(data) > self.max_bytes:
            raise RequestError(f"{place} is larger than {self.max_bytes:,} bytes", place, 413)
        return data


def _connected(
    scheme: str, host: str, port: int, address: str, deadline: float
) -> http.client.HTTPConnection:
    """A connection to `address`, which talks to it as `host`."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    connection = http.client.HTTPConnection(host, port, timeout=left)
    plain = socket.create_connection((address, port), timeout=left)
    connection.sock = plain
    if scheme == "https":
        try:
            connection.sock = ssl.create_default_context().wrap_socket(plain, server_hostname=host)
        except BaseException:
            plain.close()
            raise
    return connection


def _cut(connected: socket.socket) -> None:
    with suppress(OSError):
        connected.shutdown(socket.SHUT_RDWR)
