"""Records: one line of JSON per image, with everything that is said about it.

A data set is a folder: `records.jsonl` and the images, whose paths in it are relative to it.

    {"id": "a-7", "image": "images/000007.png", "caption": "a dog on the left and …" or null,
     "captions": ["a dog on the left and …", "a dog looks at a cat", …], where there are several,
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
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from abc_embed.data.fields import (
    OnBadLine,
    check_image,
    check_json,
    check_text,
    check_texts,
    is_count,
    is_number,
    parse_json,
    parse_lines,
    parse_object,
    short,
)
from abc_embed.errors import DataError
from abc_embed.storage.files import atomic_write

RECORDS_FILE = "records.jsonl"
"""Name of the records file in a data set's folder."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Region:
    """A part of the image and what it shows. `box` is x, y, width, height in pixels."""

    phrase: str
    box: tuple[float, float, float, float]

    def __post_init__(self) -> None:
        check_text("phrase", self.phrase)
        if [is_number(value) for value in self.box] != [True] * 4:
            raise DataError(f"box is {short(self.box)}; give x, y, width and height as numbers")
        if min(self.box[2:]) <= 0:
            raise DataError(f"box is {short(self.box)}; its width and height must be above 0")


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
        check_text("instruction", self.instruction)
        check_text("answer", self.answer)
        check_text("kind", self.kind)
        check_texts("paraphrases", self.paraphrases)
        if self.region is not None and not is_count(self.region, least=0):
            raise DataError(f"region is {short(self.region)}; give a region's number or null")


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One image and what is said about it; a `DataError` on construction names a wrong field."""

    id: str
    """Unlike every other id of its file."""
    image: str
    """Path from the folder of the records file, with forward slashes; it cannot lead out of it."""
    width: int
    """Of the image, in pixels."""
    height: int
    """Of the image, in pixels."""
    caption: str | None = None
    """What the whole image shows; of several captions the first."""
    captions: tuple[str, ...] = ()
    """All captions, each true of the whole image. Either of the two says the other."""
    regions: tuple[Region, ...] = ()
    instructions: tuple[Instruction, ...] = ()
    negatives: Sequence[str] = ()
    """Captions that are almost right, and wrong; of a published set, each looked up when used."""
    source: str = ""
    """Where the image is from."""
    license: str = ""
    meta: Mapping[str, Any] = field(default_factory=dict)
    """Anything else, as JSON values."""

    def __post_init__(self) -> None:
        check_text("id", self.id)
        check_image(self.image)
        for name in ("width", "height"):
            if not is_count(getattr(self, name), least=1):
                value = short(getattr(self, name))
                raise DataError(f"{name} is {value}; give the image's {name} in whole pixels")
        self._check_captions()
        if isinstance(self.negatives, tuple):
            check_texts("negatives", self.negatives)
        for name in ("source", "license"):
            if not isinstance(getattr(self, name), str):
                raise DataError(f"{name} is {short(getattr(self, name))}; give a text")
        if not isinstance(self.meta, Mapping):
            raise DataError(f"meta is {short(self.meta)}; give an object")
        self._check_regions()

    def _check_captions(self) -> None:
        if self.caption is not None:
            check_text("caption", self.caption)
        if not self.captions:
            if self.caption is not None:
                object.__setattr__(self, "captions", (self.caption,))
            return
        check_texts("captions", self.captions)
        if self.caption is None:
            object.__setattr__(self, "caption", self.captions[0])
        elif self.caption != self.captions[0]:
            raise DataError("caption is not the first of the captions; give one of the two")

    def _check_regions(self) -> None:
        for number, region in enumerate(self.regions):
            x, y, width, height = region.box
            if x < 0 or y < 0 or x + width > self.width or y + height > self.height:
                raise DataError(
                    f"regions[{number}]: box is {short(region.box)}, which reaches out of the "
                    f"{self.width} x {self.height} image; cut it off at the edge"
                )
        for number, ask in enumerate(self.instructions):
            if ask.region is not None and ask.region >= len(self.regions):
                raise DataError(
                    f"instructions[{number}]: region is {ask.region} but there are "
                    f"{len(self.regions)} regions, counted from 0; give one of them or null"
                )


FIELDS = tuple(field.name for field in dataclasses.fields(Record))
"""Names of a record's fields, in the order in which they are written."""


def read_records(
    path: str | os.PathLike[str], *, on_bad_line: OnBadLine | None = None
) -> Iterator[Record]:
    """The records of a file, or of the folder that holds `records.jsonl`, one by one.

    Blank lines are passed over. Reading is lazy: an error comes when its line is reached; with
    `on_bad_line` it is reported there, and the other lines go on.

    Raises:
        DataError: there is no such file, or a line is no record, with file, line and mend.
    """
    path = Path(path)
    path = path / RECORDS_FILE if path.is_dir() else path
    try:
        lines = parse_lines(
            path, lambda line: to_record(parse_json(line)), lambda record: record.id, on_bad_line
        )
        yield from (record for _, record in lines)
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
    with atomic_write(path) as file:
        for record in records:
            if record.id in ids:
                raise DataError(f"the id {record.id!r} comes twice; give each record its own")
            ids.add(record.id)
            try:
                file.write(format_line(record))
            except (TypeError, ValueError, RecursionError) as problem:
                raise DataError(f"record {record.id!r} cannot be written: {problem}") from problem
    return len(ids)


def to_json(record: Record) -> dict[str, Any]:
    """A record as the JSON object of its line; `captions` only where there are several."""
    names = [name for name in FIELDS if name != "captions" or len(record.captions) > 1]
    return {name: getattr(record, name) for name in names} | {
        "regions": [dataclasses.asdict(region) for region in record.regions],
        "instructions": [dataclasses.asdict(ask) for ask in record.instructions],
        "negatives": list(record.negatives),
        "meta": dict(record.meta),
    }


def format_line(record: Record) -> bytes:
    """A record as its line of a records file."""
    return json.dumps(to_json(record), ensure_ascii=False, allow_nan=False).encode() + b"\n"


def to_record(values: object) -> Record:
    """A record from its JSON object; `DataError` names a field that is wrong or unknown."""
    record = parse_object(Record, values)
    check_json("meta", record.meta)
    return record
