"""The server as a process of its own, as a user starts it."""

import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

CODE = "from abc_embed.cli import main; main()"


@contextmanager
def serving(words: Sequence[str], log: Path) -> Iterator[tuple[str, int]]:
    """`abc-embed serve` on a free port: its address and process id; ended by SIGTERM."""
    command = [sys.executable, "-c", CODE, "serve", "--port", "0", *words]
    with log.open("w") as stream:
        process = subprocess.Popen(command, stderr=stream)
        try:
            while not (found := re.search(r" at (http://\S+) ", log.read_text())):
                if process.poll() is not None:
                    raise SystemExit(log.read_text())
                time.sleep(0.1)
            wait_until_ready(found[1])
            yield found[1], process.pid
        finally:
            process.terminate()
            process.wait()


def wait_until_ready(url: str) -> None:
    while True:
        try:
            with urllib.request.urlopen(f"{url}/health"):
                return
        except OSError:
            time.sleep(0.1)


def resident_mb(pid: int) -> float:
    """Memory of a process, as Linux counts it."""
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+) kB", status)
    return int(found[1]) / 1024 if found else float("nan")
