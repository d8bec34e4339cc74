"""What a job reads: a data set on disk, or in a bucket (`s3://`, `gs://`, whatever fsspec knows).

Files of a bucket are copied to a folder of the machine that reads them when they are first needed:
records at once, their images one by one, tar and Parquet files as a whole. On a cluster every
machine has its own copy of what it reads.

Shapes: `N` rows.
"""

import logging
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from abc_embed.data import Dataset, Rejected, open_dataset
from abc_embed.data.records import RECORDS_FILE
from abc_embed.errors import AbcError, DataError, MissingExtraError, UsageError
from abc_embed.progress import ProgressCallback
from abc_embed.storage.files import atomic_write, make_folder, read_file
from abc_embed.storage.hashing import sha256, short_hash

_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs"}
_LOUD = ("gcsfs", "s3fs", "aiobotocore", "fsspec")
"""Their loggers print a traceback of what they then raise."""
_REPORT_EVERY = 1024


@dataclass(frozen=True, slots=True)
class Bucket:
    """A file or folder of a bucket, and where this machine keeps its copy."""

    address: str
    cache: Path

    def fetch(self, name: str) -> Path:
        """The local copy of a file below the address; made if it is not there.

        Raises:
            DataError: it cannot be read.
        """
        path = self.cache / name if name else self.cache
        if path.exists():
            return path
        address = f"{self.address.rstrip('/')}/{name}" if name else self.address
        make_folder(path.parent)
        with (
            _in_one_sentence(address),
            _import_fsspec().open(address, "rb") as remote,
            atomic_write(path) as file,
        ):
            shutil.copyfileobj(remote, file, 1 << 20)
        return path

    def names(self) -> list[str]:
        """Files below the address, as paths from it; empty if the address is a file itself."""
        fsspec = _import_fsspec()
        with _in_one_sentence(self.address):
            system, root = fsspec.core.url_to_fs(self.address)
            if system.isfile(root):
                return []
            found = system.find(root)
        if not found:
            raise DataError(f"there is nothing at {self.address}; check the address")
        return sorted(str(path)[len(str(root).rstrip("/")) + 1 :] for path in found)


@dataclass(frozen=True, slots=True)
class Source:
    """The rows of a data set by number; it can be pickled to another machine."""

    dataset: Dataset
    bucket: Bucket | None = None

    def __len__(self) -> int:
        return len(self.dataset)

    def read(self, number: int) -> tuple[str, bytes]:
        """Id and image file of a row.

        Raises:
            DataError: the row cannot be used.
        """
        if self.bucket is not None:
            for file in self.dataset.files():
                self._fetch(file)
        row = self.dataset.row(number)
        if isinstance(row.image, bytes):
            return row.record.id, row.image
        self._fetch(row.image)
        try:
            return row.record.id, read_file(row.image)
        except FileNotFoundError:
            mend = "put it there, or leave the row out"
            raise DataError(f"there is no image {row.image!s}; {mend}") from None
        except OSError as error:
            raise DataError(f"{row.image!s} cannot be read ({error.strerror})") from error

    def _fetch(self, path: Path) -> None:
        if self.bucket is not None and not path.exists():
            inside = path.relative_to(self.bucket.cache).as_posix()
            self.bucket.fetch("" if inside == "." else inside)


@dataclass(slots=True)
class Rows:
    """What one reading of all rows found."""

    keys: NDArray[np.uint64]
    """`(N,)` a hash of each id; 0 for a row that cannot be used."""
    rejected: dict[int, Rejected] = field(default_factory=dict)


