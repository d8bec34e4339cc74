"""What a server is told before it starts, and what it refuses to start with."""

import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path

from abc_embed.errors import UsageError

_HOST = re.compile(r"[A-Za-z0-9.-]+(?::\d{1,5})?")
LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """Where and how to serve.

    Raises:
        UsageError: another address than loopback and no key; a value out of range.
    """

    host: str = "127.0.0.1"
    port: int = 8765
    keys: tuple[str, ...] = ()
    """Any of these opens the server; none: no key is asked for."""
    no_key: bool = False
    """Serve other machines without a key, knowingly."""
    max_body: int = 32_000_000
    """Largest request, in bytes."""
    body_timeout_s: float = 30.0
    """A request must have arrived in this time."""
    answer_timeout_s: float = 300.0
    """An item that was not computed by then is given up."""
    queue: int = 1024
    """Most items that wait or are being computed."""
    token_budget: int | None = None
    """Most tokens of a batch, padding included; None: as suits the device."""
    cors: tuple[str, ...] = ()
    """Origins of pages elsewhere that may ask."""
    allow_urls: tuple[str, ...] = ()
    """Hosts from which images may be fetched, HOST or HOST:PORT; none: nothing is fetched."""
    indexes: tuple[Path, ...] = ()
    """Folders of indexes that are searched and shown."""
    stop_timeout_s: int = 30
    """How long what runs may take to finish after SIGTERM."""

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise UsageError(f"--port is {self.port}; give 0 (any free one) to 65535")
        if self.queue < 1 or self.max_body < 1024:
            raise UsageError("--queue must be at least 1 and --max-body at least 1 KB")
        if self.token_budget is not None and self.token_budget < 1:
            raise UsageError("--token-budget must be at least 1 token")
        for host in self.allow_urls:
            if not _HOST.fullmatch(host):
                raise UsageError(
                    f"--allow-urls {host!r} is no host; give a name like images.example"
                )
        if not is_loopback(self.host) and not self.keys and not self.no_key:
            raise UsageError(
                f"--host {self.host} lets other machines in; give --api-key-file, or --no-key to "
                "serve everybody"
            )

    @property
    def only_local(self) -> bool:
        """Whether it is for this machine's own user: no key is asked, and none was left out."""
        return is_loopback(self.host) and not self.keys and not self.no_key


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def read_keys(path: Path) -> tuple[str, ...]:
    """Keys of a file, one a line; empty lines and those that begin with # are passed over.

    Raises:
        UsageError: it cannot be read, or holds none.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is no UTF-8"
        raise UsageError(f"the keys in {str(path)!r} cannot be read ({why})") from None
    keys = tuple(line.strip() for line in lines if line.strip() and not line.startswith("#"))
    if not keys:
        raise UsageError(f"{str(path)!r} holds no key; write one a line")
    return keys
