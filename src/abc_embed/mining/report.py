"""What came of mining: counts, by rule, and histograms, as numbers and as pictures.

Counted block by block, so that millions of rows take no memory, and drawn with Pillow.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from abc_embed.data.contact_sheet import GREEN, RED
from abc_embed.mining.pools import RULES, Pools
from abc_embed.mining.sample import SampledNegatives
from abc_embed.storage.files import atomic_write

BINS = 200
"""Of scores from -1 to 1, each 0.01 wide."""
RANKS = (1, 2, 3, 6, 11, 101, 1001)
"""Where the bins of ranks begin."""


@dataclass(slots=True)
class Histogram:
    """How many scores lie in each of `BINS`; those beyond -1 or 1 count at the end."""

    counts: list[int] = field(default_factory=lambda: [0] * BINS)

    def add(self, scores: "np.ndarray[tuple[int, ...], np.dtype[np.float32]]") -> None:
        bins = np.clip(((scores + 1) * (BINS / 2)).astype(np.int64), 0, BINS - 1)
        for place, more in enumerate(np.bincount(bins, minlength=BINS).tolist()):
            self.counts[place] += more

    @property
    def median(self) -> float | None:
        """The middle of the bin in which half of all is reached."""
        total = sum(self.counts)
        if not total:
            return None
        place = int(np.searchsorted(np.cumsum(self.counts), (total + 1) // 2))
        return (place + 0.5) * 2 / BINS - 1


@dataclass(slots=True)
class MiningReport:
    """What came of it. Counts of candidates are summed over all mined rows."""

    rows: int = 0
    mined: int = 0
    without_caption: int = 0
    bad: list[tuple[int, str, str]] = field(default_factory=list)
    """(row, where it stands, why) of rows that cannot be read or embedded."""
    remembered: int = 0
    """Vectors that were on disk already."""
    searched_before: int = 0
    """Rows whose pools were on disk already."""
    method: str = ""
    scored: int = 0
    dropped: dict[str, int] = field(default_factory=lambda: dict.fromkeys(RULES, 0))
    pooled: int = 0
    short_pools: int = 0
    """Rows with fewer candidates below the line than the pool holds."""
    short_draws: int = 0
    """Rows with fewer negatives than were to be drawn."""
    empty: int = 0
    """Rows without any negative."""
    own_not_positive: int = 0
    """Rows whose own caption scores 0 or less; for them ε times it lies above it, or on it."""
    drawn: int = 0
    recall: float | None = None
    """The share of exact pools that was found, for a sample of rows; None with `plain`."""
    recall_rows: int = 0
    own_scores: Histogram = field(default_factory=Histogram)
    pool_scores: Histogram = field(default_factory=Histogram)
    drawn_scores: Histogram = field(default_factory=Histogram)
    own_ranks: list[int] = field(default_factory=lambda: [0] * len(RANKS))
    """Of the own caption among those of other images; bins begin at `RANKS`."""
    _recalled: list[int] = field(default_factory=lambda: [0, 0])

    def add_pools(self, pools: Pools, pool: int) -> None:
        """Count the pools of a block."""
        sizes = pools.sizes
        self.mined += len(sizes)
        for rule, count in zip(RULES, pools.dropped.sum(axis=0).tolist(), strict=True):
            self.dropped[rule] += count
        self.scored += int(pools.dropped.sum() + sizes.sum())
        self.pooled += int(sizes.sum())
        self.short_pools += int((sizes < pool).sum())
        self.empty += int((sizes == 0).sum())
        self.own_not_positive += int((pools.own <= 0).sum())
        self.own_scores.add(pools.own)
        self.pool_scores.add(pools.scores[pools.rows >= 0])
        places = np.searchsorted(RANKS, pools.better + 1, side="right") - 1
        for place, more in enumerate(np.bincount(places, minlength=len(RANKS)).tolist()):
            self.own_ranks[place] += more
        self._recalled[0] += pools.recalled[0]
        self._recalled[1] += pools.recalled[1]
        if self._recalled[1]:
            self.recall = self._recalled[0] / self._recalled[1]

    def add_sample(self, negatives: Sequence[SampledNegatives], sample_size: int) -> None:
        """Count the negatives of a block."""
        self.short_draws += sum(len(sampled.ranks) < sample_size for sampled in negatives)
        scores = np.array([s for sampled in negatives for s in sampled.scores], dtype=np.float32)
        self.drawn += len(scores)
        self.drawn_scores.add(scores)

    def as_json(self) -> dict[str, object]:
        """JSON values; histograms as lists, with where their bins begin."""
        histograms = {
            "own": self.own_scores,
            "pool": self.pool_scores,
            "drawn": self.drawn_scores,
        }
        apart = ("_recalled", "bad", *(f"{name}_scores" for name in histograms))
        return {
            **{name: getattr(self, name) for name in self.__slots__ if name not in apart},
            "bad": [{"row": row, "place": where, "why": why} for row, where, why in self.bad],
            "score_bins": {"from": -1, "to": 1, "count": BINS},
            "scores": {
                name: {"counts": histogram.counts, "median": histogram.median}
                for name, histogram in histograms.items()
            },
            "rank_bins_begin": list(RANKS),
        }


# -- pictures --------------------------------------------------------------------------------------

_WIDTH, _HEIGHT, _EDGE, _LINE = 620, 190, 46, 16
_BLUE, _INK, _FAINT = "#2f6ca8", "#222222", "#999999"


def draw_report(report: MiningReport, out: Path) -> None:
    """Histograms of the scores and of the rank of the own caption, as a PNG.

    Raises:
        OutputError: it cannot be written.
    """
    page = Image.new("RGB", (_WIDTH, 3 * (_HEIGHT + 2 * _LINE) + 2 * _LINE), "white")
    pen = ImageDraw.Draw(page)
    used = [h.counts for h in (report.own_scores, report.pool_scores)]
    some = [place for place in range(BINS) if any(counts[place] for counts in used)] or [0]
    tenth = BINS // 20  # bins of a tenth of the score: the axis begins and ends at one
    first = (some[0] // tenth) * tenth
    last = min(-(-(some[-1] + 1) // tenth) * tenth, BINS)
    panels = (
        ("score of the own caption", report.own_scores, GREEN),
        ("scores of drawn negatives", report.drawn_scores, RED),
    )
    edges = [f"{place * 2 / BINS - 1:.2f}" for place in range(first, last)]
    for number, (title, histogram, colour) in enumerate(panels):
        top = _LINE + number * (_HEIGHT + 2 * _LINE)
        median = histogram.median
        text = title if median is None else f"{title}, median {median:.3f}"
        _panel(pen, top, text, histogram.counts[first:last], edges, colour)
    ends = [f"{a}" if b - a == 1 else f"{a}-{b - 1}" for a, b in pairwise(RANKS)]
    labels = [*ends, f"{RANKS[-1]}+"]
    top = _LINE + 2 * (_HEIGHT + 2 * _LINE)
    title = "rank of the own caption among those of other images"
    _panel(pen, top, title, report.own_ranks, labels, _BLUE)
    with atomic_write(out) as file:
        page.save(file, format="PNG")


def _panel(
    pen: ImageDraw.ImageDraw,
    top: int,
    title: str,
    counts: Sequence[int],
    labels: Sequence[str],
    colour: str,
) -> None:
    """Bars with the highest one's count at its height, and some labels below."""
    font = ImageFont.load_default(size=12)
    most, bottom = max(max(counts), 1), top + _HEIGHT - _LINE
    step = (_WIDTH - 2 * _EDGE) / len(counts)
    pen.text((_EDGE, top), title, fill=_INK, font=font)
    room = bottom - top - 2 * _LINE
    for place, count in enumerate(counts):
        left = _EDGE + place * step
        height = round(room * count / most)
        if count:
            box = (left, bottom - max(height, 1), left + max(step - 1, 1), bottom)
            pen.rectangle(box, fill=colour)
        if len(counts) <= 10 and count:
            middle = left + step / 2
            place_of_text = (middle, bottom - height - 2)
            pen.text(place_of_text, f"{count:,}", fill=_INK, font=font, anchor="mb")
    pen.line((_EDGE, bottom, _WIDTH - _EDGE, bottom), fill=_FAINT)
    if len(counts) > 10:
        pen.text((4, top + 2 * _LINE), f"{most:,}", fill=_FAINT, font=font, anchor="lm")
    every = next(step for step in (1, 5, 10, 20) if len(counts) <= 10 * step)
    for place in range(0, len(counts), every):
        middle = _EDGE + (place + (0.5 if every == 1 else 0)) * step
        pen.text((middle, bottom + 2), labels[place], fill=_INK, font=font, anchor="ma")
