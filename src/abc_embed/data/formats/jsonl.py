"""A records file (records.py) by number: where its lines begin is all that is kept in memory."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from abc_embed.data.dataset import Dataset, Row
from abc_embed.data.records import parse_line
from abc_embed.errors import DataError
from abc_embed.storage.files import open_file


class JsonlDataset(Dataset):
    """A records file of `N` lines that are not blank; 16 bytes of memory each."""

    form = "jsonl"

    def __init__(self, path: Path) -> None:
        """Raises `DataError` when the file cannot be read."""
        self.path = path
        starts, lines, start = [], [], 0
        try:
            with open_file(path) as file:
                for number, line in enumerate(file, start=1):
                    if line.strip():
                        starts.append(start)
                        lines.append(number)
                    start += len(line)
        except OSError as problem:
            raise DataError(f"{path} cannot be read: {problem.strerror}") from problem
        self._starts: NDArray[np.int64] = np.array(starts, dtype=np.int64)
        """`(N,)` bytes before each line."""
        self._lines: NDArray[np.int64] = np.array(lines, dtype=np.int64)
        """`(N,)` line numbers, from 1."""

    def __len__(self) -> int:
        return len(self._starts)

    def place(self, number: int) -> str:
        return f"{self.path}:{self._lines[number]}"

    def row(self, number: int) -> Row:
        try:
            with open_file(self.path) as file:
                file.seek(int(self._starts[number]))
                record = parse_line(file.readline())
        except OSError as problem:
            raise DataError(f"{self.path} cannot be read: {problem.strerror}") from problem
        return Row(self.place(number), record, self.path.parent / record.image)
