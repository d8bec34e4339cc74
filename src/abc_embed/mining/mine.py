"""A data set -> mined negatives of each row, and a report of what was dropped.

Shapes: `N` rows that are mined, `M` distinct captions.
"""

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from abc_embed.data import Dataset
from abc_embed.errors import DataError
from abc_embed.inputs import Item
from abc_embed.mining.corpus import Corpus
from abc_embed.mining.pools import Pools, PoolStore, SampledNegatives, Truth, recall, sample_ranks
from abc_embed.mining.report import MiningReport
from abc_embed.mining.search import search
from abc_embed.mining.settings import Ints, Method, MiningSettings
from abc_embed.mining.shards import EmbedderSetup, ItemSource, ShardRows, Shards, VectorSpace
from abc_embed.storage.hashing import sha256
from abc_embed.storage.vector_folder import VectorFolder

SAMPLED = 128
"""Rows whose pools are compared with exact ones, found apart."""

StageCallback = Callable[[str, int, int], None]
"""Called with which part of the work goes on, how much of it is done, and of how much."""


def text_item(text: str) -> Item:
    """A caption."""
    return Item(text=text)


def image_item(dataset: Dataset, row: int) -> Item:
    """The image of a row, not yet opened."""
    return Item(image=dataset.row(row).image)


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
        for place, size in enumerate(pools.sizes.tolist()):
            row = int(self.rows[pools.first + place])
            ranks = sample_ranks(size, self.settings, row)
            yield SampledNegatives(
                row,
                self.captions[pools.rows[place, ranks]].tolist(),
                pools.scores[place, ranks].tolist(),
                ranks,
                float(pools.own[place]),
            )


