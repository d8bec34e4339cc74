"""A published data set, row by row, its images straight out of the tar parts.

A row's `negatives` look their captions up only when asked for: drawing 7 of 100 reads 7.
"""

import os
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from abc_embed.data.dataset import Dataset, Rejected, Row, Scan, read_head
from abc_embed.data.published.archives import SPACING, find_archives
from abc_embed.data.published.layouts import LAYOUTS, ArrowTable, Fields, copy_parquet, find_parquet
from abc_embed.data.published.tar_images import TarImages, UnpackedImages
from abc_embed.data.published.tar_index import build_index
from abc_embed.data.records import Record
from abc_embed.errors import DataError
from abc_embed.storage.hashing import sha256, sha256_file
from abc_embed.storage.json_files import read_json

OWN_FOLDER = ".abc-embed"
"""Inside the folder of a data set: what is made from it, and can be made again."""
INDEX_FILE = "images.sqlite"
ROWS_FILE = "rows.arrow"
COMPLETE_FILE = "complete.json"


def own_file(folder: str | os.PathLike[str], name: str) -> Path:
    """Where something made from a data set lies."""
    return Path(folder) / OWN_FOLDER / name


def prepare(
    folder: Path,
    *,
    spacing: int = SPACING,
    again: bool = False,
    on_message: Callable[[str], None] = lambda message: None,
    on_progress: Callable[[int, int], None] = lambda done, of: None,
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
    counts: dict[str, int] = {}
    parquet = find_parquet(folder) if any(folder.rglob("*.parquet")) else []
    if parquet:
        if not rows.exists():
            copy_parquet(parquet, rows)
        counts["rows"] = len(ArrowTable(rows, parquet))
    archives = find_archives(folder)
    if archives:
        build_index(
            archives, index, spacing=spacing, on_message=on_message, on_progress=on_progress
        )
        with closing(open_images(folder)) as images:
            counts |= {**images.counts(), "left_out": len(images.left_out())}
        counts["index_bytes"] = index.stat().st_size
    if not counts:
        raise DataError(f"{folder} holds neither .parquet nor .tar files; give a data set's folder")
    return counts


def _check_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise DataError(
            f"there is no folder {folder}; fetch a data set with: abc-embed data fetch NAME --out "
            f"{folder}"
        )


def open_images(folder: Path) -> TarImages:
    """The images in the tar parts of a folder; `DataError` if they are not indexed, or changed."""
    _check_folder(folder)
    return TarImages(folder, own_file(folder, INDEX_FILE))


def find_layout(folder: Path) -> str | None:
    """The published set that lies in a folder, by the columns that `prepare` copied, or None."""
    path = own_file(folder, ROWS_FILE)
    return _layout_of(ArrowTable(path)) if path.is_file() else None


def _layout_of(table: ArrowTable) -> str | None:
    names = set(table.names)
    return next((name for name in LAYOUTS if names.issuperset(LAYOUTS[name].columns)), None)


class PublishedDataset(Dataset):
    """The rows of a published data set, and their images."""

    form = "published"

    def __init__(self, folder: Path, name: str | None = None) -> None:
        """Opens what `prepare` made; without a name, the columns say which set it is.

        No such folder, no index or another layout is a `DataError`.
        """
        _check_folder(folder)
        self.path = folder
        parquet = find_parquet(folder)
        path = own_file(folder, ROWS_FILE)
        if not path.exists():
            raise DataError(
                f"{folder} is not indexed; make it ready with: abc-embed data index {folder}"
            )
        self._table = ArrowTable(path, parquet)
        self._files = parquet
        layout = _layout_of(self._table)
        if layout is None or name not in (None, layout):
            wanted = f"those of {name}" if name else f"those of any of {', '.join(LAYOUTS)}"
            raise DataError(
                f"{folder} has the columns {', '.join(self._table.names)}, which are not {wanted}"
            )
        self.name = layout
        self.layout = LAYOUTS[layout]
        self.images: TarImages | UnpackedImages = (
            open_images(folder) if find_archives(folder) else UnpackedImages(folder)
        )
        self._top_folders = self.images.folders()

    def __len__(self) -> int:
        return len(self._table)

    def files(self) -> Sequence[Path]:
        return self._files

    def _place(self, number: int) -> str:
        return f"{self.path}, row {number}"

    def _row(self, number: int) -> Row:
        fields = self.fields(number)
        name = self.find_image(fields["image"])
        if name is None:
            raise DataError(
                "its image is not among the images; see what is missing with: abc-embed data "
                f"complete {self.path}"
            )
        image = self.images.read(name)
        _, width, height = read_head(image)
        fields = _cropped(fields, width, height) | {"image": name, "source": self.layout.repository}
        record = Record(**fields, width=width, height=height)
        return Row(self.place(number), record, image)

    def fields(self, number: int) -> Fields:
        """What a row says, without reading its image; `DataError` if it is not as it must be."""
        return self.layout.fields(self._table, number)

    def captions(self, number: int) -> tuple[str, ...]:
        try:
            caption = self.fields(number).get("caption")
        except DataError as wrong:
            raise DataError(f"{self.place(number)}: {wrong}") from None
        return (caption,) if caption else ()

    def find_image(self, image: str) -> str | None:
        """The name of the file that a row calls `image`; None when it is not there.

        Looked for as it is called, with `.jpg`, and below a top folder of the archive.
        """
        for name in (image.removeprefix("./"), f"{image}.jpg"):
            for top in ("", *(f"{folder}/" for folder in self._top_folders)):
                if top + name in self.images:
                    return top + name
        return None

    def negative_numbers(self, number: int) -> list[int]:
        """What the `negatives` column says of a row: the numbers of other rows."""
        if "negatives" not in self._table.names:
            return []
        return list(self._table.value(number, "negatives") or ())

    def scan(
        self,
        field: Literal["caption", "instructions"],
        on_rejected: Callable[[Rejected], None] | None = None,
        on_row: Callable[[int, Row], None] = lambda number, row: None,
    ) -> Scan:
        """Those that `abc-embed data complete` found whole; all of a layout have the same fields.

        Rows are not read, and those that it left out are reported nowhere. The fingerprint is that
        of the copied rows and of which are used.

        Raises:
            DataError: it has not been run.
        """
        numbers = np.array(self._usable(), dtype=np.int64)
        rows = sha256_file(own_file(self.path, ROWS_FILE))
        fingerprint = sha256(rows.encode() + numbers.tobytes())
        if not len(numbers) or not self.fields(int(numbers[0])).get(field):
            numbers = numbers[:0]
        return Scan(numbers, fingerprint, "")

    def _usable(self) -> list[int]:
        mend = f"run: abc-embed data complete {self.path}"
        try:
            report = read_json(own_file(self.path, COMPLETE_FILE), error=DataError, mend=mend)
            left_out = {row for name in ("missing", "bad") for row, *_ in report[name]}
            stale = report["rows"] != len(self)
        except (DataError, ValueError, KeyError, TypeError):
            stale = True
        if stale:
            raise DataError(f"{self.path} was not checked; {mend}")
        return [row for row in range(len(self)) if row not in left_out]


def _cropped(fields: Fields, width: int, height: int) -> Fields:
    """Regions cut off at the edges of the image. One that lies outside is left out; what is asked
    about it stays."""
    regions: list[Any] = []
    new_numbers: list[int | None] = []
    for region in fields.get("regions", ()):
        x, y, w, h = region.box
        if x < 0 or y < 0 or x + w > width or y + h > height:
            left, top = max(x, 0), max(y, 0)
            w, h = min(x + w, width) - left, min(y + h, height) - top
            if w <= 0 or h <= 0:
                new_numbers.append(None)
                continue
            region = replace(region, box=(left, top, w, h))
        new_numbers.append(len(regions))
        regions.append(region)
    instructions = tuple(
        ask if ask.region is None else replace(ask, region=new_numbers[ask.region])
        for ask in fields.get("instructions", ())
    )
    return {**fields, "regions": tuple(regions), "instructions": instructions}
