"""What every endpoint computes with: the queue for vectors, a bounded pool for all other work.

An endpoint waits for its own client: one that hangs up, or a request that takes too long, is given
up, and what has not begun is dropped.
"""

import asyncio
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any, Literal, TypeVar

import numpy as np
from fastapi import Request

from abc_embed.embedder import Embedder
from abc_embed.errors import InputError, RequestError
from abc_embed.inputs import Item
from abc_embed.pipeline import Vector
from abc_embed.processor import Truncate
from abc_embed.runtime import in_own_thread
from abc_embed.serve.queue import Embedded, EmbeddingQueue
from abc_embed.serve.settings import ServerSettings

Kind = Literal["read", "look", "think"]
"""Work beside the queue, in threads of its own so that none waits for another kind: `read` takes a
request apart, `look` asks an index or opens a picture, `think` uses the model many times."""
THREADS: dict[Kind, int] = {"read": 4, "look": 2, "think": 2}
MAX_WORK: dict[Kind, int] = {"read": 2048, "look": 512, "think": 32}
"""Pieces of each kind that wait or run."""

SOON_S = 0.05
"""An answer that comes sooner is not worth watching whether its client is still there."""

T = TypeVar("T")
GivenUp = Callable[[], bool]
"""Whether nobody waits any more; asked by work that takes long."""


class Engine:
    """A model, its queue, and threads; used by all endpoints."""

    def __init__(
        self,
        embedder: Embedder,
        name: str,
        settings: ServerSettings,
        on_batch: Callable[[int, int], None],
    ) -> None:
        self.embedder = embedder
        self.name = name
        self.settings = settings
        self.queue = EmbeddingQueue(
            embedder,
            capacity=settings.queue,
            batch_tokens=settings.token_budget,
            on_batch=on_batch,
        )
        self._pools = {
            kind: ThreadPoolExecutor(threads, thread_name_prefix=f"abc-embed-{kind}")
            for kind, threads in THREADS.items()
        }
        self._work: dict[Kind, int] = dict.fromkeys(THREADS, 0)

    def close(self) -> None:
        """Finish what was taken, and take nothing more."""
        self.queue.close()
        for pool in self._pools.values():
            pool.shutdown()

    def check_model(self, name: str | None) -> None:
        """Refuse a request for another model.

        Raises:
            RequestError: that model is not here (404).
        """
        if name not in (None, self.name, "default", ""):
            raise RequestError(
                f"there is no model {name!r} here; this server has {self.name!r}", "model", 404
            )

    # -- vectors ---------------------------------------------------------------------------------

    async def embed(
        self,
        items: Sequence[Item],
        http: Request,
        max_pixels: int | None = None,
        truncate: Truncate | None = None,
    ) -> "list[Embedded | BaseException]":
        """Vectors, or what went wrong, an item each.

        Raises:
            RequestError: the queue is full, the client has hung up, or it took too long.
        """
        futures = self.queue.submit(items, max_pixels, truncate)
        results: list[Embedded | BaseException] = await self._wait(gather_outcomes(futures), http)
        return results

    async def vectors(
        self,
        items: Sequence[Item],
        places: Sequence[str],
        http: Request,
        max_pixels: int | None = None,
    ) -> Vector:
        """`(N, D)`; the first bad item ends the request, with its place.

        Raises:
            RequestError: as `embed`; or an item cannot be embedded.
        """
        results = await self.embed(items, http, max_pixels)
        bad_items(results, places)
        return np.stack([result.vector for result in results if isinstance(result, Embedded)])

    # -- other work ------------------------------------------------------------------------------

    async def run(self, http: Request, work: "Callable[[GivenUp], T]", kind: Kind = "look") -> T:
        """What `work` returns, computed in a thread.

        Raises:
            RequestError: too much is waiting (429), the client has hung up, or it took too long.
        """
        if self._work[kind] >= MAX_WORK[kind]:
            raise RequestError("too many requests of this kind wait; try again later", None, 429)
        given_up = threading.Event()
        try:
            job = partial(work, given_up.is_set)
            job = job if kind == "read" else partial(in_own_thread, job)  # it may use the model
            future: Future[T] = self._pools[kind].submit(job)
        except RuntimeError:
            raise RequestError("the server is stopping; ask another one", status=503) from None
        self._work[kind] += 1
        loop = asyncio.get_running_loop()
        future.add_done_callback(lambda _: loop.call_soon_threadsafe(self._one_less, kind))
        try:
            result: T = await self._wait(asyncio.wrap_future(future), http)
            return result
        finally:
            given_up.set()

    def _one_less(self, kind: Kind) -> None:
        self._work[kind] -= 1

    async def _wait(self, work: "asyncio.Future[Any]", http: Request) -> Any:
        """The result of `work`; given up when the client has hung up, or it takes too long."""
        try:
            await asyncio.wait([work], timeout=SOON_S)
            if not work.done():
                await self._watch(work, http)
            return work.result()
        finally:
            if not work.done():
                work.cancel()  # and with it all that has not begun

    async def _watch(self, work: "asyncio.Future[Any]", http: Request) -> None:
        """Wait for `work` as long as the client does."""
        seconds = self.settings.answer_timeout_s
        gone = asyncio.ensure_future(_hung_up(http))
        try:
            done, _ = await asyncio.wait(
                {work, gone}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            gone.cancel()
        if not done:
            raise RequestError(f"no answer within {seconds:g} s; try again", None, 503)
        if work not in done:
            raise RequestError("the client has hung up", None, 499)


def gather_outcomes(
    futures: "Sequence[Future[Embedded]]",
) -> "asyncio.Future[list[Embedded | BaseException]]":
    """All outcomes, once the last is there: the loop is woken once, and not for every item.

    Where it is cancelled, so is every item that has not begun.
    """
    loop = asyncio.get_running_loop()
    whole: asyncio.Future[list[Embedded | BaseException]] = loop.create_future()
    left, lock = len(futures), threading.Lock()

    def finish() -> None:
        if not whole.done():
            whole.set_result([future.exception() or future.result() for future in futures])

    def one_done(_: object) -> None:
        nonlocal left
        with lock:
            left -= 1
            is_last = not left
        if is_last:
            with suppress(RuntimeError):  # the loop was closed, and nobody waits
                loop.call_soon_threadsafe(finish)

    def cancel(_: object) -> None:
        if whole.cancelled():
            for future in futures:
                future.cancel()

    whole.add_done_callback(cancel)
    if not futures:
        whole.set_result([])
    for future in futures:
        future.add_done_callback(one_done)
    return whole


async def _hung_up(http: Request) -> None:
    """Returns when the client has closed the connection; its body was read before."""
    with suppress(asyncio.CancelledError):
        while (await http.receive())["type"] != "http.disconnect":
            pass


def bad_items(
    results: "Sequence[Embedded | BaseException]", places: Sequence[str], *, skip: bool = False
) -> dict[int, str]:
    """Sentences of bad items by index; the first one ends a request that does not skip.

    Raises:
        RequestError: an item is bad and `skip` is not set.
    """
    errors: dict[int, str] = {}
    for index, (result, place) in enumerate(zip(results, places, strict=True)):
        if isinstance(result, Embedded):
            continue
        if not isinstance(result, InputError):
            raise result
        if not skip:
            raise RequestError(f"{place}: {result}", place) from result
        errors[index] = str(result)
    return errors
