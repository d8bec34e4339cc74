"""`abc-embed mine`: hard negatives for a records file, with a plan before and a report after.

Does: check the options before anything is loaded, and show plan and report. Does not: score
(mining/ does).
"""

import dataclasses
import re
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from abc_embed.cli import options
from abc_embed.cli.output import check_writable, progress, say, show, show_json, show_table
from abc_embed.errors import OutputError, UsageError
from abc_embed.mining.draw import DRAW, How

if TYPE_CHECKING:
    from abc_embed.mining.mine import Mined
    from abc_embed.mining.plan import Plan, Report, Rows, Settings

EXAMPLES = """\
Examples:

\b
  abc-embed mine scenes --out scenes/mined.jsonl
  abc-embed mine scenes --out scenes/mined.jsonl --how bins --memory "512 MB"
"""

Cache = Annotated[
    Path | None,
    typer.Option(
        "--cache",
        help="Folder in which vectors are remembered.",
        show_default="ABC_EMBED_CACHE, or abc-embed in the user's cache folder",
    ),
]
NoCache = Annotated[
    bool, typer.Option("--no-cache", help="Remember nothing; a killed run starts anew.")
]

BAD_SHOWN = 10
UNITS = {"MB": 10**6, "GB": 10**9}


def mine(
    records: Annotated[Path, typer.Argument(help="A records file, or the folder that holds it.")],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Records to write, in the folder of the others.")
    ],
    epsilon: Annotated[
        float,
        typer.Option("--epsilon", help="Keep what scores at most this times the own caption."),
    ] = 0.95,
    pool: Annotated[int, typer.Option("--pool", min=1, help="The best so many below that.")] = 100,
    draw: Annotated[int, typer.Option("--draw", min=1, help="Negatives of each image.")] = DRAW,
    how: Annotated[
        How, typer.Option("--how", help="Any of the pool, or one of each five, from the best on.")
    ] = How.UNIFORM,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Another seed, another draw.")] = 0,
    memory: Annotated[
        str, typer.Option("--memory", help="Ceiling of the search, like 512 MB or 2 GB.")
    ] = "1 GB",
    examples: Annotated[
        int, typer.Option("--examples", min=0, help="Rows on the page of examples; 0 for none.")
    ] = 12,
    cache: Cache = None,
    no_cache: NoCache = False,
    model: options.Model = options.MODEL,
    max_pixels: options.MaxPixels = None,
    batch_size: options.BatchSize = 32,
    decode_limit: options.DecodeLimit = None,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    as_json: options.AsJson = False,
) -> None:
    """Give each image captions of other images that nearly fit, and write the records anew.

    Vectors are remembered: a second run, or one after a kill, embeds only what is missing.
    """
    from abc_embed.mining.mine import write_mined
    from abc_embed.mining.plan import Settings, plan, read_rows

    settings = Settings(
        epsilon=epsilon, pool=pool, draw=draw, how=how, seed=seed, memory_bytes=_bytes(memory)
    )
    rows = read_rows(records)
    _check_out(rows, out)
    loaded = options.load(
        model, device=device, dtype=dtype, max_pixels=max_pixels, decode_limit=decode_limit
    )
    planned = plan(rows, loaded.embedder.dim, settings)
    _say_plan(planned, out)
    place = None if no_cache else _place(cache)
    mined = _mine(rows, loaded, settings, place, out.parent, batch_size)
    write_mined(rows, mined, out)
    sheet = _sheet(rows, mined, out, examples)
    _say_bad(mined.report)
    if as_json:
        used = {**dataclasses.asdict(settings), "fingerprint": loaded.embedder.fingerprint}
        show_json(_for_programs(model, out, sheet, used, planned, mined.report))
    else:
        _show(mined.report, settings, out, sheet)


def _place(cache: Path | None) -> Path:
    from abc_embed.index.cache import default_folder

    return default_folder() if cache is None else cache


