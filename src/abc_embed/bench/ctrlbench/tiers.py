"""The benchmarks that everyone has: tiers S, G and B, made on the spot from pinned seeds.

Does: draw a tier into a folder, and refuse it when its content is not what the version's hash says.
Does not: ship a picture: each takes seconds to draw. A change of any row or pixel is a new version.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from abc_embed.bench.ctrlbench import binding, grid, held_out
from abc_embed.bench.ctrlbench.drafts import Draft, Progress, write_draft
from abc_embed.bench.ctrlbench.schema import CARD_FILE, Benchmark, read_benchmark
from abc_embed.bench.ctrlbench.validate import gate
from abc_embed.errors import DataError, UsageError
from abc_embed.storage.vector_cache import default_folder


@dataclass(frozen=True, slots=True)
class Frozen:
    """One version of a tier: who drafts it, and the hash of what must come out."""

    draft: Callable[[], Draft]
    version: int
    content_hash: str
    what: str


TIERS = {
    "G": Frozen(
        grid.draft,
        1,
        "ba6bb448fcb4e2f4617bfa821b1db17e811b01ba6dcf5f28a169de88e92761e8",
        "grid: five aspects of every picture",
    ),
    "B": Frozen(
        binding.draft,
        1,
        "ed25f1ab76229f68f6aeb0239c54655eb0c0969918195b99b7a2fd8137cebfc3",
        "binding: one of three things of one kind",
    ),
    "S": Frozen(
        held_out.draft,
        1,
        "47b36ee42c717fd60e52f413eea6620bf33e1dd92700725d53ad72033857feac",
        "scenes: questions of every kind",
    ),
}


def build(tier: str, out: Path, progress: Progress | None = None) -> Benchmark:
    """Draw a tier into a folder, through the gate; equal on every machine.

    Raises:
        UsageError: there is no such tier.
        DataError: this machine draws other pixels or rows than the version has.
        OutputError: the folder cannot be written.
    """
    frozen = _frozen(tier)
    benchmark = write_draft(frozen.draft(), out, progress=progress)
    gate(benchmark, tier)
    _check(benchmark, tier)
    return benchmark


def load(tier: str, progress: Progress | None = None) -> Benchmark:
    """The tier from the user's cache folder; drawn there at first use.

    Raises:
        UsageError, DataError, OutputError: as `build`.
    """
    frozen = _frozen(tier)
    folder = default_folder() / "ctrlbench" / f"{tier}-{frozen.version}"
    if not (folder / CARD_FILE).is_file():  # written last, so what is there is whole
        return build(tier, folder, progress)
    benchmark = read_benchmark(folder)
    if benchmark.missing:
        raise DataError(f"{folder} has lost {benchmark.missing[0]}; delete the folder")
    _check(benchmark, tier)
    return benchmark


def _frozen(tier: str) -> Frozen:
    if tier not in TIERS:
        raise UsageError(f"there is no tier {tier!r} to draw; choose {', '.join(TIERS)}")
    return TIERS[tier]


def _check(benchmark: Benchmark, tier: str) -> None:
    frozen, found = TIERS[tier], benchmark.content_hash()
    if found != frozen.content_hash:
        raise DataError(
            f"{benchmark.folder} is not tier {tier} version {frozen.version}: its hash is "
            f"{found[:8]}, not {frozen.content_hash[:8]}; delete the folder, and if it comes out "
            "so again, install the Pillow and NumPy of constraints.txt"
        )
