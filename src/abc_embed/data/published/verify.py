"""Whether a published data set is all there: checked row by row, not by the folder's being there.

Does: compare the files with what was to be fetched, every row with its layout, every row's image
with the index; write down which rows cannot be used. Does not: read the images themselves (each is
compared with its sum when it is read), or mend anything.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from abc_embed.data.published.dataset import COMPLETE_FILE, PublishedDataset, own_file
from abc_embed.data.published.fetch import MANIFEST_FILE, read_manifest
from abc_embed.data.published.tar_images import TarImages
from abc_embed.errors import DataError
from abc_embed.storage.files import atomic_write

_TELL_EVERY = 1000


@dataclass(slots=True)
class Completeness:
    """What was found."""

    name: str
    rows: int = 0
    images: int | None = None
    """Files in the tar parts; None for an unpacked copy."""
    missing: list[tuple[int, str]] = field(default_factory=list)
    """(row, image) where the image is not there."""
    bad: list[tuple[int, str]] = field(default_factory=list)
    """(row, why) where the row itself cannot be used."""
    files: list[str] = field(default_factory=list)
    """What is wrong with the fetched files."""
    left_out: list[tuple[str, str]] = field(default_factory=list)
    """(name, why) of what lies in the archives and is no plain file, or comes twice."""
    hashes: str = "unknown: not fetched by abc-embed"

    @property
    def ok(self) -> bool:
        """Nothing is missing and nothing is wrong."""
        return not (self.missing or self.bad or self.files)

    def problems(self) -> list[str]:
        """One line each."""
        lines = list(self.files)
        lines += [f"row {row}: the image {image!r} is missing" for row, image in self.missing]
        return lines + [f"row {row}: {why}" for row, why in self.bad]

    def counts(self) -> list[tuple[str, object]]:
        """For a table."""
        return [
            ("data set", self.name),
            ("rows", f"{self.rows:,}"),
            ("images in the tar parts", "unpacked" if self.images is None else f"{self.images:,}"),
            ("rows with their image", f"{self.rows - len(self.missing) - len(self.bad):,}"),
            ("rows without", f"{len(self.missing):,}"),
            ("rows that are wrong", f"{len(self.bad):,}"),
            ("files that are wrong", f"{len(self.files):,}"),
            ("left out of the archives", f"{len(self.left_out):,}"),
            ("hashes of the files", self.hashes),
        ]

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        return {"complete": self.ok, **asdict(self)}


def check_complete(
    folder: Path, *, counted: Callable[[int, int], None] = lambda done, of: None
) -> Completeness:
    """Check a data set that was indexed, and keep what was found beside the index.

    Raises:
        DataError: it is not indexed, or its parts are not those that were.
        OutputError: the result cannot be written.
    """
    dataset = PublishedDataset(folder)
    found = Completeness(dataset.name, rows=len(dataset))
    if isinstance(dataset.images, TarImages):
        summary = dataset.images.summary()
        found.images = summary.images
        found.left_out = list(summary.left_out)
    _check_files(folder, found)
    for row in range(len(dataset)):
        try:
            _check_row(dataset, row, found)
        except DataError as wrong:
            found.bad.append((row, str(wrong)))
        if row % _TELL_EVERY == 0:
            counted(row, len(dataset))
    with atomic_write(own_file(folder, COMPLETE_FILE)) as file:
        file.write((json.dumps(found.as_json(), indent=1) + "\n").encode())
    return found


def _check_row(dataset: PublishedDataset, number: int, found: Completeness) -> None:
    image = dataset.fields(number)["image"]
    negatives = dataset.negative_numbers(number)
    wrong = [other for other in negatives if not 0 <= other < len(dataset)]
    if wrong:
        raise DataError(f"it names row {wrong[0]} as a negative, and there is no such row")
    if dataset.find_image(image) is None:
        found.missing.append((number, image))


def _check_files(folder: Path, found: Completeness) -> None:
    if not own_file(folder, MANIFEST_FILE).is_file():
        return
    manifest = read_manifest(folder)
    unchecked = 0
    for file in manifest.files:
        path = folder / file.name
        if not path.is_file():
            found.files.append(f"{file.name} is not there; go on with data fetch")
        elif path.stat().st_size != file.size:
            found.files.append(f"{file.name} has not its size; go on with data fetch")
        elif not manifest.is_checked(folder, file):
            unchecked += 1
            found.files.append(f"{file.name} has not been checked; go on with data fetch")
    found.hashes = f"{len(manifest.files) - unchecked} of {len(manifest.files)} files compared"
