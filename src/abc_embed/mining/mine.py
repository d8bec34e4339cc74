"""A data set -> mined negatives of each row, and a report of what was dropped.

Does: embed what is not on disk, search what is not on disk, draw. Does not: write the result
(output.py), or change a row that cannot be mined: it is counted and named.

Shapes: `N` rows that are mined, `M` distinct captions, `D` width.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np

from abc_embed.errors import DataError
from abc_embed.mining.embed import Model, embed_missing
from abc_embed.mining.engines import Ints, resolve_method
from abc_embed.mining.plan import Settings
from abc_embed.mining.pool_store import PoolStore
from abc_embed.mining.pools import Pools
from abc_embed.mining.report import Report
from abc_embed.mining.rows import Rows, equal_images, image_keys, text_keys
from abc_embed.mining.sample import draw
from abc_embed.mining.search import search
from abc_embed.mining.shards import Kept, Shards, Space


class Counted(Protocol):
    """Is told which part of the work goes on, and how much of it is done."""

    def __call__(self, what: str, done: int, of: int) -> None: ...


def _silent(what: str, done: int, of: int) -> None:
    pass


@dataclass(frozen=True, slots=True)
class Drawn:
    """The negatives of one row, best first."""

    row: int
    captions: list[int]
    """Numbers of distinct captions."""
    scores: list[float]
    ranks: list[int]
    """Places in the pool, from 0."""
    own: float
    """Score of the own caption."""


@dataclass(slots=True)
class Mined:
    """What was found. The pools are on disk; `drawn` reads them anew each time."""

    rows: Rows
    settings: Settings
    report: Report
    parts: PoolStore
    good: Ints
    """`(N,)` rows that were mined, ascending."""
    texts: Ints
    """`(M,)` captions that could be embedded."""

    def drawn(self) -> Iterator[Drawn]:
        """The negatives of each mined row, by ascending row; absent rows were not mined."""
        for pools in self.parts:
            yield from self.of(pools)

    def of(self, pools: Pools) -> Iterator[Drawn]:
        """The negatives of the rows of one block."""
        told = self.settings
        for place, size in enumerate(pools.sizes.tolist()):
            row = int(self.good[pools.first + place])
            ranks = draw(size, told.draw, told.how, seed=told.seed, row=row)
            yield Drawn(
                row,
                self.texts[pools.rows[place, ranks]].tolist(),
                pools.scores[place, ranks].tolist(),
                ranks,
                float(pools.own[place]),
            )


def vectors_of(rows: Rows, model: Model, settings: Settings, work: Path) -> tuple[Shards, Shards]:
    """Where the vectors of captions and of images lie, or will.

    Raises:
        OutputError: the folder cannot be made.
    """
    space = Space(
        folder=work / "vectors",
        model=model.embedder.fingerprint,
        width=model.embedder.dim,
        max_pixels=model.max_pixels,
        store=settings.store,
    )
    texts = replace(space, max_pixels=None)  # no text depends on it
    return Shards(texts, text_keys(rows.captions)), Shards(space, image_keys(rows, rows.minable))


def mine(
    rows: Rows,
    model: Model,
    settings: Settings,
    *,
    work: Path,
    processes: int = 1,
    counted: Counted = _silent,
) -> Mined:
    """Embed, search, and count.

    `work` is a folder for vectors and pools, which stay: a run that was killed goes on there, one
    with another draw needs nothing more, and one of other rows embeds only what is new.

    Raises:
        DataError: no row can be embedded, a vector is not finite, or a file in `work` is damaged.
        OutputError: `work` cannot be used.
        UsageError: the memory is too little, or `processes` cannot be.
    """
    report = Report(rows=len(rows), without_caption=rows.without_caption)
    captions, images = vectors_of(rows, model, settings, work)
    numbers = rows.minable
    lists = (("captions", captions, rows.captions), ("images", images, numbers.tolist()))
    for what, shards, items in lists:
        report.remembered += embed_missing(
            shards,
            items,
            model,
            rows.dataset,
            processes=processes,
            counted=_telling(counted, what, len(items)),
        )
        shards.write_manifest(what)
    bad_captions, bad_images = captions.errors(), images.errors()
    bad = dict(rows.rejected)
    bad |= {int(numbers[place]): why for place, why in bad_images.items()}
    if bad_captions:
        named = rows.caption_of.tolist()
        bad |= {row: bad_captions[c] for row, c in enumerate(named) if c in bad_captions}
    report.bad = [(row, rows.dataset.place(row), bad[row]) for row in sorted(bad)]
    keep = np.array([row not in bad for row in numbers.tolist()], dtype=np.bool_)
    good, texts = numbers[keep], np.setdiff1d(np.arange(len(rows.captions)), list(bad_captions))
    if not len(good):
        why = f" (the first: {report.bad[0][2]})" if report.bad else ""
        raise DataError(
            f"no row of {rows.dataset.path} can be embedded{why}; mend its images or captions"
        )
    own = np.searchsorted(texts, rows.caption_of[good])
    told = (captions.id, images.id, settings.epsilon, settings.pool)
    same = equal_images(rows, good)
    parts = PoolStore(work / "pools", told, [good, texts], settings.search)
    report.searched_before = parts.done
    report.method = resolve_method(settings.search.method).value
    for pools in search(
        Kept(images, np.flatnonzero(keep)),
        Kept(captions, texts),
        own,
        images=same,
        epsilon=settings.epsilon,
        pool=settings.pool,
        how=settings.search,
        start=parts.done,
        counted=_telling(counted, "searching", len(good)),
    ):
        parts.add(pools)
    mined = Mined(rows, settings, report, parts, good, texts)
    _count(mined)
    return mined


def _telling(counted: Counted, what: str, of: int) -> Callable[[int], None]:
    return lambda done: counted(what, done, of)


def _count(mined: Mined) -> None:
    report, told = mined.report, mined.settings
    for pools in mined.parts:
        report.add(pools, told.pool)
        scores: list[float] = []
        for one in mined.of(pools):
            report.short_draws += len(one.ranks) < told.draw
            scores += one.scores
        report.drawn += len(scores)
        report.drawn_scores.add(np.array(scores, dtype=np.float32))
