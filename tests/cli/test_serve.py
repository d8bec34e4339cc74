"""`abc-embed serve`: what it refuses before it listens."""

import socket

from cli_parts import Cli


def test_a_port_that_is_taken(cli: Cli) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = cli("serve", "--port", port)
    assert done.code == 1 and f"cannot listen on 127.0.0.1:{port}" in done.err
    assert cli("serve", "--host", "0.0.0.0").code == 2
    assert cli("serve", "--max-body", "many").code == 2
