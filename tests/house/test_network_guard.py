"""The guard of `tests/conftest.py` blocks, sees children, and fails a test that hides the error."""

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import offline_guard
import pytest

TESTS = Path(__file__).parents[1]
BEYOND = "192.0.2.1"  # reserved for documentation: nobody answers there, guard or no guard


@pytest.mark.expects_no_network
def test_a_connection_is_blocked() -> None:
    with socket.socket() as sock, pytest.raises(offline_guard.NetworkBlockedError):
        sock.connect((BEYOND, 80))


@pytest.mark.expects_no_network
def test_looking_up_a_name_is_blocked() -> None:
    with pytest.raises(socket.gaierror, match="blocked"):
        socket.getaddrinfo("example.com", 443)


@pytest.mark.expects_no_network
def test_listening_to_everyone_is_blocked() -> None:
    with socket.socket() as sock, pytest.raises(offline_guard.NetworkBlockedError):
        sock.bind(("", 0))


def test_loopback_works() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as client,
    ):
        accepted, _ = server.accept()
        with accepted:
            client.sendall(b"hello")
            assert accepted.recv(5) == b"hello"


@pytest.mark.parametrize(
    ("address", "local"),
    [
        ("a/unix/path", True),
        (("::1", 80, 0, 0), True),
        (("127.8.8.8", 80), True),
        (("::ffff:127.0.0.1", 80), True),
        (("::ffff:8.8.8.8", 80), False),
        (("0.0.0.0", 80), False),
        (("example.com", 80), False),
    ],
)
def test_what_is_local(address: object, local: bool) -> None:
    assert offline_guard.is_local(address) is local


CHILD = "import socket\ntry: socket.create_connection(('192.0.2.1', 80), 0.1)\nexcept OSError: pass"
SWALLOWING = f"""
import subprocess, sys, pytest
CODE = {CHILD!r}
def test_here(): exec(CODE)
def test_child(): subprocess.run([sys.executable, "-c", CODE], check=True)
@pytest.mark.expects_no_network
def test_meant(): exec(CODE)
def test_quiet(): pass
"""


def test_a_swallowed_connection_fails_the_test(tmp_path: Path) -> None:
    shutil.copy(TESTS / "conftest.py", tmp_path)
    shutil.copytree(TESTS / "support", tmp_path / "support")
    (tmp_path / "test_swallowing.py").write_text(SWALLOWING)
    (tmp_path / "pytest.ini").write_text(
        "[pytest]\npythonpath = support\nmarkers = expects_no_network\n"
    )
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTEST_ADDOPTS", "PYTHONPATH")}
    command = [sys.executable, "-m", "pytest", "-q", "-rA", "-p", "no:cacheprovider", str(tmp_path)]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False
    )
    assert "4 passed, 2 errors" in done.stdout, done.stdout + done.stderr
    assert "ERROR test_swallowing.py::test_here" in done.stdout
    assert "ERROR test_swallowing.py::test_child" in done.stdout
