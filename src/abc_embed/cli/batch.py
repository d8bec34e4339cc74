"""`abc-embed batch`: a whole data set -> a folder of vectors, on this machine or a Ray cluster."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer

from abc_embed.cli import options
from abc_embed.cli.output import Printer, epilog, print_first, print_message
from abc_embed.progress import progress_bar

EXAMPLES = epilog("""
  abc-embed batch scenes --out vectors
  abc-embed batch scenes --out vectors --format lance --workers 2
  abc-embed batch s3://bucket/shards --out vectors --ray 10.0.0.1:6379
  abc-embed index build photos.index vectors

The same command given again goes on where it was broken off.
""")


@dataclass(frozen=True, kw_only=True)
class ClusterOptions:
    """Where it runs, and with how many models."""

    ray: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT", help="A Ray cluster.", show_default="this machine, on loopback"
        ),
    ] = None
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Models.", show_default="one a GPU, or a core without GPUs"),
    ] = None
    cache: Annotated[
        Path | None,
        typer.Option(
            help="Folder for copies of a bucket's files.", show_default="in the temporary folder"
        ),
    ] = None


def batch(
    source: Annotated[
        str,
        typer.Argument(
            help="A data set: records, Parquet, tars, a folder, abc-pretrain:FOLDER; s3:// or gs://"
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder to write, or to go on with.")],
    image_folder: options.ImageFolder = None,
    instruction: options.Instruction = None,
    form: Annotated[
        Literal["parquet", "lance"], typer.Option("--format", help="Files, or one table.")
    ] = "parquet",
    max_bad: Annotated[
        float,
        typer.Option(min=0, help="Rows that may be left out: below 1 their share, else how many."),
    ] = 0.01,
    *,
    cluster: ClusterOptions,
    settings: options.VectorSettings,
    printer: Printer,
) -> None:
    """Give every image of a data set its vector; what was broken off goes on.

    Images are prepared on CPUs while models compute, a GPU each where there are any. Rows that
    cannot be used are in rejects.jsonl.
    """
    from abc_embed.scale.job import BatchJob, run_batch

    settings.check()
    job = BatchJob(
        source=source,
        image_folder=image_folder,
        out=out,
        load=settings.load_with_pixels,
        model=settings.model,
        instruction=instruction,
        dim=settings.dim,
        output=settings.output,
        format=form,
        batch_size=settings.batch_size,
        max_bad=max_bad,
        ray=cluster.ray,
        workers=cluster.workers,
        cache=cluster.cache,
    )
    with progress_bar("embedding") as on_progress:
        report = run_batch(job, on_progress)
    if report.bad:
        print_message(
            f"left out {report.bad} of {report.rows} rows; all are in {out}/rejects.jsonl:"
        )
        print_first([f"  {bad.place}: {bad.why}" for bad in report.first_bad], 10, "")
    printer.json({"out": str(out), "model": settings.model, **report.as_json()})
    rows = [
        ("rows", report.rows),
        ("there already", report.done_before),
        ("written", report.written),
        ("left out", report.bad),
        ("items a second", f"{report.items_per_s:.1f}"),
        ("of their time models waited for data", f"{report.waiting_share:.1%}"),
    ]
    printer.table((str(out), ""), rows)
