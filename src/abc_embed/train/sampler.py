"""Training groups from records.

Other samplers need only the one method of `batches.GroupSampler`.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from abc_embed.data import Dataset, Rejected, Row, open_dataset
from abc_embed.data.records import Instruction
from abc_embed.errors import ConfigError, DataError
from abc_embed.mining.output import read_mined
from abc_embed.train.batches import Group, LazyGroups, caption_group, instruction_group
from abc_embed.train.config import DataConfig, StageName

T = TypeVar("T")


class RecordSampler:
    """Groups from records, in a new order each epoch; negatives, wordings, and one of an image's
    captions, are drawn anew.

    Records are read, and images opened, when their turn comes: of millions it holds the numbers.
    """

    def __init__(
        self,
        name: str | Path | Dataset,
        stage: StageName,
        data: DataConfig,
        on_row: Callable[[Row], None] = lambda row: None,
    ) -> None:
        """Finds the records that the stage can use: with a caption, or with instructions.

        `on_row` sees each row in passing; rows of published sets are not read here.

        Raises:
            DataError: there is none, or a record is wrong.
        """
        self._stage = stage
        self._data = data
        self._dataset = open_dataset(name, image_folder=data.image_folder)
        self._name = "the data set" if isinstance(name, Dataset) else name
        field: Literal["caption", "instructions"] = (
            "caption" if stage == "pretrain" else "instructions"
        )
        self.unreadable: list[Rejected] = []
        """Rows that are no records; where `data.on_error` is "raise", there is none."""
        skip = data.on_error == "skip"
        kinds: set[str] = set()
        unasked: list[int] = []

        def see(number: int, row: Row) -> None:
            own = {ask.kind for ask in row.record.instructions}
            kinds.update(own)
            if own and not any(data.kinds.get(kind, 1.0) for kind in own):
                unasked.append(number)
            on_row(row)

        scan = self._dataset.scan(field, self.unreadable.append if skip else None, see)
        self._usable = np.setdiff1d(scan.numbers, unasked) if data.kinds else scan.numbers
        unknown = sorted(data.kinds.keys() - kinds)
        if unknown and kinds:  # of published sets none is known
            raise ConfigError(
                f"data.kinds names {unknown[0]!r}, which no instruction has; there are "
                f"{', '.join(sorted(kinds))}"
            )
        self.fingerprint = scan.fingerprint
        """Of what the records say, in their order."""
        bad, of, share = len(self.unreadable), len(self._dataset), data.max_bad_share
        if bad > max(share * of, share > 0):
            first = self.unreadable[0]
            raise DataError(
                f"{bad:,} of the {of:,} rows of {self._name} cannot be used, more than "
                f"data.max_bad_share ({share:g}) lets pass; the first is {first.place}: {first.why}"
            )
        if not len(self._usable):
            raise DataError(
                f"{self._name} has no record with {field}; give records made for this stage"
            )
        path = data.negatives_file
        self._mined = read_mined(Path(path), len(self._dataset), scan.captions) if path else None
        self._order: tuple[tuple[int, int], NDArray[np.int64]] | None = None

    def __len__(self) -> int:
        return len(self._usable)

    def groups(self, step: int, count: int, seed: int) -> Sequence[Group | Rejected]:
        if count > len(self):
            raise ConfigError(
                f"train.batch_size is {count} but only {len(self)} records can be used; "
                "an image twice in a batch teaches nothing"
            )
        return LazyGroups(count, lambda i: self._group(step * count + i, seed))

    def _group(self, position: int, seed: int) -> Group | Rejected:
        epoch, index = divmod(position, len(self))
        if self._order is None or self._order[0] != (seed, epoch):
            order = np.random.default_rng([seed, 0, epoch]).permutation(len(self))
            self._order = ((seed, epoch), order)
        number = int(self._usable[self._order[1][index]])
        try:
            row = self._dataset.row(number)
        except DataError as wrong:
            place = self._dataset.place(number)
            if self._data.on_error == "raise":
                raise DataError(f"{place}: {wrong}") from None
            return Rejected(place, str(wrong))
        record = row.record
        random = np.random.default_rng([seed, 1, position])
        if self._stage == "pretrain" and record.captions:
            captions = record.captions
            own = captions[random.integers(len(captions)) if len(captions) > 1 else 0]
            negatives = self._negatives(random, number, record.negatives)
            others = [text for text in captions if text != own]
            return caption_group(row.image, own, negatives, also_right=others, place=row.place)
        pairs = []
        for instruction in self._choose(random, record.instructions):
            wordings = (instruction.instruction, *instruction.paraphrases)
            pairs.append((wordings[random.integers(len(wordings))], instruction.answer))
        if not pairs:
            return Rejected(row.place, "data.kinds draws none of its instructions")
        return instruction_group(row.image, pairs, place=row.place)

    def _choose(
        self, random: np.random.Generator, instructions: Sequence[Instruction]
    ) -> Sequence[Instruction]:
        """`data.instructions` of a record's, the kinds weighted where `data.kinds` says so."""
        count = self._data.instructions
        if not self._data.kinds:
            return _sample(random, instructions, count)
        weights = [self._data.kinds.get(ask.kind, 1.0) for ask in instructions]
        asked = [(ask, weight) for ask, weight in zip(instructions, weights, strict=True) if weight]
        # Drawn one after the other by weight, without putting back: the first to come, each at a
        # rate of its weight (Efraimidis and Spirakis 2006).
        times = random.exponential(size=len(asked)) / np.array([weight for _, weight in asked])
        return [asked[i][0] for i in np.argsort(times)[:count]]

    def _negatives(
        self, random: np.random.Generator, number: int, pool: Sequence[str]
    ) -> Sequence[str]:
        count = self._data.negatives
        if self._mined is None:
            return _sample(random, pool, count)
        rows = _sample(random, self._mined.of(number).tolist(), count)
        texts: list[str] = []
        for row in rows:
            text = self._dataset.caption(row)
            if text is None:
                raise DataError(
                    f"{self._data.negatives_file} names row {row} of {self._name}, which has "
                    "no caption; mine these records again"
                )
            texts.append(text)
        return texts


def _sample(random: np.random.Generator, pool: Sequence[T], count: int) -> list[T]:
    """`count` of a pool without putting back, or all of a smaller one."""
    chosen = random.permutation(len(pool))[:count]
    return [pool[i] for i in chosen]
