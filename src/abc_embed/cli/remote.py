"""A running `abc-embed serve` answers in the place of a model in this process; torch stays away.

Texts and the bytes of images are sent, never a path. An option that the server cannot heed is
refused by its name.
"""

import base64
import http.client
import json
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit

import typer

from abc_embed.errors import EndpointError, ImageError, InputError, RequestError, UsageError
from abc_embed.storage.files import read_file

if TYPE_CHECKING:
    from abc_embed.inputs import Item, Skipped
    from abc_embed.pipeline import Vector

CONNECT_S, ANSWER_S = 5.0, 600.0
PATIENCE_S = 60.0
"""So long a full queue is asked again."""
CHUNK_ITEMS, CHUNK_BYTES = 64, 8_000_000
"""Most items and bytes of images in one request; one image may be larger."""
HEEDED = {"server", "api_key_file", "model", "as_json"}
"""Options that every command can take together with a server."""


class RemoteModel:
    """The model of the server at `url`, with `key` if it wants one.

    `model` is its name, where the user insists on one; None: whatever it has.

    Raises:
        UsageError: that is no address of a server.
    """

    def __init__(self, url: str, key: str | None = None, model: str | None = None) -> None:
        try:
            parts = urlsplit(url if "://" in url else f"http://{url}")
            host, port = parts.hostname, parts.port
        except ValueError:
            host = port = None
        if not host or parts.scheme not in ("http", "https"):
            raise UsageError(f"--server is {url!r}; give an address like http://127.0.0.1:8765")
        self.url = url
        self.model = model or ""
        """What the server calls its model, once it has answered."""
        self._wanted = model
        self._path = parts.path.rstrip("/")
        secure = parts.scheme == "https"
        self._kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
        self._host, self._port = host, port
        self._headers = {"Content-Type": "application/json"}
        if key is not None:
            self._headers["Authorization"] = f"Bearer {key}"

    def ask(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """The answer to a request; a server that is busy is asked again for a minute.

        Raises:
            EndpointError: there is no server, it is another one, or it wants a key.
            RequestError: it refuses the request.
        """
        if self._wanted is not None:
            body = {**body, "model": self._wanted}
        content = json.dumps(body).encode()
        deadline = time.monotonic() + PATIENCE_S
        while True:
            status, wait_s, answer = self._exchange(path, content)
            if status == 200:
                self.model = str(answer.get("model", ""))
                return answer
            if status not in (429, 503) or time.monotonic() + wait_s > deadline:
                raise self._refusal(status, answer)
            time.sleep(wait_s)

    def _exchange(self, path: str, content: bytes) -> tuple[int, float, dict[str, Any]]:
        """Status, seconds to wait before another try, and the body of the answer."""
        connection = self._connect()
        try:
            connection.request("POST", self._path + path, content, self._headers)
            answer = connection.getresponse()
            wait = answer.headers.get("Retry-After", "1")
            value = json.loads(answer.read())
        except (OSError, http.client.HTTPException) as error:
            raise EndpointError(
                f"the server at {self.url} broke off ({str(error) or type(error).__name__}); the "
                f"request had {len(content):,} bytes, see --max-body of abc-embed serve"
            ) from None
        except ValueError:
            value = None
        finally:
            connection.close()
        if not isinstance(value, dict):
            raise EndpointError(f"{self.url} does not answer as abc-embed serve does; check it")
        return answer.status, float(wait) if wait.isdecimal() else 1.0, value

    def _connect(self) -> http.client.HTTPConnection:
        """A connection for one request: between two of them a server closes one that is idle."""
        connection = self._kind(self._host, self._port, timeout=CONNECT_S)
        try:
            connection.connect()
        except OSError as error:
            raise EndpointError(
                f"no server answers at {self.url} ({error.strerror or error}); start one with: "
                "abc-embed serve"
            ) from None
        connection.sock.settimeout(ANSWER_S)
        return connection

    def _refusal(self, status: int, answer: dict[str, Any]) -> EndpointError | RequestError:
        error = answer.get("error")
        fields = error if isinstance(error, dict) else {}
        message, place = str(fields.get("message", f"status {status}")), fields.get("param")
        if status == 401:
            given = "refuses the key" if "Authorization" in self._headers else "wants a key"
            return EndpointError(f"the server at {self.url} {given}; give one with --api-key-file")
        if place == "model":
            message += "; leave out --model to take that"
        return RequestError(f"the server at {self.url} says: {message}", place, status)

    # -- what the commands ask -------------------------------------------------------------------

    @staticmethod
    def image_data(image: str) -> str:
        """An image file as base64; what is a `data:` URL already stays as it is.

        Raises:
            ImageError: the file cannot be read.
        """
        if image[:5].lower() == "data:":
            return image
        try:
            data = read_file(Path(image).expanduser())
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or error
            raise ImageError(
                f"the image {image!r} cannot be read ({why}); check the path"
            ) from None
        return base64.b64encode(data).decode("ascii")

    def stream(
        self, items: "Iterable[Item]", dim: int | None = None, output: str = "float32"
    ) -> "Iterator[Vector | Skipped]":
        """As `Embedder.stream` with `on_error="skip"`: a vector `(D,)` an item, in order.

        In float32 it is a memoryview, which the writers of vectors.py take as well.
        """
        chunk: list[tuple[int, Item, dict[str, Any] | InputError]] = []
        size = 0
        for index, item in enumerate(items):
            part = _as_part(item)
            chunk.append((index, item, part))
            size += len(part.get("image", "")) if isinstance(part, dict) else 0
            if len(chunk) >= CHUNK_ITEMS or size >= CHUNK_BYTES:
                yield from self._chunk(chunk, dim, output)
                chunk, size = [], 0
        yield from self._chunk(chunk, dim, output)

    def _chunk(
        self,
        chunk: "Sequence[tuple[int, Item, dict[str, Any] | InputError]]",
        dim: int | None,
        output: str,
    ) -> "Iterator[Vector | Skipped]":
        from abc_embed.inputs import Skipped, describe_image

        inputs = [part for *_, part in chunk if isinstance(part, dict)]
        rows = iter(self._rows(inputs, dim, output) if inputs else [])
        for index, item, part in chunk:
            if not isinstance(part, dict):
                yield Skipped(index, item, part)
                continue
            row = next(rows)
            if row["embedding"] is None:
                sent, named = describe_image(b""), describe_image(item.image or b"")
                yield Skipped(index, item, InputError(row["error"].replace(sent, named)))
            else:
                yield _as_vector(row["embedding"], output)

    def _rows(
        self, inputs: list[dict[str, Any]], dim: int | None, output: str
    ) -> list[dict[str, Any]]:
        """A row of the answer for each input; what is too much for one request goes in two."""
        kind = "base64" if output.startswith("float") else output
        body = {"input": inputs, "embedding_type": kind, "dimensions": dim, "on_error": "skip"}
        try:
            return list(self.ask("/v1/embeddings", body)["data"])
        except RequestError as error:
            half = len(inputs) // 2
            if error.status != 413 or not half:
                raise
        first, second = inputs[:half], inputs[half:]
        return [*self._rows(first, dim, output), *self._rows(second, dim, output)]


def _as_vector(embedding: str | list[int], output: str) -> "Vector":
    """What the server sends for a vector; NumPy, half of all imports, stays away from float32."""
    if isinstance(embedding, str):
        data = base64.b64decode(embedding)
        if output == "float32" and sys.byteorder == "little":
            return cast("Vector", memoryview(data).cast("f"))
    import numpy as np

    if isinstance(embedding, str):
        return np.frombuffer(data, "<f4").astype(output)
    return np.array(embedding, {"binary": "int8", "ubinary": "uint8"}.get(output, output))


def _as_part(item: "Item") -> dict[str, Any] | InputError:
    """An item as `/v1/embeddings` takes it, or why it cannot be sent."""
    if item.text is not None:
        return {"text": item.text}
    try:
        image = RemoteModel.image_data(str(item.image))
    except InputError as error:
        return error
    return {"image": image, "instruction": item.instruction}


def check_heeded(context: typer.Context, heeded: Iterable[str]) -> None:
    """Refuse the options on the command line that a server cannot heed.

    Raises:
        UsageError: there is one; it is named.
    """
    known = HEEDED | set(heeded)
    for parameter in context.command.params:
        source = context.get_parameter_source(parameter.name or "")
        if parameter.name not in known and source is not None and source.name == "COMMANDLINE":
            raise UsageError(
                f"{parameter.opts[0]} is for a model in this process, and a running server "
                "answers; leave it out, or --server (ABC_EMBED_SERVER)"
            )
