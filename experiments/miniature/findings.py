"""What is compared, what the paper found, and whether the runs agree: numbers in, words out.

The rule: a difference is clear when every run of the one lies beyond every run of the other. With
three seeds each, chance alone brings that about in one case of ten, in either direction.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Result = Mapping[str, Any]
"""A line of the results: one run."""
Expected = Literal["rises", "falls", "stays", ""]


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One row: the same score of several conditions, in the order of the paper's finding."""

    title: str
    score: str
    """One of `evaluate.SCORES`, or "tau": the temperature at the end."""
    conditions: tuple[tuple[str, str], ...]
    """(condition, how the row calls it)."""
    paper: str
    """The finding, with its place in the paper."""
    expected: Expected = "rises"
    """What the paper says of the last condition against the first; "" if it says nothing."""
    note: str = ""
    """What a reader must know to judge the row."""
    first_score: str = ""
    """Score of the first condition, where it is another one."""

    def runs(self, results: Sequence[Result]) -> list[list[float]]:
        """The scores of each condition, by seed."""
        scores = [self.first_score or self.score, *[self.score] * (len(self.conditions) - 1)]
        named = zip(self.conditions, scores, strict=True)
        return [values(results, condition, score) for (condition, _), score in named]


_MINED = (("mined-0", "0"), ("mined-3", "3"), ("mined-6", "6"))
_TAU = (("mined-6", "learnt from 0.07"), ("tau-fixed", "fixed at 0.07"))
_LOW = (("mined-6", "learnt from 0.07"), ("tau-from-0.01", "learnt from 0.01"))
_BATCH = (("mined-6", "8 images"), ("batch-x4", "32 images"))
_STAGE2 = (("mined-6", "off"), ("stage2-whole", "on"))
_GROUPS = (("stage2-shuffled", "shuffled"), ("stage2-whole", "whole"))
_TAU_ENDS = "near 0.03 with mined negatives, collapses to 0 with random ones (section 2)"

COMPARISONS = (
    Comparison(
        title="mined negatives of each image: image → caption",
        score="image_to_text",
        conditions=_MINED,
        paper="COCO 50.4 → 58.4 → 59.9 (section 3)",
    ),
    Comparison(
        title="mined negatives: caption → image",
        score="text_to_image",
        conditions=_MINED,
        paper="COCO 35.7 → 44.0 → 44.8 (section 3)",
    ),
    Comparison(
        title="τ at the end of 300 steps, by negatives",
        score="tau",
        conditions=(("long-mined-6", "6 mined"), ("long-mined-0", "in-batch only")),
        paper=_TAU_ENDS,
        expected="falls",
        note="likely since smoothing bounds the gap that pays, so easy negatives want a large τ",
    ),
    Comparison(
        title="the same without label smoothing",
        score="tau",
        conditions=(("long-mined-6-sharp", "6 mined"), ("long-mined-0-sharp", "in-batch only")),
        paper=_TAU_ENDS,
        expected="falls",
    ),
    Comparison(
        title="300 steps without label smoothing: image → caption",
        score="image_to_text",
        conditions=(("long-mined-0-sharp", "in-batch only"), ("long-mined-6-sharp", "6 mined")),
        paper="mined negatives help (section 3); no figure without smoothing",
    ),
    Comparison(
        title="τ learnt against fixed: image → caption",
        score="image_to_text",
        conditions=_TAU,
        paper="learns τ (section 2); no figure of a fixed one",
        expected="",
    ),
    Comparison(
        title="τ started at 0.01: image → caption",
        score="image_to_text",
        conditions=_LOW,
        paper="starts at 0.07 (section 2); no figure of another start",
        expected="",
    ),
    Comparison(
        title="τ at the end, by its start",
        score="tau",
        conditions=_LOW,
        paper="ends near 0.03 (section 2); no figure of another start",
        expected="",
    ),
    Comparison(
        title="batch × 4, as many steps: image → caption",
        score="image_to_text",
        conditions=_BATCH,
        paper="validation 92.5 → 95.0, COCO-like 73.8 → 84.0 (section 4)",
        note="the larger batch also sees four times the images",
    ),
    Comparison(
        title="stage 2: image + instruction → answer",
        score="instructed",
        conditions=_STAGE2,
        paper="what stage 2 is for (section 5); no figure of it off",
    ),
    Comparison(
        title="stage 2 on: the image alone, and with its instruction → answer",
        score="instructed",
        first_score="image_only",
        conditions=(("stage2-whole", "alone"), ("stage2-whole", "with instruction")),
        paper="CtrlBench 11.7 → 50.9 (section 6)",
    ),
    Comparison(
        title="stage 2: image → caption",
        score="image_to_text",
        conditions=_STAGE2,
        paper="the adapter is off for an image alone (section 2)",
        expected="stays",
        note="equal by construction: this checks the routing",
    ),
    Comparison(
        title="image groups in a batch: image + instruction → answer, among all answers",
        score="instructed",
        conditions=_GROUPS,
        paper="whole groups, as each other's hard negatives (section 5); no figure",
    ),
    Comparison(
        title="image groups: the same, among the answers of the image itself",
        score="within_image",
        conditions=_GROUPS,
        paper="the hard negatives that whole groups are made for (section 5); no figure",
    ),
)


def values(results: Sequence[Result], condition: str, score: str) -> list[float]:
    """A score of all runs of a condition, by seed."""
    runs = sorted((r for r in results if r["condition"] == condition), key=lambda r: int(r["seed"]))
    return [run["tau"] if score == "tau" else run["scores"][score] for run in runs]


def mean_and_spread(scores: Sequence[float]) -> str:
    """Mean ± standard deviation over the seeds; of one run the value alone."""
    if not scores:
        return "not run"
    if len(scores) == 1:
        return f"{scores[0]:.3f}"
    return f"{statistics.mean(scores):.3f} ± {statistics.stdev(scores):.3f}"


def change(first: Sequence[float], last: Sequence[float]) -> tuple[str, bool]:
    """ "rises", "falls" or "stays", and whether beyond the spread of the seeds."""
    if list(first) == list(last):
        return "stays", True
    difference = statistics.mean(last) - statistics.mean(first)
    several = min(len(first), len(last)) > 1
    clear = several and (min(last) > max(first) or max(last) < min(first))
    return ("rises" if difference > 0 else "falls"), clear


def verdict(comparison: Comparison, results: Sequence[Result]) -> str:
    """Agreeing or honestly not, in words."""
    runs = comparison.runs(results)
    if not all(runs):
        return "not run"
    direction, clear = change(runs[0], runs[-1])
    size = statistics.mean(runs[-1]) - statistics.mean(runs[0])
    seeds = min(len(run) for run in runs)
    spread = "1 seed, spread unknown" if seeds == 1 else "beyond the spread of the seeds"
    if not clear and seeds > 1:
        spread = "within the spread of the seeds"
    by = "" if direction == "stays" else f" by {abs(size):.3f}, {spread}"
    if not comparison.expected:
        return f"{direction}{by}; nothing to agree with"
    if direction != comparison.expected:
        word = "**does not agree**" if clear or seeds == 1 else "**not seen**"
        return f"{word}: {direction}{by}"
    if direction == "stays":
        return "agrees: the same to the last digit"
    return f"agrees: {direction}{by}" if clear or seeds == 1 else f"**not shown**: {direction}{by}"
