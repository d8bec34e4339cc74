"""Texts ranked by how well they fit an image, alone or with an instruction: computed, then shown.

Shapes: `N` questions (instructions, or the image alone), `K` candidate texts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from abc_embed.cli.options import Loaded
from abc_embed.cli.output import show_table


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

    def as_json(self) -> dict[str, Any]:
        """The ranking for programs."""
        rows = zip(self.texts, self.scores, strict=True)
        return {
            "instruction": self.instruction,
            "ranking": [
                {"rank": rank, "text": text, "score": score}
                for rank, (text, score) in enumerate(rows, 1)
            ],
        }


class Comparison:
    """What is to be ranked for what; checked when it is made, before a model is loaded for nothing.

    Raises:
        InputError: an instruction or a text is empty.
    """

    def __init__(
        self, image: Path | str, instructions: Sequence[str | None], texts: Sequence[str]
    ) -> None:
        from abc_embed.inputs import Item

        self.instructions = list(instructions)
        self.texts = list(texts)
        questions = [Item(image=image, instruction=words) for words in instructions]
        self._items = [*questions, *(Item(text=text) for text in texts)]

    def rank(self, loaded: Loaded) -> list[Ranking]:
        """One ranking of the `K` texts for each of the `N` questions; the image is encoded once.

        Raises:
            InputError: the image or a text cannot be embedded.
        """
        embedder = loaded.embedder
        vectors, skipped = embedder.embed(
            self._items, max_pixels=loaded.max_pixels, on_error="skip"
        )
        if skipped:
            raise skipped[0].error
        asked = len(self.instructions)
        rankings = []
        for words, vector in zip(self.instructions, vectors[:asked], strict=True):
            scores = embedder.similarity(vector, vectors[asked:])
            order = (-scores).argsort(kind="stable")
            texts = [self.texts[i] for i in order]
            rankings.append(Ranking(words, texts, [float(scores[i]) for i in order]))
        return rankings


def show_ranking(ranking: Ranking) -> None:
    """A table for people, on stdout."""
    rows = [
        (rank, text, score)
        for rank, (text, score) in enumerate(zip(ranking.texts, ranking.scores, strict=True), 1)
    ]
    show_table(("", "text", "cosine"), rows, title=ranking.title)
