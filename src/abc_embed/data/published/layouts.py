"""The layouts of the published data sets: which columns there are, and what a row of them says.

abc-pretrain      a caption per image; columns id, url, caption, image, negatives (row numbers)
abc-vg-instruct   four regions per image; columns "0" to "3", each a struct of
                  id, image, instruction, phrase, x, y, width, height
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from abc_embed.data.published.arrow_table import ArrowTable
from abc_embed.data.records import Instruction, Region
from abc_embed.errors import DataError

Fields = dict[str, Any]
"""What a `Record` is made of, but for the image's size. `image` is as the column names it."""

_STRUCT = ("id", "image", "instruction", "phrase", "x", "y", "width", "height")


@dataclass(frozen=True, slots=True)
class Layout:
    """A data set as it lies on the Hugging Face hub."""

    repository: str
    columns: tuple[str, ...]
    about: str
    fields: Callable[[ArrowTable, int], Fields]
    """What row number so and so says. Raises `DataError` for one that cannot be used."""


def _pretrain_fields(table: ArrowTable, number: int) -> Fields:
    values = table.row(number)
    caption, image = values["caption"], values["image"]
    if not isinstance(caption, str) or not caption.strip():
        raise DataError("it has no caption; leave it out")
    if not isinstance(image, str) or not image:
        raise DataError("it names no image; leave it out")
    return {
        "id": str(values["id"]),
        "image": image,
        "caption": caption,
        "negatives": Captions(table, values["negatives"] or ()),
        "meta": {"url": values["url"]} if values.get("url") else {},
    }


def _instruct_fields(table: ArrowTable, number: int) -> Fields:
    values = table.row(number)
    parts = [values[name] for name in LAYOUTS["abc-vg-instruct"].columns]
    parts = [part for part in parts if part is not None]
    if not parts:
        raise DataError("it is empty; leave it out")
    absent = [name for part in parts for name in _STRUCT if part.get(name) is None]
    if absent:
        raise DataError(f"{absent[0]} is missing; leave it out")
    if len({part["image"] for part in parts}) > 1:
        raise DataError("its parts are about different images; leave it out")
    return {
        "id": f"{parts[0]['image']}-{number}",
        "image": str(parts[0]["image"]),
        "regions": tuple(
            Region(phrase=p["phrase"], box=(p["x"], p["y"], p["width"], p["height"])) for p in parts
        ),
        "instructions": tuple(
            Instruction(instruction=p["instruction"], answer=p["phrase"], kind="region", region=i)
            for i, p in enumerate(parts)
        ),
        "meta": {"ids": [part["id"] for part in parts]},
    }


LAYOUTS: Mapping[str, Layout] = MappingProxyType(
    {
        "abc-pretrain": Layout(
            "TIGER-Lab/ABC-Pretraining-Data",
            ("id", "caption", "image", "negatives"),
            "image and caption, with mined negatives (paper section 4)",
            _pretrain_fields,
        ),
        "abc-vg-instruct": Layout(
            "TIGER-Lab/ABC-VG-Instruct",
            ("0", "1", "2", "3"),
            "four regions of an image, each with an instruction (paper section 5)",
            _instruct_fields,
        ),
    }
)
"""The published sets by name."""


class Captions(Sequence[str]):
    """The captions of some rows, each looked up when it is asked for."""

    def __init__(self, table: ArrowTable, numbers: Sequence[int]) -> None:
        self._table = table
        self._numbers = numbers

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return Captions(self._table, self._numbers[place])
        caption = self._table.value(self._numbers[place], "caption")
        if not isinstance(caption, str) or not caption.strip():
            raise DataError(
                f"row {self._numbers[place]} is named as a negative and has no caption; see: "
                "abc-embed data complete"
            )
        return caption
