"""Texts ranked for an image: what compare and quickstart print, and plot draws."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Ranking:
    """The texts for one question, best first."""

    instruction: str | None
    """None: the image alone."""
    texts: list[str]
    scores: list[float]
    """Cosines, in the order of `texts`."""

    @property
    def title(self) -> str:
        """What was asked."""
        return "the image alone" if self.instruction is None else self.instruction

    def rows(self) -> list[tuple[int, str, float]]:
        """Rank, text and score of each text."""
        pairs = zip(self.texts, self.scores, strict=True)
        return [(rank, text, score) for rank, (text, score) in enumerate(pairs, 1)]

    def as_json(self) -> dict[str, Any]:
        """The ranking for programs."""
        keys = ("rank", "text", "score")
        ranking = [dict(zip(keys, row, strict=True)) for row in self.rows()]
        return {"instruction": self.instruction, "ranking": ranking}
