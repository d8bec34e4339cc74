"""Ray, started here on loopback alone or found at an address, without a word of its own.

A Ray that is started here sends no usage statistics, has no dashboard, listens on 127.0.0.1 and
ends with the process.
"""

import logging
import os
import re
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any

from abc_embed.errors import DeviceError, MissingExtraError, UsageError

_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "RAY_LOG_TO_STDERR": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_worker_niceness": "0",  # 15 by default: any other process would go first
    "RAY_enable_worker_prestart": "0",
    "RAY_prestart_worker_first_driver": "0",
}
_ALONE = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
"""What Ray does on Windows and macOS, where it forms no clusters: everything binds to loopback."""
_SETTINGS = b"\x04"
_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0" + _SETTINGS + b"\0\0\0\0\0"
ANSWER_S = 5.0
OBJECT_STORE_BYTES = 1 << 30
"""Shared memory of a Ray started here: what waits between the steps."""


@contextmanager
def connected(address: str | None, cpus: int) -> Iterator[Any]:
    """Ray, connected; `cpus` is what a Ray that is started here may schedule.

    Args:
        address: `HOST:PORT` of a cluster; None starts one here.
        cpus: slots for tasks, more than cores where some wait for others.

    Raises:
        MissingExtraError: ray is not installed.
        UsageError: the address cannot be one.
        DeviceError: no Ray answers there, or none can be started here.
    """
    if address is not None:
        _check_address(address)
    # Ray tells of workers that died on stdout, which is for results.
    with (
        _environment(_QUIET | (_ALONE if address is None else {})),
        open(os.devnull, "w") as nowhere,
        redirect_stdout(nowhere),
    ):
        yield from _connected(address, cpus)


def _connected(address: str | None, cpus: int) -> Iterator[Any]:
    try:
        import ray
        import ray.data
    except ImportError:
        raise MissingExtraError.of("scale", "a batch job") from None
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    here = {} if address else {"num_cpus": cpus, "object_store_memory": OBJECT_STORE_BYTES}
    with _silent_stderr():
        try:
            ray.init(
                address=address or "local",
                include_dashboard=None if address else False,
                log_to_driver=False,
                logging_level=logging.CRITICAL,
                **here,
            )
        except Exception as error:  # a start that takes too long raises a bare one
            where = f"no Ray answers at {address}" if address else "Ray cannot be started here"
            raise DeviceError(f"{where} ({' '.join(str(error).split())[:200]})") from error
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        yield ray
    finally:
        with _silent_stderr():
            ray.shutdown()


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """Variables that Ray reads when it is imported and started, and hands to its processes."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _check_address(address: str) -> None:
    """Whether a Ray may be there; it would try for minutes itself.

    Ray's head speaks HTTP/2, whose server begins with a frame of settings.
    """
    match = re.fullmatch(r"\[?([^\[\]/]+)\]?:([0-9]{1,5})", address)
    if match is None:
        raise UsageError(f"--ray is {address!r}; give HOST:PORT, as ray start --head prints it")
    try:
        with socket.create_connection((match[1], int(match[2])), timeout=ANSWER_S) as connection:
            connection.sendall(_HELLO)
            reply = b"" if _uses_tls() else connection.recv(9)
    except (OSError, OverflowError, UnicodeError) as error:
        why = getattr(error, "strerror", None) or error
        raise DeviceError(
            f"no Ray answers at {address} ({why}); start one with ray start --head, or leave out "
            "--ray to use this machine alone"
        ) from None
    if not _uses_tls() and reply[3:4] != _SETTINGS:
        raise DeviceError(f"what answers at {address} is no Ray; give the address of its head")


def _uses_tls() -> bool:
    return os.environ.get("RAY_USE_TLS") == "1"


@contextmanager
def _silent_stderr() -> Iterator[None]:
    """What Ray's compiled part writes to file descriptor 2 goes nowhere meanwhile."""
    sys.stderr.flush()
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
