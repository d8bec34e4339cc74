"""`abc-embed bench evidence`: does the map of `explain` lie where the answer is?"""

from pathlib import Path
from typing import Annotated, Any

import typer

from abc_embed.cli import options
from abc_embed.cli.output import epilog, print_json, print_message, print_table
from abc_embed.progress import progress_bar

EXAMPLES = epilog("""
  abc-embed bench evidence --scenes 20
  abc-embed bench evidence --model runs/mine --out results/evidence
""")


@options.with_settings
def evidence(
    scenes: Annotated[
        int, typer.Option("--scenes", min=2, help="How many generated scenes are asked about.")
    ] = 200,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Folder for the record and its figure."),
    ] = None,
    *,
    settings: options.ModelSettings,
    as_json: options.AsJson = False,
) -> None:
    """Point to the thing that was asked for, on scenes whose boxes are known.

    Every method of `Embedder.explain`, with controls: random maps, a model with random layers, the
    instruction of another scene.
    """
    from abc_embed.bench import evidence as bench
    from abc_embed.bench.encoders.registry import NativeEncoder
    from abc_embed.bench.records import make_record, write_record
    from abc_embed.storage.files import make_folder

    folder = None if out is None else make_folder(out)
    embedder = settings.load()
    with progress_bar("methods and controls") as on_progress:
        findings = bench.measure(embedder, scenes=scenes, on_progress=on_progress)
    record = make_record(NativeEncoder(embedder, settings.model), findings, settings.model)
    if as_json:
        print_json(record)
    else:
        columns = ("", *bench.LABELS.values(), "deletion", "insertion", "passes")
        rows = [
            (
                name,
                *(_with_interval(row[key]) for key in bench.LABELS),
                row["deletion"],
                row["insertion"],
                row["passes"],
            )
            for name, row in record["scores"].items()
        ]
        print_table(columns, rows)
    if folder is not None:
        path = write_record(record, folder)
        bench.draw(record, path.with_suffix(".png"))
        print_message(f"the record is {path}, drawn beside it")


def _with_interval(share: dict[str, Any]) -> str:
    low, high = share["interval"]
    return f"{share['value']:.2f} ({low:.2f}\u2013{high:.2f})"
