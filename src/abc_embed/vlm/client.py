"""Asking a vision-language model over any OpenAI-compatible endpoint, many times and safely.

The key comes from the environment and goes nowhere but into the request. The `openai` client's own
retries are off: they give up where an endpoint asks for a long wait, and each thread would wait by
itself. A reply is read in pieces and parsed here, so that one which drips in, breaks off, is
endless or is no JSON is a fault like any other, and `timeout_s` bounds the whole of it.
"""

import email.utils
import json
import math
import os
import random
import re
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar
from urllib.parse import urlsplit, urlunsplit
from weakref import WeakValueDictionary

from abc_embed.errors import AskError, DataError, EndpointError, MissingExtraError, UsageError
from abc_embed.storage.files import read_file
from abc_embed.storage.hashing import sha256, sha256_json
from abc_embed.vlm.images import encode_image, is_plain
from abc_embed.vlm.limits import (
    Budget,
    Clock,
    Estimate,
    Limits,
    PlannedRequest,
    RateLimiter,
    ReplyCache,
    estimate_tokens,
)
from abc_embed.vlm.replies import parse_json, without_thoughts
from abc_embed.workers import map_ahead

if TYPE_CHECKING:
    from openai import APIStatusError, OpenAI

KEY_VARIABLE = "OPENAI_API_KEY"
URL_VARIABLE = "OPENAI_BASE_URL"
MAX_WAIT_S = 600.0
"""An endpoint that asks for a longer wait (a daily quota) ends the run, which can be resumed."""
MAX_FAILURES_IN_A_ROW = 5
"""So many requests given up one after the other mean that the endpoint is down, not the row bad."""
READ_AHEAD = 4
"""Items taken from the input before their turn, for each request that may be under way."""
MAX_REPLY_BYTES = 4_000_000
"""A reply that is longer is no reply to a question of ours."""
_RETRYABLE_STATUS = frozenset({408, 409, 425, 429, *range(500, 600)})
_FATAL_STATUS = frozenset({401, 402, 403, 404, 405})
# Refused for what the request says. With nothing answered yet, that is how all of them look.
_FORM_STATUS = frozenset({400, 415, 422})
_OF_THE_ITEM = re.compile(r"image|content|safety|filter|moderat|policy|length|too_l", re.IGNORECASE)

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Reply:
    """What the model said, without what it thought before (`replies.without_thoughts`).

    `refusal` is set where the endpoint itself says that it refused; `model` is the name that it
    gave, `cut_off` that the reply reached its longest length, `cached` that nobody was asked now.
    """

    text: str
    model: str
    refusal: str | None = None
    cut_off: bool = False
    input_tokens: int = 0
    output_tokens: int = 0
    cached: bool = False

    def json(self) -> object:
        """The text as JSON, taken out of a Markdown fence if it is in one; None if it is none."""
        return parse_json(self.text)


@dataclass(frozen=True, slots=True)
class Failure:
    """Why there is no answer; `kind` sorts faults in reports.

    `retryable`: trying again may help; `fatal`: no other request will do better; `of_form`: the
    request's form was refused, which is fatal if no other was answered; `wait_s` is what the
    endpoint asks for; `may_be_billed`: it may have been answered and paid for, and the answer was
    lost on the way.
    """

    kind: str
    message: str
    retryable: bool = False
    fatal: bool = False
    of_form: bool = False
    wait_s: float | None = None
    may_be_billed: bool = False


