"""The layouts of the published data sets: which columns there are, and what a row of them says.

Does: name the sets and turn the values of a row into a `SourceRow`, checked. Does not: read files
(rows.py), or know where the images are (sources.py).

    abc-pretrain      a caption per image; columns id, url, caption, image, negatives (row numbers)
    abc-vg-instruct   four regions per image; columns "0" to "3", each a struct of
                      id, image, instruction, phrase, x, y, width, height
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, overload

from abc_embed.data.published.arrow_rows import Rows
from abc_embed.data.records import Instruction, Region
from abc_embed.errors import DataError

_STRUCT = ("id", "image", "instruction", "phrase", "x", "y", "width", "height")


@dataclass(frozen=True, slots=True)
class Published:
    """A data set as it lies on the Hugging Face hub."""

    repository: str
    columns: tuple[str, ...]
    about: str


SOURCES: Mapping[str, Published] = MappingProxyType(
    {
        "abc-pretrain": Published(
            "TIGER-Lab/ABC-Pretraining-Data",
            ("id", "caption", "image", "negatives"),
            "image and caption, with mined negatives (paper section 4)",
        ),
        "abc-vg-instruct": Published(
            "TIGER-Lab/ABC-VG-Instruct",
            ("0", "1", "2", "3"),
            "four regions of an image, each with an instruction (paper section 5)",
        ),
    }
)
"""The published sets by name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceRow:
    """What is said about one image; like a `Record`, but of an image that is not yet opened."""

    id: str
    image: str
    """As the data set names it; `PublishedSource.image` finds it."""
    caption: str | None = None
    regions: tuple[Region, ...] = ()
    instructions: tuple[Instruction, ...] = ()
    negatives: Sequence[str] = ()
    """Captions of other rows, best first, looked up one by one."""
    source: str = ""
    license: str = ""
    meta: Mapping[str, Any] = field(default_factory=dict)


def captioned(values: Mapping[str, Any], rows: Rows) -> SourceRow:
    """A row of abc-pretrain. Raises `DataError` for one that cannot be used."""
    caption, image = values["caption"], values["image"]
    if not isinstance(caption, str) or not caption.strip():
        raise DataError("it has no caption; leave it out")
    if not isinstance(image, str) or not image:
        raise DataError("it names no image; leave it out")
    meta = {"url": values["url"]} if values.get("url") else {}
    return SourceRow(
        id=str(values["id"]),
        image=image,
        caption=caption,
        negatives=Captions(rows, values["negatives"] or ()),
        source=SOURCES["abc-pretrain"].repository,
        meta=meta,
    )


def instructed(values: Mapping[str, Any], number: int) -> SourceRow:
    """A row of abc-vg-instruct. Raises `DataError` for one that cannot be used."""
    parts = [values[name] for name in SOURCES["abc-vg-instruct"].columns]
    parts = [part for part in parts if part is not None]
    if not parts:
        raise DataError("it is empty; leave it out")
    absent = [name for part in parts for name in _STRUCT if part.get(name) is None]
    if absent:
        raise DataError(f"{absent[0]} is missing; leave it out")
    if len({part["image"] for part in parts}) > 1:
        raise DataError("its parts are about different images; leave it out")
    regions = tuple(
        Region(phrase=p["phrase"], box=(p["x"], p["y"], p["width"], p["height"])) for p in parts
    )
    asked = tuple(
        Instruction(instruction=p["instruction"], answer=p["phrase"], kind="region", region=i)
        for i, p in enumerate(parts)
    )
    return SourceRow(
        id=f"{parts[0]['image']}-{number}",
        image=str(parts[0]["image"]),
        regions=regions,
        instructions=asked,
        source=SOURCES["abc-vg-instruct"].repository,
        meta={"ids": [part["id"] for part in parts]},
    )


class Captions(Sequence[str]):
    """The captions of some rows, each looked up when it is asked for."""

    def __init__(self, rows: Rows, numbers: Sequence[int]) -> None:
        self._rows = rows
        self._numbers = numbers

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, place: int) -> str: ...

    @overload
    def __getitem__(self, place: slice) -> Sequence[str]: ...

    def __getitem__(self, place: int | slice) -> str | Sequence[str]:
        if isinstance(place, slice):
            return Captions(self._rows, self._numbers[place])
        caption = self._rows.value(self._numbers[place], "caption")
        if not isinstance(caption, str) or not caption.strip():
            raise DataError(
                f"row {self._numbers[place]} is named as a negative and has no caption; see: "
                "abc-embed data complete"
            )
        return caption
