"""A hub on this machine: the few addresses that fetching and pushing ask, with faults on demand."""

import base64
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
        self.token: str | None = None
        """The only one that may read and write; None: everybody may."""
        self.commit = COMMIT
        self.refuse_upload: int | None = None
        """Status with which uploads are refused."""
        self.private: bool | None = None
        """What the last repository that was made is."""
        self.address = ""
        self._blobs: dict[str, bytes] = {}

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
        body = handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
        if (
            self.token
            and not path.startswith("/lfs/")
            and handler.headers.get("Authorization") != f"Bearer {self.token}"
        ):
            return _send(handler, 401, b"", {"X-Error-Code": "RepoNotFound"})
        if handler.command in ("POST", "PUT"):
            return self._take(handler, path, body)
        if self._answer_for_model(handler, path):
            return None
        if match := re.fullmatch(r"/api/datasets/([^/]+/[^/]+)(/revision/(.+))?", path):
            self.api += 1
            if match[3] not in (None, "main", "v1", COMMIT):
                return _send(handler, 404, b"", {"X-Error-Code": "RevisionNotFound"})
            return _send(handler, 200, json.dumps(self.listing(match[1])).encode())
        match = re.fullmatch(rf"/datasets/[^/]+/[^/]+/resolve/{COMMIT}/(.+)", path)
        if not match or match[1] not in self.files:
            return _send(handler, 404, b"")
        self._file(handler, match[1])

    def _answer_for_model(self, handler: BaseHTTPRequestHandler, path: str) -> bool:
        """The addresses of a model called `owner/name`; of others it says that there is none."""
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(/(revision|tree)/([^/]+)/?)?", path):
            self.api += 1
            if match[1] != "owner/name":
                _send(handler, 404, b"", {"X-Error-Code": "RepoNotFound"})
            elif match[4] not in (None, "main", "v1", self.commit):
                _send(handler, 404, b"", {"X-Error-Code": "RevisionNotFound"})
            else:
                listing = self.listing(match[1])
                rows = [
                    {"type": "file", "path": r["rfilename"], "size": r["size"], "oid": r["blobId"]}
                    | ({"lfs": {**r["lfs"], "oid": r["lfs"]["sha256"]}} if "lfs" in r else {})
                    for r in listing["siblings"]  # type: ignore[attr-defined]
                ]
                answer = rows if match[3] == "tree" else listing | {"sha": self.commit}
                _send(handler, 200, json.dumps(answer).encode())
            return True
        match = re.fullmatch(rf"/owner/name/resolve/({self.commit}|main|v1)/(.+)", path)
        if not match:
            return False
        if match[2] not in self.files:
            _send(handler, 404, b"", {"X-Error-Code": "EntryNotFound"})
        elif handler.command == "HEAD":
            content = self.files[match[2]]
            etag = f'"{hashlib.sha256(content).hexdigest()}"'
            headers = {"ETag": etag, "X-Repo-Commit": self.commit, "Accept-Ranges": "bytes"}
            _send(handler, 200, content, headers, only_head=True)
        else:
            self._file(handler, match[2])
        return True

    def _take(self, handler: BaseHTTPRequestHandler, path: str, body: bytes) -> None:
        """What a push sends: make a repository, ask how, large files, and the commit."""
        if self.refuse_upload and path != "/api/validate-yaml":
            return _send(handler, self.refuse_upload, b'{"error": "refused"}')
        answer: dict[str, object] = {}
        if path == "/api/repos/create":
            asked = json.loads(body)
            self.private = asked.get("visibility") == "private" or asked.get("private") is True
            answer = {"url": f"{self.address}/owner/name", "id": "owner/name"}
        elif path == "/api/validate-yaml":
            wrong = [] if b"no-such-licence" not in body else [{"message": "no such licence"}]
            answer = {"errors": wrong, "warnings": []}
            if wrong:
                return _send(handler, 400, json.dumps(answer).encode())
        elif path.startswith("/api/models/owner/name/preupload/"):
            answer["files"] = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                }
                for file in json.loads(body)["files"]
            ]
        elif path == "/owner/name.git/info/lfs/objects/batch":
            answer = {"transfer": "basic", "objects": []}
            for row in json.loads(body)["objects"]:
                upload = {"href": f"{self.address}/lfs/{row['oid']}"}
                answer["objects"].append(row | {"actions": {"upload": upload}})  # type: ignore[attr-defined]
        elif path.startswith("/lfs/"):
            self._blobs[path.removeprefix("/lfs/")] = body
        elif path == "/api/models/owner/name/commit/main":
            for line in body.splitlines():
                part = json.loads(line)
                value = part["value"]
                if part["key"] == "file":
                    self.files[value["path"]] = base64.b64decode(value["content"])
                elif part["key"] == "lfsFile":
                    self.files[value["path"]] = self._blobs[value["oid"]]
                elif part["key"] == "deletedFile":
                    self.files.pop(value["path"])
            self.commit = hashlib.sha1(body).hexdigest()
            url = f"{self.address}/owner/name/commit/{self.commit}"
            answer = {"commitUrl": url, "commitOid": self.commit, "success": True}
        else:
            return _send(handler, 404, b"")
        return _send(handler, 200, json.dumps(answer).encode())

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
        handler.send_header("Connection", "close")  # or the client asks again on a dead connection
        handler.end_headers()
        handler.wfile.write(body if self.break_after is None else body[: self.break_after])


def _send(
    handler: BaseHTTPRequestHandler,
    status: int,
    body: bytes,
    headers: dict[str, str] | None = None,
    *,
    only_head: bool = False,
) -> None:
    handler.send_response(status)
    for name, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
        handler.send_header(name, value)
    handler.end_headers()
    if not only_head:
        handler.wfile.write(body)


@contextmanager
def serving(folder: Path) -> Iterator[SmallHub]:
    """The hub on a port of this machine, as long as the block lasts."""
    hub = SmallHub(folder)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            hub.answer(self)

        do_HEAD = do_POST = do_PUT = do_GET

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
