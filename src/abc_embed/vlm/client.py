"""Asking a vision-language model over any OpenAI-compatible endpoint, many times and safely.

Does: send an image and a prompt at temperature 0 through the `openai` client; keep to the limits,
try again after faults that pass, remember every reply. Does not: know what is asked, or judge the
reply.

The key comes from the environment and goes nowhere but into the request. The client's own retries
are off: they give up where an endpoint asks for a long wait, and each thread would wait by itself.
The reply is read in pieces and parsed here, so that one which drips in, breaks off, is endless or
is no JSON is a fault like any other, and `timeout_s` bounds the whole of it.
"""

import hashlib
import json
import os
import random
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, Self, TypeVar
from urllib.parse import urlsplit

from abc_embed.errors import AskError, EndpointError, MissingExtraError, UsageError
from abc_embed.vlm import wire as vlm_wire
from abc_embed.vlm.limits import Budget, Clock, Limits, RateLimiter, Tally
from abc_embed.vlm.reply_cache import ReplyCache
from abc_embed.vlm.wire import Failure, Reply, as_sendable, estimate_tokens

if TYPE_CHECKING:
    from openai import OpenAI

KEY_VARIABLE = "OPENAI_API_KEY"
URL_VARIABLE = "OPENAI_BASE_URL"
LONGEST_WAIT_S = 600.0
"""An endpoint that asks for a longer wait (a daily quota) ends the run, which can be resumed."""
FAILED_IN_A_ROW = 5
"""So many requests given up one after the other mean that the endpoint is down, not the row bad."""
READ_AHEAD = 4
"""Items taken from the input before their turn, for each request that may be under way."""

