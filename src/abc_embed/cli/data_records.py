"""`abc-embed data check`, `convert` and `show`: data sets of one's own, in any of four forms.

Does: hand over to `abc_embed.data`. Does not: register itself; cli/data.py does.
"""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from abc_embed.cli import options
from abc_embed.cli.output import say, show, show_json, show_table
from abc_embed.errors import UsageError
from abc_embed.progress import progress_bar
from abc_embed.storage.files import check_writable

if TYPE_CHECKING:
    from abc_embed.data import Dataset, Rejected

EXAMPLES = """\
Examples:

\b
  abc-embed data check scenes
  abc-embed data convert scenes --to parquet --out scenes-parquet
  abc-embed data show scenes --out scenes.png --count 8
  abc-embed data check photos --column caption=title
"""

SHOWN = 20
"""Lines that are shown of each kind; --json has them all."""


class Form(StrEnum):
    """What a data set can be written as."""

    JSONL = "jsonl"
    PARQUET = "parquet"
    WEBDATASET = "webdataset"
    FOLDER = "folder"


DataSet = Annotated[
    Path,
    typer.Argument(
        metavar="DATA",
        help="Records (.jsonl or their folder), .parquet, .tar, a folder of these, or of images; "
        "a published set as SET:FOLDER.",
    ),
]
Columns = Annotated[
    list[str] | None,
    typer.Option("--column", help="OURS=THEIRS: how a field is called there; may be repeated."),
]


def register(app: typer.Typer) -> None:
    """Add the commands to `abc-embed data`."""
    for command in (check, convert, show_rows):
        name = "show" if command is show_rows else command.__name__
        app.command(name, epilog=EXAMPLES)(command)


def check(
    data: DataSet,
    columns: Columns = None,
    longest: Annotated[
        int, typer.Option("--longest", min=1, help="Characters beyond which a text is long.")
    ] = 2000,
    strict: Annotated[
        bool, typer.Option("--strict", help="Fail for what comes twice or is long as well.")
    ] = False,
    as_json: options.AsJson = False,
) -> None:
    """Look at every row and image: what is wrong, where, and how to mend it.

    Ends with exit code 1 when a row cannot be used.
    """
    from abc_embed.data.formats.check import ERRORS, REMARKS
    from abc_embed.data.formats.check import check as run

    dataset = _open(data, columns)
    with progress_bar("checking rows") as on_progress:
        found = run(dataset, longest=longest, counted=on_progress)
    if as_json:
        show_json(found.as_json())
    else:
        _say("error", found.errors)
        _say("remark", found.remarks)
        counts = [("rows", found.rows), ("usable", found.usable), *sorted(found.texts.items())]
        counts += [(name, found.counts[name]) for name in (*ERRORS, *REMARKS)]
        show_table((f"{dataset.form}", ""), counts)
    if not found.good or (strict and found.remarks):
        raise typer.Exit(1)


def convert(
    data: DataSet,
    out: Annotated[Path, typer.Option("--out", "-o", help="A new folder.")],
    to: Annotated[Form, typer.Option("--to", help="What to write.")] = Form.JSONL,
    columns: Columns = None,
    part_size: Annotated[
        int, typer.Option("--part-size", min=1, help="Rows of a Parquet or tar file.")
    ] = 1000,
    as_json: options.AsJson = False,
) -> None:
    """Write a data set in another form; given again, goes on where it was stopped.

    Rows that cannot be used are left out, counted, and kept in rejects.jsonl with the reason. A
    folder holds images and captions alone.
    """
    from abc_embed.data.formats.convert import REJECTS_FILE
    from abc_embed.data.formats.convert import convert as run

    dataset = _open(data, columns)
    with progress_bar("rows") as on_progress:
        done = run(
            dataset,
            out,
            to.value,
            part_size=part_size,
            counted=on_progress,
        )
    if done.rejected:
        say(f"{done.rejected:,} rows cannot be used; {out / REJECTS_FILE} names them")
    if as_json:
        show_json({"out": str(out), "written": done.written, "rejected": done.rejected})
    else:
        show(f"{done.written:,} rows written to {out}")


def show_rows(
    data: DataSet,
    out: Annotated[Path, typer.Option("--out", "-o", help="The PNG to write.")],
    columns: Columns = None,
    number: Annotated[int, typer.Option("--count", "-n", min=1, help="Rows on the page.")] = 12,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Chooses the rows.")] = 0,
) -> None:
    """Draw a contact sheet: images with boxes, captions, instructions and negatives."""
    import numpy as np

    from abc_embed.data import Row
    from abc_embed.data.contact_sheet import write_rows

    check_writable(out)
    dataset = _open(data, columns)
    drawn = np.random.default_rng(seed).permutation(len(dataset))[: 4 * number]
    rows: list[Row] = []
    for place in sorted(int(n) for n in drawn[:number]):
        rows += [row for row in dataset.rows(place, place + 1) if isinstance(row, Row)]
    left_out = min(number, len(dataset)) - len(rows)
    if left_out:
        say(f"{left_out} of the chosen rows cannot be used; abc-embed data check names them")
    if not rows:
        raise UsageError(f"{data} has no row that can be shown; see abc-embed data check")
    write_rows(rows, out)
    show(f"{len(rows)} of {len(dataset):,} rows are on {out}")


def _open(data: Path, columns: list[str] | None) -> "Dataset":
    from abc_embed.data import open_dataset
    from abc_embed.data.records import FIELDS

    names: dict[str, str] = {}
    for text in columns or []:
        ours, equals, theirs = text.partition("=")
        if not equals or ours not in FIELDS:
            raise UsageError(
                f"--column {text!r} is not of the form OURS=THEIRS, with OURS one of "
                f"{', '.join(sorted(FIELDS))}"
            )
        names[ours] = theirs
    return open_dataset(data, names)


def _say(kind: str, lines: "list[Rejected]") -> None:
    for line in lines[:SHOWN]:
        say(f"{kind}: {line.place}: {line.why}")
    if len(lines) > SHOWN:
        say(f"and {len(lines) - SHOWN:,} more; --json names them all")
