"""The server: routes, keys, limits, errors as answers, metrics and one log line a request.

Requests are read in `fields` and `shapes`, computed in `queue`; nothing here knows the model but to
describe it. What goes wrong becomes one sentence with its place; what is a mistake of ours becomes
a plain 500, its traceback in the log and not in the answer.
"""

import asyncio
import base64
import hmac
import io
import json
import logging
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Any

import numpy as np
from fastapi import FastAPI, Request, Response
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.exceptions import HTTPException

from abc_embed import __version__
from abc_embed.embedder import Embedder, Evidence
from abc_embed.errors import AbcError, InputError, OutOfMemoryError, RequestError, UsageError
from abc_embed.inputs import Item, open_image
from abc_embed.serve.fields import Fields, image_bytes, parse_json
from abc_embed.serve.queue import RETRY_AFTER_S, Embedded, EmbeddingQueue
from abc_embed.serve.settings import ServerSettings
from abc_embed.serve.shapes import (
    MAX_INPUTS,
    SHAPES,
    EmbedRequest,
    EmbedResult,
    Encoded,
    Shape,
    as_base64,
    make_item,
    openai_error,
    parse_item,
)
from abc_embed.vectors import quantize, truncate

LOG = logging.getLogger("abc_embed.serve")
OPEN_PATHS = re.compile(r"/|/docs|/health|/examples(/.*)?|/static/.*")
"""What needs no key: the page itself, and whether the server lives."""

EXAMPLES = files("abc_embed") / "bundled" / "images"
STATIC = files("abc_embed") / "serve" / "static"
_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".png": "image/png"}

_SECURITY = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": (
        "default-src 'self'; img-src 'self' data: blob:; object-src 'none'; base-uri 'none'; "
        "frame-ancestors 'none'"
    ),
}


