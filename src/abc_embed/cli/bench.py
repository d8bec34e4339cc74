"""`abc-embed bench`: measure a model; a table for people, a record for the repository."""

from pathlib import Path
from typing import Annotated

import typer

from abc_embed.cli import options
from abc_embed.cli.output import progress, say, show_json, show_table

EXAMPLES = """\
Examples:

\b
  abc-embed bench scenes --model bundled
  abc-embed bench scenes --model runs/mine --queries 200 --out results
"""

app = typer.Typer(
    help="Measure a model.", no_args_is_help=True, rich_markup_mode=None, epilog=EXAMPLES
)


@app.callback()
def _bench() -> None:
    """Measure a model."""


@app.command(epilog=EXAMPLES)
def scenes(
    model: options.Model = options.MODEL,
    queries: Annotated[
        int, typer.Option("--queries", min=1, help="How many questions about unseen scenes.")
    ] = 2000,
    seed: Annotated[
        int | None, typer.Option("--seed", min=0, help="Of the scenes.", show_default="its own")
    ] = None,
    side: Annotated[int, typer.Option("--side", help="Pixels a side.")] = 112,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder to put the record in, as JSON.")
    ] = None,
    max_pixels: options.MaxPixels = None,
    batch_size: options.BatchSize = 32,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    as_json: options.AsJson = False,
) -> None:
    """Ask about unseen scenes, with all their answers as candidates.

    Shows how many questions are answered right with image and instruction, with either alone, with
    both vectors added, and how often both of two mirrored scenes are right.
    """
    from abc_embed.bench.report import make_record, summary, write_record
    from abc_embed.bench.scenes import run
    from abc_embed.data.files import make_folder

    if out is not None:
        make_folder(out)
    loaded = options.load(model, device=device, dtype=dtype, max_pixels=max_pixels)
    chosen = {} if seed is None else {"seed": seed}
    with progress("scenes") as count:
        findings = run(
            loaded.embedder,
            queries=queries,
            side=side,
            max_pixels=loaded.max_pixels,
            batch_size=batch_size,
            progress=count,
            **chosen,
        )
    record = make_record(loaded.embedder, findings, model)
    if as_json:
        show_json(record)
    else:
        show_table(("R@1", "value (95 %)", "target"), summary(record))
    if out is not None:
        say(f"the record is {write_record(record, out)}")
