"""A records file -> the same records with mined negatives, and a report of what was dropped.

Does: embed, search, draw, write the records anew, whole or not at all. Does not: change a row that
cannot be mined (it has no caption, or its image or caption cannot be embedded): it keeps the
negatives it had, and the report names it.

Shapes: `N` rows that are mined, `M` distinct captions, `D` width.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from abc_embed.data.records import Record, read_records, write_records
from abc_embed.errors import DataError, ImageError, ImageNotFoundError, InputError
from abc_embed.index.cache import VectorCache
from abc_embed.inputs import Item
from abc_embed.mining.draw import draw
from abc_embed.mining.plan import Report, Rows, Settings
from abc_embed.mining.search import RULES, Floats, Ints, Pools, search
from abc_embed.mining.vectors import fill, new_vectors, text_key

if TYPE_CHECKING:
    from abc_embed.embedder import Embedder


@dataclass(slots=True)
class Mined:
    """What was drawn, by row; rows that were not mined are absent."""

    report: Report
    negatives: dict[int, list[tuple[int, float]]] = field(default_factory=dict)
    """Row -> (distinct caption, its score), best first."""
    own: dict[int, float] = field(default_factory=dict)
    """Row -> score of its own caption."""


class Counted(Protocol):
    """Is told which part of the work goes on, and how much of it is done."""

    def __call__(self, what: str, done: int, of: int) -> None: ...


def _silent(what: str, done: int, of: int) -> None:
    pass


def mine(
    rows: Rows,
    embedder: "Embedder",
    settings: Settings,
    cache: VectorCache | None,
    *,
    scratch: Path,
    max_pixels: int | None = None,
    batch_size: int = 32,
    counted: Counted = _silent,
) -> Mined:
    """Embed what the cache does not know, search, and draw.

    `scratch` is a folder for the vectors while the work goes on.

    Raises:
        DataError: no row can be embedded, or a vector is not finite.
        OutputError: the cache or `scratch` cannot be used.
    """
    report = Report(rows=len(rows.ids), without_caption=rows.caption_of.count(-1))
    numbers = rows.with_caption
    captions, images, same_image, number_of, good = _embedded(
        rows, numbers, embedder, cache, scratch, report, max_pixels, batch_size, counted
    )
    if not good:
        why = f" (the first: {report.bad[0][1]})" if report.bad else ""
        raise DataError(f"no row of {rows.path} can be embedded{why}; mend its images or captions")
    own = np.array([number_of[rows.caption_of[row]] for row in good], dtype=np.int64)
    texts = sorted(number_of, key=number_of.__getitem__)
    mined = Mined(report)
    found = search(
        images,
        captions,
        own,
        images=same_image,
        epsilon=settings.epsilon,
        pool=settings.pool,
        memory_bytes=settings.memory_bytes,
        counted=lambda done: counted("searching", done, len(good)),
    )
    for pools in found:
        _add(mined, pools, good, texts, settings)
    _finish(mined, settings, len(good) * len(texts))
    return mined


def _embedded(
    rows: Rows,
    numbers: list[int],
    embedder: "Embedder",
    cache: VectorCache | None,
    scratch: Path,
    report: Report,
    max_pixels: int | None,
    batch_size: int,
    counted: Counted,
) -> tuple[Floats, Floats, Ints, dict[int, int], list[int]]:
    """Vectors of captions `(M, D)` and images `(N, D)`, image numbers `(N,)`, the place of each
    caption, and the rows that are left when the bad ones are out."""

    def told(what: str, of: int) -> Callable[[int], None]:
        return lambda done: counted(what, done, of)

    captions = new_vectors(scratch, len(rows.captions), embedder.dim)
    items = [(text_key(text), Item(text=text)) for text in rows.captions]
    bad_captions, remembered = fill(
        captions,
        items,
        embedder,
        cache,
        max_pixels=max_pixels,
        batch_size=batch_size,
        counted=told("captions", len(items)),
    )
    report.remembered = remembered
    bad: dict[int, InputError] = {
        row: bad_captions[rows.caption_of[row]]
        for row in numbers
        if rows.caption_of[row] in bad_captions
    }
    files = [rows.path.parent / rows.images[row] for row in numbers]
    keys: dict[int, str] = {}
    for row, path in zip(numbers, files, strict=True):
        try:
            keys[row] = _content(path)
        except ImageError as error:
            bad.setdefault(row, error)
    asked = [row for row in numbers if row not in bad]
    images = new_vectors(scratch, len(asked), embedder.dim)
    pictures = [(keys[row], Item(image=rows.path.parent / rows.images[row])) for row in asked]
    bad_images, remembered = fill(
        images,
        pictures,
        embedder,
        cache,
        max_pixels=max_pixels,
        batch_size=batch_size,
        counted=told("images", len(pictures)),
    )
    report.remembered += remembered
    bad |= {asked[place]: error for place, error in bad_images.items()}
    report.bad = [(rows.ids[row], str(bad[row])) for row in sorted(bad)]
    good = [row for row in asked if row not in bad]
    kinds: dict[str, int] = {}
    same_image = np.array([kinds.setdefault(keys[r], len(kinds)) for r in good], dtype=np.int64)
    left = [n for n in range(len(rows.captions)) if n not in bad_captions]
    images = _kept(images, [n for n in range(len(asked)) if n not in bad_images])
    return _kept(captions, left), images, same_image, {n: i for i, n in enumerate(left)}, good


def _kept(vectors: Floats, numbers: list[int]) -> Floats:
    """Only these vectors, moved up in place: the file may be larger than the memory."""
    if len(numbers) < len(vectors):
        for place, number in enumerate(numbers):
            vectors[place] = vectors[number]
    return vectors[: len(numbers)]


def _content(path: Path) -> str:
    """The hash of a file, under which `search` remembers its vector too."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        raise ImageNotFoundError(f"there is no file {str(path)!r}") from None
    except OSError as error:
        raise ImageError(f"{str(path)!r} cannot be read ({error.strerror})") from error


