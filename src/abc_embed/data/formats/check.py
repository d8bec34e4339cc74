"""Every row of a data set looked at, image and all: what is wrong, where, and the mend.

A row that cannot be used is an error; what comes twice or is long is a remark.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from abc_embed.data.dataset import Dataset, Rejected, Row, read_head
from abc_embed.decoding import hold_memory
from abc_embed.errors import DataError, ImageError
from abc_embed.inputs import open_image
from abc_embed.storage.hashing import short_hash
from abc_embed.workers import map_ahead

LONG = 2000
"""Characters beyond which a text is called long: some 500 tokens, where the paper's captions have
a dozen words."""
THREADS = 4

ERRORS = ("rows that cannot be read", "images that cannot be read", "wrong sizes", "ids twice")
REMARKS = ("images twice", "captions twice", "long texts", "rows without any text")
NOT_READ = ("files not read", "columns not read")
"""Remarks that few data sets have; counted where they have."""


@dataclass(slots=True)
class CheckReport:
    """What a check found: `errors` and `remarks` say where, `counts` how often."""

    rows: int = 0
    usable: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    errors: list[Rejected] = field(default_factory=list)
    """Every row that cannot be used."""
    remarks: list[Rejected] = field(default_factory=list)
    """Rows that can be used, with something that may not be meant."""
    texts: Counter[str] = field(default_factory=Counter)
    """Captions, instructions, negatives, regions: how many there are."""
    unused: Counter[str] = field(default_factory=Counter)
    """Columns, or members of a sample, that no field holds: in how many rows."""

    @property
    def good(self) -> bool:
        """Whether every row can be used."""
        return not self.errors

    @property
    def kinds(self) -> tuple[str, ...]:
        """What is counted."""
        return (*ERRORS, *REMARKS, *(name for name in NOT_READ if self.counts[name]))

    def as_json(self) -> dict[str, Any]:
        """All of it, for programs."""
        return {
            "rows": self.rows,
            "usable": self.usable,
            "texts": dict(self.texts),
            "unused": dict(self.unused),
            "counts": {name: self.counts[name] for name in self.kinds},
            "errors": [asdict(error) for error in self.errors],
            "remarks": [asdict(remark) for remark in self.remarks],
        }

    def add(self, kind: str, place: str, why: str) -> None:
        """Note an error or a remark."""
        self.counts[kind] += 1
        (self.errors if kind in ERRORS else self.remarks).append(Rejected(place, why))


def check(
    dataset: Dataset,
    *,
    longest: int = LONG,
    on_progress: Callable[[int, int], None] = lambda done, of: None,
) -> CheckReport:
    """Look at every row and every image; `longest` is in characters. Images are unpacked in
    `THREADS` threads, a few ahead."""
    report, first_places = CheckReport(), dict[tuple[str, bytes], str]()
    for note in dataset.notes:
        report.add("files not read", note.place, note.why)
    for found in inspect_rows(dataset):
        report.rows += 1
        if isinstance(found, Fault):
            report.add(found.kind, found.place, found.why)
        else:
            _check_row(report, first_places, found, longest)
        on_progress(report.rows, len(dataset))
    for name, count in report.unused.items():
        why = f"no field holds {name!r}, which {count:,} rows have"
        report.add("columns not read", str(dataset.path), why)
    return report


class UsableRow(NamedTuple):
    """A row, and the format and the bytes of its image."""

    row: Row
    format: str
    content: bytes


class Fault(NamedTuple):
    """A row that cannot be used; `kind` is one of `ERRORS`."""

    place: str
    kind: str
    why: str


def inspect_rows(
    dataset: Dataset, start: int = 0, stop: int | None = None
) -> Iterator[UsableRow | Fault]:
    """Rows in order, each with its image, which was unpacked, or what is wrong.

    Whatever uses a data set as a whole asks here, so that all agree on which rows are good.
    """
    with ThreadPoolExecutor(THREADS) as pool:
        yield from map_ahead(pool, _inspect, dataset.rows(start, stop), 4 * THREADS)


def _inspect(row: Row | Rejected) -> UsableRow | Fault:
    if isinstance(row, Rejected):
        return Fault(row.place, "rows that cannot be read", row.why)
    try:
        content = row.read_image()
        with hold_memory():
            width, height = open_image(content).size
        kind, *_ = read_head(content)
        list(row.record.negatives)  # those of a published set are looked up only now
    except DataError as wrong:
        return Fault(row.place, "rows that cannot be read", str(wrong))
    except (ImageError, OSError) as wrong:
        name = row.image.name if isinstance(row.image, Path) else row.record.image
        why = f"the image {name}: {wrong}"
        if isinstance(wrong, OSError):
            why = f"the image {name} cannot be read ({wrong.strerror}); put it there"
        return Fault(row.place, "images that cannot be read", why)
    record = row.record
    if (record.width, record.height) != (width, height):
        why = f"width and height are {record.width} x {record.height} but the image has"
        return Fault(row.place, "wrong sizes", f"{why} {width} x {height}; write these")
    return UsableRow(row, kind, content)


def _check_row(
    report: CheckReport,
    first_places: dict[tuple[str, bytes], str],
    found: UsableRow,
    longest: int,
) -> None:
    """`first_places`: where the hash of an id, an image or a caption came first."""
    record, place = found.row.record, found.row.place

    def seen(kind: str, key: bytes) -> str | None:
        first = first_places.setdefault((kind, short_hash(key, 12)), place)
        return None if first == place else first

    if first := seen("id", record.id.encode()):
        why = f"the id {record.id!r} is that of {first} too; give each row its own"
        report.add("ids twice", place, why)
        return
    report.usable += 1
    report.unused.update(found.row.unused)
    if first := seen("image", found.content):
        report.add("images twice", place, f"the image is that of {first} too")
    if first := next(filter(None, (seen("text", t.encode()) for t in record.captions)), None):
        report.add("captions twice", place, f"the caption is that of {first} too")
    elif len(set(record.captions)) < len(record.captions):
        report.add("captions twice", place, "two of its captions are equal")
    texts = {
        "captions": record.captions,
        "instructions": [ask.instruction for ask in record.instructions],
        "answers": [ask.answer for ask in record.instructions],
        "negatives": record.negatives,
        "regions": [region.phrase for region in record.regions],
    }
    for name, values in texts.items():
        report.texts[name] += len(values)
        for text in values:
            if len(text) > longest:
                why = f"one of its {name} has {len(text):,} characters, more than {longest:,}"
                report.add("long texts", place, why)
    if not any(texts.values()):
        report.add("rows without any text", place, "there is no caption and no instruction")
