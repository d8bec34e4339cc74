"""The server: routes, keys, limits, errors as answers, metrics and one log line a request.

Requests are read in `fields` and `shapes`, computed in `queue`; nothing here knows the model but to
describe it. What goes wrong becomes one sentence with its place; what is a mistake of ours becomes
a plain 500, its traceback in the log and not in the answer.
"""

import asyncio
import hmac
import logging
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import orjson
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from abc_embed import __version__, runtime
from abc_embed.embedder import Embedder
from abc_embed.errors import AbcError, InputError, OutOfMemoryError, RequestError, UsageError
from abc_embed.inputs import Item
from abc_embed.serve.engine import Engine, bad_items
from abc_embed.serve.fetch import Fetcher
from abc_embed.serve.fields import Fields, ReadImage, parse_json
from abc_embed.serve.images import ImageReader
from abc_embed.serve.openapi import SUMMARIES, request_body
from abc_embed.serve.pages import PAGES, STATIC, example, example_names, shipped
from abc_embed.serve.queue import RETRY_AFTER_S, Embedded
from abc_embed.serve.ranking import Ranking
from abc_embed.serve.retrieval import Retrieval
from abc_embed.serve.settings import LOCAL_NAMES, ServerSettings
from abc_embed.serve.shapes import (
    SHAPES,
    EmbedRequest,
    EmbedResult,
    Encoded,
    Shape,
    as_base64,
    openai_error,
)
from abc_embed.vectors import check_dim, quantize, truncate

LOG = logging.getLogger("abc_embed.serve")
OPEN_PATHS = re.compile(r"/|/search|/map|/docs|/health|/examples(/.*)?|/static/.*")
"""What needs no key: the pages themselves, and whether the server lives."""
Handler = Callable[[Fields, Request, ReadImage], Awaitable[Any]]
"""A request -> its answer, or a function that makes it where that takes long."""
SMALL_BODY = 1 << 14
"""A body of no more bytes, without images, is taken apart at once and not in a thread."""
BODIES = 16
"""So many bodies of the largest size may be in memory at a time."""
FLOATS = {"float", "base64"}
"""Formats that vectors of any model have."""
FEW_VECTORS = 64
"""More of them are written as JSON in a thread."""
TRIM_S = 10.0
"""Freed memory is given back so often: in between it serves the next requests."""
MAX_SENTENCE = 600
"""Characters of a refusal: what it repeats of the request may be of any length."""

_SECURITY = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (
        b"content-security-policy",
        b"default-src 'self'; img-src 'self' data: blob:; object-src 'none'; base-uri 'none'; "
        b"frame-ancestors 'none'",
    ),
]
"""Headers of every answer."""


