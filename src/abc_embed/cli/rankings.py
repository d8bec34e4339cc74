"""Texts ranked by how well they fit an image, alone or with an instruction: computed and printed.

Shapes: `N` questions (instructions, or the image alone), `K` candidate texts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from abc_embed.cli.output import print_table

if TYPE_CHECKING:
    from abc_embed.embedder import Embedder
    from abc_embed.inputs import Item


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


def rank(
    embedder: "Embedder",
    questions: "Sequence[Item]",
    texts: "Sequence[Item]",
    max_pixels: int | None = None,
) -> list[Ranking]:
    """One ranking of the `K` texts for each of the `N` questions; an image is encoded once.

    Raises:
        InputError: an image or a text cannot be embedded.
    """
    vectors, skipped = embedder.embed([*questions, *texts], max_pixels=max_pixels, on_error="skip")
    if skipped:
        raise skipped[0].error
    count = len(questions)
    rankings = []
    for question, vector in zip(questions, vectors[:count], strict=True):
        scores = embedder.similarity(vector, vectors[count:])
        order = (-scores).argsort(kind="stable")
        words = [texts[i].text or "" for i in order]
        rankings.append(Ranking(question.instruction, words, [float(scores[i]) for i in order]))
    return rankings


def print_ranking(ranking: Ranking) -> None:
    """A table for people, on stdout."""
    print_table(("", "text", "cosine"), ranking.rows(), title=ranking.title)
