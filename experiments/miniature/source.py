"""Stage-2 batches: the four pairs of an image together, or the same pairs in other company.

Does: choose four (instruction, answer) pairs of each image once, and hand them out as whole images
or shuffled. Does not: change what is learnt from: over a run both orders see the very same pairs,
as often, with as many queries in each batch.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from abc_embed.data.records import Instruction, Record, read_records
from abc_embed.errors import DataError
from abc_embed.train.batches import Group, instruction_group
from experiments.miniature.plan import INSTRUCTIONS

Pair = tuple[str, str]


class PairSource:
    """Groups of a run that sees `images` images once; which, follows from the seed."""

    def __init__(self, records: Path, images: int, *, whole: bool) -> None:
        """Raises `DataError` when there are too few records with enough questions."""
        self._folder = records.parent
        self._whole = whole
        self._images = images
        self._records = [r for r in read_records(records) if len(r.instructions) >= INSTRUCTIONS]
        if len(self._records) < images:
            raise DataError(
                f"{records} has {len(self._records)} records with {INSTRUCTIONS} instructions; "
                f"{images} are needed, so make more scenes"
            )

    def groups(self, step: int, count: int, seed: int) -> Sequence[Group]:
        chosen = np.random.default_rng([seed, 0]).permutation(len(self._records))[: self._images]
        if self._whole:
            numbers = chosen[step * count : (step + 1) * count]
            return [self._group(int(number), seed) for number in numbers]
        order = np.random.default_rng([seed, 2]).permutation(len(chosen) * INSTRUCTIONS)
        singles = []
        for place in order[step * count : (step + 1) * count]:
            image, ask = divmod(int(place), INSTRUCTIONS)
            group = self._group(int(chosen[image]), seed)
            singles.append(Group(group.image, (group.pairs[ask],)))
        return singles

    def _group(self, number: int, seed: int) -> Group:
        record = self._records[number]
        pairs = choose(record, np.random.default_rng([seed, 1, number]))
        return instruction_group(self._folder / record.image, pairs)


def choose(record: Record, random: np.random.Generator) -> list[Pair]:
    """Four questions of a record in any of their wordings, with different answers if it has them.

    The paper chooses four different regions; a scene of two things has three answers.
    """
    asks = [record.instructions[int(i)] for i in random.permutation(len(record.instructions))]
    seen, new, again = set[str](), list[Instruction](), list[Instruction]()
    for ask in asks:
        (again if ask.answer in seen else new).append(ask)
        seen.add(ask.answer)
    pairs = []
    for ask in [*new, *again][:INSTRUCTIONS]:
        wordings = (ask.instruction, *ask.paraphrases)
        pairs.append((wordings[int(random.integers(len(wordings)))], ask.answer))
    return pairs
