"""`abc-embed scenes`: a data set of drawn scenes in the records format, and a sheet to look at."""

from pathlib import Path
from typing import Annotated

import typer

from abc_embed.cli.output import Printer, epilog
from abc_embed.progress import progress_bar

EXAMPLES = epilog("""
  abc-embed scenes --count 20 --out scenes
  abc-embed scenes --count 200 --out test-scenes --seed 7 --held-out
""")

SHEET = "{}-contact-sheet.png"
"""Beside the folder, where a search among its pictures does not find it."""
SHOWN = 12
"""Scenes on it, the first ones."""


def scenes(
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="How many images.")] = 100,
    seed: Annotated[int, typer.Option(min=0, help="Another seed, other scenes.")] = 0,
    side: Annotated[int, typer.Option(help="Pixels a side.")] = 112,
    held_out: Annotated[
        bool, typer.Option(help="Pairs of things that are kept out of training.")
    ] = False,
    *,
    printer: Printer,
) -> None:
    """Draw scenes: images, and records with captions, boxes, instructions and answers.

    Every second image is the one before it with left and right swapped. All of it follows from the
    seed; a set that was broken off goes on when the same command is given again.
    """
    from abc_embed.data import open_dataset
    from abc_embed.data.contact_sheet import write_rows
    from abc_embed.scenes.dataset import write_dataset

    with progress_bar("drawing", count) as on_progress:
        write_dataset(out, count, seed, side, held_out=held_out, on_progress=on_progress)
    beside = out if out.name not in ("", "..") else out.resolve()
    sheet = beside.with_name(SHEET.format(beside.name))
    dataset = open_dataset(out)
    write_rows([dataset[number] for number in range(min(SHOWN, count))], sheet)
    printer.json({"out": str(out), "count": count, "seed": seed, "contact_sheet": str(sheet)})
    printer.line(f"{count} scenes in {out}; {sheet} shows them")
