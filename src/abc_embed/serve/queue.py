"""One queue for the items of all requests: prepared in threads, packed into the engine's batches.

The model takes whatever is ready the moment it is free, so an idle server adds no delay and a busy
one fills its batches. Items are packed by kind and length as `Embedder.embed` packs them, and equal
pictures are encoded once, whoever sent them.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Self

from abc_embed.embedder import Embedder
from abc_embed.errors import RequestError
from abc_embed.inputs import Item
from abc_embed.pipeline import EmbeddingPipeline, Vector
from abc_embed.processor import Features, Truncate

RETRY_AFTER_S = 1
"""What a client is told to wait when the queue is full."""
TEXTS_A_TASK = 32
"""Texts that a thread prepares in one go: each takes less time than a thread to be woken."""
SHORT_REQUEST = 1024
"""Characters of a request of texts alone that is prepared on the spot, without a thread."""


@dataclass(slots=True, eq=False)
class Job:
    """One item on its way to a vector."""

    item: Item
    max_pixels: int | None = None
    truncate: Truncate | None = None
    future: "Future[Embedded]" = field(default_factory=Future)
    features: Features | None = None


@dataclass(frozen=True, slots=True)
class Embedded:
    """A vector and what it cost."""

    vector: Vector
    tokens: int
    image_pixels: int


class EmbeddingQueue:
    """Context manager; `submit` may be called from any thread.

    Args:
        embedder: the model.
        capacity: the most items that wait or are being computed; more are refused.
        batch_tokens: the most tokens of a batch, padding included; None: as suits the device.
        on_batch: called with the items and tokens of each batch.
    """

    def __init__(
        self,
        embedder: Embedder,
        *,
        capacity: int = 1024,
        batch_tokens: int | None = None,
        on_batch: Callable[[int, int], None] = lambda items, tokens: None,
    ) -> None:
        self.embedder = embedder
        self.capacity = capacity
        self._pipeline = embedder.pipeline(batch_tokens=batch_tokens)
        self._preparers: dict[int | None, EmbeddingPipeline] = {None: self._pipeline}
        """By the resolution."""
        self._on_batch = on_batch
        self._preparing = ThreadPoolExecutor(
            self._pipeline.threads, thread_name_prefix="abc-embed-prepare"
        )
        self._ready: deque[Job] = deque()
        self._changed = threading.Condition()
        self._waiting = 0
        self._closing = False
        self._thread = threading.Thread(target=self._compute, name="abc-embed-model", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __len__(self) -> int:
        """How many items wait or are being computed."""
        return self._waiting

    def submit(
        self,
        items: Sequence[Item],
        max_pixels: int | None = None,
        truncate: Truncate | None = None,
    ) -> "list[Future[Embedded]]":
        """A future for each item; cancel those whose answer nobody waits for any more.

        `max_pixels` is the largest area at which pictures are seen; the server chooses it, not the
        client, so that there are few. `truncate` is what words do that are too long; None: as the
        model's processor says.

        Raises:
            RequestError: the queue is full (429), or the server is stopping (503).
        """
        with self._changed:
            if self._closing:
                raise RequestError("the server is stopping; ask another one", status=503)
            if self._waiting + len(items) > self.capacity:
                raise RequestError(
                    f"{self._waiting:,} of {self.capacity:,} places in the queue are taken and the "
                    f"request has {len(items):,} items; try again later, or send fewer",
                    status=429 if len(items) <= self.capacity else 413,
                )
            self._waiting += len(items)
            if max_pixels not in self._preparers:
                self._preparers[max_pixels] = self.embedder.pipeline(max_pixels)
        jobs = [Job(item, max_pixels, truncate) for item in items]
        for job in jobs:
            job.future.add_done_callback(self._one_less)
        if is_short(items):
            self._prepare(jobs)
        else:
            for task in tasks(jobs):
                self._preparing.submit(self._prepare, task)
        return [job.future for job in jobs]

    def close(self) -> None:
        """Finish what was submitted, and take nothing more."""
        with self._changed:
            self._closing = True
        self._preparing.shutdown()
        with self._changed:
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join()

    def _one_less(self, _: object) -> None:
        with self._changed:
            self._waiting -= 1
            self._changed.notify()  # a queue that is closing may have waited for this one

    def _prepare(self, jobs: list[Job]) -> None:
        ready = []
        for job in jobs:
            if job.future.cancelled():
                continue
            try:
                pipeline = self._preparers[job.max_pixels]
                job.features = pipeline.prepare(job.item, job.truncate)
            except Exception as error:  # noqa: BLE001  (whatever it is, it belongs to this item)
                fail(job.future, error)
                continue
            ready.append(job)
        with self._changed:
            self._ready += ready
            self._changed.notify()

    def _compute(self) -> None:
        while jobs := self._next_jobs():
            features = [job.features for job in jobs if job.features is not None]
            # The batch of the job that has waited longest; the others go back in their order.
            rows = next(batch for batch in self._pipeline.plan(features) if 0 in batch)
            chosen = set(rows)
            with self._changed:
                left = [job for row, job in enumerate(jobs) if row not in chosen]
                self._ready.extendleft(reversed(left))
            self._run([jobs[row] for row in rows], [features[row] for row in rows])

    def _next_jobs(self) -> list[Job]:
        """All that is ready, waiting for the first; empty when the queue is closed and done."""
        with self._changed:
            while True:
                jobs = [job for job in self._ready if not job.future.cancelled()]
                self._ready.clear()
                if jobs or (self._closing and not self._waiting):
                    return jobs
                self._changed.wait()

    def _image_pixels(self, features: Features) -> int:
        """Pixels of the picture as the model sees it; 0 for a text."""
        views, rows, columns = features.grid_thw or (0, 0, 0)
        return views * rows * columns * self.embedder.processor.image.patch_size**2

    def _run(self, jobs: list[Job], features: list[Features]) -> None:
        try:
            vectors = self._pipeline.compute(features)
        except Exception as error:  # noqa: BLE001  (the thread must live; the jobs get the error)
            for job in jobs:
                fail(job.future, error)
            return
        self._on_batch(len(jobs), sum(f.tokens for f in features))
        for job, vector, item in zip(jobs, vectors, features, strict=True):
            if job.future.set_running_or_notify_cancel():
                job.future.set_result(Embedded(vector, item.tokens, self._image_pixels(item)))


def is_short(items: Sequence[Item]) -> bool:
    """Whether these are texts that take less time to prepare than a thread to be woken."""
    return sum(SHORT_REQUEST if i.text is None else len(i.text) for i in items) < SHORT_REQUEST


def tasks(jobs: list[Job]) -> Iterator[list[Job]]:
    """The jobs as threads take them: a picture by itself, texts several at a time."""
    texts: list[Job] = []
    for job in jobs:
        if job.item.text is None:
            yield [job]
        else:
            texts.append(job)
    for start in range(0, len(texts), TEXTS_A_TASK):
        yield texts[start : start + TEXTS_A_TASK]


def fail(future: "Future[Embedded]", error: Exception) -> None:
    """Hand an error to whoever waits, if somebody still does."""
    if future.set_running_or_notify_cancel():
        future.set_exception(error)