class VlmClient:
    """One model behind one endpoint; may be asked from several threads."""

    def __init__(
        self,
        base_url: str | None,
        model: str,
        *,
        cache: ReplyCache | None = None,
        limits: Limits | None = None,
        max_tokens: int = 128,
        image_tokens: int | None = None,
        token_field: str = "max_tokens",
        json_mode: str = "schema",
        key_variable: str = KEY_VARIABLE,
        clock: Clock | None = None,
    ) -> None:
        """Nothing is sent yet, and no key is needed before `connect` or the first `ask`.

        Args:
            base_url: like `http://localhost:8000/v1`; None: `$OPENAI_BASE_URL`, else OpenAI's own.
            model: as the endpoint names it.
            cache: of replies; without one they are forgotten with the client.
            limits: speed and money; without, four requests at a time and no other limit.
            max_tokens: of a reply.
            image_tokens: of an image, where known; else estimated from its size.
            token_field: `max_completion_tokens` for endpoints that want that name.
            json_mode: how a schema is asked for: `schema`, `object` or, in the prompt only, `none`.
            key_variable: the environment variable that holds the key; a local server needs none.
            clock: another one for tests.

        Raises:
            UsageError: an argument that cannot be.
        """
        base_url = base_url or os.environ.get(URL_VARIABLE) or None
        parts = urlsplit(base_url or "https://api.openai.com/v1")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UsageError(
                f"the base URL is {base_url!r}; give one like http://localhost:8000/v1"
            )
        if json_mode not in ("schema", "object", "none"):
            raise UsageError(f"json_mode is {json_mode!r}; use schema, object or none")
        self._base_url = base_url
        self._is_local = parts.hostname in ("localhost", "127.0.0.1", "::1")
        self._key = os.environ.get(key_variable, "")
        self._key_variable = key_variable
        self.model = model
        self.endpoint = f"{parts.scheme}://{parts.hostname}{parts.path.rstrip('/')}"
        """For records: without port, user and query, where secrets may be."""
        self._address = urlunsplit(
            (parts.scheme, parts.netloc.rpartition("@")[2], parts.path.rstrip("/"), "", "")
        )
        """For messages, where the port tells one local server from another."""
        self.limits = limits or Limits()
        self.max_tokens = max_tokens
        self.image_tokens = image_tokens
        self._token_field = token_field
        self._json_mode = json_mode
        self._clock = clock or Clock()
        self._rate_limiter = RateLimiter(self.limits, self._clock.now)
        used_cache = ReplyCache() if cache is None else cache
        self._own_cache = used_cache if cache is None else None
        self.use_cache(used_cache)
        self._client: OpenAI | None = None
        self._lock = threading.RLock()
        self._in_flight: WeakValueDictionary[str, threading.Lock] = WeakValueDictionary()
        """A lock for each key that is asked for now."""
        self._counts = Counter(sent=0, cached=0, input_tokens=0, output_tokens=0)
        self._faults: Counter[str] = Counter()
        self._failures_in_a_row = 0
        self._was_answered = False
        self._stop_reason = "asking was stopped; run the same command again to go on"
        self._random = random.Random()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End all waits and let go of the connections; the cache stays open for its owner."""
        self._clock.stopped.set()
        if self._client is not None:
            self._client.close()
        if self._own_cache is not None:
            self._own_cache.close()

    def use_cache(self, cache: ReplyCache) -> None:
        """Remember replies there from now on, and count what was paid there before."""
        self.cache = cache
        self.budget = Budget(self.limits, cache)

    def connect(self) -> "OpenAI":
        """Make ready to ask; sends nothing, and says now what would be missing later.

        Raises:
            MissingExtraError: the `openai` package is not installed.
            UsageError: there is no key in the environment.
        """
        with self._lock:
            if self._client is None:
                if not self._key and not self._is_local:
                    raise UsageError(f"there is no key; set {self._key_variable} to it")
                try:
                    from openai import OpenAI
                except ImportError:
                    raise MissingExtraError.of("instruct", "asking a VLM") from None
                self._client = OpenAI(
                    base_url=self._base_url,
                    api_key=self._key or "none",
                    timeout=self.limits.timeout_s,
                    max_retries=0,
                )
            return self._client

    def report(self) -> dict[str, Any]:
        """Endpoint, model, what was sent now with its faults, tokens and cost over all runs."""
        input_tokens, output_tokens = self.budget.spent()
        with self._lock:
            return {
                "endpoint": self.endpoint,
                "model": self.model,
                **self._counts,
                "faults": dict(sorted(self._faults.items())),
                "all_input_tokens": input_tokens,
                "all_output_tokens": output_tokens,
                "cost": self.limits.cost(input_tokens, output_tokens),
            }

    def cache_key(
        self, image: bytes | None, prompt: str, schema: Mapping[str, Any] | None = None
    ) -> str:
        """What the reply is remembered by: model, prompt, image and form of the reply.

        The address is not part of it: the same model may move.
        """
        form = [schema, self._json_mode if schema else None, self.max_tokens]
        shown = None if image is None else sha256(image)
        if image is not None and not is_plain(image):
            shown = f"upright {shown}"  # replies about the file as it is were about another picture
        return sha256_json([self.model, prompt, shown, form])

    def is_cached(
        self, image: bytes | None, prompt: str, schema: Mapping[str, Any] | None = None
    ) -> bool:
        """Whether nobody has to be asked for the reply."""
        return self.cache.get(self.cache_key(image, prompt, schema)) is not None

    def estimate(
        self, requests: Iterable[PlannedRequest], tries: int, retry_tokens: int
    ) -> Estimate:
        """What these requests would come to; another try of one has at most `retry_tokens` more.

        Images are read only where replies may be known.
        """
        images: set[Path] = set()
        count, known, tokens, example = 0, 0, 0, ""
        for request in requests:
            images.add(request.image)
            count += 1
            example = example or request.prompt
            if self._knows(request):
                known += 1
            else:
                tokens += estimate_tokens(request.prompt, request.size, self.image_tokens)
        limits, new = self.limits, count - known
        reply_tokens, more = new * self.max_tokens, new * retry_tokens * (tries - 1)
        rates = (
            (new, limits.requests_per_minute),
            (tokens + reply_tokens, limits.tokens_per_minute),
        )
        return Estimate(
            images=len(images),
            requests=count,
            known=known,
            most_requests=new * tries,
            input_tokens=tokens,
            output_tokens=reply_tokens,
            cost=limits.cost(tokens, reply_tokens),
            most_cost=limits.cost(tokens * tries + more, reply_tokens * tries),
            minutes=max((amount / rate for amount, rate in rates if rate), default=0.0) or None,
            example=example,
        )

    def _knows(self, request: PlannedRequest) -> bool:
        if self.cache.path is None:
            return False
        try:
            return self.is_cached(read_file(request.image), request.prompt, request.schema)
        except OSError as error:
            why = f"{request.image} cannot be read: {error.strerror}; mend that"
            raise DataError(why) from None

    def ask(
        self, image: bytes | None, prompt: str, *, schema: Mapping[str, Any] | None = None
    ) -> Reply:
        """The model's reply, from the cache if it was ever asked the same.

        `image` is the content of an image file. With a JSON `schema`, `Reply.json` is what came.

        Raises:
            ImageError: the image cannot be opened.
            AskError: this request failed for good; another may not.
            EndpointError: the endpoint cannot be used at all.
            CostLimitError: asking could cost more than the limit leaves.
        """
        key = self.cache_key(image, prompt, schema)
        with self._lock:
            in_flight = self._in_flight.setdefault(key, threading.Lock())
        with in_flight:  # of several threads that ask the same, one asks
            cached = self.cache.get(key)
            if cached is not None:
                with self._lock:
                    self._counts["cached"] += 1
                    self._was_answered = True
                reply = Reply(**json.loads(cached), cached=True)
            else:
                reply = self._ask_endpoint(image, prompt, schema)
                row = {name: value for name, value in asdict(reply).items() if name != "cached"}
                about = {"model": self.model, "prompt": prompt}
                image_hash = "" if image is None else sha256(image)
                self.cache.put(key, json.dumps(row), **about, image=image_hash)
        return replace(reply, text=without_thoughts(reply.text))

    def map(self, function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        """`function` of every item, in order, as many at once as the limits allow.

        Memory stays flat. When the reader stops, fails or presses Ctrl-C, nothing more is sent;
        replies under way are waited for, since they are paid for, unless Ctrl-C comes again.
        """
        workers = self.limits.concurrency
        pool = ThreadPoolExecutor(workers, thread_name_prefix="vlm")
        try:
            yield from map_ahead(pool, function, items, READ_AHEAD * workers)
        except BaseException:
            self._clock.stopped.set()
            raise
        finally:
            try:
                pool.shutdown(wait=True, cancel_futures=True)
            except KeyboardInterrupt:
                self.close()
                raise

    def _ask_endpoint(
        self, image: bytes | None, prompt: str, schema: Mapping[str, Any] | None
    ) -> Reply:
        """Ask until there is a reply, or the retries are used up."""
        data_url, size = (None, None) if image is None else encode_image(image)
        payload = self._payload(prompt, data_url, schema)
        input_tokens = estimate_tokens(prompt, size, self.image_tokens)
        for attempt in range(self.limits.retries + 1):
            answer = self._send(payload, input_tokens)
            if isinstance(answer, Reply):
                self._failures_in_a_row, self._was_answered = 0, True
                return answer
            message = f"{self._address} ({self.model}): {answer.message}"
            message = message.replace(self._key, "[key]") if self._key else message
            with self._lock:
                self._faults[answer.kind] += 1
            if answer.fatal:
                raise self._stop(message)
            if answer.of_form and not self._was_answered:
                raise self._stop(
                    f"{message}; nothing was answered before, so every request would be refused: "
                    f"check the model and the form of the request (--token-field, --max-tokens)"
                )
            if not answer.retryable:
                raise AskError(message)
            if attempt < self.limits.retries:
                self._back_off(answer.wait_s, attempt, message)
        with self._lock:
            self._failures_in_a_row += 1
            is_down = self._failures_in_a_row >= MAX_FAILURES_IN_A_ROW
        if is_down:
            raise self._stop(
                f"{message}; {MAX_FAILURES_IN_A_ROW} requests in a row were given up; "
                "run the same command again when the endpoint answers"
            )
        raise AskError(f"{message}, {self.limits.retries + 1} times")

    def _payload(
        self, prompt: str, data_url: str | None, schema: Mapping[str, Any] | None
    ) -> dict[str, Any]:
        """A request at temperature 0: the image, if any, then the prompt."""
        content: list[dict[str, Any]] = [{"type": "text", "text": prompt}]
        if data_url is not None:
            content.insert(0, {"type": "image_url", "image_url": {"url": data_url}})
        payload: dict[str, Any] = {
            "model": self.model,
            "messages": [{"role": "user", "content": content}],
            "temperature": 0,
            self._token_field: self.max_tokens,
        }
        if schema is not None and self._json_mode == "schema":
            json_schema = {"name": "reply", "strict": True, "schema": dict(schema)}
            payload["response_format"] = {"type": "json_schema", "json_schema": json_schema}
        elif schema is not None and self._json_mode == "object":
            payload["response_format"] = {"type": "json_object"}
        return payload

    def _send(self, payload: Mapping[str, Any], input_tokens: int) -> Reply | Failure:
        """One request, when its turn comes; tokens are counted whatever comes of it."""
        client = self.connect()
        ticket = None
        while ticket is None:
            if self._clock.stopped.is_set():
                raise EndpointError(self._stop_reason)
            wait_s, ticket = self._rate_limiter.acquire(input_tokens + self.max_tokens)
            if ticket is None:
                self._clock.wait(wait_s)
        charge = self.budget.reserve(input_tokens, self.max_tokens)
        used = (input_tokens, self.max_tokens)  # what a fault of ours, or of the line, may cost
        try:
            with self._lock:
                self._counts["sent"] += 1
            answer = receive(client, payload, self.limits.timeout_s, self._clock.now)
            if isinstance(answer, Failure):
                used = (input_tokens, 0) if answer.may_be_billed else (0, 0)
            else:
                if not answer.input_tokens:  # some servers do not count
                    answer = replace(answer, input_tokens=input_tokens)
                used = (answer.input_tokens, answer.output_tokens)
        finally:
            self.budget.settle(charge, *used)
            self._rate_limiter.settle(ticket, sum(used))
            with self._lock:
                self._counts["input_tokens"] += used[0]
                self._counts["output_tokens"] += used[1]
        return answer

    def _back_off(self, wait_s: float | None, attempt: int, message: str) -> None:
        """Wait as long as the endpoint asks; without a word from it, twice as long each time."""
        if wait_s is None:
            self._clock.wait(min(60.0, 2.0**attempt) * self._random.uniform(0.5, 1.0))
        elif wait_s > MAX_WAIT_S:
            raise self._stop(
                f"{message} and asks to wait {wait_s:.0f} s; run the same command again after that"
            )
        else:
            self._rate_limiter.hold(wait_s)

    def _stop(self, reason: str) -> EndpointError:
        """The error that ends all asking, in every thread."""
        with self._lock:
            if not self._clock.stopped.is_set():
                self._stop_reason = reason
        self._clock.stopped.set()
        return EndpointError(reason)


# -- one request -----------------------------------------------------------------------------------


def receive(
    client: "OpenAI", payload: Mapping[str, Any], timeout_s: float, now: Callable[[], float]
) -> Reply | Failure:
    """Send one request and read its reply, whole within `timeout_s`, or say what went wrong.

    The wait for one piece of a reply is bounded too, so that all of it ends within twice that time.
    """
    import openai

    # What the client's own transport raises while a reply is read; its package has two names.
    transports = (sys.modules.get(name) for name in ("httpx2", "httpx"))
    transport_errors = [module.HTTPError for module in transports if module is not None]
    timeout = f"no whole reply within {timeout_s:g} s"
    deadline = now() + timeout_s
    create: Any = client.chat.completions.with_streaming_response.create
    content = bytearray()
    try:
        with create(**payload) as response:
            for piece in response.iter_bytes():
                content += piece
                if len(content) > MAX_REPLY_BYTES:
                    return Failure("endless reply", "the reply does not end", may_be_billed=True)
                if now() > deadline:
                    return Failure("timeout", timeout, retryable=True, may_be_billed=True)
    except openai.APIStatusError as error:
        return _status_failure(error)
    except (openai.APIConnectionError, TimeoutError, *transport_errors) as error:
        if "Timeout" in type(error).__name__:
            return Failure("timeout", timeout, retryable=True, may_be_billed=True)
        cause = type(error.__cause__ or error).__name__
        was_up = "Connect" not in cause
        message = f"the connection failed ({cause})"
        return Failure("connection", message, retryable=True, may_be_billed=was_up)
    return _parse(bytes(content))


def _status_failure(error: "APIStatusError") -> Failure:
    """What an HTTP status other than 200 means for this request and for the others."""
    kind = f"HTTP {error.status_code}"
    body = error.body.get("error", error.body) if isinstance(error.body, dict) else None
    words = body.get("message") if isinstance(body, dict) else body
    words = words if isinstance(words, str) and words.strip() else str(error.message)
    message = f"{kind}: {' '.join(words.split())[:300]}"
    if error.code == "insufficient_quota":
        return Failure(kind, f"{message}; check the account", fatal=True)
    if error.status_code in _FATAL_STATUS:
        return Failure(kind, f"{message}; check key, model and base URL", fatal=True)
    if error.status_code in _RETRYABLE_STATUS:
        return Failure(kind, message, retryable=True, wait_s=_retry_after(error.response.headers))
    about = f"{error.code} {error.param} {error.type}"
    of_form = error.status_code in _FORM_STATUS and not _OF_THE_ITEM.search(about)
    return Failure(kind, message, of_form=of_form)


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds of `Retry-After`, which holds seconds or a date; None without one."""
    for name, unit_s in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            wait_s = float(headers.get(name, "")) * unit_s
        except ValueError:
            continue
        return wait_s if wait_s >= 0 and math.isfinite(wait_s) else None
    try:
        date = email.utils.parsedate_to_datetime(headers.get("retry-after", ""))
    except ValueError:
        return None
    return max(0.0, date.timestamp() - time.time())


