"""Training groups from a records file.

Does: choose the records that a stage can use, put them in a new random order each time through,
draw negatives, instructions and wordings anew. Does not: open images (``batches`` does, in worker
processes). Other sources of groups need only the one method of `batches.Source`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from abc_embed.data.records import RECORDS_FILE, read_records
from abc_embed.errors import ConfigError, DataError
from abc_embed.train.batches import Group, captioned, instructed
from abc_embed.train.config import DataConfig, StageName

T = TypeVar("T")


class RecordSource:
    """Groups from a records file, in a new random order each time through.

    All records are held in memory, images are opened when their turn comes.
    """

    def __init__(self, path: str | Path, stage: StageName, data: DataConfig) -> None:
        """Keeps the records that the stage can use: with a caption, or with instructions.

        Raises `DataError` when there is none.
        """
        path = Path(path)
        path = path / RECORDS_FILE if path.is_dir() else path
        self._stage = stage
        self._data = data
        self._folder = path.parent
        records = read_records(path)
        self._records = [
            r for r in records if (r.caption if stage == "pretrain" else r.instructions)
        ]
        if not self._records:
            wanted = "caption" if stage == "pretrain" else "instructions"
            raise DataError(f"{path} has no record with {wanted}; give records made for this stage")
        self._order: tuple[tuple[int, int], NDArray[np.int64]] | None = None

    def __len__(self) -> int:
        return len(self._records)

    def groups(self, step: int, count: int, seed: int) -> Sequence[Group]:
        if count > len(self):
            raise ConfigError(
                f"train.batch_size is {count} but only {len(self)} records can be used; "
                "an image twice in a batch teaches nothing"
            )
        first = step * count
        return [self._group(position, seed) for position in range(first, first + count)]

    def _group(self, position: int, seed: int) -> Group:
        epoch, place = divmod(position, len(self))
        if self._order is None or self._order[0] != (seed, epoch):
            order = np.random.default_rng([seed, 0, epoch]).permutation(len(self))
            self._order = ((seed, epoch), order)
        record = self._records[self._order[1][place]]
        random = np.random.default_rng([seed, 1, position])
        image = self._folder / record.image
        if self._stage == "pretrain" and record.caption:
            negatives = _draw(random, record.negatives, self._data.negatives)
            return captioned(image, record.caption, negatives)
        pairs = []
        for ask in _draw(random, record.instructions, self._data.instructions):
            wordings = (ask.instruction, *ask.paraphrases)
            pairs.append((wordings[random.integers(len(wordings))], ask.answer))
        return instructed(image, pairs)


def _draw(random: np.random.Generator, pool: Sequence[T], count: int) -> list[T]:
    """`count` of a pool without putting back, or all of a smaller one."""
    chosen = random.permutation(len(pool))[:count]
    return [pool[i] for i in chosen]