def _mine(
    rows: "Rows",
    loaded: options.Loaded,
    settings: "Settings",
    place: Path | None,
    scratch: Path,
    batch_size: int,
) -> "Mined":
    from abc_embed.index.cache import VectorCache
    from abc_embed.mining.mine import mine as run

    with ExitStack() as stack:
        cache = None
        if place is not None:
            key = (loaded.embedder.fingerprint, loaded.max_pixels)
            cache = stack.enter_context(VectorCache(place, *key))
        count = stack.enter_context(progress("mining"))
        return run(
            rows,
            loaded.embedder,
            settings,
            cache,
            scratch=scratch,
            max_pixels=loaded.max_pixels,
            batch_size=batch_size,
            counted=lambda what, done, of: count(done, of),
        )


def _bytes(text: str) -> int:
    found = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*(MB|GB)\s*", text, re.IGNORECASE)
    if not found:
        raise UsageError(f"--memory is {text!r}; give a size like '512 MB' or '2 GB'")
    return int(float(found[1]) * UNITS[found[2].upper()])


def _check_out(rows: "Rows", out: Path) -> None:
    """Before the work: the place can be written, and images will be found from there."""
    check_writable(out)
    if out.parent.resolve() != rows.path.parent.resolve():
        raise UsageError(
            f"--out is in another folder than {rows.path}; give a file next to it, since the paths "
            "of images start there"
        )
    if out.resolve() == rows.path.resolve():
        raise UsageError("--out is the records file itself; give another name next to it")


def _say_plan(planned: "Plan", out: Path) -> None:
    """Raises `OutputError` when the disk has not enough room for the vectors."""
    import shutil

    say(
        f"plan: {planned.with_caption:,} of {planned.rows:,} rows × {planned.captions:,} different "
        f"captions = {planned.scores:,} scores, {planned.block:,} × {planned.block:,} at a time"
    )
    free = shutil.disk_usage(out.parent).free
    say(
        f"plan: {planned.disk_bytes / 1e6:,.1f} MB of disk for vectors ({free / 1e6:,.0f} MB free),"
        f" as much again for the cache; at most {planned.memory_bytes / 1e6:,.0f} MB of memory for"
        " the search"
    )
    if planned.disk_bytes > free:
        raise OutputError(f"{out.parent} has too little room for the vectors; make room")


def _sheet(rows: "Rows", mined: "Mined", out: Path, examples: int) -> Path | None:
    if not examples:
        return None
    from abc_embed.mining.sheet import draw_sheet

    path = out.with_suffix(".png")
    draw_sheet(rows, mined, path, examples)
    return path


def _say_bad(report: "Report") -> None:
    if report.bad:
        say(f"{len(report.bad)} of {report.rows} rows keep what they had:")
    for name, why in report.bad[:BAD_SHOWN]:
        say(f"  {name}: {why}")
    if len(report.bad) > BAD_SHOWN:
        say(f"  and {len(report.bad) - BAD_SHOWN} more; --json names them all")


def _show(report: "Report", settings: "Settings", out: Path, sheet: Path | None) -> None:
    rows = [
        ("rows", report.rows),
        ("without caption", report.without_caption),
        ("that cannot be embedded", len(report.bad)),
        ("mined", report.mined),
        ("with a pool that is not full", report.short_pools),
        (f"with fewer than {settings.draw} negatives", report.short_draws),
        ("without any negative", report.empty),
        ("whose own caption scores 0 or less", report.own_not_positive),
        ("vectors remembered", report.remembered),
    ]
    show_table(("rows", ""), rows)
    pairs: list[tuple[str, int]] = [("scored", report.scored)]
    pairs += [(f"dropped: {rule}", count) for rule, count in report.dropped.items()]
    pairs += [("in the pools", report.pooled), ("drawn", report.drawn)]
    show_table(("candidates, over all rows", ""), pairs)
    medians = (("own captions", report.median_own), ("drawn negatives", report.median_drawn))
    show_table(("median score", ""), [(n, "-" if v is None else v) for n, v in medians])
    show(f"the records are in {out}" + ("" if sheet is None else f"; {sheet} shows examples"))


def _for_programs(
    model: str,
    out: Path,
    sheet: Path | None,
    settings: dict[str, Any],
    planned: "Plan",
    report: "Report",
) -> dict[str, Any]:
    bad = [{"id": name, "error": why} for name, why in report.bad]
    return {
        "out": str(out),
        "examples": None if sheet is None else str(sheet),
        "model": model,
        "settings": settings,
        "plan": dataclasses.asdict(planned),
        "report": {**dataclasses.asdict(report), "bad": bad},
    }
