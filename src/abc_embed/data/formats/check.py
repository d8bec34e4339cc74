"""Every row of a data set looked at, image and all: what is wrong, where, and the mend.

Does: read all rows, unpack every image, count what comes twice or is too long. Does not: change
anything. A row that cannot be used is an error; what comes twice or is long is a remark.
"""

import hashlib
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from abc_embed.data.dataset import Dataset, Rejected, Row
from abc_embed.data.records import Record
from abc_embed.errors import ImageError
from abc_embed.inputs import open_image

LONG = 2000
"""Characters beyond which a text is called long: some 500 tokens, where the paper's captions have
a dozen words."""
THREADS = 4

ERRORS = ("rows that cannot be read", "images that cannot be read", "wrong sizes", "ids twice")
REMARKS = ("images twice", "captions twice", "long texts", "rows without any text")


@dataclass(slots=True)
class Findings:
    """What a check found; `lines` say where, `counts` how often."""

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
            "errors": [{"place": e.place, "why": e.why} for e in self.errors],
            "remarks": [{"place": e.place, "why": e.why} for e in self.remarks],
        }


def check(
    dataset: Dataset,
    *,
    longest: int = LONG,
    counted: Callable[[int, int], None] = lambda done, of: None,
) -> Findings:
    """Look at every row and every image; `longest` is in characters. Images are unpacked in
    `THREADS` threads, a few ahead."""
    found, seen = Findings(), _Seen()
    for row, image in _with_images(dataset):
        found.rows += 1
        if isinstance(row, Rejected):
            _error(found, ERRORS[0], row.place, row.why)
        elif isinstance(image, str):
            _error(found, ERRORS[1], row.place, image)
        else:
            _look(found, seen, row, image, longest)
        counted(found.rows, len(dataset))
    return found


Size = tuple[int, int, bytes]
"""Width and height of an unpacked image, and a hash of its file."""


class _Seen:
    """Where ids, images and captions came first."""

    def __init__(self) -> None:
        self.places: dict[tuple[str, bytes], str] = {}

    def before(self, kind: str, key: bytes, place: str) -> str | None:
        short = (kind, hashlib.blake2b(key, digest_size=12).digest())
        first = self.places.setdefault(short, place)
        return None if first == place else first


def _with_images(dataset: Dataset) -> Iterator[tuple[Row | Rejected, Size | str | None]]:
    """Rows in order, each with what its image is, or why it cannot be read."""
    waiting: deque[tuple[Row | Rejected, Future[Size | str] | None]] = deque()
    with ThreadPoolExecutor(THREADS) as pool:
        for row in dataset.rows():
            waiting.append((row, pool.submit(_unpack, row) if isinstance(row, Row) else None))
            if len(waiting) > 4 * THREADS:
                first, future = waiting.popleft()
                yield first, future.result() if future else None
        for first, future in waiting:
            yield first, future.result() if future else None


def _unpack(row: Row) -> Size | str:
    try:
        held = row.image if isinstance(row.image, bytes) else row.image.read_bytes()
        picture = open_image(held)
    except (ImageError, OSError) as wrong:
        name = row.image.name if isinstance(row.image, Path) else row.record.image
        return f"the image {name}: {wrong}"
    return (*picture.size, hashlib.blake2b(held, digest_size=16).digest())


def _look(found: Findings, seen: _Seen, row: Row, size: Size | None, longest: int) -> None:
    record, place = row.record, row.place
    if size is not None and size[:2] != (record.width, record.height):
        why = (
            f"width and height are {record.width} x {record.height} but the image has "
            f"{size[0]} x {size[1]}; write these"
        )
        _error(found, ERRORS[2], place, why)
        return
    if first := seen.before("id", record.id.encode(), place):
        why = f"the id {record.id!r} is that of {first} too; give each row its own"
        _error(found, ERRORS[3], place, why)
        return
    found.usable += 1
    if size is not None and (first := seen.before("image", size[2], place)):
        _remark(found, REMARKS[0], place, f"the image is that of {first} too")
    if record.caption and (first := seen.before("text", record.caption.encode(), place)):
        _remark(found, REMARKS[1], place, f"the caption is that of {first} too")
    texts = _texts(record)
    for name, values in texts.items():
        found.texts[name] += len(values)
        for text in values:
            if len(text) > longest:
                why = f"one of its {name} has {len(text):,} characters, more than {longest:,}"
                _remark(found, REMARKS[2], place, why)
    if not any(texts.values()):
        _remark(found, REMARKS[3], place, "there is no caption and no instruction")


def _texts(record: Record) -> dict[str, list[str]]:
    return {
        "captions": [record.caption] if record.caption else [],
        "instructions": [ask.instruction for ask in record.instructions],
        "answers": [ask.answer for ask in record.instructions],
        "negatives": list(record.negatives),
        "regions": [region.phrase for region in record.regions],
    }


def _error(found: Findings, kind: str, place: str, why: str) -> None:
    found.counts[kind] += 1
    found.errors.append(Rejected(place, why))


def _remark(found: Findings, kind: str, place: str, why: str) -> None:
    found.counts[kind] += 1
    found.remarks.append(Rejected(place, why))
