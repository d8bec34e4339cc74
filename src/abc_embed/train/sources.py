"""Training groups from records.

Does: choose the records that a stage can use, put them in a new random order each time through,
draw negatives, instructions and wordings anew. Does not: open images (``batches`` does, in worker
processes), or hold records: of millions, it keeps where each one lies. Other sources of groups need
only the one method of `batches.Source`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from abc_embed.data.formats import open_records
from abc_embed.data.published.layouts import SOURCES, SourceRow
from abc_embed.data.published.source import open_source
from abc_embed.data.records import Record
from abc_embed.errors import ConfigError, DataError
from abc_embed.inputs import ImageInput
from abc_embed.mining.output import Negatives, read_mined
from abc_embed.train.batches import Group, LazyGroups, captioned, instructed
from abc_embed.train.config import DataConfig, StageName

T = TypeVar("T")


class Rows(Protocol):
    """Records by number, each read when it is asked for. It must survive pickling."""

    def __len__(self) -> int: ...

    def row(self, number: int) -> tuple[Record | SourceRow, ImageInput]:
        """A record and its image, which is not opened yet; numbers count from 0."""

    def caption(self, number: int) -> str | None:
        """The caption of a record, without its image."""

    def usable(self, stage: StageName) -> NDArray[np.int64]:
        """Numbers of the records with a caption (stage 1) or with instructions (stage 2)."""


class OwnRows:
    """Anything that `data.formats.open_records` opens."""

    def __init__(self, path: str) -> None:
        self._rows = open_records(path)

    def __len__(self) -> int:
        return len(self._rows)

    def row(self, number: int) -> tuple[Record, ImageInput]:
        try:
            row = self._rows.row(number)
        except DataError as wrong:
            raise DataError(f"{self._rows.place(number)}: {wrong}") from None
        return row.record, row.image

    def caption(self, number: int) -> str | None:
        return self.row(number)[0].caption

    def usable(self, stage: StageName) -> NDArray[np.int64]:
        """Reads every record once, so that a wrong one is found now and not hours later."""
        good = [i for i in range(len(self)) if _fits(self.row(i)[0], stage)]
        return np.array(good, dtype=np.int64)


class PublishedRows:
    """A published data set, its images straight out of the tar parts."""

    def __init__(self, name: str) -> None:
        self._rows = open_source(name)

    def __len__(self) -> int:
        return len(self._rows)

    def row(self, number: int) -> tuple[SourceRow, ImageInput]:
        return self._rows.row(number), self._rows.image(number)

    def caption(self, number: int) -> str | None:
        return self._rows.row(number).caption

    def usable(self, stage: StageName) -> NDArray[np.int64]:
        """Those that `abc-embed data complete` found whole; all are of one kind."""
        numbers = np.array(self._rows.usable(), dtype=np.int64)
        good = len(numbers) > 0 and _fits(self._rows.row(int(numbers[0])), stage)
        return numbers if good else numbers[:0]


def _fits(record: Record | SourceRow, stage: StageName) -> bool:
    return bool(record.caption if stage == "pretrain" else record.instructions)


def open_rows(name: str) -> Rows:
    """What `data.records` may name: `SET:FOLDER` for a published set, or a path.

    Raises `DataError` when it cannot be opened.
    """
    return PublishedRows(name) if name.partition(":")[0] in SOURCES else OwnRows(name)


class RecordSource:
    """Groups from records, in a new random order each time through.

    Records are read, and images opened, when their turn comes.
    """

    def __init__(self, name: str | Path, stage: StageName, data: DataConfig) -> None:
        """Keeps the numbers of the records that the stage can use: with a caption, or with
        instructions.

        Raises `DataError` when there is none, or a record is wrong.
        """
        self._stage = stage
        self._data = data
        self._name = name
        self._rows = open_rows(str(name))
        self._usable = self._rows.usable(stage)
        if not len(self._usable):
            wanted = "caption" if stage == "pretrain" else "instructions"
            raise DataError(f"{name} has no record with {wanted}; give records made for this stage")
        self._mined = _open_mined(data.negatives_file, len(self._rows))
        self._order: tuple[tuple[int, int], NDArray[np.int64]] | None = None

    def __len__(self) -> int:
        return len(self._usable)

    def groups(self, step: int, count: int, seed: int) -> Sequence[Group]:
        if count > len(self):
            raise ConfigError(
                f"train.batch_size is {count} but only {len(self)} records can be used; "
                "an image twice in a batch teaches nothing"
            )
        return LazyGroups(count, lambda i: self._group(step * count + i, seed))

    def _group(self, position: int, seed: int) -> Group:
        epoch, place = divmod(position, len(self))
        if self._order is None or self._order[0] != (seed, epoch):
            order = np.random.default_rng([seed, 0, epoch]).permutation(len(self))
            self._order = ((seed, epoch), order)
        number = int(self._usable[self._order[1][place]])
        record, image = self._rows.row(number)
        random = np.random.default_rng([seed, 1, position])
        if self._stage == "pretrain" and record.caption:
            negatives = self._negatives(random, number, record.negatives)
            return captioned(image, record.caption, negatives)
        pairs = []
        for ask in _draw(random, record.instructions, self._data.instructions):
            wordings = (ask.instruction, *ask.paraphrases)
            pairs.append((wordings[random.integers(len(wordings))], ask.answer))
        return instructed(image, pairs)

    def _negatives(
        self, random: np.random.Generator, number: int, pool: Sequence[str]
    ) -> Sequence[str]:
        count = self._data.negatives
        if self._mined is None:
            return _draw(random, pool, count)
        rows = _draw(random, self._mined.of(number).tolist(), count)
        texts = [self._rows.caption(row) for row in rows]
        if None in texts:
            bad = rows[texts.index(None)]
            raise DataError(
                f"{self._data.negatives_file} names row {bad} of {self._name}, which has "
                "no caption; mine these records again"
            )
        return [text for text in texts if text is not None]


def _draw(random: np.random.Generator, pool: Sequence[T], count: int) -> list[T]:
    """`count` of a pool without putting back, or all of a smaller one."""
    chosen = random.permutation(len(pool))[:count]
    return [pool[i] for i in chosen]


def _open_mined(path: str, count: int) -> Negatives | None:
    return read_mined(Path(path), count) if path else None
