"""Records: one line of JSON per image, with everything that is said about it.

Does: say what a record is, read a file of them line by line, and write one. Every line is checked
as it is read; what is wrong is said with file, line, and how to mend it. Does not: open the images
(whoever needs the pixels does), or hold more than one record in memory.

A data set is a folder: `records.jsonl` and the images, whose paths in it are relative to it.

    {"id": "a-7", "image": "images/000007.png", "caption": "a dog on the left and …" or null,
     "width": 112, "height": 112,
     "regions": [{"phrase": "a dog", "box": [x, y, width, height]}, …],
     "instructions": [{"instruction": "what is on the left?", "answer": "a dog", "kind": "place",
                       "paraphrases": ["the thing on the left", …], "region": 0 or null}, …],
     "negatives": ["a cat on the left and …", …],
     "source": "where it is from", "license": "MIT", "meta": {anything}}

`id`, `image`, `width` and `height` must be there; the rest may be left out.
"""

import dataclasses
import json
import os
import re
import reprlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from abc_embed.data.files import written_aside
from abc_embed.errors import DataError

RECORDS_FILE = "records.jsonl"
"""Name of the records file in a data set's folder."""

T = TypeVar("T")

_SURROGATE = re.compile("[\ud800-\udfff]")
_FAR = 1e9  # no picture has so many pixels; also false for what is not a number


