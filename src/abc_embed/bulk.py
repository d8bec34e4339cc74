"""Many items -> many vectors, in order: the engine under `Embedder.embed` and `.stream`.

Does: read items as far as needed, prepare the next window in a thread while the model computes the
present one, run each window's batches, and hand results back in the order of the items. Does not:
decide what goes together (batching.py) or what a vector is (model.py).
Why windows: memory stays flat however long the input is. At any time at most two windows of items
are held, each of at most `WINDOW_BATCHES` batches and pictures of `WINDOW_VISUAL_TOKENS`.

Shapes: `D` width, `V` visual tokens of a picture.
"""

import hashlib
import os
import threading
from collections import OrderedDict
from collections.abc import Generator, Hashable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Generic, Literal, TypeAlias, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from abc_embed.batching import plan, windows
from abc_embed.errors import InputError, NotFiniteError, OutOfMemoryError, UsageError
from abc_embed.inputs import Item, as_item
from abc_embed.model import AbcModel
from abc_embed.pixels import Patches
from abc_embed.processor import Features, Processor

Vector: TypeAlias = NDArray[np.float32]
OnError: TypeAlias = Literal["raise", "skip"]

WINDOW_BATCHES = 8
"""Batches per window: enough to sort by cost, few enough to stay small."""
WINDOW_VISUAL_TOKENS = 16_384
"""Visual tokens per window at most, the sum over its different pictures: 300 MB of pixel values."""

K = TypeVar("K")
V = TypeVar("V")


@dataclass(frozen=True, slots=True, eq=False)
class Skipped:
    """An item that could not be embedded, and why."""

    index: int
    """Its place among the items, from 0."""
    item: object
    """The item as it was given."""
    error: InputError
    """What is wrong with it; ``str(error)`` is one plain sentence."""

    def __str__(self) -> str:
        return f"item {self.index}: {self.error}"


Results: TypeAlias = Generator[tuple[int, Vector | Skipped], None, None]


def image_source(value: object) -> Hashable | None:
    """Equal for values that surely show the same picture; None for a text.

    Paths and bytes compare by content. Pictures and arrays compare by identity, which holds only
    as long as the value itself is held: see `is_lasting`.
    """
    image = value.image if isinstance(value, Item) else None
    if isinstance(image, str | os.PathLike):
        name = os.fspath(image)
        return name if len(name) < 1000 else hash_bytes(name.encode())  # a data: URL
    if isinstance(image, bytes):
        return hash_bytes(image)
    return None if image is None else id(image)


def is_lasting(source: Hashable) -> bool:
    """Whether a key still means the same picture when its value is gone."""
    return not isinstance(source, int)


def hash_bytes(data: bytes) -> bytes:
    """A short key that stands for long data, so that no cache has to hold them."""
    return hashlib.blake2b(data, digest_size=16).digest()


class Recent(Generic[K, V]):
    """The values used last, up to a total weight; at least one."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._weight = 0
        self._kept: OrderedDict[K, tuple[V, int]] = OrderedDict()

    def get(self, key: K) -> V | None:
        """The value of a key, which is now the one used last; None if it is not kept."""
        if key not in self._kept:
            return None
        self._kept.move_to_end(key)
        return self._kept[key][0]

    def put(self, key: K, value: V, weight: int) -> None:
        """Keep a value under a new key, and let go of those unused longest."""
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
    """In ``raise`` mode the first bad item; nothing after it was prepared."""


class Bulk:
    """One call of `Embedder.embed` or `Embedder.stream`.

    ``lock`` is held while the model computes, since routing switches its adapter on and off.

    Raises:
        UsageError: ``max_pixels``, ``batch_size`` or ``on_error`` out of range.
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
        self._patches: Recent[Hashable, Patches] = Recent(WINDOW_VISUAL_TOKENS)
        self._visual: Recent[str, Tensor] = Recent(2 * WINDOW_VISUAL_TOKENS)
        self._stopped = threading.Event()
        self._lock = lock or nullcontext()

    def run(self, values: Iterable[tuple[int, object]]) -> Results:
        """(index, item) pairs -> (index, result) pairs, in the same order.

        Raises:
            InputError: a bad item, in ``raise`` mode; the results before it have been handed out.
            OutOfMemoryError, NotFiniteError: the model could not compute a batch.
        """
        cut = windows(
            values,
            max_items=self.window_items,
            max_images=self.window_images,
            image_of=lambda pair: image_source(pair[1]),
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
        passing: dict[Hashable, Patches] = {}
        for index, value in window:
            if self._stopped.is_set():
                break
            try:
                features = self._features(value, passing)
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

    def _features(self, value: object, passing: dict[Hashable, Patches]) -> Features:
        """One item as tensors; ``passing`` knows the pictures whose keys end with this window."""
        item = as_item(value)
        if item.image is None:
            return self._processor.features(item)
        source = image_source(item)
        patches = self._patches.get(source) or passing.get(source)
        if patches is None:
            patches = self._processor.patches(item.image, max_pixels=self._max_pixels)
            if is_lasting(source):
                weight = len(patches.values) // self._processor.image.merge_size**2
                self._patches.put(source, patches, weight)
            else:
                passing[source] = patches
        return self._processor.features(item, patches=patches)

    # -- with the model --------------------------------------------------------------------------

    def _finish(self, prepared: _Prepared) -> Results:
        results: dict[int, Vector | Skipped] = {**prepared.skipped}
        indices, features = list(prepared.features), list(prepared.features.values())
        for rows in plan(features, self._batch_size):
            vectors = self._vectors([features[row] for row in rows])
            results.update(zip((indices[row] for row in rows), vectors, strict=True))
        for index in prepared.order:
            yield index, results[index]
        if prepared.failed is not None:
            bad = prepared.failed
            raise type(bad.error)(str(bad)) from bad.error

    def one(self, item: Item) -> Vector:
        """A single item -> ``(D,)``.

        Raises:
            InputError, OutOfMemoryError, NotFiniteError: as `run`.
        """
        vector: Vector = self._vectors([self._features(item, {})])[0]
        return vector

    def _vectors(self, features: list[Features]) -> Vector:
        """One batch -> ``(B, D)``."""
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
        """``(sum V, D)`` of the unique pictures of a batch, each encoded once in this call."""
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
