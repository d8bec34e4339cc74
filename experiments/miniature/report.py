"""docs/miniature.md, from the lines of all runs: one table, each row beside the paper's finding."""

from collections.abc import Sequence
from pathlib import Path

from abc_embed.storage.files import atomic_write, make_folder
from experiments.miniature.figure import draw
from experiments.miniature.findings import (
    COMPARISONS,
    Comparison,
    Result,
    mean_and_spread,
    values,
    verdict,
)
from experiments.miniature.plan import CONDITIONS, INSTRUCTIONS, START, Sizes

PAGE, PICTURE = "miniature.md", "images/miniature.png"


def write_report(results: Sequence[Result], docs: Path) -> list[Path]:
    """Write page and figure; their paths.

    Raises:
        MissingExtraError: matplotlib is not installed.
        OutputError: a file cannot be written.
    """
    picture, page = docs / PICTURE, docs / PAGE
    make_folder(picture.parent)
    draw(results, picture)
    with atomic_write(page) as file:
        file.write(text(results).encode())
    return [page, picture]


def text(results: Sequence[Result]) -> str:
    """The page, in Markdown."""
    parts = [
        "# The paper in miniature",
        "Written by `make miniature` from `results/miniature.jsonl`; edit "
        "`experiments/miniature/`, not this page.",
        _how(results),
        "\n".join(_table(results)),
        f"![A panel for each finding]({PICTURE})",
        "Bars are means, dots and lines single runs.",
        _limits(results),
    ]
    return "\n\n".join(parts) + "\n"


def _how(results: Sequence[Result]) -> str:
    """What was run, in a few sentences; sizes as in the plan."""
    sizes = Sizes()
    captions = mean_and_spread(values(results, START.name, "image_to_text"))
    answers = mean_and_spread(values(results, START.name, "instructed"))
    weights = ", ".join(dict.fromkeys(f"`{run['weights'][:8]}`" for run in results))
    return f"""\
The paper's findings, tried on generated scenes with a small model: the same base, the same
pictures and the same training code (`run_stage`) throughout, one thing changed at
a time.

* **Base.** The bundled model before its stage 2 (SHA-256 of its weights: {weights}), with
  {len(sizes.layers)} of its 4 language layers and a fresh head. It sees and hardly embeds: R@1
  {captions} image → caption, {answers} image + instruction → answer.
* **Stage 1.** {sizes.steps} steps of {sizes.batch} images, LoRA {sizes.rank}, learning rate
  {sizes.rate:g}, label smoothing 0.1, {sizes.images:,} pictures of {sizes.side} px. Negatives were
  mined once, by a model of {sizes.mining_steps} steps with in-batch negatives only (ε 0.95, pool
  of {sizes.pool}, {sizes.drawn} kept; a step draws from these).
* **Stage 2.** From the reference (6 mined negatives) of the same seed: {sizes.instruct_steps} steps
  of {sizes.instruct_images} images × {INSTRUCTIONS} instructions, LoRA 16. Shuffled batches hold
  the very same pairs, as many in each, in other company.
* **Measured** on unseen scenes: about {sizes.captions} pictures, in mirrored pairs, against their
  captions; and at least {sizes.queries} instructions against every answer. R@1 in all rows but
  those of τ.
* **Spread.** ± is the standard deviation over the seeds. A difference is beyond the spread when
  every run of the one lies beyond every run of the other; with three runs each, chance does that
  in one case of ten."""


def _table(results: Sequence[Result]) -> list[str]:
    head = ["| what | here | the paper | agreeing? |", "| --- | --- | --- | --- |"]
    return head + [_row(comparison, results) for comparison in COMPARISONS]


def _row(comparison: Comparison, results: Sequence[Result]) -> str:
    named = zip(comparison.conditions, comparison.runs(results), strict=True)
    here = "; ".join(f"{label}: {mean_and_spread(scores)}" for (_, label), scores in named)
    judged = verdict(comparison, results) + (f" ({comparison.note})" if comparison.note else "")
    return f"| {comparison.title} | {here} | {comparison.paper} | {judged} |"


def _limits(results: Sequence[Result]) -> str:
    """Seeds, time, and what a reader should not conclude."""
    counts = {c.name: len(values(results, c.name, "tau")) for c in CONDITIONS}
    few = [f"{name} ({count})" for name, count in counts.items() if count < len(Sizes().seeds)]
    short = f" With fewer than {len(Sizes().seeds)} seeds: {', '.join(few)}." if few else ""
    minutes = sum(run["seconds"] for run in results) / 60
    return (
        f"{len(results)} runs. Their times add up to {minutes:.0f} minutes by the clock, longer on "
        f"a busy machine; several go on at a time.{short} The curves of loss, accuracy and τ, the "
        "versions and the machine are in `results/miniature.jsonl`.\n\n"
        "What agrees here agrees at this size; what does not may need the paper's: its batches are "
        "64 times as large and its runs 40 times as long. The paper's figures are of photos and of "
        "other benchmarks: compare directions, not heights."
    )
