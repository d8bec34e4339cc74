"""The published data sets, row by row, with their images where they are: in the tar parts.

Does: make the folder of a set ready (index of the images, rows that are quick to reach), and open
it. Does not: know columns (published.py), fetch (fetch.py), check that the set is whole
(complete.py), or make training groups of it (train does).

For training: `open_source(name)` has `__len__`, `row(i)` with the attributes that a `Record` has
but for width and height (they would cost opening the image), and `image(i)`, its file as bytes,
which an `Item` takes as it is. `negatives` of a row looks its captions up only when they are asked
for, so drawing 7 of 100 reads 7. A source survives pickling and forking. `usable()` gives the rows
that `abc-embed data complete` found whole.
"""

import json
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, overload

from abc_embed.data.published.arrow_rows import Rows, build_rows, find_parquet
from abc_embed.data.published.gzip_points import SPACING
from abc_embed.data.published.layouts import SOURCES, SourceRow, captioned, instructed
from abc_embed.data.published.tar_index import build_index
from abc_embed.data.published.tar_parts import find_archives
from abc_embed.data.published.tars import TarImages
from abc_embed.data.records import Record
from abc_embed.errors import DataError

OWN_FOLDER = ".abc-embed"
"""Inside the folder of a data set: what is made from it, and can be made again."""
INDEX_FILE = "images.sqlite"
ROWS_FILE = "rows.arrow"
COMPLETE_FILE = "complete.json"


class Images(Protocol):
    """Image files by name, wherever they are."""

    def __contains__(self, name: object) -> bool: ...

    def folders(self) -> list[str]:
        """Names of the top folders."""
        ...

    def read(self, name: str) -> bytes:
        """The bytes of a file."""
        ...


