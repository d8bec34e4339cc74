"""What mining will take, known before it starts: disk, memory, and time from a short probe."""

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from abc_embed.inputs import Item
from abc_embed.mining.embed import EmbedderSetup
from abc_embed.mining.search import blocks_on, search, search_devices
from abc_embed.mining.settings import MiningSettings

PROBE_S = 2.0
"""How long embedding is tried, to guess how long all of it takes."""
_PROBED_ITEMS = 16  # at a time
_PROBED_QUERIES, _PROBED_BYTES = 1024, 128 << 20


@dataclass(frozen=True, slots=True)
class MiningPlan:
    """What the work takes."""

    rows: int
    """That are mined."""
    captions: int
    scores: int
    width: int
    method: str
    devices: list[str]
    """That search."""
    vector_bytes: int
    """Of all vectors on disk."""
    pool_bytes: int
    """Of the pools on disk."""
    memory_bytes: int
    """Ceiling of the search."""
    queries_at_once: int
    candidates_at_once: int
    passes: int
    """How often all captions are read, by all devices together."""
    search_s: float
    embed_s: float = 0.0
    """For what is not embedded yet."""

    @property
    def disk_bytes(self) -> int:
        return self.vector_bytes + self.pool_bytes


def plan_mining(rows: int, captions: int, width: int, settings: MiningSettings) -> MiningPlan:
    """The plan without embedding: `rows` images by `captions` texts of this width.

    Raises:
        UsageError: the memory is too little.
    """
    devices = search_devices(settings.search)
    blocks = blocks_on(devices[0], len(devices), width, settings.pool, settings.search)
    query_blocks = -(-rows // blocks.queries)
    passes = min(query_blocks, len(devices)) if blocks.candidates >= captions else query_blocks
    return MiningPlan(
        rows=rows,
        captions=captions,
        scores=rows * captions,
        width=width,
        method=settings.search.resolved_method.value,
        devices=[str(device) for device in devices],
        vector_bytes=(rows + captions) * width * (2 if settings.store == "float16" else 4),
        pool_bytes=rows * (8 * settings.pool + 44),
        memory_bytes=settings.search.memory_bytes,
        queries_at_once=min(blocks.queries, rows),
        candidates_at_once=min(blocks.candidates, captions),
        passes=passes,
        search_s=search_seconds(rows, captions, width, settings),
    )


def search_seconds(rows: int, captions: int, width: int, settings: MiningSettings) -> float:
    """About how long a search takes, from two short ones among random vectors."""
    random = np.random.default_rng(0)
    most = min(captions, _PROBED_BYTES // (4 * width))
    count = min(_PROBED_QUERIES, rows)
    own = np.arange(count) % max(1, most // 4)
    texts = random.standard_normal((most, width), dtype=np.float32)
    images = texts[own] + random.standard_normal((count, width), dtype=np.float32)

    def seconds(size: int) -> float:
        begin = time.perf_counter()
        for _ in search(
            images, texts[:size], own, pool=settings.pool, settings=settings.search, sampled=0
        ):
            pass
        return time.perf_counter() - begin

    few = max(1, most // 4)
    seconds(few)  # what is loaded once
    few_s, most_s = seconds(few), seconds(most)
    # What each further caption costs; the first ones cost more, as pools are filled with them.
    caption_s = max(most_s - few_s, 0.05 * most_s) / most * 4 / 3
    total_s = (most_s + caption_s * (captions - most)) * rows / count
    return total_s / len(search_devices(settings.search))


def item_seconds(setup: EmbedderSetup, items: Sequence[Item]) -> float:
    """Seconds of embedding one of these, which are tried for half of `PROBE_S`; 0 for none."""
    done, begin = 0, time.perf_counter()
    while done == 0 or (done < len(items) and time.perf_counter() - begin < PROBE_S / 2):
        done += sum(1 for _ in setup.stream(items[done : done + _PROBED_ITEMS])) or 1
    return (time.perf_counter() - begin) / done if items else 0.0


def free_bytes(folder: Path) -> int:
    """Room on the disk of a folder, or of the one above it that is there."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free
