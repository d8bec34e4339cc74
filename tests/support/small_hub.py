"""A data set hub on this machine: the few addresses that fetching asks, with faults on demand."""

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

COMMIT = "c0ffee" + "0" * 34


class SmallHub:
    """Serves the files of a folder as one repository; counts and spoils what is asked."""

    def __init__(self, folder: Path) -> None:
        self.files = {
            path.relative_to(folder).as_posix(): path.read_bytes()
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }
        self.asked: list[tuple[str, str | None]] = []
        """(file, Range) of every GET of a file."""
        self.api = 0
        """How often the hub was asked what there is."""
        self.break_after: int | None = None
        """Bytes of each answer after which the line breaks."""
        self.ranges = True
        """Whether ranges are heeded."""
        self.spoil: dict[str, int] = {}
        """File -> how many answers have a wrong byte."""
        self.status: dict[str, int] = {}
        """File -> status to refuse it with."""
        self.address = ""

    def listing(self, repository: str) -> dict[str, object]:
        siblings = []
        for name, content in self.files.items():
            row: dict[str, object] = {"rfilename": name, "size": len(content)}
            blob = hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()
            row["blobId"] = blob
            if not name.endswith((".md", ".json")):
                sha = hashlib.sha256(content).hexdigest()
                row["lfs"] = {"sha256": sha, "size": len(content), "pointerSize": 130}
            siblings.append(row)
        return {"id": repository, "sha": COMMIT, "siblings": siblings, "private": False}

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        path = unquote(handler.path.partition("?")[0])
        if match := re.fullmatch(r"/api/datasets/([^/]+/[^/]+)(/revision/(.+))?", path):
            self.api += 1
            if match[3] not in (None, "main", "v1", COMMIT):
                return _send(handler, 404, b"", {"X-Error-Code": "RevisionNotFound"})
            return _send(handler, 200, json.dumps(self.listing(match[1])).encode())
        match = re.fullmatch(rf"/datasets/[^/]+/[^/]+/resolve/{COMMIT}/(.+)", path)
        if not match or match[1] not in self.files:
            return _send(handler, 404, b"")
        self._file(handler, match[1])

    def _file(self, handler: BaseHTTPRequestHandler, name: str) -> None:
        asked = handler.headers.get("Range")
        self.asked.append((name, asked))
        if name in self.status:
            return _send(handler, self.status[name], b"")
        content = bytearray(self.files[name])
        if self.spoil.get(name, 0) > 0:
            self.spoil[name] -= 1
            content[len(content) // 2] ^= 1
        start = int(asked.split("=")[1].rstrip("-")) if asked and self.ranges else 0
        if start >= len(content) and asked:
            return _send(handler, 416, b"")
        body = bytes(content[start:])
        handler.send_response(206 if asked and self.ranges else 200)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body if self.break_after is None else body[: self.break_after])
        handler.close_connection = True


def _send(
    handler: BaseHTTPRequestHandler, status: int, body: bytes, headers: dict[str, str] | None = None
) -> None:
    handler.send_response(status)
    for name, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(body)


@contextmanager
def serving(folder: Path) -> Iterator[SmallHub]:
    """The hub on a port of this machine, as long as the block lasts."""
    hub = SmallHub(folder)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            hub.answer(self)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
