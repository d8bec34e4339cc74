"""What mining will take, known before it starts: disk, memory, and time from a short probe."""

import math
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from abc_embed.inputs import Item
from abc_embed.mining.mine import SAMPLED, MiningRun
from abc_embed.mining.pools import Truth
from abc_embed.mining.search import blocks_on, search, search_devices
from abc_embed.mining.settings import Method, MiningSettings
from abc_embed.mining.shards import EmbedderSetup

PROBE_S = 2.0
"""How long embedding is tried, to guess how long all of it takes."""
_PROBED_ITEMS, _MAX_PROBED_ITEMS = 16, 64  # at a time, and at most
_PROBED_QUERIES = 1024
PROBED_BYTES = 64 << 20
"""Of the captions with which searching is tried."""
_ALIKE = 50  # captions around a centre
_TRIES = 2  # of which the least counts: the first pays for what is loaded once


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
    devices = search_devices(settings)
    blocks = blocks_on(devices[0], len(devices), width, settings)
    query_blocks = -(-rows // blocks.queries)
    passes = min(query_blocks, len(devices)) if blocks.candidates >= captions else query_blocks
    probe = SearchProbe(rows, captions, width, settings)
    search_s = probe.seconds(rows, captions, passes, settings.pool)
    return MiningPlan(
        rows=rows,
        captions=captions,
        scores=rows * captions,
        width=width,
        method=settings.resolved_method.value,
        devices=[str(device) for device in devices],
        vector_bytes=(rows + captions) * width * (2 if settings.store == "float16" else 4),
        pool_bytes=rows * (8 * settings.pool + 44),
        memory_bytes=settings.memory_bytes,
        queries_at_once=min(blocks.queries, rows),
        candidates_at_once=min(blocks.candidates, captions),
        passes=passes,
        search_s=search_s / len(devices),
    )


class SearchProbe:
    """What parts of a search cost on one device, from short ones among drawn vectors.

    Few and many images are searched among the same captions, for pools of one and for whole ones:
    what only the captions cost is told apart from what each pair does, and that from what is scored
    anew because it enters a pool.
    """

    def __init__(self, rows: int, captions: int, width: int, settings: MiningSettings) -> None:
        """`rows` and `captions` are how many there will be: no more are tried."""
        random, floats = np.random.default_rng(0), PROBED_BYTES // 4
        many = min(rows, _PROBED_QUERIES, floats // width // 16)
        most = min(captions, floats // width)
        few, some = min(many, 8), max(1, most // 4)
        own = np.arange(many) % some
        # As in a data set, where many captions say nearly the same.
        centres = random.standard_normal((max(1, most // _ALIKE), width), dtype=np.float32)
        texts = random.standard_normal((most, width), dtype=np.float32)
        texts += centres[np.arange(most) % len(centres)]
        images = texts[own] + random.standard_normal((many, width), dtype=np.float32)
        smallest = replace(settings, pool=1, sample_size=1)

        def seconds(queries: int, candidates: int, settings: MiningSettings) -> float:
            truth, times = Truth(own[:queries]), []
            for _ in range(_TRIES):
                begin = time.perf_counter()
                for _ in search(images[:queries], texts[:candidates], truth, settings):
                    pass
                times.append(time.perf_counter() - begin)
            return min(times)

        few_s = seconds(few, most, smallest)
        query_s, whole_s = (
            max(seconds(many, most, how) - few_s, 0.0) / max(many - few, 1)
            for how in (smallest, settings)
        )
        self.caption_s = max(few_s - few * query_s, 0.0) / most
        """Of reading a caption."""
        self.pair_s = query_s / most
        """Of an image with a caption."""
        self.entry_s = max(whole_s - query_s, 0.0) / entries(settings.pool, most)
        """Of what enters a pool, which most of it leaves again."""
        self.exact_s = 0.0
        """Of a caption, where a sample of the images is searched plainly too."""
        if settings.method is not Method.PLAIN:
            plain = replace(settings, method=Method.PLAIN)
            self.exact_s = seconds(min(many, SAMPLED), some, plain) / some

    def seconds(self, rows: int, captions: int, passes: int, pool: int) -> float:
        """About how long a search takes.

        Args:
            rows: images.
            captions: texts.
            passes: how often the captions are read.
            pool: size of a pool.
        """
        reading_s = captions * (passes * self.caption_s + self.exact_s)
        image_s = captions * self.pair_s + entries(pool, captions) * self.entry_s
        return reading_s + rows * image_s


def entries(pool: int, captions: int) -> float:
    """How many captions enter a pool, the `n`-th with probability `pool / n`."""
    return pool * (1 + math.log(max(captions / pool, 1)))


def embed_seconds(run: MiningRun, processes: int) -> float:
    """About how long it takes to embed what is missing."""
    seconds = 0.0
    for shards, source in run.sources:
        missing = shards.missing_items()
        items = [source.as_item(source.values[n]) for n in missing[:_MAX_PROBED_ITEMS]]
        seconds += item_seconds(run.setup, items) * len(missing)
    return seconds / processes


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
