"""A VLM endpoint on this machine that speaks the real protocol, and breaks it when told to.

Every request is checked as a strict endpoint would, and noted. `answer` makes the reply from the
prompt; `faults` are used up first, one for each request. What a fault is called is what it does.
"""

import base64
import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

KEY = "secret-key-of-the-tests"


@dataclass(frozen=True)
class Request:
    """What came, taken apart."""

    prompt: str
    image: bytes | None
    body: dict[str, Any]
    headers: dict[str, str]


@dataclass(frozen=True)
class Fault:
    """`kind` is one of: status, slow, drip, cut, hang_up, malformed, page, no_choices, refuse,
    filter, cut_off, no_usage, error_body, endless."""

    kind: str
    status: int = 500
    headers: dict[str, str] = field(default_factory=dict)
    code: str | None = None
    seconds: float = 1.0


class VlmServer:
    """Listens on loopback, at a port that the system chooses, while the block lasts."""

    def __init__(
        self,
        answer: Callable[[Request], str] = lambda request: "What is shown there?",
        faults: Sequence[Fault] = (),
        when: Callable[[Request, int], Fault | None] = lambda request, number: None,
        key: str | None = KEY,
    ) -> None:
        self.answer, self.key, self.when = answer, key, when
        self.faults = list(faults)
        self.requests: list[Request] = []
        self.most_at_once = 0
        self._now = 0
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._http = _Http(("127.0.0.1", 0), _Handler)
        self._http.vlm = self
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_address[1]}/v1"

    @property
    def prompts(self) -> list[str]:
        return [request.prompt for request in self.requests]

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def note(self, request: Request) -> Fault | None:
        """Keep the request; the fault that it meets."""
        with self._lock:
            self.requests.append(request)
            self._now += 1
            self.most_at_once = max(self.most_at_once, self._now)
            return self.faults.pop(0) if self.faults else self.when(request, len(self.requests))

    def leave(self) -> None:
        with self._lock:
            self._now -= 1

    def wait(self, seconds: float) -> None:
        self._over.wait(seconds)


class _Http(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    vlm: VlmServer

    def server_bind(self) -> None:
        self.socket.bind(self.server_address)  # the standard way asks for the host's name first
        self.server_address = self.socket.getsockname()

    def handle_error(self, *_: object) -> None:
        """A client that hung up is what some tests are about."""


class _Handler(BaseHTTPRequestHandler):
    server: _Http
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else 40 ms for each reply after the first

    @property
    def vlm(self) -> VlmServer:
        return self.server.vlm

    def log_message(self, *_: object) -> None: ...

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path != "/v1/chat/completions":
            return self.say(404, {"error": {"message": "no such path"}})
        if self.vlm.key and self.headers.get("Authorization") != f"Bearer {self.vlm.key}":
            said = f"Incorrect API key provided: {self.headers.get('Authorization')}"
            return self.say(401, {"error": {"message": said, "code": "invalid_api_key"}})
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = take_apart(body, headers)
        fault = self.vlm.note(request)
        try:
            if fault is None or not self.fails(fault, request):
                self.say(200, completion(self.vlm.answer(request), request))
        finally:
            self.vlm.leave()

    def say(self, status: int, row: object, headers: dict[str, str] | None = None) -> None:
        self.send(status, json.dumps(row).encode(), headers)

    def send(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def fails(self, fault: Fault, request: Request) -> bool:
        """Do what the fault is called; False if an ordinary reply still has to follow."""
        whole = completion("A whole reply?", request)
        content = json.dumps(whole).encode()
        match fault.kind:
            case "status":
                error = {"message": "told to fail", "code": fault.code, "type": "server"}
                self.say(fault.status, {"error": error}, fault.headers)
            case "slow":
                self.vlm.wait(fault.seconds)
                return False
            case "drip":
                self.begin(len(content))
                for byte in content:
                    self.wfile.write(bytes([byte]))
                    self.vlm.wait(fault.seconds)
            case "cut":
                self.begin(len(content))
                self.wfile.write(content[: len(content) // 2])
                self.close_connection = True
            case "hang_up":
                # an RST instead of a reply
                self.connection.setsockopt(
                    socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
                )
                self.connection.close()
                self.close_connection = True
            case "malformed":
                self.send(200, content[:-20])
            case "page":
                self.send(200, b"<html>Bad gateway</html>", {"X-Kind": "page"})
            case "no_choices":
                self.say(200, whole | {"choices": []})
            case "error_body":
                self.say(200, {"error": {"message": "overloaded"}})
            case "endless":
                self.begin(1 << 40)
                while not self.vlm._over.is_set():
                    self.wfile.write(b" " * (1 << 20))
            case _:
                self.say(200, changed(whole, fault.kind))
        return True

    def begin(self, length: int) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(length))
        self.end_headers()


def changed(whole: dict[str, Any], kind: str) -> dict[str, Any]:
    """A whole reply with one thing about it as real endpoints have it now and then."""
    choice = whole["choices"][0]
    if kind == "refuse":
        choice["message"] |= {"content": None, "refusal": "I will not look at this."}
    elif kind == "filter":
        choice |= {"finish_reason": "content_filter"}
        choice["message"]["content"] = ""
    elif kind == "cut_off":
        choice["finish_reason"] = "length"
    elif kind == "no_usage":
        del whole["usage"]
    else:
        raise ValueError(f"no fault is called {kind}")
    return whole


def take_apart(body: dict[str, Any], headers: dict[str, str]) -> Request:
    """The request, if it is one that every endpoint understands."""
    (message,) = body["messages"]
    assert message["role"] == "user"
    assert isinstance(body["model"], str)
    prompt, image = "", None
    for part in message["content"]:
        if part["type"] == "text":
            prompt = part["text"]
        else:
            assert part["type"] == "image_url"
            kind, comma, data = part["image_url"]["url"].partition(";base64,")
            assert kind.removeprefix("data:image/") in ("png", "jpeg", "gif", "webp")
            assert comma
            image = base64.b64decode(data, validate=True)
    return Request(prompt, image, body, headers)


def completion(text: str, request: Request) -> dict[str, Any]:
    """A chat completion, every field that the protocol asks for."""
    prompt_tokens = len(request.prompt) // 4 + (100 if request.image else 0)
    used = {"prompt_tokens": prompt_tokens, "completion_tokens": len(text) // 4}
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": f"{request.body['model']}-2026",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": text, "refusal": None},
                "finish_reason": "stop",
                "logprobs": None,
            }
        ],
        "usage": {**used, "total_tokens": sum(used.values())},
    }