class Server:
    """One model behind HTTP; `app` is what an ASGI server runs."""

    def __init__(self, embedder: Embedder, name: str, settings: ServerSettings) -> None:
        self.embedder = embedder
        self.name = name
        self.settings = settings
        self.created = int(time.time())
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
        self.queue = EmbeddingQueue(
            embedder,
            capacity=settings.queue,
            on_batch=self._count_batch,
        )
        Gauge(
            "abc_embed_queue_items",
            "Items that wait or are being computed.",
            registry=self.registry,
        ).set_function(lambda: len(self.queue))
        self.app = self._make_app()

    def _count_batch(self, items: int, tokens: int) -> None:
        self._batch_items.observe(items)
        self._batch_tokens.inc(tokens)

    # -- the application -------------------------------------------------------------------------

    def _make_app(self) -> FastAPI:
        @asynccontextmanager
        async def lifespan(_: FastAPI) -> AsyncIterator[None]:
            with self.queue:
                yield
                await asyncio.to_thread(self.queue.close)

        app = FastAPI(
            title="abc-embed", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None
        )
        app.middleware("http")(self._around)
        if self.settings.cors:
            app.add_middleware(
                CORSMiddleware,
                allow_origins=list(self.settings.cors),
                allow_headers=["*"],
                allow_methods=["GET", "POST"],
            )
        for shape in SHAPES:
            handle = self._embed_route(shape)
            self._add(app, shape.path, handle, shape.summary, shape.example, shape)
        image, texts = "data:image/png;base64,…", ["a dog", "a cat"]
        words = "what is on the left?"
        example: dict[str, Any] = {"image": image, "texts": texts, "instructions": [words]}
        self._add(app, "/v1/rank", self._rank, "Texts ranked for an image", example)
        example = {"image": image, "text": "a dog", "instruction": words, "png": True}
        self._add(app, "/v1/explain", self._explain, "Which places made the cosine", example)
        app.get("/v1/models")(self._models)
        app.get("/health")(self._health)
        app.get("/metrics")(self._metrics)
        app.exception_handler(HTTPException)(self._http_error)
        for path, name in (("/", "index.html"), ("/docs", "docs.html")):
            app.get(path, include_in_schema=False)(_file_route(name))
        app.get("/static/{name}", include_in_schema=False)(lambda name: shipped(STATIC, name))
        app.get("/examples/{name}", include_in_schema=False)(lambda name: shipped(EXAMPLES, name))
        app.get("/examples", include_in_schema=False)(
            lambda: sorted(f.name for f in EXAMPLES.iterdir() if f.name.endswith(".png"))
        )
        return app

    def _add(
        self,
        app: FastAPI,
        path: str,
        handle: "Callable[[Fields, Request], Awaitable[Any]]",
        summary: str,
        example: dict[str, Any],
        shape: Shape | None = None,
    ) -> None:
        """A route whose body is read by hand, so that every refusal names its place."""

        async def route(request: Request) -> Response:
            try:
                body = await asyncio.to_thread(parse_json, await self._body(request))
                return JSONResponse(await handle(body, request))
            except AbcError as error:
                return refusal(error, shape)

        route.__name__ = path.strip("/").replace("/", "_")
        content = {"application/json": {"schema": {"type": "object"}, "example": example}}
        schema = {"requestBody": {"required": True, "content": content}}
        app.post(path, summary=summary, openapi_extra=schema)(route)

    async def _around(
        self, request: Request, call_next: Callable[[Request], Awaitable[Response]]
    ) -> Response:
        """Keys, metrics, the log line, and headers of every answer."""
        started = time.perf_counter()
        path = request.url.path
        if self.settings.keys and not OPEN_PATHS.fullmatch(path) and not self._has_key(request):
            response: Response = refusal(
                RequestError("give a key of this server as 'Authorization: Bearer KEY'", None, 401),
                next((shape for shape in SHAPES if shape.path == path), None),
            )
        else:
            try:
                response = await call_next(request)
            except Exception:  # a mistake of ours: its traceback is for the log alone
                LOG.exception("a request to %s failed", path)
                response = JSONResponse(
                    openai_error("the server made a mistake; its log says which", None, 500), 500
                )
        known = path if response.status_code != 404 else "unknown"
        seconds = time.perf_counter() - started
        self._requests.labels(known, response.status_code).inc()
        self._seconds.labels(known).observe(seconds)
        line = {
            "method": request.method,
            "path": known,
            "status": response.status_code,
            "seconds": round(seconds, 4),
        }
        LOG.info(json.dumps(line))
        response.headers.update(_SECURITY)
        return response

    def _has_key(self, request: Request) -> bool:
        given = request.headers.get("authorization", "").removeprefix("Bearer ").encode()
        # Every key is compared, whole and in constant time.
        matches = [hmac.compare_digest(given, key.encode()) for key in self.settings.keys]
        return any(matches)

    async def _body(self, request: Request) -> bytes:
        """The body, within bounds of bytes and of time.

        Raises:
            RequestError: it is too large (413) or too slow (408).
        """
        most = self.settings.max_body
        too_large = RequestError(
            f"the body is larger than {most:,} bytes; send fewer or smaller images", None, 413
        )
        length = request.headers.get("content-length", "0")
        if length.isdigit() and int(length) > most:
            raise too_large
        body = bytearray()
        try:
            async with asyncio.timeout(self.settings.body_timeout_s):
                async for chunk in request.stream():
                    body += chunk
                    if len(body) > most:
                        raise too_large
        except TimeoutError:
            seconds = self.settings.body_timeout_s
            raise RequestError(f"the body took longer than {seconds:g} s", None, 408) from None
        return bytes(body)

    # -- embeddings ------------------------------------------------------------------------------

    def _embed_route(self, shape: Shape) -> "Callable[[Fields, Request], Awaitable[Any]]":
        async def embed(body: Fields, http: Request) -> dict[str, Any]:
            asked = shape.parse(body)
            self._check_model(asked.model)
            self._encoded(asked, [])  # refuses a width or a format before anything is computed
            results = await self._embed(asked.items, http)
            errors = self._errors(asked, results)
            good = [result for result in results if isinstance(result, Embedded)]
            result = EmbedResult(
                model=self.name,
                encoded=await asyncio.to_thread(self._encoded, asked, results),
                errors=errors,
                tokens=sum(embedded.tokens for embedded in good),
                image_pixels=sum(embedded.image_pixels for embedded in good),
                images=sum(item.image is not None for item in asked.items),
            )
            return shape.answer(asked, result)

        return embed

    def _check_model(self, name: str | None) -> None:
        if name not in (None, self.name, "default", ""):
            raise RequestError(
                f"there is no model {name!r} here; this server has {self.name!r}", "model", 404
            )

    async def _embed(
        self, items: Sequence[Item], http: Request
    ) -> "list[Embedded | BaseException]":
        """Vectors, or what went wrong, an item each; given up when the client has hung up."""
        futures = self.queue.submit(items)
        work = asyncio.gather(*map(asyncio.wrap_future, futures), return_exceptions=True)
        gone = asyncio.ensure_future(_hung_up(http))
        waited: set[asyncio.Future[Any]] = {work, gone}
        try:
            done, _ = await asyncio.wait(
                waited,
                timeout=self.settings.answer_timeout_s,
                return_when=asyncio.FIRST_COMPLETED,
            )
        finally:
            gone.cancel()
            if not work.done():
                work.cancel()  # and with it every item that has not begun
        if work in done:
            return work.result()
        if gone in done:
            raise RequestError("the client has hung up", None, 499)
        seconds = self.settings.answer_timeout_s
        raise RequestError(f"no answer within {seconds:g} s; try again", None, 503)

    def _errors(
        self, asked: EmbedRequest, results: "Sequence[Embedded | BaseException]"
    ) -> dict[int, str]:
        """Sentences of bad items by index; the first one ends a request that does not skip."""
        errors: dict[int, str] = {}
        for index, (result, place) in enumerate(zip(results, asked.places, strict=True)):
            if isinstance(result, Embedded):
                continue
            if not isinstance(result, InputError):
                raise result
            if not asked.skip_bad:
                raise RequestError(f"{place}: {result}", place) from result
            errors[index] = str(result)
        return errors

    def _encoded(
        self, asked: EmbedRequest, results: "Sequence[Embedded | BaseException]"
    ) -> Encoded:
        rows = [index for index, result in enumerate(results) if isinstance(result, Embedded)]
        vectors = np.zeros((len(rows), self.embedder.dim), dtype=np.float32)
        for row, index in enumerate(rows):
            result = results[index]
            if isinstance(result, Embedded):
                vectors[row] = result.vector
        try:
            vectors = truncate(vectors, asked.dimensions)
        except UsageError as error:
            raise RequestError(str(error), "dimensions") from None
        encoded: Encoded = {}
        for output in asked.outputs:
            try:
                values = self._as_json(vectors, output)
            except UsageError as error:
                raise RequestError(str(error), output) from None
            encoded[output] = [None] * len(results)
            for index, value in zip(rows, values, strict=True):
                encoded[output][index] = value
        return encoded

    def _as_json(self, vectors: Any, output: str) -> list[Any]:
        if output == "float":
            return list(vectors.tolist())
        if output == "base64":
            return [as_base64(vector) for vector in vectors]
        return list(quantize(vectors, output).tolist())

    # -- beyond vectors --------------------------------------------------------------------------

    async def _rank(self, body: Fields, http: Request) -> dict[str, Any]:
        instructions: list[str | None] = [None]
        if "instructions" in body:
            instructions = _texts(body, "instructions", 64)
        texts = _texts(body, "texts", MAX_INPUTS)
        image, item = body.take("image"), body.take("item")
        self._check_model(body.text("model"))
        body.done()
        if (image is None) == (item is None):
            raise RequestError("give one of image and item")
        if item is not None:
            questions = [parse_item(item, "item")]
        else:
            questions = [_asked(image, words) for words in instructions]
        candidates = [parse_item(text, f"texts[{index}]") for index, text in enumerate(texts)]
        places = [*(["image"] * len(questions)), *(f"texts[{i}]" for i in range(len(texts)))]
        asked = EmbedRequest([*questions, *candidates], places)
        results = await self._embed(asked.items, http)
        self._errors(asked, results)
        vectors = np.stack([r.vector for r in results if isinstance(r, Embedded)])
        scores = self.embedder.similarity(vectors[: len(questions)], vectors[len(questions) :])
        rankings = []
        for question, row in zip(questions, scores, strict=True):
            order = (-row).argsort(kind="stable")
            ranking = [{"index": int(i), "text": texts[i], "score": float(row[i])} for i in order]
            rankings.append({"instruction": question.instruction, "ranking": ranking})
        return {"object": "list", "model": self.name, "data": rankings}

    async def _explain(self, body: Fields, _: Request) -> dict[str, Any]:
        image, words = body.take("image"), body.text("instruction")
        text = body.text("text", required=True)
        with_png = body.flag("png", False)
        self._check_model(body.text("model"))
        body.done()
        item, target = _asked(image, words), parse_item(text, "text")
        try:
            evidence = await asyncio.to_thread(self.embedder.explain, item, target)
        except InputError as error:
            raise RequestError(f"image: {error}", "image") from None
        answer: dict[str, Any] = {
            "object": "evidence",
            "model": self.name,
            "map": np.round(evidence.map, 4).tolist(),
            "peak": evidence.peak,
        }
        if with_png:
            answer["png"] = await asyncio.to_thread(overlay_png, evidence, item)
        return answer

    # -- about the server ------------------------------------------------------------------------

    async def _models(self) -> dict[str, Any]:
        """The model, in OpenAI's list."""
        model = {
            "id": self.name,
            "object": "model",
            "created": self.created,
            "owned_by": "abc-embed",
            "dimensions": self.embedder.dim,
        }
        return {"object": "list", "data": [model]}

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

    async def _http_error(self, _: Request, error: Exception) -> Response:
        status = error.status_code if isinstance(error, HTTPException) else 500
        sentences = {404: "there is no such path", 405: "this path does not take that method"}
        message = sentences.get(status, str(getattr(error, "detail", "the request is refused")))
        return JSONResponse(openai_error(message, None, status), status)


