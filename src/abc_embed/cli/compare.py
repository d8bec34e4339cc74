"""`abc-embed compare`: one image, candidate texts, and a ranking for every instruction."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from abc_embed.cli import options
from abc_embed.cli.output import print_json, print_message

EXAMPLES = """\
Examples:

\b
  abc-embed compare photo.jpg "a dog" "a cat" --instruction "what is on the left?"
  abc-embed compare photo.jpg "a dog" "a cat" --plot ranking.png
"""


@options.with_settings
def compare(
    image: Annotated[str, typer.Argument(help="An image file.")],
    texts: Annotated[list[str], typer.Argument(help="The texts to rank.")],
    instruction: Annotated[
        list[str] | None,
        typer.Option(
            "--instruction",
            help="What to look at; each one gets its own ranking. Without any, the image alone.",
        ),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option("--plot", help="Also draw image and rankings: .png, .jpg or .webp."),
    ] = None,
    *,
    settings: options.ImageModelSettings,
    as_json: options.AsJson = False,
) -> None:
    """Rank texts by how well they fit an image, the best first.

    The score is the cosine of the two vectors: 1 is the most there can be.
    """
    from abc_embed.cli import plot as plots
    from abc_embed.cli.rankings import print_ranking, rank
    from abc_embed.inputs import DECODE_LIMIT, Item, open_image

    if plot is not None:
        plots.check_plot(plot)
    asked: Sequence[str | None] = instruction or [None]
    questions = [Item(image=image, instruction=words) for words in asked]
    candidates = [Item(text=text) for text in texts]
    # A bad image is found before the model is loaded.
    photo = open_image(image, decode_limit=settings.decode_limit or DECODE_LIMIT)
    embedder, max_pixels = settings.load_with_pixels()
    rankings = rank(embedder, questions, candidates, max_pixels)
    if as_json:
        listed = [ranking.as_json() for ranking in rankings]
        print_json({"image": image, "model": settings.model, "rankings": listed})
    else:
        for ranking in rankings:
            print_ranking(ranking)
    if plot is not None:
        plots.write_plot(plot, photo, rankings)
        print_message(f"drawn in {plot}")
