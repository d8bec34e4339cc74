"""Many items -> many vectors, in order: the engine under `Embedder.embed` and `.stream`.

Items are read as far ahead as the bounds allow and prepared in threads while the model computes.
What is ready is cut into windows, a window is sorted into batches by kind and cost, and its results
are handed back in the order of the items. So memory stays flat however long the input is.

Shapes: `D` width, `V` visual tokens of a picture.
"""

import logging
import math
import os
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Generator, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Generic, Literal, TypeAlias, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from abc_embed import novelty
from abc_embed.errors import InputError, NotFiniteError, OutOfMemoryError, UsageError
from abc_embed.inputs import (
    Item,
    Kind,
    Skipped,
    as_item,
    group_by_image,
    image_key,
    is_stable_key,
)
from abc_embed.model import AbcModel
from abc_embed.novelty import KnownPictures
from abc_embed.pixels import PixelBatch, Pixels
from abc_embed.processor import Features, Processor, Truncate
from abc_embed.runtime import from_device, trim_memory

Vector: TypeAlias = NDArray[np.float32]
OnError: TypeAlias = Literal["raise", "skip"]

CPU_BATCH_TOKENS = 2_048
"""Tokens of a batch on a CPU, padding included: what its caches hold; more is slower."""
MAX_BATCH_TOKENS = 32_768
"""The same elsewhere, and at most for a `batch_size` that was given."""
ENOUGH, EVEN = 1 / 8, 0.85
"""Where no `batch_size` says it: a batch with this share of its tokens takes no item that is less
than this share as long as its longest, since padding costs as much as tokens."""
WINDOW_BATCHES = 8
"""Batches per window: enough to sort by cost, few enough to stay small."""
WINDOW_ITEMS = 1_024
"""Items per window at most, where no `batch_size` says it."""
WINDOW_VISUAL_TOKENS = 16_384
"""Visual tokens per window, the sum over its different pictures: 40 MB of pixels."""
MAX_THREADS = 8
"""Threads that prepare, at most; a model on the CPU leaves them a quarter of the cores."""

logger = logging.getLogger(__name__)

K = TypeVar("K")
V = TypeVar("V")


Fetch: TypeAlias = Callable[[], Tensor]
Results: TypeAlias = Generator[tuple[int, Vector | Skipped], None, None]


