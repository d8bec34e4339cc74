"""Records in lines of JSON (records.py), by number: only where lines begin is kept in memory.

Does: find the lines of a file, read one, write a part of a new file. Does not: say what a record
is.

Shapes: `N` lines that are not blank.
"""

import dataclasses
import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from abc_embed.data.formats.rows import Row
from abc_embed.data.records import Record, parse_line
from abc_embed.errors import DataError


class JsonlSet:
    """A records file; 16 bytes of memory a row."""

    form = "jsonl"

    def __init__(self, path: Path) -> None:
        """Raises `DataError` when the file cannot be read."""
        self.path, self.folder = path, path.parent
        starts, lines = [], []
        try:
            with path.open("rb") as file:
                start = 0
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

    def record(self, number: int) -> Record:
        """The record alone.

        Raises:
            DataError: the line is no record.
        """
        try:
            with self.path.open("rb") as file:
                file.seek(int(self._starts[number]))
                line = file.readline()
        except OSError as problem:
            raise DataError(f"{self.path} cannot be read: {problem.strerror}") from problem
        return parse_line(line)

    def row(self, number: int) -> Row:
        record = self.record(number)
        return Row(self.place(number), record, self.folder / record.image)


def line_of(record: Record) -> bytes:
    """A record as its line of a records file."""
    values = dataclasses.asdict(record)
    return json.dumps(values, ensure_ascii=False, allow_nan=False).encode() + b"\n"