def _parse(content: bytes) -> Reply | Failure:
    """A chat completion from its bytes; anything else is a fault that may pass."""
    try:
        reply = json.loads(content)
    except (ValueError, RecursionError):
        message = "the reply is not JSON"
        return Failure("malformed reply", message, retryable=True, may_be_billed=True)
    try:
        if reply.get("error"):  # some gateways say 200 and mean 500
            message = f"the reply is an error: {str(reply['error'])[:300]}"
            return Failure("error reply", message, retryable=True)
        choice = reply["choices"][0]
        message, finish = choice["message"], choice.get("finish_reason")
        usage = reply.get("usage") or {}
        refusal = message.get("refusal")
        if finish == "content_filter":
            refusal = refusal or "held back by the endpoint's filter"
        text = message.get("content")
        if isinstance(text, list):  # of parts, of which some are text
            text = "".join(str(part["text"]) for part in text if part.get("type") == "text")
        return Reply(
            text="" if text is None else str(text),
            model=str(reply.get("model") or ""),
            refusal=None if refusal is None else str(refusal),
            cut_off=finish == "length",
            input_tokens=int(usage.get("prompt_tokens") or 0),
            output_tokens=int(usage.get("completion_tokens") or 0),
        )
    except (LookupError, AttributeError, TypeError, ValueError):
        message = "the reply has no choice with a message"
        return Failure("malformed reply", message, retryable=True, may_be_billed=True)
