"""Whether a published data set is all there: every file, every row, and every row's image.

Images are only looked up in the index: each is compared with its sum when it is read.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from abc_embed.data.published.dataset import COMPLETE_FILE, PublishedDataset, own_file
from abc_embed.data.published.fetch import MANIFEST_FILE, read_manifest
from abc_embed.data.published.tar_images import TarImages
from abc_embed.errors import DataError
from abc_embed.storage.json_files import atomic_write_json

_PROGRESS_EVERY = 1000


@dataclass(slots=True)
class VerifyReport:
    """What is there, and what is not."""

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
        """For programs, and for training, which leaves the rows named here out."""
        return {"complete": self.ok, **asdict(self)}


def verify(
    folder: Path, *, on_progress: Callable[[int, int], None] = lambda done, of: None
) -> VerifyReport:
    """Verify a data set that was indexed, and keep the report beside the index.

    Raises:
        DataError: it is not indexed, or its parts are not those that were.
        OutputError: the report cannot be written.
    """
    dataset = PublishedDataset(folder)
    report = VerifyReport(dataset.name, rows=len(dataset))
    if isinstance(dataset.images, TarImages):
        report.images, report.left_out = len(dataset.images), dataset.images.left_out()
    if own_file(folder, MANIFEST_FILE).is_file():
        _verify_files(folder, report)
    for row in range(len(dataset)):
        try:
            image = dataset.fields(row)["image"]
            wrong = [n for n in dataset.negative_numbers(row) if not 0 <= n < len(dataset)]
            if wrong:
                raise DataError(f"it names row {wrong[0]} as a negative, and there is no such row")
            if dataset.find_image(image) is None:
                report.missing.append((row, image))
        except DataError as problem:
            report.bad.append((row, str(problem)))
        if row % _PROGRESS_EVERY == 0:
            on_progress(row, len(dataset))
    atomic_write_json(own_file(folder, COMPLETE_FILE), report.as_json())
    return report


def _verify_files(folder: Path, report: VerifyReport) -> None:
    manifest = read_manifest(folder)
    checked = 0
    for file in manifest.files:
        path = folder / file.name
        if not path.is_file():
            wrong = "is not there"
        elif path.stat().st_size != file.size:
            wrong = "has not its size"
        elif not manifest.is_checked(folder, file):
            wrong = "has not been checked"
        else:
            checked += 1
            continue
        report.files.append(f"{file.name} {wrong}; go on with data fetch")
    report.hashes = f"{checked} of {len(manifest.files)} files compared"
