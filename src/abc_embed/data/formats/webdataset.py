"""webdataset: tar files in which `000.jpg`, `000.txt` and `000.json` together are one sample.

One pass over the headers finds where samples begin; no image is read. Compressed tars cannot be
read from the middle; `abc-embed data index` is for the published ones.
"""

import io
import json
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from abc_embed.data.dataset import SAMPLE_KEY, Dataset, Row, record_from_columns
from abc_embed.data.records import Record, to_json
from abc_embed.decoding import IMAGE_SUFFIXES
from abc_embed.errors import DataError
from abc_embed.storage.files import open_file

_BLOCK = 512


class TarDataset(Dataset):
    """`N` samples of one or several tar files, by the files' names; 24 bytes of memory each."""

    form = "webdataset"

    def __init__(self, path: Path, files: Sequence[Path], columns: Mapping[str, str]) -> None:
        """Raises `DataError` for a file that is no plain tar."""
        self.path, self._files, self._columns = path, list(files), dict(columns)
        spans = [
            (number, start, end)
            for number, file in enumerate(files)
            for start, end in _find_samples(file)
        ]
        self._spans: NDArray[np.int64] = np.array(spans, dtype=np.int64).reshape(-1, 3)
        """`(N, 3)`: file, first byte, byte after the last."""

    def __len__(self) -> int:
        return len(self._spans)

    def place(self, number: int) -> str:
        file, start, _ = self._spans[number]
        return f"{self._files[file]}: sample {number} (byte {start})"

    def row(self, number: int) -> Row:
        file, start, end = (int(n) for n in self._spans[number])
        try:
            with open_file(self._files[file]) as opened:
                opened.seek(start)
                sample = opened.read(end - start)
        except OSError as problem:
            raise DataError(f"{self._files[file]} cannot be read: {problem.strerror}") from problem
        values: dict[str, Any] = {}
        image, image_name = None, ""
        for name, content in _read_members(sample):
            key = _sample_key(name)
            values.setdefault(SAMPLE_KEY, key)
            ending = name[len(key) :].lower()
            last = f".{ending.split('.')[-1]}"
            if ending == self._columns.get("image", "") or last in IMAGE_SUFFIXES:
                image, image_name = content, name
            else:
                values |= _read_columns(ending.lstrip("."), content)
        if image is None:
            raise DataError("the sample has no image; leave it out, or add one")
        record = record_from_columns(values, image, image_name, number, self._columns)
        return Row(self.place(number), record, image)


def _find_samples(path: Path) -> Iterator[tuple[int, int]]:
    """First byte of each sample and byte after its last."""
    key, start, end = None, 0, 0
    try:
        with open_file(path) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for info in tar:
                if not info.isfile():
                    continue
                if _sample_key(info.name) != key:
                    if key is not None:
                        yield start, end
                    key, start = _sample_key(info.name), info.offset
                end = info.offset_data + -(-info.size // _BLOCK) * _BLOCK
    except (tarfile.TarError, OSError) as problem:
        raise DataError(
            f"{path} is damaged or no plain tar file ({problem}); make it anew, uncompressed"
        ) from None
    if key is not None:
        yield start, end


def _read_members(sample: bytes) -> Iterator[tuple[str, bytes]]:
    try:
        with tarfile.open(fileobj=io.BytesIO(sample), mode="r:") as tar:
            for info in tar:
                file = tar.extractfile(info) if info.isfile() else None
                if file is not None:
                    yield info.name, file.read()
    except tarfile.TarError as problem:
        raise DataError(f"the sample is damaged ({problem}); make the tar file anew") from None


def _sample_key(name: str) -> str:
    """Up to the first dot of the file's name: what the members of a sample have in common."""
    path = PurePosixPath(name)
    return str(path.with_name(path.name.split(".", 1)[0] or path.name))


def _read_columns(ending: str, content: bytes) -> dict[str, Any]:
    """A member that is no image -> columns."""
    try:
        if ending.endswith("json"):
            values = json.loads(content)
            if not isinstance(values, dict):
                raise DataError(f"the {ending} of the sample holds no object")
            return values
        return {ending: content.decode().strip()}
    except (UnicodeDecodeError, ValueError):
        if ending.endswith(("json", "txt")):
            raise DataError(f"the {ending} of the sample cannot be read; mend it") from None
        return {}  # some other kind of data, which no record holds


def write_tar(file: BinaryIO, rows: Sequence[tuple[Record, bytes]], first: int) -> None:
    """One plain tar of records and images, numbered from `first`; equal rows make equal bytes."""
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for number, (record, image) in enumerate(rows, start=first):
            values = {key: value for key, value in to_json(record).items() if key != "image"}
            text = json.dumps(values, ensure_ascii=False).encode()
            for suffix, content in ((Path(record.image).suffix, image), (".json", text)):
                info = tarfile.TarInfo(f"{number:08d}{suffix}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
