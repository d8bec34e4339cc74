"""The benchmarks that everyone has: tiers G, B and S, drawn on the spot from pinned seeds.

No picture is shipped, as each tier takes seconds to draw; one whose content is not what its
version's hash says is refused. A change of any row or pixel is a new version.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from abc_embed.bench.ctrlbench import binding, grid, unseen_scenes
from abc_embed.bench.ctrlbench.scene_benchmark import (
    SceneBenchmark,
    unanswerable_queries,
    write_scene_benchmark,
)
from abc_embed.bench.ctrlbench.schema import CARD_FILE, Benchmark, read_benchmark
from abc_embed.bench.ctrlbench.validate import validate
from abc_embed.errors import DataError, UsageError
from abc_embed.storage.vector_cache import default_folder

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Tier:
    """One version of a tier: what makes it, and the hash of what must come out."""

    generate: Callable[[], SceneBenchmark]
    version: int
    content_hash: str


TIERS = {
    "G": Tier(grid.generate, 1, "ba6bb448fcb4e2f4617bfa821b1db17e811b01ba6dcf5f28a169de88e92761e8"),
    "B": Tier(
        binding.generate, 1, "ed25f1ab76229f68f6aeb0239c54655eb0c0969918195b99b7a2fd8137cebfc3"
    ),
    "S": Tier(
        unseen_scenes.generate,
        1,
        "47b36ee42c717fd60e52f413eea6620bf33e1dd92700725d53ad72033857feac",
    ),
}


def build(name: str, out: Path, on_progress: Progress | None = None) -> Benchmark:
    """Draw a tier into a folder and validate it; equal on every machine.

    Raises:
        UsageError: there is no such tier.
        DataError: this machine draws other pixels or rows than the version has.
        OutputError: the folder cannot be written.
    """
    benchmark = write_scene_benchmark(_tier(name).generate(), out, on_progress=on_progress)
    validate(benchmark, name)
    _check_hash(benchmark, name)
    return benchmark


def load(name: str, on_progress: Progress | None = None) -> Benchmark:
    """The tier from the user's cache folder; drawn there at first use.

    Raises:
        UsageError, DataError, OutputError: as `build`.
    """
    folder = default_folder() / "ctrlbench" / f"{name}-{_tier(name).version}"
    if not (folder / CARD_FILE).is_file():  # written last, so what is there is complete
        return build(name, folder, on_progress)
    benchmark = read_benchmark(folder)
    if benchmark.missing:
        raise DataError(f"{folder} has lost {benchmark.missing[0]}; delete the folder")
    _check_hash(benchmark, name)
    return benchmark


def unanswerable(benchmark: Benchmark, name: str) -> list[tuple[str, str]]:
    """(image_id, instruction) that no image of a frozen tier answers; none for other folders."""
    is_frozen = name in TIERS and benchmark.content_hash() == TIERS[name].content_hash
    return _unanswerable(name) if is_frozen else []


@cache
def _unanswerable(name: str) -> list[tuple[str, str]]:
    return unanswerable_queries(TIERS[name].generate())


def _tier(name: str) -> Tier:
    if name not in TIERS:
        raise UsageError(f"there is no tier {name!r} to draw; choose {', '.join(TIERS)}")
    return TIERS[name]


def _check_hash(benchmark: Benchmark, name: str) -> None:
    tier, content_hash = TIERS[name], benchmark.content_hash()
    if content_hash != tier.content_hash:
        raise DataError(
            f"{benchmark.folder} is not tier {name} version {tier.version}: its hash is "
            f"{content_hash[:8]}, not {tier.content_hash[:8]}; delete the folder, and if it comes "
            "out so again, install the Pillow and NumPy of constraints.txt"
        )
