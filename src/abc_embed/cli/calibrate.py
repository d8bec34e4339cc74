"""`abc-embed calibrate`: the ranges that int8 and uint8 vectors need, kept with a model."""

from pathlib import Path
from typing import Annotated

import typer

from abc_embed.cli import options
from abc_embed.cli.output import Printer, epilog, print_message
from abc_embed.errors import UnknownModelError, UsageError

EXAMPLES = epilog("""
  abc-embed calibrate runs/mine photos
  abc-embed calibrate runs/mine photos --text "a dog" --text "a cat" --dims 128,64
  abc-embed embed photos --model runs/mine -o out.npy --output int8
""")
TYPICAL_ITEMS = 200
"""With fewer the ends of the ranges are those of a few items, and others are cut off at them."""


def calibrate(
    folder: Annotated[Path, typer.Argument(metavar="MODEL", help="The folder of a saved model.")],
    *,
    source: options.ItemSettings,
    dims: Annotated[
        str | None,
        typer.Option(help="Further widths, like 128,64.", show_default="those it was trained at"),
    ] = None,
    device: options.Device = "auto",
    printer: Printer,
) -> None:
    """Measure the range of each dimension on typical items, and keep it with the model.

    From then on `embed --output int8` and the server round vectors to it. Only vectors.json of the
    folder is written: weights, vectors and fingerprint stay.
    """
    widths = options.parse_widths("--dims", dims)
    if not folder.is_dir():
        raise UnknownModelError(
            f"there is no folder {str(folder)!r}; give that of a saved model, or write one with: "
            "abc-embed export"
        )
    named_items, _ = source.read()
    items = []
    for named in named_items:
        if named.item is None:
            raise named.error or UsageError(f"{named.where} is empty; leave it out")
        items.append(named.item)
    from abc_embed import checkpoint, hub

    embedder = options.ModelSettings(model=str(folder), device=device).load()
    embedder.calibrate(items, widths)
    facts = embedder.model.vector_facts
    path = checkpoint.write_vector_facts(hub.model_folder(folder), facts)
    if len(items) < TYPICAL_ITEMS:
        print_message(
            f"{len(items)} items are few: values beyond theirs are cut off; give some hundreds"
        )
    known = sorted(facts.ranges, reverse=True)
    printer.json({"items": len(items), "widths": known, "file": str(path)})
    printer.line(f"ranges of {len(items)} items at width {', '.join(map(str, known))} in {path}")