def _texts(body: Fields, name: str, most: int) -> list[Any]:
    """A list of texts."""
    return [
        Fields({"text": words}, place).text("text", required=True)
        for place, words in body.items(name, most)
    ]


def _asked(image: object, instruction: str | None) -> Item:
    """An image, alone or with an instruction."""
    return make_item("image", instruction, image_bytes(image, "image"))


def overlay_png(evidence: Evidence, item: Item) -> str:
    """The picture under its map, as a data: URL."""
    picture = open_image(item.image)  # type: ignore[arg-type]
    picture.thumbnail((1024, 1024))
    stream = io.BytesIO()
    evidence.overlay(picture).save(stream, "PNG")
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode("ascii")


async def _hung_up(http: Request) -> None:
    """Returns when the client has closed the connection; its body was read before."""
    while (await http.receive())["type"] != "http.disconnect":
        pass


def refusal(error: AbcError, shape: Shape | None) -> JSONResponse:
    """An error as the answer that the client of that shape understands."""
    status, place = 400, None
    if isinstance(error, RequestError):
        status, place = error.status, error.place
    elif isinstance(error, OutOfMemoryError):
        status = 503
    elif not isinstance(error, InputError | UsageError):
        status = 500
    body = (shape.error if shape else openai_error)(str(error), place, status)
    headers = {"Retry-After": str(RETRY_AFTER_S)} if status in (429, 503) else None
    return JSONResponse(body, status, headers=headers)


def _file_route(name: str) -> Callable[[], Response]:
    return lambda: shipped(STATIC, name)


def shipped(folder: Traversable, name: str) -> Response:
    """A file that comes with the package, by its bare name."""
    names = {file.name for file in folder.iterdir() if file.is_file()}
    kind = _TYPES.get("." + name.rpartition(".")[2])
    if name not in names or kind is None:
        raise HTTPException(404)
    return Response((folder / name).read_bytes(), media_type=kind)
