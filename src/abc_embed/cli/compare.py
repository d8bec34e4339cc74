"""`abc-embed compare`: one image, candidate texts, and a ranking for every instruction."""

from pathlib import Path
from typing import Annotated

import typer

from abc_embed.cli import options
from abc_embed.cli.output import say, show_json

EXAMPLES = """\
Examples:

\b
  abc-embed compare photo.jpg "a dog" "a cat" --instruction "what is on the left?"
  abc-embed compare photo.jpg "a dog" "a cat" --plot ranking.png
"""


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
    model: options.Model = options.MODEL,
    max_pixels: options.MaxPixels = None,
    decode_limit: options.DecodeLimit = None,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    as_json: options.AsJson = False,
) -> None:
    """Rank texts by how well they fit an image, the best first.

    The score is the cosine of the two vectors: 1 is the most there can be.
    """
    if plot is not None:
        from abc_embed.cli.plot import check_plot

        check_plot(plot)
    from abc_embed.cli.rankings import Comparison, show_ranking
    from abc_embed.inputs import open_image

    comparison = Comparison(image, instruction or [None], texts)
    limit = {} if decode_limit is None else {"decode_limit": decode_limit}
    photo = open_image(image, **limit)  # a bad image is found before the model is loaded
    loaded = options.load(
        model, device=device, dtype=dtype, max_pixels=max_pixels, decode_limit=decode_limit
    )
    rankings = comparison.rank(loaded)
    if as_json:
        shown = [ranking.as_json() for ranking in rankings]
        show_json({"image": image, "model": model, "rankings": shown})
    else:
        for ranking in rankings:
            show_ranking(ranking)
    if plot is not None:
        from abc_embed.cli.plot import write_plot

        write_plot(plot, photo, rankings)
        say(f"drawn in {plot}")
