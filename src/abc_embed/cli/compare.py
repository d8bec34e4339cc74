"""`abc-embed compare`: one image, candidate texts, and a ranking for every instruction.

Shapes: `N` questions (instructions, or the image alone), `K` candidate texts.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from abc_embed.cli import options
from abc_embed.cli.output import Printer, check_plot, epilog
from abc_embed.cli.rankings import Ranking
from abc_embed.inputs import DECODE_LIMIT, Item, open_image

if TYPE_CHECKING:
    from abc_embed.cli.remote import RemoteModel
    from abc_embed.embedder import Embedder

EXAMPLES = epilog("""
  abc-embed compare photo.jpg "a dog" "a cat" --instruction "what is on the left?"
  abc-embed compare photo.jpg "a dog" "a cat" --plot ranking.png --explain
  abc-embed compare photo.jpg "a dog" "a cat" --server http://127.0.0.1:8765
""")

PICTURES = (".png", ".jpg", ".jpeg", ".webp")
"""Endings of the files that rankings are drawn in."""
HEEDED = ("image", "texts", "instruction", "plot")
"""What a server can heed."""


def compare(
    context: typer.Context,
    image: Annotated[str, typer.Argument(help="An image file.")],
    texts: Annotated[list[str], typer.Argument(help="The texts to rank.")],
    instruction: Annotated[
        list[str] | None,
        typer.Option(
            help="What to look at; each one gets its own ranking. Without any, the image alone."
        ),
    ] = None,
    plot: options.RankingPlot = None,
    explain: Annotated[
        bool, typer.Option(help="Draw over the image what spoke for each best text.")
    ] = False,
    *,
    settings: options.ImageModelSettings,
    remote: options.RemoteSettings,
    printer: Printer,
) -> None:
    """Rank texts by how well they fit an image, the best first.

    The score is the cosine of the two vectors: 1 is the most there can be.
    """
    check_plot(plot, explain, PICTURES)
    asked: Sequence[str | None] = instruction or [None]
    questions = [Item(image=image, instruction=words) for words in asked]
    candidates = [Item(text=text) for text in texts]
    embedder, max_pixels = None, None
    served = remote.connect(context, settings.model, HEEDED)
    if served is not None:
        rankings = rank_remote(served, image, asked, texts)
    else:
        # A bad image is found before the model is loaded.
        open_image(image, decode_limit=settings.decode_limit or DECODE_LIMIT)
        embedder, max_pixels = settings.load_with_pixels()
        rankings = rank(embedder, questions, candidates, max_pixels)
    print_rankings(rankings, {"image": image, "model": (served or settings).model}, printer)
    if plot is not None:
        from abc_embed.cli.plot import write_plot

        photo = open_image(image, decode_limit=settings.decode_limit or DECODE_LIMIT)
        overlays = [
            embedder.explain(question, ranking.texts[0], max_pixels=max_pixels).overlay(photo)
            for question, ranking in zip(questions, rankings, strict=True)
            if embedder is not None and explain
        ]
        write_plot(plot, photo, rankings, overlays)


def rank_remote(
    served: "RemoteModel", image: str, asked: Sequence[str | None], texts: list[str]
) -> list[Ranking]:
    """The same by a running server; the image alone has no place among instructions there."""
    body: dict[str, Any] = {"image": served.image_data(image), "texts": texts}
    if asked != [None]:
        body["instructions"] = list(asked)
    return [
        Ranking(
            row["instruction"],
            [hit["text"] for hit in row["ranking"]],
            [hit["score"] for hit in row["ranking"]],
        )
        for row in served.ask("/v1/rank", body)["data"]
    ]


def rank(
    embedder: "Embedder",
    questions: Sequence[Item],
    texts: Sequence[Item],
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


def print_rankings(rankings: list[Ranking], source: dict[str, Any], printer: Printer) -> None:
    """A table of each for people, or all of them for programs, after what they come from."""
    printer.json({**source, "rankings": [ranking.as_json() for ranking in rankings]})
    for ranking in rankings:
        printer.table(("", "text", "cosine"), ranking.rows(), title=ranking.title)
