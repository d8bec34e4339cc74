"""Many items -> many vectors, in order: the engine under `Embedder.embed` and `.stream`.

Does: read items as far as needed, prepare the next window in a thread while the model computes the
present one, run each window's batches, and hand results back in the order of the items. Does not:
decide what a vector is (model.py).
Why windows: memory stays flat however long the input is. At any time at most two windows of items
are held, each of at most `WINDOW_BATCHES` batches and pictures of `WINDOW_VISUAL_TOKENS`.

Shapes: `D` width, `V` visual tokens of a picture.
"""

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Generator, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Generic, Literal, TypeAlias, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from abc_embed.errors import InputError, NotFiniteError, OutOfMemoryError, UsageError
from abc_embed.inputs import Item, Kind, as_item
from abc_embed.model import AbcModel
from abc_embed.pixels import Patches
from abc_embed.processor import Features, Processor
from abc_embed.storage.hashing import short_hash

Vector: TypeAlias = NDArray[np.float32]
OnError: TypeAlias = Literal["raise", "skip"]

WINDOW_BATCHES = 8
"""Batches per window: enough to sort by cost, few enough to stay small."""
WINDOW_VISUAL_TOKENS = 16_384
"""Visual tokens per window at most, the sum over its different pictures: 300 MB of pixel values."""

MAX_BATCH_TOKENS = 32_768
"""Most tokens of a batch, padding included: 32 pictures at 1024 visual tokens."""

K = TypeVar("K")
T = TypeVar("T")
V = TypeVar("V")


@dataclass(frozen=True, slots=True, eq=False)
class Skipped:
    """An item that could not be embedded, and why."""

    index: int
    """Its place among the items, from 0."""
    item: object
    """The item as it was given."""
    error: InputError
    """What is wrong with it; `str(error)` is one plain sentence."""

    def __str__(self) -> str:
        return f"item {self.index}: {self.error}"


Results: TypeAlias = Generator[tuple[int, Vector | Skipped], None, None]


def image_key(value: object) -> Hashable | None:
    """Equal for values that surely show the same picture; None for a text.

    Paths and bytes compare by content. Pictures and arrays compare by identity, which holds only
    as long as the value itself is held: see `is_stable_key`.
    """
    image = value.image if isinstance(value, Item) else None
    if isinstance(image, str | os.PathLike):
        name = os.fspath(image)
        return name if len(name) < 1000 else short_hash(name.encode())  # a data: URL
    if isinstance(image, bytes):
        return short_hash(image)
    return None if image is None else id(image)


def is_stable_key(source: Hashable) -> bool:
    """Whether a key still means the same picture when its value is gone."""
    return not isinstance(source, int)


