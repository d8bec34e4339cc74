"""Every row of a data set looked at, image and all: what is wrong, where, and the mend.

A row that cannot be used is an error; what comes twice or is long is a remark.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from abc_embed.data.dataset import Dataset, Rejected, Row
from abc_embed.data.records import Record
from abc_embed.decoding import hold_memory
from abc_embed.errors import DataError, ImageError
from abc_embed.inputs import open_image
from abc_embed.storage.hashing import short_hash

LONG = 2000
"""Characters beyond which a text is called long: some 500 tokens, where the paper's captions have
a dozen words."""
THREADS = 4

ERRORS = ("rows that cannot be read", "images that cannot be read", "wrong sizes", "ids twice")
REMARKS = ("images twice", "captions twice", "long texts", "rows without any text")


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

    @property
    def good(self) -> bool:
        """Whether every row can be used."""
        return not self.errors

    def as_json(self) -> dict[str, Any]:
        """All of it, for programs."""
        return {
            "rows": self.rows,
            "usable": self.usable,
            "texts": dict(self.texts),
            "counts": {name: self.counts[name] for name in (*ERRORS, *REMARKS)},
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
    for row, image in _with_images(dataset):
        report.rows += 1
        if isinstance(row, Rejected):
            report.add("rows that cannot be read", row.place, row.why)
        elif isinstance(image, str):
            report.add("images that cannot be read", row.place, image)
        elif image is not None:
            _check_row(report, first_places, row, image, longest)
        on_progress(report.rows, len(dataset))
    return report


ImageFacts = tuple[int, int, bytes]
"""Width and height of an unpacked image, and a hash of its file."""


def _with_images(dataset: Dataset) -> Iterator[tuple[Row | Rejected, ImageFacts | str | None]]:
    """Rows in order, each with what its image is, or why it cannot be read."""
    waiting: deque[tuple[Row | Rejected, Future[ImageFacts | str | None]]] = deque()
    with ThreadPoolExecutor(THREADS) as pool:
        for row in dataset.rows():
            waiting.append((row, pool.submit(_unpack, row)))
            if len(waiting) > 4 * THREADS:
                first, future = waiting.popleft()
                yield first, future.result()
        for first, future in waiting:
            yield first, future.result()


def _unpack(row: Row | Rejected) -> ImageFacts | str | None:
    if isinstance(row, Rejected):
        return None
    try:
        content = row.read_image()
        with hold_memory():
            size = open_image(content).size
    except (ImageError, OSError) as wrong:
        name = row.image.name if isinstance(row.image, Path) else row.record.image
        return f"the image {name}: {wrong}"
    return (*size, short_hash(content))


def _check_row(
    report: CheckReport,
    first_places: dict[tuple[str, bytes], str],
    row: Row,
    image: ImageFacts,
    longest: int,
) -> None:
    """`first_places`: where the hash of an id, an image or a caption came first."""
    record, place = row.record, row.place

    def seen(kind: str, key: bytes) -> str | None:
        first = first_places.setdefault((kind, short_hash(key, 12)), place)
        return None if first == place else first

    try:
        texts = _texts(record)
    except DataError as wrong:  # a negative of a published set, which is looked up only now
        report.add("rows that cannot be read", place, str(wrong))
        return
    width, height, image_hash = image
    if (width, height) != (record.width, record.height):
        why = (
            f"width and height are {record.width} x {record.height} but the image has "
            f"{width} x {height}; write these"
        )
        report.add("wrong sizes", place, why)
        return
    if first := seen("id", record.id.encode()):
        why = f"the id {record.id!r} is that of {first} too; give each row its own"
        report.add("ids twice", place, why)
        return
    report.usable += 1
    if first := seen("image", image_hash):
        report.add("images twice", place, f"the image is that of {first} too")
    if record.caption and (first := seen("text", record.caption.encode())):
        report.add("captions twice", place, f"the caption is that of {first} too")
    for name, values in texts.items():
        report.texts[name] += len(values)
        for text in values:
            if len(text) > longest:
                why = f"one of its {name} has {len(text):,} characters, more than {longest:,}"
                report.add("long texts", place, why)
    if not any(texts.values()):
        report.add("rows without any text", place, "there is no caption and no instruction")


def _texts(record: Record) -> dict[str, list[str]]:
    return {
        "captions": [record.caption] if record.caption else [],
        "instructions": [ask.instruction for ask in record.instructions],
        "answers": [ask.answer for ask in record.instructions],
        "negatives": list(record.negatives),
        "regions": [region.phrase for region in record.regions],
    }
