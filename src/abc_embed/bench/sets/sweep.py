"""Any evaluation at several resolutions: accuracy and items per second against pixels.

It is the paper's figure 4 for any set. Nothing is cached: a remembered vector takes no time.
"""

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from abc_embed import figures
from abc_embed.bench.encoders.base import Encoder, Vectors
from abc_embed.bench.encoders.wrapped import WrappedEncoder
from abc_embed.bench.sets.evaluation import EvaluationSet, Findings, measure
from abc_embed.errors import DataError
from abc_embed.inputs import Item


class TimedEncoder(WrappedEncoder):
    """Any encoder, with the seconds that images take."""

    def __init__(self, inner: Encoder) -> None:
        super().__init__(inner)
        self.images, self.seconds = 0, 0.0

    def _embed(self, items: list[Item]) -> Vectors:
        """Texts go apart: what is timed is whatever has an image."""
        vectors = np.zeros((len(items), self.dim), dtype=np.float32)
        with_image = np.array([item.image is not None for item in items], dtype=np.bool_)
        texts, images = np.flatnonzero(~with_image), np.flatnonzero(with_image)
        if len(texts):
            vectors[texts] = self.inner.embed([items[row] for row in texts])
        if len(images):
            began = time.perf_counter()
            vectors[images] = self.inner.embed([items[row] for row in images])
            self.seconds += time.perf_counter() - began
            self.images += len(images)
        return vectors


def sweep(encoder: Encoder, areas: Sequence[int], evaluation: EvaluationSet) -> list[Findings]:
    """What is found of an encoder at each area in pixels; each gains `images_per_s`."""
    swept = []
    for area in areas:
        timed = TimedEncoder(encoder.at(area))
        findings = measure(timed, evaluation)
        rate = timed.images / timed.seconds if timed.seconds else None
        swept.append({**findings, "images_per_s": rate})
    return swept


def draw(swept: Sequence[Findings], score: str, out: Path) -> None:
    """One figure: a score with its interval, and items per second, against pixels.

    Raises:
        DataError: no such score.
        MissingExtraError: matplotlib is not installed.
        OutputError: the file cannot be written.
    """
    if any(score not in findings["scores"] for findings in swept):
        known = ", ".join(swept[0]["scores"])
        raise DataError(f"there is no score {score!r}; give one of: {known}")
    areas = [findings["settings"]["max_pixels"] for findings in swept]
    scores = [findings["scores"][score] for findings in swept]
    values = [100 * figure["value"] for figure in scores]
    figure = figures.new_figure(9, 3.6)
    left, right = figure.subplots(1, 2)
    bars = [
        [v - 100 * s["interval"][0] for v, s in zip(values, scores, strict=True)],
        [100 * s["interval"][1] - v for v, s in zip(values, scores, strict=True)],
    ]
    left.errorbar(areas, values, yerr=bars, marker="o", capsize=3, color=figures.BLUE)
    low, high = left.get_ylim()
    left.set_ylim(max(low, 0.0), min(high, 100.0))
    left.set_ylabel(f"{score.replace('_', ' ')}, %")
    right.plot(areas, [f["images_per_s"] for f in swept], marker="o", color=figures.RED)
    right.set_ylabel("items with an image per second")
    right.set_ylim(bottom=0)
    for axes in (left, right):
        axes.set_xscale("log", base=2)
        axes.set_xticks(areas, [f"{area:,}" for area in areas], rotation=30, ha="right")
        axes.minorticks_off()
        axes.set_xlabel("largest area of a picture, pixels")
        axes.grid(alpha=0.3)
    figure.suptitle(swept[0]["benchmark"])
    figures.save_figure(figure, out, dpi=120)