class MiningRun:
    """A data set, a model and settings, with a folder for vectors and pools, which stay.

    A run that was killed goes on there, one with another sample needs nothing more, and one of
    other rows embeds only what is new.
    """

    def __init__(
        self, corpus: Corpus, setup: EmbedderSetup, settings: MiningSettings, work: Path
    ) -> None:
        """Raises `OutputError` where the folder `work` cannot be made."""
        self.corpus, self.setup, self.settings, self.work = corpus, setup, settings, work
        space = VectorSpace(
            folder=work / "vectors",
            model=setup.embedder.fingerprint,
            width=setup.embedder.dim,
            max_pixels=setup.max_pixels,
            store=settings.store,
        )
        self.rows = corpus.minable
        keys = [f"image {digest.tobytes().hex()}" for digest in corpus.digests[self.rows]]
        self.images = Shards(space, keys)
        text_space = replace(space, max_pixels=None)  # no text depends on it
        self.captions = Shards(text_space, [f"text {sha256(text)}" for text in corpus.captions])
        as_image = partial(image_item, corpus.dataset)
        self.sources: tuple[tuple[Shards, ItemSource[Any]], ...] = (
            (self.captions, ItemSource("captions", corpus.captions, text_item)),
            (self.images, ItemSource("images", self.rows.tolist(), as_image)),
        )

    def take_vectors(self, made: VectorFolder) -> int:
        """Make shards of images whose vectors `abc-embed batch` wrote; how many shards.

        A vector belongs to the content of an image file, whatever its row is called. A shard is
        made where all its images have one; the others are embedded as if nothing were there.

        Raises:
            DataError: the vectors are of another model, resolution or width, or are damaged.
            OutputError: a shard cannot be written.
        """
        width = self.images.shape[1]
        made.check(self.setup.embedder.fingerprint, self.setup.max_pixels)
        if made.facts["dim"] != width:
            raise DataError(
                f"the vectors in {str(made.path)!r} are cut; mining needs all their width"
            )
        names, inverse = self.corpus.images(self.rows)
        place_of = {name.tobytes(): place for place, name in enumerate(names)}
        has = np.zeros(len(names), dtype=np.bool_)
        with tempfile.TemporaryFile(dir=self.work) as file:
            taken = np.memmap(file, dtype=np.float32, mode="w+", shape=(len(names), width))
            for _, vectors, contents in made.vectors():
                for content, vector in zip(contents, vectors, strict=True):
                    if (place := place_of.get(content)) is not None:
                        taken[place], has[place] = vector, True
            written = 0
            for number in self.images.missing():
                wanted = inverse[self.images.span(number)]
                if has[wanted].all():
                    self.images.write(number, taken[wanted], {})
                    written += 1
        return written

    def mine(
        self,
        *,
        processes: int = 1,
        on_progress: StageCallback = lambda stage, done, total: None,
    ) -> Mined:
        """Embed what is not on disk, search what is not on disk, and count.

        Raises:
            DataError: no row can be embedded, a vector is not finite, or a file in `work` is
                damaged.
            OutputError: `work` cannot be used.
            UsageError: the memory is too little, or `processes` cannot be.
        """
        corpus, settings = self.corpus, self.settings
        report = MiningReport(
            rows=len(corpus),
            without_caption=corpus.without_caption,
            method=settings.resolved_method.value,
        )
        for shards, source in self.sources:
            progress = _of_stage(on_progress, source.kind, len(source.values))
            report.remembered += shards.embed_missing(
                source, self.setup, processes=processes, on_progress=progress
            )
        found = _Search(self, *self._usable(report), on_progress)
        store = found.pools("searching", "pools", np.arange(len(found.rows)), settings)
        report.searched_before = store.known
        mined = Mined(corpus, settings, report, store, found.rows, found.texts)
        for pools in store:
            report.add(pools, list(mined.sample(pools)), settings)
        if settings.method is not Method.PLAIN:
            random = np.random.default_rng([0, 1])  # whatever the seed: no run searches them again
            sample = np.sort(random.permutation(len(found.rows))[:SAMPLED])
            plain = replace(settings, method=Method.PLAIN)
            exact = found.pools("measuring the recall", "exact-pools", sample, plain)
            report.recall, report.recall_rows = recall(store, exact, sample), len(sample)
        return mined

    def _usable(self, report: MiningReport) -> tuple[Ints, Ints]:
        """Which of `rows` and of all captions have vectors; the report is told of other rows.

        Raises:
            DataError: no row has.
        """
        corpus, bad_captions = self.corpus, self.captions.errors()
        caption_of = corpus.caption_of[self.rows]
        bad = corpus.rejected | {
            int(self.rows[place]): why for place, why in self.images.errors().items()
        }
        for place in np.flatnonzero(np.isin(caption_of, [*bad_captions])).tolist():
            bad[int(self.rows[place])] = bad_captions[caption_of[place]]
        report.bad = [(row, corpus.dataset.place(row), bad[row]) for row in sorted(bad)]
        good = np.flatnonzero(~np.isin(self.rows, [*bad]))
        if not len(good):
            why = f" (the first: {report.bad[0][2]})" if report.bad else ""
            raise DataError(
                f"no row of {corpus.dataset.path} can be embedded{why}; mend its images or captions"
            )
        return good, np.setdiff1d(np.arange(len(corpus.captions)), [*bad_captions])


class _Search:
    """The images and captions of a run that have vectors, and what is true of which."""

    def __init__(self, run: MiningRun, good: Ints, texts: Ints, on_progress: StageCallback) -> None:
        """`good` are places in `run.rows`, and `texts` captions."""
        self._run, self._good, self._on_progress = run, good, on_progress
        self.rows, self.texts = run.rows[good], texts
        self._also_true = run.corpus.also_true_among(self.rows, texts)
        self._truth = Truth(
            np.searchsorted(texts, run.corpus.caption_of[self.rows]),
            run.corpus.images(self.rows)[1],
            self._also_true,
        )

    def pools(self, stage: str, folder: str, queries: Ints, settings: MiningSettings) -> PoolStore:
        """The pools of some of the images; those that are not in the folder are searched."""
        run, on_progress = self._run, self._on_progress
        key = (run.captions.id, run.images.id, settings.epsilon, settings.pool)
        arrays = [self.rows[queries], self.texts, self._also_true]
        store = PoolStore(run.work / folder, key, arrays, settings)
        if store.known < len(queries):
            for pools in search(
                ShardRows(run.images, self._good[queries]),
                ShardRows(run.captions, self.texts),
                self._truth[queries],
                settings,
                start=store.known,
                on_progress=_of_stage(on_progress, stage, len(queries)),
            ):
                store.add(pools)
        return store


def _of_stage(on_progress: StageCallback, stage: str, total: int) -> Callable[[int], None]:
    return lambda done: on_progress(stage, done, total)