class Server:
    """One model behind HTTP; `app` is what an ASGI server runs."""

    def __init__(self, embedder: Embedder, name: str, settings: ServerSettings) -> None:
        self.embedder = embedder
        self.name = name
        self.settings = settings
        self.created = int(time.time())
        self._body_bytes = 0
        self._answered = 0
        self.posts: dict[str, Callable[[Request], Awaitable[Response]]] = {}
        """What takes a body, by its path."""
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "abc_embed_requests",
            "Requests by path and status.",
            ["path", "status"],
            registry=self.registry,
        )
        self._seconds = Histogram(
            "abc_embed_request_seconds",
            "Seconds from request to answer.",
            ["path"],
            registry=self.registry,
        )
        self._batch_items = Histogram(
            "abc_embed_batch_items",
            "Items that went through the model together.",
            buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256),
            registry=self.registry,
        )
        self._batch_tokens = Counter(
            "abc_embed_batch_tokens", "Tokens that went through the model.", registry=self.registry
        )
        self.engine = Engine(embedder, name, settings, self._count_batch)
        self.queue = self.engine.queue
        indexes = None
        if settings.indexes:
            from abc_embed.serve.indexes import Indexes  # needs the extra `index`

            indexes = Indexes(settings.indexes, embedder)
        hosts = tuple(map(str.lower, settings.allow_urls))
        fetch = Fetcher(hosts) if hosts else None
        self._images = ImageReader(indexes, fetch)
        self._ranking = Ranking(self.engine)
        self._retrieval = Retrieval(self.engine, indexes)
        Gauge(
            "abc_embed_queue_items",
            "Items that wait or are being computed.",
            registry=self.registry,
        ).set_function(lambda: len(self.queue))
        self.app = self._make_app()

    async def _trim(self) -> None:
        """Give freed memory back, every few seconds in which something was answered."""
        seen = 0
        while True:
            await asyncio.sleep(TRIM_S)
            if seen != self._answered:
                seen = self._answered
                await asyncio.to_thread(runtime.trim_memory)

    def _count_batch(self, items: int, tokens: int) -> None:
        self._batch_items.observe(items)
        self._batch_tokens.inc(tokens)

    # -- the application -------------------------------------------------------------------------

    def _make_app(self) -> ASGIApp:
        @asynccontextmanager
        async def lifespan(_: FastAPI) -> AsyncIterator[None]:
            with self.queue:
                trimming = asyncio.create_task(self._trim())
                yield
                trimming.cancel()
                await asyncio.to_thread(self.engine.close)

        app = FastAPI(
            title="abc-embed", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None
        )
        for shape in SHAPES:
            self._add(app, shape.path, self._embed_route(shape), shape)
        self._add(app, "/v1/rank", self._ranking.rank)
        self._add(app, "/v1/explain", self._ranking.explain)
        self._add(app, "/v1/search", self._retrieval.search)
        self._add(app, "/v1/map", self._retrieval.map)
        app.get("/v1/indexes")(self._get(self._retrieval.indexes))
        app.get("/v1/indexes/{index}/images/{identity}", response_class=Response)(self._image)
        app.get("/v1/models")(self._models)
        app.get("/v1/models/{name:path}")(self._one_model)
        app.get("/health")(self._health)
        app.get("/metrics")(self._metrics)
        app.exception_handler(HTTPException)(self._http_error)
        app.exception_handler(RequestValidationError)(self._bad_parameter)
        self._add_pages(app)
        return self._wrap(app)

    def _wrap(self, app: ASGIApp) -> ASGIApp:
        app = Around(app, self)
        if not self.settings.cors:
            return app
        return CORSMiddleware(
            app,
            allow_origins=list(self.settings.cors),
            allow_headers=["*"],
            allow_methods=["GET", "POST"],
        )

    def _add_pages(self, app: FastAPI) -> None:
        for page in PAGES:
            app.get(f"/{page.address.strip('./')}", include_in_schema=False)(page.__call__)
        app.get("/static/{name}", include_in_schema=False)(lambda name: shipped(STATIC, name))
        app.get("/examples/{name}", include_in_schema=False)(example)
        app.get("/examples", include_in_schema=False)(example_names)

    def _add(self, app: FastAPI, path: str, handle: Handler, shape: Shape | None = None) -> None:
        """A route whose body is read by hand, so that every refusal names its place."""

        read_images = self._images.again

        async def route(request: Request) -> Response:
            body = bytearray()
            try:
                await self._receive(request, body)
                answer = await handle(await self._parsed(bytes(body)), request, read_images())
                if callable(answer):
                    return await asyncio.to_thread(lambda: as_json(answer()))
                return as_json(answer)
            except AbcError as error:
                return refusal(error, shape)
            finally:
                self._body_bytes -= len(body)

        route.__name__ = path.strip("/").replace("/", "_")
        app.router.add_api_route(
            path,
            route,
            methods=["POST"],
            summary=SUMMARIES[path],
            openapi_extra=request_body(path),
        )
        self.posts[path] = route

    def _get(self, handle: "Callable[[Request], Awaitable[Any]]") -> "Callable[..., Any]":
        async def route(request: Request) -> Response:
            try:
                return as_json(await handle(request))
            except AbcError as error:
                return refusal(error, None)

        return route

    async def _image(
        self, request: Request, index: str, identity: str, side: int = 256
    ) -> Response:
        """An image of an index as JPEG, no side longer than `side` pixels."""
        try:
            data = await self._retrieval.image(request, index, identity, side)
        except AbcError as error:
            return refusal(error, None)
        headers = {"Cache-Control": "private, max-age=3600"}
        return Response(data, media_type="image/jpeg", headers=headers)

    def refused(self, request: Request) -> Response | None:
        """The answer to a request that is not let in."""
        path = request.scope["path"]
        if self._is_foreign(request):
            sentence = "this server is for its own machine; see --host and --cors"
            return refusal(RequestError(sentence, None, 403), None)
        if self.settings.keys and not OPEN_PATHS.fullmatch(path) and not self._has_key(request):
            sentence = "give a key of this server as 'Authorization: Bearer KEY'"
            shape = next((shape for shape in SHAPES if shape.path == path), None)
            return refusal(RequestError(sentence, None, 401), shape)
        return None

    def record(self, request: Request, status: int, seconds: float) -> None:
        """Metrics, and one line in the log."""
        self._answered += 1
        path = self._metrics_path(request)
        self._requests.labels(path, status).inc()
        self._seconds.labels(path).observe(seconds)
        line = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "method": request.method,
            "path": path,
            "status": status,
            "seconds": round(seconds, 4),
        }
        LOG.info(orjson.dumps(line).decode())

    def _metrics_path(self, request: Request) -> str:
        """The path as it was declared: what clients put into it makes no series of its own."""
        path: str = request.scope["path"]
        return (
            path if path in self.posts else getattr(request.scope.get("route"), "path", "unknown")
        )

    def _has_key(self, request: Request) -> bool:
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            return False
        # Every key is compared, whole and in constant time.
        matches = [hmac.compare_digest(given.encode(), key.encode()) for key in self.settings.keys]
        return any(matches)

    def _is_foreign(self, request: Request) -> bool:
        """Whether a page of another site sent it: by its own name for this machine, or at once.

        A server without keys is for this machine's own user, whose browser shows such pages too.
        """
        if not self.settings.only_local:
            return False
        name = host_name(request.headers.get("host", ""))
        if name not in (*LOCAL_NAMES, self.settings.host):
            return True
        site = request.headers.get("sec-fetch-site", "none")
        from_page = request.headers.get("origin") in self.settings.cors
        return request.method == "POST" and site in ("cross-site", "same-site") and not from_page

    async def _receive(self, request: Request, body: bytearray) -> None:
        """Read the body into `body`, which counts among those in memory.

        Raises:
            RequestError: it is too large (413), too slow (408), or too many are there (503).
        """
        most, seconds = self.settings.max_body, self.settings.body_timeout_s
        too_large = RequestError(
            f"the body is larger than {most:,} bytes; send fewer or smaller images", None, 413
        )
        length = request.headers.get("content-length", "0")
        if length.isdigit() and int(length) > most:
            raise too_large
        try:
            async with asyncio.timeout(seconds):
                is_whole = False
                while not is_whole:
                    message = await request.receive()
                    if message["type"] == "http.disconnect":
                        raise RequestError("the client has hung up", None, 499)
                    is_whole = not message.get("more_body", False)
                    chunk = message.get("body", b"")
                    body += chunk
                    self._body_bytes += len(chunk)
                    if len(body) > most:
                        raise too_large
                    if self._body_bytes > BODIES * most:
                        raise RequestError(
                            "too many large requests at a time; try again", None, 503
                        )
        except TimeoutError:
            raise RequestError(f"the body took longer than {seconds:g} s", None, 408) from None

    async def _parsed(self, content: bytes) -> Fields:
        if len(content) <= SMALL_BODY:
            return parse_json(content)
        return await asyncio.to_thread(parse_json, content)

    # -- embeddings ------------------------------------------------------------------------------

    def _embed_route(self, shape: Shape) -> Handler:
        async def embed(body: Fields, http: Request, read: ReadImage) -> Any:
            if body.is_plain:
                asked = shape.parse(body, read)
            else:  # images and addresses take their time
                asked = await self.engine.run(http, lambda _: shape.parse(body, read), "read")
            self.engine.check_model(asked.model)
            self._check_vectors(asked, shape)
            items = [item for item in asked.items if isinstance(item, Item)]
            embedded = iter(await self.engine.embed(items, http, truncate=asked.truncate))
            results = [next(embedded) if isinstance(i, Item) else i for i in asked.items]
            errors = bad_items(results, asked.places, skip=asked.skip_bad)
            good = [result for result in results if isinstance(result, Embedded)]

            def answer() -> dict[str, Any]:
                result = EmbedResult(
                    model=self.name,
                    encoded=self._encoded(asked, results),
                    errors=errors,
                    tokens=sum(result.tokens for result in good),
                    image_pixels=sum(result.image_pixels for result in good),
                    images=sum(item.image is not None for item in items),
                )
                return shape.answer(asked, result)

            return answer if len(results) > FEW_VECTORS else answer()

        return embed

    def _check_vectors(self, asked: EmbedRequest, shape: Shape) -> None:
        """Refuse a width or a format before anything is computed."""
        try:
            check_dim(asked.dimensions, self.embedder.dim, shape.width_field)
        except UsageError as error:
            raise RequestError(str(error), shape.width_field) from None
        if not FLOATS.issuperset(asked.outputs):
            self._encoded(asked, [])

    def _encoded(
        self, asked: EmbedRequest, results: "Sequence[Embedded | BaseException]"
    ) -> Encoded:
        good = {at: result for at, result in enumerate(results) if isinstance(result, Embedded)}
        vectors = np.zeros((len(good), self.embedder.dim), dtype=np.float32)
        for row, result in enumerate(good.values()):
            vectors[row] = result.vector
        vectors = truncate(vectors, asked.dimensions)
        ranges = self.embedder.model.vector_facts.ranges.get(vectors.shape[1])
        encoded: Encoded = {}
        for output in asked.outputs:
            try:
                values = self._as_json(vectors, output, ranges)
            except UsageError as error:
                raise RequestError(str(error), output) from None
            encoded[output] = [None] * len(results)
            for index, value in zip(good, values, strict=True):
                encoded[output][index] = value
        return encoded

    def _as_json(self, vectors: Any, output: str, ranges: Any) -> list[Any]:
        if output == "float":
            return list(vectors)
        if output == "base64":
            return [as_base64(vector) for vector in vectors]
        return list(quantize(vectors, output, ranges))

    # -- about the server ------------------------------------------------------------------------

    def _described(self) -> dict[str, Any]:
        return {
            "id": self.name,
            "object": "model",
            "created": self.created,
            "owned_by": "abc-embed",
            "dimensions": self.embedder.dim,
        }

    async def _models(self) -> dict[str, Any]:
        """The model, in OpenAI's list."""
        return {"object": "list", "data": [self._described()]}

    async def _one_model(self, name: str) -> Response:
        """The model by its name."""
        try:
            self.engine.check_model(name)
        except RequestError as error:
            return refusal(error, None)
        return as_json(self._described())

    async def _health(self) -> dict[str, Any]:
        """Alive, and ready to embed."""
        return {
            "status": "ok",
            "ready": True,
            "queue": len(self.queue),
            "capacity": self.queue.capacity,
        }

    async def _metrics(self) -> Response:
        """Counters for Prometheus."""
        return Response(generate_latest(self.registry), media_type="text/plain; version=0.0.4")

    async def _bad_parameter(self, _: Request, error: Exception) -> Response:
        found = error.errors() if isinstance(error, RequestValidationError) else []
        place = ".".join(str(part) for part in found[0]["loc"][1:]) if found else None
        return refusal(RequestError(f"{place} has a wrong value", place), None)

    async def _http_error(self, _: Request, error: Exception) -> Response:
        status = error.status_code if isinstance(error, HTTPException) else 500
        sentences = {404: "there is no such path", 405: "this path does not take that method"}
        message = sentences.get(status, str(getattr(error, "detail", "the request is refused")))
        return JSONResponse(openai_error(message, None, status), status)


