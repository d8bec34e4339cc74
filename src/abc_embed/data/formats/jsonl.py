"""A records file (records.py) by number: where its lines begin is all that is kept in memory."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from abc_embed.data.dataset import Dataset, Rejected, Row
from abc_embed.data.fields import parse_json
from abc_embed.data.image_files import ImageRoot
from abc_embed.data.records import to_record
from abc_embed.errors import DataError
from abc_embed.storage.plain import PlainFile
from abc_embed.storage.readers import read_lines, reader_errors


class JsonlDataset(Dataset):
    """A records file of `N` lines that are not blank, gzipped or not; 24 bytes of memory each.

    Where a gzipped file is damaged, one more row stands for what cannot be read.
    """

    form = "jsonl"

    def __init__(self, path: Path, images: Path | None = None) -> None:
        """Raises `DataError` when the file cannot be read."""
        self.path = path
        lines: list[tuple[int, int, int]] = []
        try:
            self._file = PlainFile(path)
            with self._file.stream() as stream:
                for number, start, line in read_lines(stream, path):
                    lines.append((number, start, len(line)))
        except OSError as problem:
            raise DataError(f"{path} cannot be read: {problem.strerror}") from problem
        except DataError as wrong:
            why = f"{wrong}; what follows line {lines[-1][0] if lines else 0} is lost"
            self.faults = {len(lines): Rejected(str(path), why)}
        self._lines: NDArray[np.int64] = np.array(lines, dtype=np.int64).reshape(-1, 3)
        """`(N, 3)`: number of the line from 1, bytes before it, and its own."""
        self._root = ImageRoot(images or path.parent)

    def __len__(self) -> int:
        return len(self._lines) + len(self.faults)

    def files(self) -> Sequence[Path]:
        return [self.path]

    def _place(self, number: int) -> str:
        return f"{self.path}:{self._lines[number, 0]}"

    def _row(self, number: int) -> Row:
        _, start, size = self._lines[number].tolist()
        with reader_errors("the line", "get the file again"):
            values = parse_json(self._file.read_at(start, size))
        if isinstance(values, dict) and str(values.get("image")).startswith("/"):
            values["image"] = self._root.plain_name(values["image"])  # inside all the same?
        record = to_record(values)
        _, image = self._root.find(record.image)
        return Row(self.place(number), record, image)
