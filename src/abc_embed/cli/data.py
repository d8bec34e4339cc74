"""`abc-embed data`: fetch, index, check, unpack, convert and describe data sets."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from abc_embed.cli import data_instruct, options
from abc_embed.cli.output import Printer, epilog, print_first, print_message, print_result
from abc_embed.data.records import FIELDS
from abc_embed.errors import DataError, UsageError
from abc_embed.progress import progress_bar
from abc_embed.storage.files import check_writable

if TYPE_CHECKING:
    from abc_embed.data import Dataset

MB = 2**20
SHOWN = 10
"""Lines of each kind in a message; --json has them all."""
CHECK_SHOWN = 20
"""The same, of `abc-embed data check`."""

EXAMPLES = epilog("""
  abc-embed data fetch abc-vg-instruct --out vg
  abc-embed data index vg
  abc-embed data complete vg
  abc-embed data unpack vg --out vg-images
  abc-embed data card vg
""")

RECORDS_EXAMPLES = epilog("""
  abc-embed data check scenes
  abc-embed data convert scenes --to parquet --out scenes-parquet
  abc-embed data show scenes --out scenes.png --count 8
  abc-embed data check photos --column caption=title
""")

app = typer.Typer()

Folder = Annotated[Path, typer.Argument(help="The folder of the data set.")]
DataSet = Annotated[
    Path,
    typer.Argument(
        metavar="DATA",
        help="Records (.jsonl or their folder), .parquet, .tar, a folder of these, or of images; "
        "a published set as SET:FOLDER.",
    ),
]


@dataclass(frozen=True, kw_only=True)
class RowSource:
    """A data set that is read row by row, and how."""

    data: DataSet
    columns: Annotated[
        list[str] | None,
        typer.Option("--column", help="OURS=THEIRS: how a field is called there; may be repeated."),
    ] = None
    images: options.ImageFolder = None

    def open(self, *, log_notes: bool = True) -> "Dataset":
        """The data set, its fields under our names."""
        from abc_embed.data import open_dataset

        names: dict[str, str] = {}
        for text in self.columns or []:
            field, equals, column = text.partition("=")
            if not equals or field not in FIELDS:
                raise UsageError(
                    f"--column {text!r} is not of the form OURS=THEIRS, with OURS one of "
                    f"{', '.join(sorted(FIELDS))}"
                )
            names[field] = column
        return open_dataset(self.data, names, image_folder=self.images, log_notes=log_notes)


@app.command()
def fetch(
    name: Annotated[
        str, typer.Argument(help="abc-pretrain or abc-vg-instruct, with or without @revision.")
    ],
    out: Annotated[Path, typer.Option(help="Folder to fetch into.")],
    dry_run: Annotated[
        bool, typer.Option(help="Say what would be fetched, and fetch nothing.")
    ] = False,
    *,
    printer: Printer,
) -> None:
    """Fetch a published data set; given again, goes on where it was broken off.

    Each file's size and hash are checked, and free disk before anything is fetched.
    """
    from abc_embed.data.published.fetch import fetch as run
    from abc_embed.data.published.fetch import plan

    planned = plan(name, out)
    manifest = planned.manifest
    print_message(
        f"{manifest.repository} at {manifest.commit[:12]}: {len(manifest.files)} files, "
        f"{planned.size / 1e6:,.1f} MB, of which {planned.missing / 1e6:,.1f} MB are still to fetch"
        f" ({planned.free / 1e6:,.0f} MB free)"
    )
    if not dry_run:
        with progress_bar("fetching MB", unit=MB) as on_progress:
            run(planned, out, on_message=print_message, on_progress=on_progress)
    printer.json({**planned.as_json(), "out": str(out), "fetched": not dry_run})
    if not dry_run:
        printer.line(f"{name} is in {out}; next: abc-embed data index {out}")


@app.command()
def index(
    folder: Folder,
    spacing: Annotated[
        str,
        typer.Option(
            help="Between two places where reading can begin; less: quicker to read, more disk."
        ),
    ] = "4 MB",
    again: Annotated[bool, typer.Option(help="Drop the index that is there.")] = False,
    *,
    printer: Printer,
) -> None:
    """Find every image in the tar parts, once, so that it is read from there without unpacking.

    Goes on where it was stopped. Makes the captions quick to reach as well.
    """
    from abc_embed.data.published.dataset import prepare

    with progress_bar("indexing MB", unit=MB) as on_progress:
        summary = prepare(
            folder,
            spacing=options.parse_size(spacing, "--spacing"),
            again=again,
            on_message=print_message,
            on_progress=on_progress,
        )
    printer.json({"folder": str(folder), **summary})
    printer.table(("index", ""), [(k.replace("_", " "), v) for k, v in summary.items()])


@app.command()
def complete(folder: Folder, *, printer: Printer) -> None:
    """Check that every row has its image, and every file its size; name what is missing.

    Ends with exit code 1 when something is.
    """
    from abc_embed.data.published.verify import verify

    with progress_bar("rows") as on_progress:
        result = verify(folder, on_progress=on_progress)
    printer.json(result.as_json())
    printer.table(("rows", ""), result.counts())
    problems = result.problems()
    print_first(problems, SHOWN, "; --json names them all")
    print_message("complete" if result.ok else f"not complete: {len(problems):,} problems")
    if not result.ok:
        raise typer.Exit(1)


@app.command()
def unpack(
    folder: Folder,
    out: Annotated[Path, typer.Option(help="Folder to unpack into.")],
    limit: Annotated[
        str | None, typer.Option(help="Most that is unpacked.", show_default="the free disk")
    ] = None,
    *,
    printer: Printer,
) -> None:
    """Unpack the indexed images into files. Reading them needs no unpacking.

    Links, devices and names that lead out of the folder are left out and named.
    """
    from abc_embed.data.published.dataset import open_images
    from abc_embed.data.published.tar_images import unpack as run

    most = None if limit is None else options.parse_size(limit, "--limit")
    with progress_bar("unpacking MB", unit=MB) as on_progress:
        done = run(open_images(folder), out, limit=most, on_progress=on_progress)
    left_out = [f"left out: {name} ({why})" for name, why in done.left_out]
    print_first(left_out, SHOWN, "; --json names them all")
    printer.json(asdict(done))
    printer.line(
        f"{done.written:,} images written to {out}, {done.kept:,} were there, "
        f"{len(done.left_out):,} left out"
    )


@app.command()
def card(data: DataSet, *, printer: Printer) -> None:
    """Write DATASET_CARD.md and card.json: what it holds, how it was made, licences, hashes."""
    from abc_embed.data.card import write_card

    with progress_bar("files") as on_progress:
        facts, path = write_card(data, on_progress=on_progress)
    printer.json(facts)
    printer.line(f"the card is {path}")


@app.command(epilog=RECORDS_EXAMPLES)
def check(
    *,
    source: RowSource,
    longest: Annotated[
        int, typer.Option(min=1, help="Characters beyond which a text is long.")
    ] = 2000,
    strict: Annotated[
        bool, typer.Option(help="Fail for what comes twice or is long as well.")
    ] = False,
    printer: Printer,
) -> None:
    """Look at every row and image: what is wrong, where, and how to mend it.

    Ends with exit code 1 when a row cannot be used.
    """
    from abc_embed.data.formats.check import check as run

    dataset = source.open(log_notes=False)
    with progress_bar("checking rows") as on_progress:
        report = run(dataset, longest=longest, on_progress=on_progress)
    printer.json(report.as_json())
    if not printer.as_json:
        for kind, lines in (("error", report.errors), ("remark", report.remarks)):
            places = [f"{kind}: {line.place}: {line.why}" for line in lines]
            print_first(places, CHECK_SHOWN, "; --json names them all")
        counts = [("rows", report.rows), ("usable", report.usable), *sorted(report.texts.items())]
        counts += [(name, report.counts[name]) for name in report.kinds]
        printer.table((f"{dataset.form}", ""), counts)
    if not report.good or (strict and report.remarks):
        raise typer.Exit(1)


@app.command(epilog=RECORDS_EXAMPLES)
def convert(
    *,
    source: RowSource,
    out: Annotated[Path, typer.Option(help="A new folder.")],
    to: Annotated[
        Literal["jsonl", "parquet", "webdataset", "folder"], typer.Option(help="What to write.")
    ] = "jsonl",
    part_size: Annotated[int, typer.Option(min=1, help="Rows of a Parquet or tar file.")] = 1000,
    printer: Printer,
) -> None:
    """Write a data set in another form; given again, goes on where it was stopped.

    Rows that cannot be used are left out, counted, and kept in rejects.jsonl with the reason. A
    folder holds images and captions alone.
    """
    from abc_embed.data.formats.convert import REJECTS_FILE
    from abc_embed.data.formats.convert import convert as run

    dataset = source.open()
    with progress_bar("rows") as on_progress:
        done = run(dataset, out, to, part_size=part_size, on_progress=on_progress)
    if done.rejected:
        print_message(f"{done.rejected:,} rows cannot be used; {out / REJECTS_FILE} names them")
    printer.json({"out": str(out), "written": done.written, "rejected": done.rejected})
    printer.line(f"{done.written:,} rows written to {out}")


@app.command(epilog=RECORDS_EXAMPLES)
def show(
    *,
    source: RowSource,
    out: Annotated[Path, typer.Option(help="The PNG to write.")],
    number: Annotated[int, typer.Option("--count", "-n", min=1, help="Rows on the page.")] = 12,
    seed: Annotated[int, typer.Option(min=0, help="Chooses the rows.")] = 0,
    on_error: Annotated[
        options.OnError, typer.Option(help="A bad row ends the work, or is left out and named.")
    ] = "skip",
) -> None:
    """Draw a contact sheet: images with boxes, captions, instructions and negatives."""
    import numpy as np

    from abc_embed.data import Rejected, Row
    from abc_embed.data.contact_sheet import write_rows

    check_writable(out)
    dataset = source.open()
    bad: list[str] = []

    def leave_out(place: str, why: str) -> None:
        if on_error == "raise":
            raise DataError(f"{place}: {why}")
        bad.append(f"left out: {place}: {why}")

    def chosen() -> Iterator[Row]:
        sample = np.random.default_rng(seed).permutation(len(dataset))[:number]
        for place in sorted(map(int, sample)):
            for row in dataset.rows(place, place + 1):
                if isinstance(row, Rejected):
                    leave_out(row.place, row.why)
                else:
                    yield row

    shown = write_rows(chosen(), out, on_bad_row=leave_out)
    print_first(bad, SHOWN, "; abc-embed data check names them all")
    if not shown:
        raise UsageError(f"{source.data} has no row that can be shown; see abc-embed data check")
    print_result(f"{shown} of {len(dataset):,} rows are on {out}")


app.command(epilog=data_instruct.EXAMPLES)(data_instruct.instruct)