class UnpackedImages:
    """Image files in a folder, as an unpacked copy has them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and is_inside(name) and (self._folder / name).is_file()

    def folders(self) -> list[str]:
        inner = (path for path in self._folder.iterdir() if path.is_dir())
        return sorted(path.name for path in inner if not path.name.startswith("."))

    def read(self, name: str) -> bytes:
        """Raises `DataError` when there is no such file."""
        try:
            if is_inside(name):
                return (self._folder / name).read_bytes()
        except OSError:
            pass
        raise DataError(f"there is no {name!r} in {self._folder}; check the name")


def is_inside(name: str) -> bool:
    """Whether a name in an archive or a table stays inside the folder that it is put into."""
    if {"", ".", ".."} & set(name.split("/")):
        return False
    return not re.match(r"[A-Za-z]:", name) and "\\" not in name and "\0" not in name


def own_file(folder: str | os.PathLike[str], name: str) -> Path:
    """Where something made from a data set lies."""
    return Path(folder) / OWN_FOLDER / name


def make_ready(
    folder: Path,
    *,
    spacing: int = SPACING,
    again: bool = False,
    said: Callable[[str], None] = lambda message: None,
    counted: Callable[[int, int], None] = lambda done, of: None,
) -> dict[str, int]:
    """Index the images and copy the rows of a data set, as far as that is not done; its counts.

    Raises:
        DataError: the folder holds no data set, or it is damaged.
        OutputError: the index cannot be written.
    """
    _check_folder(folder)
    index, rows = own_file(folder, INDEX_FILE), own_file(folder, ROWS_FILE)
    if again:
        index.unlink(missing_ok=True)
        rows.unlink(missing_ok=True)
    made: dict[str, int] = {}
    parquet = find_parquet(folder) if any(folder.rglob("*.parquet")) else []
    if parquet:
        if not rows.exists():
            build_rows(parquet, rows)
        made["rows"] = len(Rows(rows, parquet))
    archives = find_archives(folder)
    if archives:
        build_index(archives, index, spacing=spacing, said=said, counted=counted)
        images = TarImages(folder, index)
        summary = images.summary()
        images.close()
        made["images"] = summary.members
        made["image_bytes"] = summary.plain_bytes
        made["points"] = summary.points
        made["archives"] = summary.archives
        made["parts"] = summary.parts
        made["left_out"] = len(summary.others)
        made["index_bytes"] = index.stat().st_size
    if not made:
        raise DataError(f"{folder} holds neither .parquet nor .tar files; give a data set's folder")
    return made


def _check_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise DataError(
            f"there is no folder {folder}; fetch a data set with: abc-embed data fetch NAME --out "
            f"{folder}"
        )


def open_images(folder: Path) -> TarImages:
    """The images in the tar parts of a folder.

    Raises:
        DataError: they are not indexed, or have changed since.
    """
    _check_folder(folder)
    return TarImages(folder, own_file(folder, INDEX_FILE))


def open_source(name_or_folder: str | os.PathLike[str]) -> "PublishedSource":
    """A published data set: `"abc-pretrain:FOLDER"`, or a folder alone, told by its columns.

    Raises:
        DataError: an unknown name, no such folder, a data set that is not indexed, or one that is
            not of the layout named.
    """
    text = os.fspath(name_or_folder)
    name, colon, place = text.partition(":")
    if text in SOURCES:
        raise DataError(
            f"{text} is a name without a folder; give {text}:FOLDER, after: abc-embed data fetch "
            f"{text} --out FOLDER"
        )
    if colon and name in SOURCES:
        return PublishedSource(Path(place), name)
    return PublishedSource(Path(text))


class PublishedSource(Sequence[SourceRow]):
    """The rows of a published data set, and their images."""

    def __init__(self, folder: Path, name: str | None = None) -> None:
        """Opens what `make_ready` made; see `open_source`."""
        _check_folder(folder)
        self.folder = folder
        parquet = find_parquet(folder)
        path = own_file(folder, ROWS_FILE)
        if not path.exists():
            raise DataError(
                f"{folder} is not indexed; make it ready with: abc-embed data index {folder}"
            )
        self._rows = Rows(path, parquet)
        self.name = self._told(name)
        self.images: Images = (
            open_images(folder) if find_archives(folder) else UnpackedImages(folder)
        )
        self._tops = self.images.folders()

    def _told(self, name: str | None) -> str:
        """Which data set it is: by its columns, which must fit the name if there is one."""
        for known in [name] if name else SOURCES:
            if set(SOURCES[known].columns) <= set(self._rows.names):
                return known
        wanted = f"those of {name}" if name else f"those of any of {', '.join(SOURCES)}"
        raise DataError(
            f"{self.folder} has the columns {', '.join(self._rows.names)}, which are not {wanted}"
        )

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, number: int) -> SourceRow: ...

    @overload
    def __getitem__(self, number: slice) -> Sequence[SourceRow]: ...

    def __getitem__(self, number: int | slice) -> SourceRow | Sequence[SourceRow]:
        if isinstance(number, slice):
            return [self.row(i) for i in range(*number.indices(len(self)))]
        if not -len(self) <= number < len(self):
            raise IndexError(number)  # what ends a loop over a sequence
        return self.row(number % len(self))

    def row(self, number: int) -> SourceRow:
        """What row `number` says.

        Raises:
            DataError: there is no such row, or it is not as it must be; names it.
        """
        values = self._rows.row(number)
        try:
            if self.name == "abc-pretrain":
                return captioned(values, self._rows)
            return instructed(values, number)
        except DataError as wrong:
            raise DataError(f"{self.folder}, row {number}: {wrong}") from None

    def image_name(self, number: int) -> str | None:
        """The name under which the image of a row is found; None when it is not there."""
        column = "image" if self.name == "abc-pretrain" else SOURCES[self.name].columns[0]
        value = self._rows.value(number, column)
        if isinstance(value, dict):
            value = value.get("image")
        return None if value is None else self._found(str(value))

    def _found(self, image: str) -> str | None:
        """As the column says it, with `.jpg`, or below a top folder of the archive."""
        for name in (image.removeprefix("./"), f"{image}.jpg"):
            for top in ("", *(f"{top}/" for top in self._tops)):
                if top + name in self.images:
                    return top + name
        return None

    def image(self, number: int) -> bytes:
        """The image file of row `number`, as it is in the archive.

        Raises:
            DataError: it is not there, or damaged.
        """
        name = self.image_name(number)
        if name is None:
            raise DataError(
                f"{self.folder}, row {number}: its image is not among the images; "
                f"see what is missing with: abc-embed data complete {self.folder}"
            )
        return self.images.read(name)

    def record(self, number: int) -> Record:
        """Row `number` as a `Record`; opens the image, for its size. Its path is that of
        `abc-embed data unpack`. `negatives` holds all of them.

        Raises:
            DataError, ImageError: the row or its image cannot be used.
        """
        from abc_embed.inputs import open_image

        row = self.row(number)
        picture = open_image(self.image(number))
        try:
            return Record(
                id=row.id,
                image=self.image_name(number) or row.image,
                width=picture.width,
                height=picture.height,
                caption=row.caption,
                regions=row.regions,
                instructions=row.instructions,
                negatives=tuple(row.negatives),
                source=row.source,
                meta=dict(row.meta),
            )
        except DataError as wrong:
            raise DataError(f"{self.folder}, row {number}: {wrong}") from None

    def usable(self) -> list[int]:
        """The numbers of the rows that can be used, as `abc-embed data complete` found them.

        Raises:
            DataError: it has not been run.
        """
        path = own_file(self.folder, COMPLETE_FILE)
        try:
            kept = json.loads(path.read_text(encoding="utf-8"))
            left_out = {row for name in ("missing", "bad") for row, *_ in kept[name]}
            stale = kept["rows"] != len(self)
        except (OSError, ValueError, KeyError, TypeError):
            stale, left_out = True, set()
        if stale:
            raise DataError(
                f"{self.folder} was not checked; run: abc-embed data complete {self.folder}"
            )
        return [row for row in range(len(self)) if row not in left_out]

    def negative_numbers(self, number: int) -> list[int]:
        """What the `negatives` column says of row `number`: the numbers of other rows."""
        if "negatives" not in self._rows.names:
            return []
        return list(self._rows.value(number, "negatives") or ())
