"""What was left out, and why: one line of JSON for each, counted by reason."""

import json
from collections import Counter
from enum import StrEnum
from typing import BinaryIO


class Reason(StrEnum):
    """Why something was not used, in the words of reports and rejects files."""

    EMPTY = "empty reply"
    REFUSAL = "refused"
    CUT = "reply cut off"
    LINES = "several lines"
    LENGTH = "too short or too long"
    SCRIPT = "another script"
    LEAK = "answer given away"
    REPEAT = "repeated in its image"
    FORM = "not the form asked for"
    ENDPOINT = "endpoint failed"
    IMAGE = "image cannot be used"
    ROW = "row cannot be read"
    FEW = "too few distinct regions"
    PHRASE = "phrase says nothing"
    BOX = "box outside the image"
    NO_QUESTION = "no question of its own"
    ALONE = "too few usable prompts"


class Rejects:
    """Counts rejects by reason, and writes each to `file` where there is one."""

    def __init__(self, file: BinaryIO | None = None) -> None:
        self.counts: Counter[str] = Counter()
        self.examples: dict[str, str] = {}
        """The first detail of each reason."""
        self.file = file

    def add(
        self,
        reason: Reason,
        where: str,
        detail: str = "",
        *,
        image: str = "",
        phrase: str = "",
        reply: str = "",
    ) -> None:
        """Something was left out: where it stands, why, and what there was of it."""
        self.counts[str(reason)] += 1
        self.examples.setdefault(str(reason), detail)
        if self.file is not None:
            row = {"where": where, "reason": reason, "detail": detail}
            row |= {"image": image, "phrase": phrase, "reply": reply}
            row = {name: value for name, value in row.items() if value}
            self.file.write((json.dumps(row, ensure_ascii=False) + "\n").encode(errors="replace"))
