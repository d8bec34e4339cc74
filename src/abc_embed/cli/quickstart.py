"""`abc-embed quickstart`: one picture, two questions, and a ranking that swaps."""

from pathlib import Path

import typer

from abc_embed.cli import options
from abc_embed.cli.compare import PICTURES, print_rankings, rank
from abc_embed.cli.output import Printer, check_plot, epilog
from abc_embed.inputs import Item, open_image

EXAMPLES = epilog("""
  abc-embed quickstart
  abc-embed quickstart --plot quickstart.png
  abc-embed quickstart --model TIGER-Lab/ABC-Qwen2VL-Instruct
""")

QUESTIONS = {
    "what is the animal on the left?": "a dog",
    "what is the animal on the right?": "a cat",
}
"""What is asked about the picture, and what is true."""

TEXTS = ("a dog", "a cat", "a horse", "a rabbit", "a car", "a house")


def quickstart(
    *,
    plot: options.RankingPlot = None,
    settings: options.ModelSettings,
    printer: Printer,
) -> None:
    """Ask one picture of a dog and a cat what is on the left and what is on the right.

    The same texts are ranked twice, by the same picture. Only the instruction differs, and the
    ranking swaps. Exits with 1 if it does not.
    """
    check_plot(plot, False, PICTURES)
    picture = example_picture()
    questions = [Item(image=picture, instruction=words) for words in QUESTIONS]
    rankings = rank(settings.load(), questions, [Item(text=text) for text in TEXTS])
    winners = [ranking.texts[0] for ranking in rankings]
    swaps = winners == list(QUESTIONS.values())
    verdict = "The ranking swaps" if swaps else "The ranking does not swap as it should"
    verdict += f": on the left {winners[0]}, on the right {winners[1]}."
    print_rankings(rankings, {"model": settings.model, "swaps": swaps}, printer)
    printer.line(verdict)
    if plot is not None:
        from abc_embed.cli.plot import write_plot

        write_plot(plot, open_image(picture), rankings)
    if not swaps:
        raise typer.Exit(1)


def example_picture() -> Path:
    """The picture of a dog on the left and a cat on the right, in the package."""
    return Path(__file__).parents[1] / "bundled" / "images" / "dog_and_cat.png"
