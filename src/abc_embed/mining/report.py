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
from abc_embed.mining.pools import RULES, Pools, SampledNegatives
from abc_embed.mining.settings import Floats, Ints, MiningSettings
from abc_embed.storage.files import atomic_write

BINS = 200
"""Of scores from -1 to 1, each 0.01 wide."""
RANKS = (1, 2, 3, 6, 11, 101, 1001)
"""Where the bins of ranks begin."""


@dataclass(slots=True)
class Histogram:
    """How many scores lie in each of `BINS`; those beyond -1 or 1 count at the end."""

    counts: Ints = field(default_factory=lambda: np.zeros(BINS, dtype=np.int64))

    def add(self, scores: Floats) -> None:
        bins = np.clip(((scores + 1) * (BINS / 2)).astype(np.int64), 0, BINS - 1)
        self.counts += np.bincount(bins, minlength=BINS)

    @property
    def median(self) -> float | None:
        """The middle of the bin in which half of all is reached."""
        total = int(self.counts.sum())
        if not total:
            return None
        place = int(np.searchsorted(np.cumsum(self.counts), (total + 1) // 2))
        return (place + 0.5) * 2 / BINS - 1

    def as_json(self) -> dict[str, object]:
        return {"counts": self.counts.tolist(), "median": self.median}


@dataclass(slots=True)
class MiningReport:
    """What came of it. Counts of candidates are summed over all mined rows."""

    rows: int = 0
    without_caption: int = 0
    method: str = ""
    bad: list[tuple[int, str, str]] = field(default_factory=list)
    """(row, where it stands, why) of rows that cannot be read or embedded."""
    remembered: int = 0
    """Vectors that were on disk already."""
    searched_before: int = 0
    """Rows whose pools were on disk already."""
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
    recall: float | None = None
    """The share of exact pools that was found, for a sample of rows; None with `plain`."""
    recall_rows: int = 0
    own_scores: Histogram = field(default_factory=Histogram)
    pool_scores: Histogram = field(default_factory=Histogram)
    drawn_scores: Histogram = field(default_factory=Histogram)
    own_ranks: Ints = field(default_factory=lambda: np.zeros(len(RANKS), dtype=np.int64))
    """Of the own caption among those of other images; bins begin at `RANKS`."""

    @property
    def mined(self) -> int:
        return int(self.own_ranks.sum())

    @property
    def scored(self) -> int:
        return sum(self.dropped.values()) + self.pooled

    @property
    def drawn(self) -> int:
        return int(self.drawn_scores.counts.sum())

    @property
    def rejects(self) -> list[dict[str, object]]:
        """`bad` as JSON values."""
        return [{"row": row, "place": where, "why": why} for row, where, why in self.bad]

    def add(
        self, pools: Pools, negatives: Sequence[SampledNegatives], settings: MiningSettings
    ) -> None:
        """Count the pools of a block, and what was drawn from them."""
        sizes = pools.sizes
        for rule, count in zip(RULES, pools.dropped.sum(axis=0).tolist(), strict=True):
            self.dropped[rule] += count
        self.pooled += int(sizes.sum())
        self.short_pools += int((sizes < settings.pool).sum())
        self.empty += int((sizes == 0).sum())
        self.own_not_positive += int((pools.own <= 0).sum())
        self.own_scores.add(pools.own)
        self.pool_scores.add(pools.scores[pools.rows >= 0])
        places = np.searchsorted(RANKS, pools.better + 1, side="right") - 1
        self.own_ranks += np.bincount(places, minlength=len(RANKS))
        self.short_draws += sum(len(drawn.ranks) < settings.sample_size for drawn in negatives)
        scores = [score for drawn in negatives for score in drawn.scores]
        self.drawn_scores.add(np.array(scores, dtype=np.float32))

    def as_json(self) -> dict[str, object]:
        """JSON values; histograms as lists, with where their bins begin."""
        names = (
            *("rows", "mined", "without_caption", "remembered", "searched_before", "method"),
            *("scored", "dropped", "pooled", "short_pools", "short_draws", "empty"),
            *("own_not_positive", "drawn", "recall", "recall_rows"),
        )
        return {
            **{name: getattr(self, name) for name in names},
            "own_ranks": self.own_ranks.tolist(),
            "bad": self.rejects,
            "score_bins": {"from": -1, "to": 1, "count": BINS},
            "scores": {
                "own": self.own_scores.as_json(),
                "pool": self.pool_scores.as_json(),
                "drawn": self.drawn_scores.as_json(),
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
    tenth = BINS // 20  # bins of a tenth of the score: the axis begins and ends at one
    used = np.flatnonzero(report.own_scores.counts + report.pool_scores.counts)
    first, last = (used[0] // tenth, used[-1] // tenth + 1) if len(used) else (0, 1)
    shown = slice(first * tenth, last * tenth)
    edges = [f"{place * 2 / BINS - 1:.2f}" for place in range(shown.start, shown.stop)]
    panels = []
    for title, histogram, colour in (
        ("score of the own caption", report.own_scores, GREEN),
        ("scores of drawn negatives", report.drawn_scores, RED),
    ):
        median = histogram.median
        text = title if median is None else f"{title}, median {median:.3f}"
        panels.append((text, histogram.counts[shown], edges, colour))
    ends = [f"{a}" if b - a == 1 else f"{a}-{b - 1}" for a, b in pairwise(RANKS)]
    title = "rank of the own caption among those of other images"
    panels.append((title, report.own_ranks, [*ends, f"{RANKS[-1]}+"], _BLUE))
    for number, (title, counts, labels, colour) in enumerate(panels):
        top = _LINE + number * (_HEIGHT + 2 * _LINE)
        _panel(pen, top, title, counts.tolist(), labels, colour)
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
