"""What mining is asked to do, what it will take, and what came of it.

Does: check settings, number the rows and distinct captions of a records file, say the work's size.
Does not: embed or search.
"""

from dataclasses import dataclass, field
from pathlib import Path

from abc_embed.data.records import RECORDS_FILE, read_records
from abc_embed.errors import DataError, UsageError
from abc_embed.mining.draw import DRAW, How
from abc_embed.mining.search import EPSILON, MEMORY, POOL, RULES, block_side


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What decides the negatives, apart from model and records."""

    epsilon: float = EPSILON
    pool: int = POOL
    draw: int = DRAW
    how: How = How.UNIFORM
    seed: int = 0
    memory_bytes: int = MEMORY
    """Ceiling of the search; it changes no result."""

    def __post_init__(self) -> None:
        if not 0 < self.epsilon <= 1:
            raise UsageError(f"epsilon is {self.epsilon}; give a number above 0, and at most 1")
        for name, least in (("pool", 1), ("draw", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise UsageError(f"{name} is {getattr(self, name)}; give at least {least}")


@dataclass(slots=True)
class Rows:
    """A records file by number, without what mining does not need."""

    path: Path
    ids: list[str] = field(default_factory=list)
    images: list[str] = field(default_factory=list)
    caption_of: list[int] = field(default_factory=list)
    """The distinct caption of each row; -1 for none."""
    captions: list[str] = field(default_factory=list)
    """The distinct captions, in the order in which they come first."""

    @property
    def with_caption(self) -> list[int]:
        """Numbers of the rows that can be mined."""
        return [row for row, caption in enumerate(self.caption_of) if caption >= 0]


def read_rows(path: Path) -> Rows:
    """The rows of a records file, or of the folder that holds it.

    Raises:
        DataError: a line is no record, or no record has a caption.
    """
    path = path / RECORDS_FILE if path.is_dir() else path
    rows = Rows(path)
    numbers: dict[str, int] = {}
    for record in read_records(path):
        rows.ids.append(record.id)
        rows.images.append(record.image)
        caption = record.caption
        rows.caption_of.append(-1 if caption is None else numbers.setdefault(caption, len(numbers)))
    if not numbers:
        raise DataError(f"{path} has no record with a caption; captions are what is mined")
    rows.captions = list(numbers)
    return rows


@dataclass(frozen=True, slots=True)
class Plan:
    """What the work takes, known before it starts."""

    rows: int
    with_caption: int
    captions: int
    scores: int
    disk_bytes: int
    """Of vectors, while the work goes on; the cache takes about as much again, and stays."""
    memory_bytes: int
    block: int
    """Rows and captions that are scored together under that ceiling."""


def plan(rows: Rows, width: int, settings: Settings) -> Plan:
    """Raises `UsageError` if the memory is too little."""
    mined = len(rows.with_caption)
    return Plan(
        rows=len(rows.ids),
        with_caption=mined,
        captions=len(rows.captions),
        scores=mined * len(rows.captions),
        disk_bytes=(mined + len(rows.captions)) * width * 4,
        memory_bytes=settings.memory_bytes,
        block=block_side(settings.memory_bytes, width, settings.pool),
    )


@dataclass(slots=True)
class Report:
    """What came of it. Counts of candidates are summed over all mined rows."""

    rows: int = 0
    mined: int = 0
    without_caption: int = 0
    bad: list[tuple[str, str]] = field(default_factory=list)
    """(id, why) of rows with an image or a caption that cannot be embedded."""
    remembered: int = 0
    """Vectors that the cache had."""
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
    median_own: float | None = None
    median_drawn: float | None = None
