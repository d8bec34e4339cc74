"""What mining is asked to do, and what it will take: known before it starts.

Does: check settings, say how much disk and memory the work needs, and guess its time from a probe
of about two seconds. Does not: embed or search more than that.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from abc_embed.errors import UsageError
from abc_embed.inputs import Item
from abc_embed.mining.embed import Model
from abc_embed.mining.engines import Flat, Floats, Method, blocks, resolve_method
from abc_embed.mining.sample import DRAW, How
from abc_embed.mining.search import EPSILON, POOL, exact, search
from abc_embed.mining.search import How as Search
from abc_embed.mining.shards import STORES

PROBE_S = 2.0
"""How long the work is tried, to guess how long all of it takes."""
_PROBED = 16  # items at a time


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What decides the negatives, apart from model and records."""

    epsilon: float = EPSILON
    pool: int = POOL
    draw: int = DRAW
    how: How = How.UNIFORM
    seed: int = 0
    store: str = "float32"
    """Number format of vectors on disk."""
    search: Search = field(default_factory=Search)

    def __post_init__(self) -> None:
        if not 0 < self.epsilon <= 1:
            raise UsageError(f"epsilon is {self.epsilon}; give a number above 0, and at most 1")
        for name, least in (("pool", 1), ("draw", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise UsageError(f"{name} is {getattr(self, name)}; give at least {least}")
        if self.store not in STORES:
            raise UsageError(f"the store is {self.store!r}; give {' or '.join(STORES)}")


@dataclass(frozen=True, slots=True)
class Plan:
    """What the work takes, known before it starts."""

    rows: int
    """That are mined."""
    captions: int
    scores: int
    width: int
    method: str
    vector_bytes: int
    """Of all vectors on disk."""
    pool_bytes: int
    """Of the pools on disk."""
    memory_bytes: int
    """Ceiling of the search."""
    queries_at_once: int
    candidates_at_once: int
    passes: int
    """How often all captions are read."""
    search_s: float
    embed_s: float = 0.0
    """For what is not embedded yet."""

    @property
    def disk_bytes(self) -> int:
        return self.vector_bytes + self.pool_bytes


def plan(rows: int, captions: int, width: int, settings: Settings) -> Plan:
    """The plan without embedding: `rows` images by `captions` texts of this width.

    Raises:
        UsageError: the memory is too little.
    """
    search_with = settings.search
    method = resolve_method(search_with.method)
    shares = blocks(search_with.memory_bytes, width, settings.pool, method)
    whole = shares.candidates >= captions
    scores = rows * captions
    return Plan(
        rows=rows,
        captions=captions,
        scores=scores,
        width=width,
        method=method.value,
        vector_bytes=(rows + captions) * width * (2 if settings.store == "float16" else 4),
        pool_bytes=rows * (8 * settings.pool + 44),
        memory_bytes=search_with.memory_bytes,
        queries_at_once=min(shares.queries, rows),
        candidates_at_once=min(shares.candidates, captions),
        passes=1 if whole else -(-rows // shares.queries),
        search_s=search_seconds(rows, captions, width, settings),
    )


def search_seconds(rows: int, captions: int, width: int, settings: Settings) -> float:
    """About how long a search takes, from a probe among random vectors for some `PROBE_S`."""
    told = settings.search
    method = resolve_method(told.method)
    ask = settings.pool + max(settings.pool // 4, 8)
    random = np.random.default_rng(0)
    most = min(captions, max(1024, (64 << 20) // (4 * width)))
    others = random.standard_normal((most, width), dtype=np.float32)
    images = random.standard_normal((256 if method is Method.PLAIN else 2048, width), np.float32)
    size, spent, score = min(1024, most), 0.0, 0.0
    while True:
        took = _once(method, images, others[:size], min(ask, size), settings)
        spent, score = spent + took, took / (len(images) * size)
        if size == most or spent + 4 * took > PROBE_S:
            break
        size = min(4 * size, most)
    begun = time.perf_counter()
    exact(images[:64], images[64:128])
    pair = (time.perf_counter() - begun) / 64
    if method is Method.PLAIN:
        return score * rows * captions
    if method is Method.IVF:
        cells = told.cells or int(4 * captions**0.5)
        score *= min(1.0, told.probes / cells + cells / captions)
    shares = blocks(told.memory_bytes, width, settings.pool, method)
    passes = -(-captions // shares.candidates)
    again = ask + settings.pool * np.log(passes)  # later blocks hold fewer that matter
    return float(rows * (captions * score + again * pair))


def _once(method: Method, images: Floats, others: Floats, k: int, settings: Settings) -> float:
    """Seconds of scoring these images with these texts."""
    engine = Flat()
    engine.load(others, 0)
    begun = time.perf_counter()
    if method is Method.PLAIN:
        for _ in search(
            images, others, np.zeros(len(images), np.int64), pool=settings.pool, how=settings.search
        ):
            pass
    else:
        engine.nearest(images, k)
    return time.perf_counter() - begun


def embed_seconds(
    model: Model, pictures: Sequence[Item], texts: Sequence[Item]
) -> tuple[float, float]:
    """Seconds of one image and of one text; each is tried for half of `PROBE_S`."""
    return (
        _seconds(model, pictures, PROBE_S / 2),
        _seconds(model, texts, PROBE_S / 2),
    )


def _seconds(model: Model, items: Sequence[Item], probe_s: float) -> float:
    if not items:
        return 0.0
    done, begun = 0, time.perf_counter()
    while done == 0 or (done < len(items) and time.perf_counter() - begun < probe_s):
        some = list(items[done : done + _PROBED])
        for _ in model.embedder.stream(
            some, max_pixels=model.max_pixels, batch_size=model.batch_size, on_error="skip"
        ):
            pass
        done += len(some)
    return (time.perf_counter() - begun) / done


def free_bytes(folder: Path) -> int:
    """Room on the disk of a folder, or of the one above it that is there."""
    import shutil

    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free
