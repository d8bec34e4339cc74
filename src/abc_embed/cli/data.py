"""`abc-embed data`: fetch, index, check, unpack and describe data sets.

Does: the subcommands about sources and cards. Does not: work on records or write instructions;
sibling files do, and each is named in `PARTS`.
"""

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from abc_embed.cli import options
from abc_embed.cli.output import say, show, show_json, show_table
from abc_embed.progress import progress_bar

if TYPE_CHECKING:
    from abc_embed.data.published.verify import Completeness

PARTS: tuple[str, ...] = ("data_records", "data_instruct")
"""Sibling files with more subcommands, like "data_records"; each has `register(app)` and imports
what is heavy inside its functions."""

SHOWN = 10
"""Missing images and bad rows that are named in a message; --json names them all."""

EXAMPLES = """\
Examples:

\b
  abc-embed data fetch abc-vg-instruct --out vg
  abc-embed data index vg
  abc-embed data complete vg
  abc-embed data unpack vg --out vg-images
  abc-embed data card vg
"""

app = typer.Typer(
    help="Fetch, index, check and describe data sets.",
    no_args_is_help=True,
    rich_markup_mode=None,
    epilog=EXAMPLES,
)

Folder = Annotated[Path, typer.Argument(help="The folder of the data set.")]


@app.callback()
def _data() -> None:
    """Fetch, index, check and describe data sets."""


@app.command(epilog=EXAMPLES)
def fetch(
    name: Annotated[
        str, typer.Argument(help="abc-pretrain or abc-vg-instruct, with or without @revision.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to fetch into.")],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be fetched, and fetch nothing.")
    ] = False,
    as_json: options.AsJson = False,
) -> None:
    """Fetch a published data set; given again, goes on where it was broken off.

    Each file's size and hash are checked, and free disk before anything is fetched.
    """
    from abc_embed.data.published.fetch import fetch as run
    from abc_embed.data.published.fetch import plan

    planned = plan(name, out)
    say(
        f"{planned.repository} at {planned.commit[:12]}: {len(planned.files)} files, "
        f"{planned.size / 1e6:,.1f} MB, of which {planned.missing / 1e6:,.1f} MB are still to fetch"
        f" ({planned.free / 1e6:,.0f} MB free)"
    )
    if not dry_run:
        with progress_bar("fetching MB", unit=1 << 20) as on_progress:
            run(planned, out, said=say, counted=on_progress)
    if as_json:
        show_json({**planned.as_json(), "out": str(out), "fetched": not dry_run})
    elif not dry_run:
        show(f"{name} is in {out}; next: abc-embed data index {out}")


@app.command(epilog=EXAMPLES)
def index(
    folder: Folder,
    spacing: Annotated[
        str,
        typer.Option(
            "--spacing",
            help="Between two places where reading can begin; less: quicker to read, more disk.",
        ),
    ] = "4 MB",
    again: Annotated[bool, typer.Option("--again", help="Drop the index that is there.")] = False,
    as_json: options.AsJson = False,
) -> None:
    """Find every image in the tar parts, once, so that it is read from there without unpacking.

    Goes on where it was stopped. Makes the captions quick to reach as well.
    """
    from abc_embed.data.published.dataset import prepare

    with progress_bar("indexing MB", unit=1 << 20) as on_progress:
        made = prepare(
            folder,
            spacing=options.size_in_bytes(spacing, "--spacing"),
            again=again,
            on_message=say,
            on_progress=on_progress,
        )
    if as_json:
        show_json({"folder": str(folder), **made})
    else:
        show_table(("index", ""), [(k.replace("_", " "), v) for k, v in made.items()])


@app.command(epilog=EXAMPLES)
def complete(folder: Folder, as_json: options.AsJson = False) -> None:
    """Check that every row has its image, and every file its size; name what is missing.

    Ends with exit code 1 when something is.
    """
    from abc_embed.data.published.verify import check_complete

    with progress_bar("rows") as on_progress:
        found = check_complete(folder, counted=on_progress)
    if as_json:
        show_json(found.as_json())
    else:
        show_table(("rows", ""), found.counts())
    _say_problems(found)
    if not found.ok:
        raise typer.Exit(1)


def _say_problems(found: "Completeness") -> None:
    lines = found.problems()
    for line in lines[:SHOWN]:
        say(line)
    if len(lines) > SHOWN:
        say(f"and {len(lines) - SHOWN} more; --json names them all")
    say("complete" if found.ok else f"not complete: {len(lines):,} problems")


@app.command(epilog=EXAMPLES)
def unpack(
    folder: Folder,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to unpack into.")],
    limit: Annotated[
        str | None,
        typer.Option("--limit", help="Most that is unpacked.", show_default="the free disk"),
    ] = None,
    as_json: options.AsJson = False,
) -> None:
    """Unpack the indexed images into files. Reading them needs no unpacking.

    Links, devices and names that lead out of the folder are left out and named.
    """
    from abc_embed.data.published.dataset import open_images
    from abc_embed.data.published.unpack import unpack as run

    most = None if limit is None else options.size_in_bytes(limit, "--limit")
    with progress_bar("unpacking MB", unit=1 << 20) as on_progress:
        done = run(
            open_images(folder),
            out,
            limit=most,
            counted=on_progress,
        )
    for name, why in done.left_out[:SHOWN]:
        say(f"left out: {name} ({why})")
    if as_json:
        show_json(done.as_json())
    else:
        show(
            f"{done.written:,} images written to {out}, {done.kept:,} were there, "
            f"{len(done.left_out):,} left out"
        )


@app.command(epilog=EXAMPLES)
def card(folder: Folder, as_json: options.AsJson = False) -> None:
    """Write DATASET_CARD.md and card.json: what it holds, how it was made, licences, hashes."""
    from abc_embed.data.card import write_card

    with progress_bar("files") as on_progress:
        facts, path = write_card(folder, counted=on_progress)
    if as_json:
        show_json(facts)
    else:
        show(f"the card is {path}")


for _part in PARTS:
    importlib.import_module(f"abc_embed.cli.{_part}").register(app)
