"""`abc-embed quickstart`: one picture, two questions, and a ranking that swaps."""

from pathlib import Path
from typing import Annotated

import typer

from abc_embed.cli import options
from abc_embed.cli.output import say, show, show_json

EXAMPLES = """\
Examples:

\b
  abc-embed quickstart
  abc-embed quickstart --plot quickstart.png
  abc-embed quickstart --model TIGER-Lab/ABC-Qwen2VL-Instruct
"""

QUESTIONS = {
    "what is the animal on the left?": "a dog",
    "what is the animal on the right?": "a cat",
}
"""What is asked about the picture, and what is true."""

TEXTS = ("a dog", "a cat", "a horse", "a rabbit", "a car", "a house")


def quickstart(
    model: options.Model = options.MODEL,
    plot: Annotated[
        Path | None,
        typer.Option("--plot", help="Also draw picture and rankings: .png, .jpg or .webp."),
    ] = None,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    as_json: options.AsJson = False,
) -> None:
    """Ask one picture of a dog and a cat what is on the left and what is on the right.

    The same texts are ranked twice, by the same picture. Only the instruction differs, and the
    ranking swaps. Exits with 1 if it does not.
    """
    if plot is not None:
        from abc_embed.cli.plot import check_plot

        check_plot(plot)
    from abc_embed.cli.rankings import Comparison, show_ranking

    picture = example_picture()
    comparison = Comparison(picture, list(QUESTIONS), TEXTS)
    rankings = comparison.rank(options.load(model, device=device, dtype=dtype))
    winners = [ranking.texts[0] for ranking in rankings]
    swaps = winners == list(QUESTIONS.values())
    verdict = "The ranking swaps" if swaps else "The ranking does not swap as it should"
    verdict += f": on the left {winners[0]}, on the right {winners[1]}."
    if as_json:
        shown = [ranking.as_json() for ranking in rankings]
        show_json({"model": model, "rankings": shown, "swaps": swaps})
    else:
        for ranking in rankings:
            show_ranking(ranking)
        show(verdict)
    if plot is not None:
        from abc_embed.cli.plot import write_plot
        from abc_embed.inputs import open_image

        write_plot(plot, open_image(picture), rankings)
        say(f"drawn in {plot}")
    if not swaps:
        raise typer.Exit(1)


def example_picture() -> Path:
    """The picture of a dog on the left and a cat on the right, in the package."""
    return Path(__file__).parents[1] / "bundled" / "images" / "dog_and_cat.png"