class Around:
    """Around every request: keys, headers, metrics, the log, and mistakes of ours.

    Plain ASGI, and what takes a body is called at once: the layers of FastAPI, which are there for
    its pages and its OpenAPI, take longer than all else that a short text needs beside the model.
    """

    def __init__(self, app: ASGIApp, server: Server) -> None:
        self._app = app
        self._server = server

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        request = Request(scope, receive)
        status: int | None = None

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], *_SECURITY]
            await send(message)

        try:
            answer = self._server.refused(request) or await self._at_once(request) or self._app
            await answer(scope, receive, send_with_headers)
        except Exception:  # a mistake of ours: its traceback is for the log alone
            LOG.exception("a request to %s failed", request.url.path)
            if status is not None:  # half of the answer is sent: the connection breaks off
                raise
            sentence = "the server made a mistake; its log says which"
            apology = JSONResponse(openai_error(sentence, None, 500), 500)
            await apology(scope, receive, send_with_headers)
        finally:
            self._server.record(request, status or 500, time.perf_counter() - started)

    async def _at_once(self, request: Request) -> Response | None:
        route = self._server.posts.get(request.scope["path"])
        return await route(request) if route and request.method == "POST" else None


@lru_cache(16)
def host_name(header: str) -> str | None:
    """The name in a `Host` header, without its port; None: there is none."""
    try:
        return urlsplit("//" + header).hostname
    except ValueError:
        return None


def as_json(answer: Any) -> Response:
    """An answer, in which a list of numbers may be an array."""
    content = orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)
    return Response(content, media_type="application/json")


def refusal(error: AbcError, shape: Shape | None) -> JSONResponse:
    """An error as the answer that the client of that shape understands."""
    status, place, sentence = 400, None, str(error)
    if isinstance(error, RequestError):
        status, place = error.status, error.place
    elif isinstance(error, OutOfMemoryError):
        status = 503
    elif not isinstance(error, InputError | UsageError):
        # What it says is for the operator: it may name files of this machine.
        LOG.error("a request failed: %s", error)
        status, sentence = 500, "the server cannot answer this; its log says why"
    if len(sentence) > MAX_SENTENCE:
        sentence = f"{sentence[: MAX_SENTENCE // 2]} … {sentence[-MAX_SENTENCE // 2 :]}"
    place = place and place[:MAX_SENTENCE]
    body = (shape.error if shape else openai_error)(sentence, place, status)
    headers = {}
    if status in (429, 503):
        headers["Retry-After"] = str(RETRY_AFTER_S)
    elif status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(body, status, headers=headers)