T = TypeVar("T")
R = TypeVar("R")


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
        self._local = parts.hostname in ("localhost", "127.0.0.1", "::1")
        self._key = os.environ.get(key_variable, "")
        self._key_variable = key_variable
        self.model = model
        self.endpoint = f"{parts.scheme}://{parts.hostname}{parts.path.rstrip('/')}"
        """For records: without port, user and query, where secrets may be."""
        self.limits = limits or Limits()
        self.max_tokens = max_tokens
        self.image_tokens = image_tokens
        self._token_field = token_field
        self._json_mode = json_mode
        self._clock = clock or Clock()
        self._pace = RateLimiter(self.limits, self._clock.now)
        used = ReplyCache() if cache is None else cache
        self._own_cache = used if cache is None else None
        self.keep_in(used)
        self._client: OpenAI | None = None
        self._lock = threading.Condition()
        self._asking: set[str] = set()
        self._counts: Counter[str] = Counter()
        self._faults: Counter[str] = Counter()
        self._failed = 0
        self._why = "asking was stopped; run the same command again to go on"
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

    def keep_in(self, cache: ReplyCache) -> None:
        """Remember replies there from now on, and count what was paid there before."""
        self.cache = cache
        self.purse = Budget(self.limits, cache)

    def connect(self) -> "OpenAI":
        """Make ready to ask; sends nothing, and says now what would be missing later.

        Raises:
            MissingExtraError: the `openai` package is not installed.
            UsageError: there is no key in the environment.
        """
        with self._lock:
            if self._client is None:
                if not self._key and not self._local:
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

    def tally(self) -> Tally:
        """What was done so far."""
        with self._lock:
            counts, faults = self._counts, dict(sorted(self._faults.items()))
            return Tally(counts["sent"], counts["cached"], faults, counts["in"], counts["out"])

    def asked(self) -> dict[str, Any]:
        """For reports: endpoint, model, what was sent now, and tokens and cost over all runs."""
        used = self.purse.spent()
        return {
            "endpoint": self.endpoint,
            "model": self.model,
            **asdict(self.tally()),
            "all_input_tokens": used[0],
            "all_output_tokens": used[1],
            "cost": self.limits.cost(*used),
        }

    def key(self, image: bytes | None, prompt: str, schema: Mapping[str, Any] | None = None) -> str:
        """What the reply is remembered by: model, prompt, image and form of the reply.

        The address is not part of it: the same model may move.
        """
        form = [schema, self._json_mode if schema else None, self.max_tokens]
        told = json.dumps([self.model, prompt, _hash(image), form], sort_keys=True)
        return hashlib.sha256(told.encode()).hexdigest()

    def known(
        self, image: bytes | None, prompt: str, schema: Mapping[str, Any] | None = None
    ) -> bool:
        """Whether the reply is in the cache."""
        return self.cache.get(self.key(image, prompt, schema)) is not None

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
        key = self.key(image, prompt, schema)
        with self._alone(key):
            kept = self.cache.get(key)
            if kept is not None:
                with self._lock:
                    self._counts["cached"] += 1
                return Reply(**json.loads(kept), cached=True)
            reply = self._ask_anew(image, prompt, schema)
            row = {name: value for name, value in asdict(reply).items() if name != "cached"}
            self.cache.put(
                key, json.dumps(row), model=self.model, prompt=prompt, image=_hash(image) or ""
            )
            return reply

    def map(self, function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        """`function` of every item, in order, as many at once as the limits allow.

        Memory stays flat. When the reader stops, fails or presses Ctrl-C, nothing more is sent;
        replies under way are waited for, since they are paid for, unless Ctrl-C comes again.
        """
        workers = self.limits.concurrency
        pool = ThreadPoolExecutor(workers, thread_name_prefix="vlm")
        waiting: deque[Future[R]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) >= READ_AHEAD * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BaseException:
            self._clock.stopped.set()
            raise
        finally:
            try:
                pool.shutdown(wait=True, cancel_futures=True)
            except KeyboardInterrupt:
                self.close()
                raise

    @contextmanager
    def _alone(self, key: str) -> Iterator[None]:
        """Of several threads that ask the same, one asks and the others read the cache."""
        with self._lock:
            while key in self._asking:
                self._lock.wait()
            self._asking.add(key)
        try:
            yield
        finally:
            with self._lock:
                self._asking.remove(key)
                self._lock.notify_all()

    def _ask_anew(
        self, image: bytes | None, prompt: str, schema: Mapping[str, Any] | None
    ) -> Reply:
        sendable, size = (None, None) if image is None else as_sendable(image)
        form = (schema, self._json_mode, self._token_field, self.max_tokens)
        body = vlm_wire.request_body(self.model, prompt, sendable, *form)
        expected = estimate_tokens(prompt, size, self.image_tokens)
        trouble = Failure("not asked")
        for attempt in range(self.limits.retries + 1):
            answer = self._try(body, expected)
            if isinstance(answer, Reply):
                self._failed = 0
                return answer
            trouble = answer
            with self._lock:
                self._faults[trouble.kind] += 1
            if trouble.hopeless:
                raise self._end(self._told(trouble))
            if not trouble.passes:
                raise AskError(self._told(trouble))
            if attempt < self.limits.retries:
                self._back_off(trouble, attempt)
        with self._lock:
            self._failed += 1
            down = self._failed >= FAILED_IN_A_ROW
        if down:
            raise self._end(
                f"{self._told(trouble)}; {FAILED_IN_A_ROW} requests in a row were given up; "
                "run the same command again when the endpoint answers"
            )
        raise AskError(f"{self._told(trouble)}, {self.limits.retries + 1} times")

    def _try(self, body: Mapping[str, Any], expected: int) -> Reply | Failure:
        """One request, when its turn comes; tokens are counted whatever comes of it."""
        client = self.connect()
        ticket = None
        while ticket is None:
            self._check_going()
            wait, ticket = self._pace.turn(expected + self.max_tokens)
            if ticket is None:
                self._clock.wait(wait)
        charge = self.purse.reserve(expected, self.max_tokens)
        used = (expected, self.max_tokens)  # what a fault of ours, or of the line, may have cost
        try:
            with self._lock:
                self._counts["sent"] += 1
            answer = vlm_wire.receive(client, body, self.limits.timeout_s, self._clock.now)
            if isinstance(answer, Failure):
                used = (expected, 0) if answer.may_cost else (0, 0)
            else:
                if not answer.input_tokens:  # some servers do not count
                    answer = replace(answer, input_tokens=expected)
                used = (answer.input_tokens, answer.output_tokens)
        finally:
            self.purse.settle(charge, *used)
            self._pace.settle(ticket, sum(used))
            with self._lock:
                self._counts["in"] += used[0]
                self._counts["out"] += used[1]
        return answer

    def _back_off(self, trouble: Failure, attempt: int) -> None:
        """Wait as long as the endpoint asks; without a word from it, twice as long each time."""
        if trouble.wait_s is not None:
            if trouble.wait_s > LONGEST_WAIT_S:
                raise self._end(
                    f"{self._told(trouble)} and asks to wait {trouble.wait_s:.0f} s; run the same "
                    "command again after that"
                )
            self._pace.hold(trouble.wait_s)
        else:
            self._clock.wait(min(60.0, 2.0**attempt) * self._random.uniform(0.5, 1.0))

    def _check_going(self) -> None:
        if self._clock.stopped.is_set():
            raise EndpointError(self._why)

    def _end(self, why: str) -> EndpointError:
        """The error that ends all asking, in every thread."""
        with self._lock:
            if not self._clock.stopped.is_set():
                self._why = why
        self._clock.stopped.set()
        return EndpointError(why)

    def _told(self, trouble: Failure) -> str:
        """In words, without the key."""
        said = f"{self.endpoint} ({self.model}): {trouble.said}"
        return said.replace(self._key, "[key]") if self._key else said


def _hash(image: bytes | None) -> str | None:
    return None if image is None else hashlib.sha256(image).hexdigest()
