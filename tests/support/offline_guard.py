"""Blocks and records every connection beyond this machine.

An audit hook sees what any code does with a Python socket, however it got hold of it, so nothing
is patched. It cannot see sockets that native code opens by itself; for those the environment in
`tests/conftest.py` says offline. The Pythons that a test starts load this too
(`guarded_site/sitecustomize.py`). All write to one log, so that a test fails even when the code
under test swallowed the error.
"""

import ipaddress
import os
import socket
import sys
from typing import Any

LOG_VARIABLE = "ABC_TEST_SOCKET_LOG"


class NetworkBlockedError(OSError):
    """What the code under test sees: the same kind of error as on a machine without a network."""


def is_local(address: object) -> bool:
    """Whether an address stays on this machine; `""` and `0.0.0.0` do not: they hear everyone."""
    if not isinstance(address, tuple) or not address:
        return True  # AF_UNIX: a path
    host = address[0]
    if not isinstance(host, str | bytes):
        return True  # AF_NETLINK and its like: numbers, to the kernel
    return is_local_name(host)


def is_local_name(host: str | bytes) -> bool:
    name = host.decode("ascii", "replace") if isinstance(host, bytes) else host
    if name == "localhost":
        return True
    try:
        address = ipaddress.ip_address(name.partition("%")[0])
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback)


def _target(event: str, args: tuple[Any, ...]) -> object | None:
    """What the event wants to reach beyond this machine, or None."""
    if event in ("socket.connect", "socket.bind", "socket.sendto", "socket.sendmsg"):
        return None if is_local(args[1]) else args[1]
    if event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"):
        host = args[0]
        return None if not host or is_local_name(host) else host
    return None


def _hook(event: str, args: tuple[Any, ...]) -> None:
    if not event.startswith("socket."):
        return
    target = _target(event, args)
    if target is None:
        return
    log = os.environ.get(LOG_VARIABLE)
    if log:
        descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        os.write(descriptor, f"{event} {target!r}\n".encode())
        os.close(descriptor)
    error = socket.gaierror if "host" in event or "addr" in event else NetworkBlockedError
    raise error(f"tests have no network: {event} {target!r} was blocked")


def install() -> None:
    """From here on, for the life of the process: an audit hook cannot be taken out again."""
    sys.addaudithook(_hook)