@dataclass(frozen=True, slots=True, kw_only=True)
class Region:
    """A part of the image and what it shows. `box` is x, y, width, height in pixels."""

    phrase: str
    box: tuple[float, float, float, float]

    def __post_init__(self) -> None:
        _check_text("phrase", self.phrase)
        if not _are_numbers(self.box, count=4):
            raise DataError(f"box is {_short(self.box)}; give x, y, width and height as numbers")
        if min(self.box[2:]) <= 0:
            raise DataError(f"box is {_short(self.box)}; its width and height must be above 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class Instruction:
    """What can be asked of the image, and the text that answers it.

    `kind` sorts questions (place, relation, kind, size, background, or a word of your own),
    `paraphrases` ask the same in other words, `region` is the number of the region that answers.
    """

    instruction: str
    answer: str
    kind: str
    paraphrases: tuple[str, ...] = ()
    region: int | None = None

    def __post_init__(self) -> None:
        _check_text("instruction", self.instruction)
        _check_text("answer", self.answer)
        _check_text("kind", self.kind)
        _check_texts("paraphrases", self.paraphrases)
        if self.region is not None and not _is_count(self.region, least=0):
            raise DataError(f"region is {_short(self.region)}; give a region's number or null")


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One image and what is said about it; see the module. Values are checked on construction.

    Raises:
        DataError: a value that cannot be; names the field and the mend.
    """

    id: str
    """Unlike every other id of its file."""
    image: str
    """Path from the folder of the records file, with forward slashes; it cannot lead out of it."""
    width: int
    """Of the image, in pixels."""
    height: int
    """Of the image, in pixels."""
    caption: str | None = None
    regions: tuple[Region, ...] = ()
    instructions: tuple[Instruction, ...] = ()
    negatives: tuple[str, ...] = ()
    """Captions that are almost right, and wrong."""
    source: str = ""
    """Where the image is from."""
    license: str = ""
    meta: Mapping[str, Any] = field(default_factory=dict)
    """Anything else, as JSON values."""

    def __post_init__(self) -> None:
        _check_text("id", self.id)
        _check_image(self.image)
        for name in ("width", "height"):
            if not _is_count(getattr(self, name), least=1):
                value = _short(getattr(self, name))
                raise DataError(f"{name} is {value}; give the image's {name} in whole pixels")
        if self.caption is not None:
            _check_text("caption", self.caption)
        _check_texts("negatives", self.negatives)
        for name in ("source", "license"):
            if not isinstance(getattr(self, name), str):
                raise DataError(f"{name} is {_short(getattr(self, name))}; give a text")
        if not isinstance(self.meta, Mapping):
            raise DataError(f"meta is {_short(self.meta)}; give an object")
        self._check_regions()

    def _check_regions(self) -> None:
        for number, region in enumerate(self.regions):
            x, y, width, height = region.box
            if x < 0 or y < 0 or x + width > self.width or y + height > self.height:
                raise DataError(
                    f"regions[{number}]: box is {_short(region.box)}, which reaches out of the "
                    f"{self.width} x {self.height} image; cut it off at the edge"
                )
        for number, ask in enumerate(self.instructions):
            if ask.region is not None and ask.region >= len(self.regions):
                raise DataError(
                    f"instructions[{number}]: region is {ask.region} but there are "
                    f"{len(self.regions)} regions, counted from 0; give one of them or null"
                )


def read_records(path: str | os.PathLike[str]) -> Iterator[Record]:
    """The records of a file, or of the folder that holds `records.jsonl`, one by one.

    Blank lines are passed over. Reading is lazy: an error comes when its line is reached.

    Raises:
        DataError: there is no such file, or a line is no record, with file, line and mend.
    """
    path = Path(path)
    path = path / RECORDS_FILE if path.is_dir() else path
    lines: dict[str, int] = {}
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                try:
                    record = parse_line(line)
                    if record.id in lines:
                        raise DataError(
                            f"the id {record.id!r} is that of line {lines[record.id]} too; "
                            "give each record its own"
                        )
                except DataError as wrong:
                    raise DataError(f"{path}:{number}: {wrong}") from None
                lines[record.id] = number
                yield record
    except FileNotFoundError:
        raise DataError(
            f"there is no {path}; give a records file or the folder that holds {RECORDS_FILE}"
        ) from None
    except OSError as problem:
        raise DataError(f"{path} cannot be read: {problem.strerror}") from problem


def write_records(path: str | os.PathLike[str], records: Iterable[Record]) -> int:
    """Write records to a file and return how many; equal records make equal bytes.

    The file is written aside and renamed at the end, so it is whole or not there.

    Raises:
        DataError: an id comes twice, or `meta` holds what JSON cannot.
        OutputError: the file cannot be written.
    """
    ids: set[str] = set()
    with written_aside(path) as file:
        for record in records:
            if record.id in ids:
                raise DataError(f"the id {record.id!r} comes twice; give each record its own")
            ids.add(record.id)
            try:
                row = dataclasses.asdict(record)
                line = json.dumps(row, ensure_ascii=False, allow_nan=False)
                file.write(line.encode() + b"\n")
            except (TypeError, ValueError) as problem:
                raise DataError(f"record {record.id!r} cannot be written: {problem}") from problem
    return len(ids)


def parse_line(line: bytes) -> Record:
    """A record from its line of a records file.

    Raises:
        DataError: the line is no JSON, or no record.
    """
    return parse_record(_parse_json(line))


def parse_record(row: object) -> Record:
    """A record from the JSON object of its line.

    Raises:
        DataError: names the field that is wrong, missing or unknown.
    """
    values = _fields(Record, row)
    for name, kind in (("regions", Region), ("instructions", Instruction)):
        if name in values:
            rows = _list(name, values[name])
            values[name] = tuple(_each(name, rows, partial(_part, kind)))
    if "negatives" in values:
        values["negatives"] = tuple(_list("negatives", values["negatives"]))
    return Record(**values)


def _part(kind: type[T], row: object) -> T:
    """A region or an instruction from its JSON object."""
    values = _fields(kind, row)
    for name in ("box", "paraphrases"):
        if name in values:
            values[name] = tuple(_list(name, values[name]))
    return kind(**values)


def _each(name: str, rows: list[Any], parse: Callable[[object], T]) -> Iterator[T]:
    for number, row in enumerate(rows):
        try:
            yield parse(row)
        except DataError as wrong:
            raise DataError(f"{name}[{number}]: {wrong}") from None


def _fields(kind: type, row: object) -> dict[str, Any]:
    """The row as keyword arguments of `kind`: every name known, every needed one there."""
    if not isinstance(row, dict):
        raise DataError(f"found {_short(row)} where an object {{…}} is meant")
    known = {f.name: f for f in dataclasses.fields(kind)}
    for name in row:
        if name not in known:
            raise DataError(f"there is no field {name!r}; the fields are {', '.join(known)}")
    for name, its in known.items():
        optional = (
            its.default is not dataclasses.MISSING or its.default_factory is not dataclasses.MISSING
        )
        if not optional and name not in row:
            raise DataError(f"{name} is missing; give it")
    return dict(row)


def _parse_json(line: bytes) -> object:
    try:
        parsed: object = json.loads(line.decode("utf-8"), parse_constant=_refuse_constant)
    except UnicodeDecodeError:
        raise DataError("the line is not UTF-8; save the file as UTF-8") from None
    except (ValueError, RecursionError) as problem:
        place = problem.pos + 1 if isinstance(problem, json.JSONDecodeError) else None
        where = f" (character {place})" if place else ""
        mend = "write one object per line" if line.endswith(b"\n") else "the file may be cut off"
        raise DataError(f"the line is not JSON{where}; {mend}") from None
    return parsed


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _list(name: str, value: object) -> list[Any]:
    if not isinstance(value, list):
        raise DataError(f"{name} is {_short(value)}; give a list […]")
    return value


def _check_text(name: str, value: object) -> None:
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{name} is {_short(value)}; give a text that is not empty")
    if not value.isascii() and _SURROGATE.search(value):
        raise DataError(f"{name} is {_short(value)}, with half a character; mend its escapes")


def _check_texts(name: str, values: tuple[str, ...]) -> None:
    for number, value in enumerate(values):
        _check_text(f"{name}[{number}]", value)


def _check_image(image: object) -> None:
    _check_text("image", image)
    parts = str(image).replace("\\", "/").split("/")
    if ".." in parts or not parts[0] or parts[0].endswith(":") or "\0" in str(image):
        raise DataError(
            f"image is {_short(image)}; give a path inside the folder of the records file"
        )


def _are_numbers(values: Sequence[object], *, count: int) -> bool:
    return len(values) == count and all(
        isinstance(v, int | float) and not isinstance(v, bool) and abs(v) < _FAR for v in values
    )


def _is_count(value: object, *, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _short(value: object) -> str:
    """The value for a message, cut if it is long."""
    return reprlib.repr(value) if not isinstance(value, str) else repr(value[:60])
