"""A data set -> mined negatives of each row, and a report of what was dropped.

Shapes: `N` rows that are mined, `M` distinct captions.
"""

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from abc_embed.errors import DataError
from abc_embed.mining.corpus import Corpus
from abc_embed.mining.embed import EmbedderSetup, embed_missing
from abc_embed.mining.pool_store import PoolStore
from abc_embed.mining.pools import Pools
from abc_embed.mining.report import MiningReport
from abc_embed.mining.sample import SampledNegatives, sample_ranks
from abc_embed.mining.search import SAMPLED, search
from abc_embed.mining.settings import Ints, Method, MiningSettings
from abc_embed.mining.shards import ShardRows, Shards, VectorSpace, write_shard
from abc_embed.storage.hashing import sha256
from abc_embed.storage.vector_folder import VectorFolder

StageCallback = Callable[[str, int, int], None]
"""Called with which part of the work goes on, how much of it is done, and of how much."""


@dataclass(slots=True)
class Mined:
    """What was found. The pools are on disk; `negatives` reads them anew each time."""

    corpus: Corpus
    settings: MiningSettings
    report: MiningReport
    pools: PoolStore
    rows: Ints
    """`(N,)` rows that were mined, ascending."""
    captions: Ints
    """`(M,)` captions that could be embedded."""

    def negatives(self) -> Iterator[SampledNegatives]:
        """The negatives of each mined row, by ascending row; absent rows were not mined."""
        for pools in self.pools:
            yield from self.sample(pools)

    def sample(self, pools: Pools) -> Iterator[SampledNegatives]:
        """The negatives of the rows of one block."""
        settings = self.settings
        for place, size in enumerate(pools.sizes.tolist()):
            row = int(self.rows[pools.first + place])
            ranks = sample_ranks(
                size, settings.sample_size, settings.strategy, seed=settings.seed, row=row
            )
            yield SampledNegatives(
                row,
                self.captions[pools.rows[place, ranks]].tolist(),
                pools.scores[place, ranks].tolist(),
                ranks,
                float(pools.own[place]),
            )


def open_shards(
    corpus: Corpus, setup: EmbedderSetup, settings: MiningSettings, work: Path
) -> tuple[Shards, Shards]:
    """Where the vectors of captions and of images lie, or will.

    Raises:
        OutputError: the folder cannot be made.
    """
    space = VectorSpace(
        folder=work / "vectors",
        model=setup.embedder.fingerprint,
        width=setup.embedder.dim,
        max_pixels=setup.max_pixels,
        store=settings.store,
    )
    text_space = replace(space, max_pixels=None)  # no text depends on it
    captions = Shards(text_space, [f"text {sha256(text)}" for text in corpus.captions])
    digests = corpus.digests[corpus.minable]
    return captions, Shards(space, [f"image {digest.tobytes().hex()}" for digest in digests])


def take_vectors(
    corpus: Corpus, setup: EmbedderSetup, settings: MiningSettings, work: Path, made: VectorFolder
) -> int:
    """Make shards of images whose vectors `abc-embed batch` wrote; how many shards.

    A vector belongs to the content of an image file, whatever its row is called. A shard is made
    where all its images have one; the others are embedded as if nothing were there.

    Raises:
        DataError: the vectors are of another model, resolution or width, or are damaged.
        OutputError: a shard cannot be written.
    """
    made.check(setup.embedder.fingerprint, setup.max_pixels)
    if made.facts["dim"] != setup.embedder.dim:
        raise DataError(f"the vectors in {str(made.path)!r} are cut; mining needs all their width")
    shards = open_shards(corpus, setup, settings, work)[1]
    names, inverse = corpus.images(corpus.minable)
    place_of = {name.tobytes(): place for place, name in enumerate(names)}
    has = np.zeros(len(names), dtype=np.bool_)
    with tempfile.TemporaryFile(dir=work) as file:
        shape = (max(len(names), 1), setup.embedder.dim)
        taken = np.memmap(file, dtype=np.float32, mode="w+", shape=shape)
        for _, vectors, contents in made.vectors():
            for content, vector in zip(contents, vectors, strict=True):
                if (place := place_of.get(content)) is not None:
                    taken[place], has[place] = vector, True
        written = 0
        for number in shards.missing():
            wanted = inverse[shards.span(number)]
            if has[wanted].all():
                write_shard(shards.paths[number], taken[wanted].astype(settings.store), {})
                written += 1
    return written


def mine(
    corpus: Corpus,
    setup: EmbedderSetup,
    settings: MiningSettings,
    *,
    work: Path,
    processes: int = 1,
    on_progress: StageCallback = lambda stage, done, total: None,
) -> Mined:
    """Embed what is not on disk, search what is not on disk, and count.

    `work` is a folder for vectors and pools, which stay: a run that was killed goes on there, one
    with another sample needs nothing more, and one of other rows embeds only what is new.

    Raises:
        DataError: no row can be embedded, a vector is not finite, or a file in `work` is damaged.
        OutputError: `work` cannot be used.
        UsageError: the memory is too little, or `processes` cannot be.
    """
    report = MiningReport(rows=len(corpus), without_caption=corpus.without_caption)
    captions, images = open_shards(corpus, setup, settings, work)
    numbers = corpus.minable
    stages = (("captions", captions, corpus.captions), ("images", images, numbers.tolist()))
    for stage, shards, items in stages:
        report.remembered += embed_missing(
            shards,
            items,
            setup,
            corpus.dataset,
            processes=processes,
            on_progress=_of_stage(on_progress, stage, len(items)),
        )
        shards.write_manifest(stage)
    bad_captions = captions.errors()
    bad = corpus.rejected | {int(numbers[at]): why for at, why in images.errors().items()}
    if bad_captions:
        named = enumerate(corpus.caption_of.tolist())
        bad |= {row: bad_captions[caption] for row, caption in named if caption in bad_captions}
    report.bad = [(row, corpus.dataset.place(row), bad[row]) for row in sorted(bad)]
    is_good = np.array([row not in bad for row in numbers.tolist()], dtype=np.bool_)
    rows, texts = numbers[is_good], np.setdiff1d(np.arange(len(corpus.captions)), [*bad_captions])
    if not len(rows):
        why = f" (the first: {report.bad[0][2]})" if report.bad else ""
        raise DataError(
            f"no row of {corpus.dataset.path} can be embedded{why}; mend its images or captions"
        )
    key = (captions.id, images.id, settings.epsilon, settings.pool)
    arrays = [rows, texts, corpus.also_true_among(rows, texts)]
    store = PoolStore(work / "pools", key, arrays, settings.search)
    report.searched_before, report.method = store.done, settings.search.resolved_method.value
    if settings.search.method is not Method.PLAIN:
        report.recall_rows = min(SAMPLED, len(rows))
    for pools in search(
        ShardRows(images, np.flatnonzero(is_good)),
        ShardRows(captions, texts),
        np.searchsorted(texts, corpus.caption_of[rows]),
        images=corpus.images(rows)[1],
        also_true=arrays[2],
        epsilon=settings.epsilon,
        pool=settings.pool,
        settings=settings.search,
        start=store.done,
        on_progress=_of_stage(on_progress, "searching", len(rows)),
    ):
        store.add(pools)
    mined = Mined(corpus, settings, report, store, rows, texts)
    for pools in store:
        report.add_pools(pools, settings.pool)
        report.add_sample(list(mined.sample(pools)), settings.sample_size)
    return mined


def _of_stage(on_progress: StageCallback, stage: str, total: int) -> Callable[[int], None]:
    return lambda done: on_progress(stage, done, total)