def open_source(name: str, cache: Path | None = None, image_folder: Path | None = None) -> Source:
    """A data set by path, name or address.

    Args:
        name: as `open_dataset` takes it, or an address of fsspec.
        cache: where copies of a bucket's files are kept; None: in the temporary folder.
        image_folder: as `open_dataset` takes it; a bucket holds its images itself.

    Raises:
        DataError: there is no such data set, or the bucket cannot be read.
        MissingExtraError: the package for such addresses is absent.
    """
    match = _ADDRESS.match(name)
    if match is None:
        return Source(open_dataset(name, image_folder=image_folder))
    if match[1] in ("http", "https"):
        raise DataError("nothing is fetched from the web; give a folder, or s3:// or gs://")
    if image_folder is not None:
        raise UsageError(f"the images of {name} are fetched from there; leave --image-folder out")
    place = cache or Path(tempfile.gettempdir()) / "abc-embed-batch"
    folder = place / sha256(name.rstrip("/"))[:16]
    address = Bucket(name, folder)
    names = address.names()
    if not names:  # a single file: its images lie beside it
        above, _, file = name.rstrip("/").rpartition("/")
        bucket = Bucket(above, make_folder(folder))
        return Source(open_dataset(bucket.fetch(file)), bucket)
    bucket = Bucket(name, make_folder(folder))
    records = [n for n in (RECORDS_FILE, f"{RECORDS_FILE}.gz") if n in names]
    tables = [n for n in names if n.endswith((".tar", ".tar.gz", ".tgz", ".parquet"))]
    for file in records[:1] or tables or names:
        bucket.fetch(file)
    return Source(open_dataset(folder / records[0] if records else folder), bucket)


def read_ids(source: Source, on_progress: ProgressCallback) -> Rows:
    """Read every row once, so that what is wrong is found before a model is loaded.

    Raises:
        DataError: two rows have one id.
    """
    count, dataset = len(source), source.dataset
    rows = Rows(np.zeros(count, dtype=np.uint64))
    for number in range(count):
        try:
            rows.keys[number] = key_of(dataset.row(number).record.id)
        except DataError as wrong:
            rows.rejected[number] = Rejected(dataset.place(number), str(wrong))
        if number % _REPORT_EVERY == 0 or number == count - 1:
            on_progress(number + 1, count)
    order = np.argsort(rows.keys, kind="stable")
    ordered = rows.keys[order]
    for at in np.flatnonzero((ordered[1:] == ordered[:-1]) & (ordered[1:] != 0)).tolist():
        first, second = int(order[at]), int(order[at + 1])
        name = dataset.row(first).record.id
        if name == dataset.row(second).record.id:  # and not two ids of one hash
            raise DataError(
                f"the id {name!r} comes twice, at {dataset.place(first)} and "
                f"{dataset.place(second)}; give each row its own"
            )
    return rows


def key_of(name: str) -> int:
    """The hash of an id in 64 bits; never 0."""
    return int.from_bytes(short_hash(name.encode("utf-8", "surrogatepass"), 8), "little") or 1


@contextmanager
def _in_one_sentence(address: str) -> Iterator[None]:
    """Whatever a file system of fsspec raises, as one sentence.

    Raises:
        DataError, MissingExtraError: anything else than an error of ours.
    """
    scheme = address.partition("://")[0]
    loggers = [logging.getLogger(name) for name in _LOUD]
    levels = [each.level for each in loggers]
    for each in loggers:
        each.setLevel(logging.CRITICAL)
    try:
        yield
    except AbcError:
        raise
    except ImportError:
        package = _PACKAGES.get(scheme, "the package of fsspec for it")
        raise MissingExtraError(
            f"reading {scheme}:// needs an optional package; run: pip install {package}"
        ) from None
    except FileNotFoundError:
        raise DataError(f"there is nothing at {address}; check the address") from None
    except Exception as error:  # noqa: BLE001  (each file system has errors of its own)
        why = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(
            f"{address} cannot be read ({why}); check the address, and that this machine has "
            "credentials for it"
        ) from None
    finally:
        for each, level in zip(loggers, levels, strict=True):
            each.setLevel(level)


def _import_fsspec() -> Any:
    try:
        import fsspec
    except ImportError:
        raise MissingExtraError.of("scale", "a bucket") from None
    return fsspec