def _add(mined: Mined, pools: Pools, good: list[int], texts: list[int], settings: Settings) -> None:
    """Draw from the pools of some rows, and count."""
    report = mined.report
    sizes = pools.sizes
    for place, size in enumerate(sizes.tolist()):
        row = good[pools.first + place]
        ranks = draw(size, settings.draw, settings.how, seed=settings.seed, row=row)
        mined.negatives[row] = [
            (texts[int(pools.rows[place, rank])], float(pools.scores[place, rank]))
            for rank in ranks
        ]
        mined.own[row] = float(pools.own[place])
        report.short_draws += len(ranks) < settings.draw
        report.drawn += len(ranks)
    for rule, count in zip(RULES, pools.dropped.sum(axis=0).tolist(), strict=True):
        report.dropped[rule] += count
    report.pooled += int(sizes.sum())
    report.short_pools += int((sizes < settings.pool).sum())
    report.empty += int((sizes == 0).sum())
    report.own_not_positive += int((pools.own <= 0).sum())


def _finish(mined: Mined, settings: Settings, scored: int) -> None:
    report = mined.report
    report.mined = len(mined.own)
    report.scored = scored
    report.median_own = float(np.median(list(mined.own.values())))
    drawn = [score for pairs in mined.negatives.values() for _, score in pairs]
    report.median_drawn = float(np.median(drawn)) if drawn else None


def write_mined(rows: Rows, mined: Mined, out: Path) -> None:
    """The records again, with the mined negatives in the place of those they had.

    Raises:
        DataError: the records were changed since they were read.
        OutputError: `out` cannot be written.
    """
    write_records(out, _with_negatives(rows, mined))


def _with_negatives(rows: Rows, mined: Mined) -> Iterator[Record]:
    last = -1
    for last, record in enumerate(read_records(rows.path)):
        if not _is_row(rows, last, record):
            raise _changed(rows)
        if last in mined.negatives:
            texts = tuple(rows.captions[caption] for caption, _ in mined.negatives[last])
            record = replace(record, negatives=texts)
        yield record
    if last + 1 != len(rows.ids):
        raise _changed(rows)


def _is_row(rows: Rows, row: int, record: Record) -> bool:
    """Whether a record is still what it was when the rows were read."""
    if row >= len(rows.ids):
        return False
    caption = rows.caption_of[row]
    known = None if caption < 0 else rows.captions[caption]
    return (record.id, record.image, record.caption) == (rows.ids[row], rows.images[row], known)


def _changed(rows: Rows) -> DataError:
    return DataError(f"{rows.path} was changed while it was mined; run it again")
