"""What mining will take, known before it starts: disk, memory, and time from a short probe."""

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
    devices = search_devices(settings)
    blocks = blocks_on(devices[0], len(devices), width, settings)
    query_blocks = -(-rows // blocks.queries)
    passes = min(query_blocks, len(devices)) if blocks.candidates >= captions else query_blocks
    probe = SearchProbe(rows, captions, width, settings)
    search_s = probe.seconds(rows, captions, passes, -(-captions // blocks.candidates))
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
    """What parts of a search cost on one device, from short ones among random vectors.

    Few and many images are searched among few and many captions: what only the captions cost is
    told apart from what each image does, and that from what each pair of them does.
    """

    def __init__(self, rows: int, captions: int, width: int, settings: MiningSettings) -> None:
        """`rows` and `captions` are how many there will be: no more are tried."""
        random, floats = np.random.default_rng(0), _PROBED_BYTES // 4
        many = min(rows, _PROBED_QUERIES, floats // width // 16)
        most = min(captions, floats // width)
        few, some = min(many, 8), max(1, most // 4)
        own = np.arange(many) % some
        texts = random.standard_normal((most, width), dtype=np.float32)
        images = texts[own] + random.standard_normal((many, width), dtype=np.float32)

        def seconds(queries: int, candidates: int, settings: MiningSettings = settings) -> float:
            truth, begin = Truth(own[:queries]), time.perf_counter()
            for _ in search(images[:queries], texts[:candidates], truth, settings):
                pass
            return time.perf_counter() - begin

        seconds(few, some)  # what is loaded once
        few_s = seconds(few, most)
        query_most_s = (seconds(many, most) - few_s) / max(many - few, 1)
        self.caption_s = max(few_s - few * query_most_s, 0.0) / most
        """Of reading a caption."""
        query_some_s = (seconds(many, some) - some * self.caption_s) / many
        self.pair_s = max(query_most_s - query_some_s, 0.0) / max(most - some, 1)
        """Of an image with each further caption."""
        self.query_s = max(query_most_s - most * self.pair_s, 0.0)
        """Of an image besides: its pool is filled by the first captions."""
        self.exact_s = 0.0
        """Of a caption, where a sample of the images is searched plainly too."""
        if settings.method is not Method.PLAIN:
            plain = replace(settings, method=Method.PLAIN)
            self.exact_s = seconds(min(many, SAMPLED), some, plain) / some

    def seconds(self, rows: int, captions: int, passes: int, blocks: int) -> float:
        """About how long a search takes.

        Args:
            rows: images.
            captions: texts.
            passes: how often the captions are read.
            blocks: of captions; of each, the best are scored anew and may enter the pools, which
                of the `n`-th block are an `n`-th of what they were of the first.
        """
        filling = self.query_s * sum(1 / n for n in range(1, blocks + 1))
        reading_s = captions * (passes * self.caption_s + self.exact_s)
        return reading_s + rows * (filling + captions * self.pair_s)


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