class LRUCache(Generic[K, V]):
    """The values used last, up to a total weight; at least one. Threads may share it."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._weight = 0
        self._entries: OrderedDict[K, tuple[V, int]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: K) -> V | None:
        """The value of a key, which is now the one used last; None if it is not kept."""
        with self._lock:
            if key not in self._entries:
                return None
            self._entries.move_to_end(key)
            return self._entries[key][0]

    def put(self, key: K, value: V, weight: int) -> None:
        """Keep a value, and let go of those unused longest."""
        with self._lock:
            if key in self._entries:  # another thread was quicker
                return
            self._entries[key] = (value, weight)
            self._weight += weight
            while self._weight > self._capacity and len(self._entries) > 1:
                self._weight -= self._entries.popitem(last=False)[1][1]


@dataclass(slots=True, eq=False)
class _Picture:
    """A picture that is being prepared, or is ready, for the items that show it."""

    pixels: "Future[Pixels]"
    uses: int = 0
    """Items that were read and are not handed out yet."""


@dataclass(slots=True, eq=False)
class _Job:
    """An item that was read."""

    index: int
    value: object
    features: "Future[Features]"
    picture: Hashable | None = None
    """Key of its picture in `EmbeddingPipeline._pictures`."""
    is_first: bool = False
    """Whether this item brought the picture in."""


@dataclass(slots=True, eq=False)
class _Window:
    """Items that are ready."""

    jobs: list[_Job] = field(default_factory=list)
    features: dict[int, Features] = field(default_factory=dict)
    skipped: dict[int, Skipped] = field(default_factory=dict)
    failed: Skipped | None = None
    """In `raise` mode the first bad item; nothing after it is in the window."""
    tokens: int = 0
    visual_tokens: int = 0
    vectors: dict[int, Vector] = field(default_factory=dict)
    batches: int = 0
    """Those that are not fetched yet."""


class EmbeddingPipeline:
    """One call of `Embedder.embed` or `Embedder.stream`.

    `lock` is held while the model computes, since routing switches its adapter on and off.

    Raises:
        UsageError: `max_pixels`, `batch_size` or `on_error` out of range.
    """

    def __init__(
        self,
        model: AbcModel,
        processor: Processor,
        *,
        max_pixels: int | None = None,
        batch_size: int | None = None,
        on_error: OnError = "raise",
        batch_tokens: int | None = None,
        lock: AbstractContextManager[object] | None = None,
    ) -> None:
        if batch_size is not None and batch_size < 1:
            raise UsageError(f"batch_size is {batch_size}; give at least 1, or None")
        if on_error not in ("raise", "skip"):
            raise UsageError(f"on_error is {on_error!r}; use 'raise' or 'skip'")
        self._model = model
        self._processor = processor
        self.max_pixels = max_pixels
        self.batch_size = batch_size
        self.on_error = on_error
        self._lock = lock or nullcontext()
        on_cpu = model.device.type == "cpu"
        by_tokens = CPU_BATCH_TOKENS if on_cpu else MAX_BATCH_TOKENS
        self._batch_tokens = batch_tokens or (by_tokens if batch_size is None else MAX_BATCH_TOKENS)
        self.window_items = WINDOW_ITEMS if batch_size is None else WINDOW_BATCHES * batch_size
        self.budget = processor.image.limited(max_pixels)
        self.window_images = max(1, WINDOW_VISUAL_TOKENS // self.budget.max_visual_tokens)
        cores = os.cpu_count() or 1
        self.threads = max(1, min(MAX_THREADS, cores // 4 if on_cpu else cores))
        # A device beside the CPU has its next batch before the results of the last are fetched.
        self._in_flight = 0 if on_cpu else 1
        self._pictures: dict[Hashable, _Picture] = {}
        # Without an item that shows it a picture is remembered for a while, should it come again.
        self._pixels: LRUCache[Hashable, Pixels] = LRUCache(WINDOW_VISUAL_TOKENS)
        self._visual: LRUCache[str, Tensor] = LRUCache(2 * WINDOW_VISUAL_TOKENS)
        self._keys: dict[int, Hashable | None] = {}
        self._stopped = threading.Event()
        self._was_halved = False
        self._source_error: Exception | None = None

    @property
    def batch_tokens(self) -> int:
        """Tokens of a batch at most, padding included."""
        return self._batch_tokens

    def run(self, values: Iterable[tuple[int, object]]) -> Results:
        """(index, item) pairs -> (index, result) pairs, in the same order.

        Raises:
            InputError: a bad item, in `raise` mode; the results before it have been handed out.
            OutOfMemoryError, NotFiniteError: the model could not compute a batch.
        """
        pool = ThreadPoolExecutor(self.threads, thread_name_prefix="abc-embed-prepare")
        visual_tokens = 0
        try:
            for window in self._computed(self._windows(iter(values), pool)):
                results: dict[int, Vector | Skipped] = {**window.skipped, **window.vectors}
                indices = [self._release(job) for job in window.jobs]
                window.jobs.clear()  # nothing is held of what is handed out
                yield from ((index, results[index]) for index in indices)
                if window.failed is not None:
                    bad = window.failed
                    raise type(bad.error)(str(bad)) from bad.error
                visual_tokens += window.visual_tokens
                if self._model.device.type == "cpu" and 2 * visual_tokens > WINDOW_VISUAL_TOKENS:
                    trim_memory()  # else what pictures leave free grows over thousands of them
                    visual_tokens = 0
            if self._source_error is not None:
                raise self._source_error
        finally:
            self._stopped.set()
            pool.shutdown(cancel_futures=True)

    def group(self, values: Sequence[object]) -> list[int]:
        """Indices in an order in which items of one picture follow each other, for `run`."""
        self._keys = dict(enumerate(map(image_key, values)))
        return group_by_image(list(self._keys.values()))

    # -- reading and preparing -------------------------------------------------------------------

    def _windows(
        self, values: Iterator[tuple[int, object]], pool: ThreadPoolExecutor
    ) -> Iterator[_Window]:
        """Consecutive items, ready; at most `window_items` more are read and on their way.

        The first window is a single batch, so that the model has work at once.
        """
        ahead: deque[_Job] = deque()
        images_ahead = 0

        def read() -> None:
            nonlocal images_ahead
            while len(ahead) < self.window_items and images_ahead < self.window_images:
                try:
                    pair = next(values, None)
                except Exception as error:  # noqa: BLE001  (raised when all before it is given)
                    self._source_error, pair = error, None
                if pair is None:
                    return
                ahead.append(self._submit(*pair, pool))
                images_ahead += ahead[-1].is_first

        batches = 1
        read()
        while ahead:
            window = _Window()
            while ahead and not self._is_full(window, ahead[0], batches):
                job = ahead.popleft()
                images_ahead -= job.is_first
                read()
                self._add(window, job)
                if window.failed is not None:
                    ahead.clear()
            yield window
            batches = WINDOW_BATCHES

    def _is_full(self, window: _Window, following: _Job, batches: int) -> bool:
        """Whether a window of so many batches ends before this item."""
        if self.batch_size is None:
            full = window.tokens >= batches * self._batch_tokens
        else:
            full = len(window.jobs) >= batches * self.batch_size
        full = full or len(window.jobs) >= self.window_items
        # Not between two items of a picture, which is encoded once as long as it is remembered.
        return full or (following.is_first and window.visual_tokens >= WINDOW_VISUAL_TOKENS)

    def _submit(self, index: int, value: object, pool: ThreadPoolExecutor) -> _Job:
        """Have an item prepared, and its picture unless it is there already."""
        try:
            item = as_item(value)
        except InputError as error:
            failed: Future[Features] = Future()
            failed.set_exception(error)
            return _Job(index, value, failed)
        key = self._keys.pop(index, None)
        if key is None:
            key = image_key(item)
        if key is None or item.image is None:
            return _Job(index, value, pool.submit(self._processor.features, item))
        is_first = key not in self._pictures
        if is_first:
            known = self._pixels.get(key)
            if known is None:
                pixels = pool.submit(self._prepare, item)
            else:
                pixels = Future()
                pixels.set_result(known)
            self._pictures[key] = _Picture(pixels)
        picture = self._pictures[key]
        picture.uses += 1
        features: Future[Features] = Future()
        # The thread that had the picture goes on with the words: none waits for another.
        picture.pixels.add_done_callback(lambda done: self._resolve(features, item, done))
        return _Job(index, value, features, key, is_first)

    def _release(self, job: _Job) -> int:
        """An item is handed out, its index: its picture may go if no other item shows it."""
        if job.picture is None:
            return job.index
        picture = self._pictures[job.picture]
        picture.uses -= 1
        if picture.uses:
            return job.index
        del self._pictures[job.picture]
        if is_stable_key(job.picture) and picture.pixels.exception() is None:
            pixels = picture.pixels.result()
            self._pixels.put(job.picture, pixels, self._processor.visual_tokens(pixels))
        return job.index

    def _add(self, window: _Window, job: _Job) -> None:
        """Put an item into a window as soon as it is ready."""
        error = job.features.exception()
        if isinstance(error, InputError):
            bad = Skipped(job.index, job.value, error)
            if self.on_error == "raise":
                window.failed = bad
                return
            window.skipped[job.index] = bad
        else:
            features = job.features.result()
            window.features[job.index] = features
            window.tokens += features.tokens
        window.jobs.append(job)
        if job.is_first and error is None and job.picture is not None:
            pixels = self._pictures[job.picture].pixels.result()
            window.visual_tokens += self._processor.visual_tokens(pixels)

    def prepare(self, value: object, truncate: Truncate | None = None) -> Features:
        """One item as tensors, for those who pack batches themselves; threads may share a pipeline.

        `truncate` is as for `Processor.features`.

        Raises:
            InputError: the item cannot be embedded.
        """
        item, key = as_item(value), image_key(value)
        if key is None or item.image is None:
            return self._processor.features(item, truncate=truncate)
        pixels = self._pixels.get(key)
        if pixels is None:
            pixels = self._processor.pixels(item.image, max_pixels=self.max_pixels)
            if is_stable_key(key):
                self._pixels.put(key, pixels, self._processor.visual_tokens(pixels))
        return self._processor.features(item, pixels=pixels, truncate=truncate)

    # -- in the threads --------------------------------------------------------------------------

    def _prepare(self, item: Item) -> Pixels:
        if self._stopped.is_set() or item.image is None:
            raise InputError("nobody waits for this item")
        return self._processor.pixels(item.image, max_pixels=self.max_pixels)

    def _resolve(self, features: "Future[Features]", item: Item, pixels: "Future[Pixels]") -> None:
        """The item's picture is ready: so is the item."""
        try:
            features.set_result(self._processor.features(item, pixels=pixels.result()))
        except BaseException as error:  # noqa: BLE001  (it is raised where the item is waited for)
            features.set_exception(error)

    # -- with the model --------------------------------------------------------------------------

    def _computed(self, windows: Iterable[_Window]) -> Iterator[_Window]:
        """Windows with their vectors; the model has the first batch of one before the last of the
        window before it is waited for, unless it is the CPU that computes."""
        waiting: deque[tuple[_Window, list[int], Fetch]] = deque()
        computed: deque[_Window] = deque()

        def fetch(at_most: int) -> None:
            while len(waiting) > at_most:
                window, indices, vectors = waiting.popleft()
                window.vectors.update(zip(indices, self._fetch(vectors), strict=True))
                window.batches -= 1

        for window in windows:
            indices, features = list(window.features), list(window.features.values())
            batches = deque(self.plan(features))
            computed.append(window)
            window.batches = 1  # not done before all are launched
            while batches:
                rows = batches.popleft()
                try:
                    vectors = self._launch([features[row] for row in rows])
                except torch.OutOfMemoryError:
                    batches.extendleft(self._halves(rows, features))
                    continue
                waiting.append((window, [indices[row] for row in rows], vectors))
                window.batches += 1
                fetch(self._in_flight)
                while not computed[0].batches:
                    yield computed.popleft()
            window.features.clear()
            window.batches -= 1
            while computed and not computed[0].batches:
                yield computed.popleft()
        fetch(0)
        yield from computed

    def _halves(self, rows: list[int], features: list[Features]) -> list[list[int]]:
        """Two halves of a batch that did not fit, the second first; later batches are smaller too.

        Raises:
            OutOfMemoryError: it is a single item.
        """
        longest = max(features[row].tokens for row in rows)
        if len(rows) == 1:
            raise OutOfMemoryError(
                f"{self._model.device} has too little memory for one item of {longest} tokens; "
                "lower max_pixels"
            ) from None
        self._batch_tokens = min(self._batch_tokens, longest * len(rows) // 2)
        if not self._was_halved:
            self._was_halved = True
            logger.warning(
                "%s has too little memory for %d items of up to %d tokens; batches are halved",
                self._model.device,
                len(rows),
                longest,
            )
        if self._model.device.type == "cuda":
            torch.cuda.empty_cache()
        half = len(rows) // 2
        return [rows[half:], rows[:half]]

    def plan(self, features: Sequence[Features]) -> list[list[int]]:
        """Indices into `features`, batch by batch, as this pipeline would compute them."""
        return plan_batches(features, self.batch_size, self._batch_tokens)

    def compute(self, features: list[Features]) -> Vector:
        """One batch, as `plan` cuts it -> `(B, D)`.

        Raises:
            OutOfMemoryError, NotFiniteError: the model could not compute it.
        """
        try:
            return self._fetch(self._launch(features))
        except torch.OutOfMemoryError:
            second, first = self._halves(list(range(len(features))), features)
            halves = ([features[row] for row in rows] for rows in (first, second))
            return np.concatenate([self.compute(half) for half in halves])

    def embed_one(self, item: Item) -> Vector:
        """A single item -> `(D,)`.

        Raises:
            InputError, OutOfMemoryError, NotFiniteError: as `run`.
        """
        vector: Vector = self.compute([self.prepare(item)])[0]
        return vector

    def _launch(self, features: list[Features]) -> Fetch:
        """One batch -> what gives its `(B, D)`, on which the device may still be at work."""
        model = self._model
        with self._lock, torch.no_grad(), evaluating(model):
            batch = self._processor.collate(features, pixels=False).to(model.device)
            return from_device(model.embed(batch, self._visual_tokens(features)))

    def _fetch(self, vectors: Fetch) -> Vector:
        fetched: Vector = vectors().numpy()
        if not np.isfinite(fetched).all():
            raise NotFiniteError(
                f"the model overflowed in {str(self._model.dtype).removeprefix('torch.')}; "
                "load it with dtype='float32' or 'bfloat16'"
            )
        return fetched

    def _visual_tokens(self, features: list[Features]) -> Tensor | None:
        """`(sum V, D)` of the unique pictures of a batch, each encoded once in this call."""
        shown = {f.image_key: f for f in features if f.image_key is not None}
        if not shown:
            return None
        tokens = {key: known for key in shown if (known := self._visual.get(key)) is not None}
        missing = {key: item for key, item in shown.items() if key not in tokens}
        for key, encoded in self.encode_pictures(missing):
            tokens[key] = encoded
            self._visual.put(key, encoded, len(encoded))
        return torch.cat([tokens[key] for key in shown])

    def encode_pictures(self, pictures: dict[str, Features]) -> Iterator[tuple[str, Tensor]]:
        """Items with different pictures, by `image_key` -> the visual tokens `(V, W)` of each."""
        for batch in self._vision_batches(pictures):
            pixels = self._processor.collate_images(list(batch.values()))
            grids = torch.tensor(pixels.grids)
            with self._watching(grids):
                encoded = self._encode(pixels, grids)
            lengths = self._model.backbone.visual_lengths(grids).tolist()
            for key, part in zip(batch, torch.split(encoded, lengths), strict=True):
                yield key, part.clone()  # a view would keep the whole batch in memory

    def _encode(self, pixels: PixelBatch, grids: Tensor) -> Tensor:
        patches = pixels.to(self._model.device, self._model.dtype).patches()
        return self._model.backbone.encode_images(patches, grids)

    @contextmanager
    def _watching(self, grids: Tensor) -> Iterator[None]:
        """Compare the pictures that are encoded meanwhile with those that the model knows."""
        known, notice = self._model.vector_facts.known, self._model.novelty
        # At another size than the model's own they would be unlike for that alone.
        if known is None or notice.given or self.max_pixels or self._model.backbone.is_compiled:
            yield
            return
        layers = self._model.backbone.vision_layers()
        with novelty.watch(layers[len(layers) // 2]) as states:
            yield
        features = novelty.patch_statistics(states[0], sorted(grids.prod(dim=-1).tolist()))
        notice.look(known.distances(features), known)

    def known_pictures(self, pictures: Iterable[Item]) -> KnownPictures:
        """What pictures that the model learnt from have in common, to be kept in `VectorFacts`.

        From then on it is said once when pictures are unlike them; training forgets it.

        Raises:
            UsageError: they are too few, or the vision encoder is of another kind.
        """
        if not self._model.backbone.vision_layers():
            raise UsageError("this model's vision encoder shows no states to compare pictures by")
        return KnownPictures.of(self.picture_features(pictures))

    def picture_features(self, pictures: Iterable[Item]) -> NDArray[np.float64]:
        """`(N, F)` of pictures, one by one: what `KnownPictures` are measured by."""
        layers = self._model.backbone.vision_layers()
        rows = []
        for picture in pictures:
            pixels = self._processor.collate_images([self.prepare(picture)])
            with novelty.watch(layers[len(layers) // 2]) as states, torch.no_grad():
                self._encode(pixels, torch.tensor(pixels.grids))
            rows.append(novelty.patch_statistics(states[0], [len(states[0])]))
        return np.concatenate(rows)

    def _vision_batches(self, images: dict[str, Features]) -> Iterator[dict[str, Features]]:
        """The pictures in batches whose patches are within the budget of tokens."""
        batch: dict[str, Features] = {}
        patches = 0
        for key, item in images.items():
            patches += math.prod(item.grid_thw or ())
            if batch and patches > self._batch_tokens:
                yield batch
                batch, patches = {}, math.prod(item.grid_thw or ())
            batch[key] = item
        if batch:
            yield batch


@contextmanager
def evaluating(model: AbcModel) -> Iterator[None]:
    """Dropout off, and back as it was: the model may be in the middle of its training."""
    if not model.training:
        yield
        return
    model.eval()
    try:
        yield
    finally:
        model.train()


def plan_batches(
    features: Sequence[Features], batch_size: int | None, max_tokens: int = MAX_BATCH_TOKENS
) -> list[list[int]]:
    """Indices into `features`, batch by batch; every index comes once.

    A batch has one kind, at most `batch_size` items (None: any number) and at most `max_tokens`
    tokens with its padding, unless one item alone has more.
    """
    max_cost: dict[str | None, int] = {}
    for item in features:
        max_cost[item.image_key] = max(item.tokens, max_cost.get(item.image_key, 0))

    def cost(index: int) -> tuple[int, str, int]:
        item = features[index]
        if item.image_key is None:
            return (-item.tokens, "", 0)
        return (-max_cost[item.image_key], item.image_key, -item.tokens)

    batches: list[list[int]] = []
    for kind in Kind:
        batch: list[int] = []
        longest = 0
        for index in sorted((i for i, f in enumerate(features) if f.kind is kind), key=cost):
            longest, tokens = max(longest, features[index].tokens), features[index].tokens
            full = len(batch) == batch_size or longest * (len(batch) + 1) > max_tokens
            enough = batch_size is None and longest * len(batch) >= max_tokens * ENOUGH
            if batch and (full or (enough and tokens < longest * EVEN)):
                batches.append(batch)
                batch, longest = [], features[index].tokens
            batch.append(index)
        if batch:
            batches.append(batch)
    return batches