class LRUCache(Generic[K, V]):
    """The values used last, up to a total weight; at least one. Threads may share it."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._weight = 0
        self._kept: OrderedDict[K, tuple[V, int]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: K) -> V | None:
        """The value of a key, which is now the one used last; None if it is not kept."""
        with self._lock:
            if key not in self._kept:
                return None
            self._kept.move_to_end(key)
            return self._kept[key][0]

    def put(self, key: K, value: V, weight: int) -> None:
        """Keep a value, and let go of those unused longest."""
        with self._lock:
            if key in self._kept:  # another thread was quicker
                return
            self._kept[key] = (value, weight)
            self._weight += weight
            while self._weight > self._capacity and len(self._kept) > 1:
                self._weight -= self._kept.popitem(last=False)[1][1]


@dataclass(slots=True)
class _Prepared:
    """A window whose items are tensors."""

    order: list[int] = field(default_factory=list)
    """The indices of all its items, bad ones too, as they came."""
    features: dict[int, Features] = field(default_factory=dict)
    skipped: dict[int, Skipped] = field(default_factory=dict)
    failed: Skipped | None = None
    """In `raise` mode the first bad item; nothing after it was prepared."""


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
        batch_size: int = 32,
        on_error: OnError = "raise",
        lock: AbstractContextManager[object] | None = None,
    ) -> None:
        if batch_size < 1:
            raise UsageError(f"batch_size is {batch_size}; give at least 1")
        if on_error not in ("raise", "skip"):
            raise UsageError(f"on_error is {on_error!r}; use 'raise' or 'skip'")
        budget = processor.image.limited(max_pixels)
        self._model = model
        self._processor = processor
        self._max_pixels = max_pixels
        self._batch_size = batch_size
        self._on_error = on_error
        self.window_items = WINDOW_BATCHES * batch_size
        self.window_images = max(1, WINDOW_VISUAL_TOKENS // budget.max_visual_tokens)
        # Beyond its own window a picture is remembered for a while, should it come again.
        self._patches: LRUCache[Hashable, Patches] = LRUCache(WINDOW_VISUAL_TOKENS)
        self._visual: LRUCache[str, Tensor] = LRUCache(2 * WINDOW_VISUAL_TOKENS)
        self._stopped = threading.Event()
        self._lock = lock or nullcontext()

    def run(self, values: Iterable[tuple[int, object]]) -> Results:
        """(index, item) pairs -> (index, result) pairs, in the same order.

        Raises:
            InputError: a bad item, in `raise` mode; the results before it have been handed out.
            OutOfMemoryError, NotFiniteError: the model could not compute a batch.
        """
        cut = windows(
            values,
            max_items=self.window_items,
            max_images=self.window_images,
            image_of=lambda pair: image_key(pair[1]),
        )
        with ThreadPoolExecutor(1, thread_name_prefix="abc-embed-prepare") as thread:
            try:
                ahead: Future[_Prepared] | None = None
                for window in cut:
                    following = thread.submit(self._prepare, window)
                    if ahead is not None:
                        yield from self._finish(ahead.result())
                    ahead = following
                if ahead is not None:
                    yield from self._finish(ahead.result())
            finally:
                self._stopped.set()

    # -- in the thread ---------------------------------------------------------------------------

    def _prepare(self, window: list[tuple[int, object]]) -> _Prepared:
        prepared = _Prepared()
        window_cache: dict[Hashable, Patches] = {}
        for index, value in window:
            if self._stopped.is_set():
                break
            try:
                features = self.prepare(value, window_cache)
            except InputError as error:
                bad = Skipped(index, value, error)
                if self._on_error == "raise":
                    prepared.failed = bad
                    break
                prepared.skipped[index] = bad
            else:
                prepared.features[index] = features
            prepared.order.append(index)
        return prepared

    def prepare(
        self, value: object, window_cache: dict[Hashable, Patches] | None = None
    ) -> Features:
        """One item as tensors; threads may share a pipeline.

        `window_cache` holds pictures whose keys end with this window.

        Raises:
            InputError: the item cannot be embedded.
        """
        item = as_item(value)
        window_cache = {} if window_cache is None else window_cache
        if item.image is None:
            return self._processor.features(item)
        source = image_key(item)
        patches = self._patches.get(source) or window_cache.get(source)
        if patches is None:
            patches = self._processor.patches(item.image, max_pixels=self._max_pixels)
            if is_stable_key(source):
                weight = len(patches.values) // self._processor.image.merge_size**2
                self._patches.put(source, patches, weight)
            else:
                window_cache[source] = patches
        return self._processor.features(item, patches=patches)

    # -- with the model --------------------------------------------------------------------------

    def _finish(self, prepared: _Prepared) -> Results:
        results: dict[int, Vector | Skipped] = {**prepared.skipped}
        indices, features = list(prepared.features), list(prepared.features.values())
        for rows in self.plan(features):
            vectors = self.compute([features[row] for row in rows])
            results.update(zip((indices[row] for row in rows), vectors, strict=True))
        for index in prepared.order:
            yield index, results[index]
        if prepared.failed is not None:
            bad = prepared.failed
            raise type(bad.error)(str(bad)) from bad.error

    def plan(self, features: Sequence[Features]) -> list[list[int]]:
        """Indices into `features`, batch by batch, as this pipeline would compute them."""
        return plan(features, self._batch_size)

    def embed_one(self, item: Item) -> Vector:
        """A single item -> `(D,)`.

        Raises:
            InputError, OutOfMemoryError, NotFiniteError: as `run`.
        """
        vector: Vector = self.compute([self.prepare(item)])[0]
        return vector

    def compute(self, features: list[Features]) -> Vector:
        """One batch, as `plan` cuts it -> `(B, D)`.

        Raises:
            OutOfMemoryError, NotFiniteError: the model could not compute it.
        """
        model = self._model
        try:
            with self._lock, torch.no_grad(), _evaluating(model):
                batch = self._processor.collate(features, pixels=False).to(model.device)
                vectors: Vector = model.embed(batch, self._visual_tokens(features)).cpu().numpy()
        except torch.OutOfMemoryError:
            raise OutOfMemoryError(
                f"{model.device} has too little memory for {len(features)} items of "
                f"up to {max(f.tokens for f in features)} tokens; lower batch_size or max_pixels"
            ) from None
        if not np.isfinite(vectors).all():
            raise NotFiniteError(
                f"the model overflowed in {str(model.dtype).removeprefix('torch.')}; "
                "load it with dtype='float32' or 'bfloat16'"
            )
        return vectors

    def _visual_tokens(self, features: list[Features]) -> Tensor | None:
        """`(sum V, D)` of the unique pictures of a batch, each encoded once in this call."""
        shown = {f.image_key: f for f in features if f.image_key is not None}
        tokens = {key: known for key in shown if (known := self._visual.get(key)) is not None}
        missing = {key: item for key, item in shown.items() if key not in tokens}
        new = self._processor.collate(list(missing.values()))
        new = new.to(self._model.device, self._model.dtype)
        if new.pixel_values is not None and new.image_grid_thw is not None:
            backbone = self._model.backbone
            encoded = backbone.encode_images(new.pixel_values, new.image_grid_thw)
            lengths = backbone.visual_lengths(new.image_grid_thw).tolist()
            for key, part in zip(missing, torch.split(encoded, lengths), strict=True):
                tokens[key] = part.clone()  # a view would keep the whole batch in memory
                self._visual.put(key, tokens[key], len(part))
        return torch.cat([tokens[key] for key in shown]) if shown else None


@contextmanager
def _evaluating(model: AbcModel) -> Iterator[None]:
    """Dropout off, and back as it was: the model may be in the middle of its training."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def plan(
    features: Sequence[Features], batch_size: int, max_tokens: int = MAX_BATCH_TOKENS
) -> list[list[int]]:
    """Indices into `features`, batch by batch; every index comes once.

    A batch has one kind, at most `batch_size` items and at most `max_tokens` tokens with its
    padding, unless one item alone has more.
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
            longest = max(longest, features[index].tokens)
            full = len(batch) == batch_size or longest * (len(batch) + 1) > max_tokens
            if batch and full:
                batches.append(batch)
                batch, longest = [], features[index].tokens
            batch.append(index)
        if batch:
            batches.append(batch)
    return batches


def windows(
    values: Iterable[T],
    *,
    max_items: int,
    max_images: int,
    image_of: Callable[[T], Hashable | None],
) -> Iterator[list[T]]:
    """Consecutive pieces of any iterable, read only as far as each piece needs.

    A window ends after `max_items` values, or before the one that would bring in one different
    picture more than `max_images`; `image_of` says which picture a value shows (None: none).
    """
    window: list[T] = []
    images: set[Hashable] = set()
    for value in values:
        image = image_of(value)
        is_new = image is not None and image not in images
        if window and is_new and len(images) == max_images:
            yield window
            window, images = [], set()
        window.append(value)
        if image is not None:
            images.add(image)
        if len(window) == max_items:  # at once: the next value may be long in coming
            yield window
            window, images = [], set()
    if window:
        yield window


def group_by_image(images: Sequence[Hashable | None]) -> list[int]:
    """Indices in an order in which those of one picture follow each other; texts likewise."""
    groups: dict[Hashable | None, list[int]] = {}
    for index, image in enumerate(images):
        groups.setdefault(image, []).append(index)
    return [index for group in groups.values() for index in group]
