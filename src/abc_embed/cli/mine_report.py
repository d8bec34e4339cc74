"""What `abc-embed mine` says: its plan before, what was left out, and its report after.

Does: print. Does not: compute any of it.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from abc_embed.cli.output import say, show, show_table
from abc_embed.errors import OutputError

if TYPE_CHECKING:
    from abc_embed.mining.plan import Plan, Settings
    from abc_embed.mining.report import Report

BAD_SHOWN = 10


def say_plan(planned: "Plan", place: Path, settings: "Settings", *, whole: bool) -> None:
    """Raises `OutputError` when the disk has not enough room."""
    from abc_embed.mining.plan import free_bytes

    free = free_bytes(place)
    say(
        f"plan: {planned.rows:,} images × {planned.captions:,} different captions ="
        f" {planned.scores:,} scores at width {planned.width:,}, by the search"
        f" {planned.method!r}, {planned.queries_at_once:,} × {planned.candidates_at_once:,} at a"
        " time"
    )
    say(
        f"plan: {size(planned.vector_bytes)} of disk for vectors in {settings.store} and"
        f" {size(planned.pool_bytes)} for pools ({size(free)} free in {place}); at most"
        f" {size(planned.memory_bytes)} of memory for the search"
    )
    say(
        f"plan: about {span(planned.embed_s)} to embed what is missing and"
        f" {span(planned.search_s)} to search, as a probe of some seconds has it"
    )
    if whole and planned.disk_bytes > free + _there(place):
        raise OutputError(f"{place} has too little room; make room, or give another --work")


def say_bad(report: "Report", rejects: object) -> None:
    if rejects is not None:
        say(f"{len(report.bad)} of {report.rows} rows were left out; all are in {rejects}:")
    for _, where, why in report.bad[:BAD_SHOWN]:
        say(f"  {where}: {why}")
    if len(report.bad) > BAD_SHOWN:
        say(f"  and {len(report.bad) - BAD_SHOWN} more")


def show_report(report: "Report", settings: "Settings", out: Path, pictures: list[Path]) -> None:
    rows = [
        ("rows", report.rows),
        ("without caption", report.without_caption),
        ("that cannot be used", len(report.bad)),
        ("mined", report.mined),
        ("with a pool that is not full", report.short_pools),
        (f"with fewer than {settings.draw} negatives", report.short_draws),
        ("without any negative", report.empty),
        ("whose own caption scores 0 or less", report.own_not_positive),
        ("whose own caption comes first", report.own_ranks[0]),
        ("vectors there already", report.remembered),
        ("searched before", report.searched_before),
    ]
    show_table(("rows", ""), rows)
    pairs: list[tuple[str, int]] = [("scored", report.scored)]
    pairs += [(f"dropped: {rule}", count) for rule, count in report.dropped.items()]
    pairs += [("in the pools", report.pooled), ("drawn", report.drawn)]
    show_table(("candidates, over all rows", ""), pairs)
    medians = (
        ("own captions", report.own_scores.median),
        ("pools", report.pool_scores.median),
        ("drawn negatives", report.drawn_scores.median),
    )
    show_table(("median score", ""), [(n, "-" if v is None else v) for n, v in medians])
    if report.recall is not None:
        show(f"recall of the pools against exact ones, on a sample: {report.recall:.4f}")
    show(f"the negatives are in {out}; see {', '.join(map(str, pictures))}")


def _there(place: Path) -> int:
    """What earlier runs have put there already."""
    return sum(path.stat().st_size for path in place.rglob("*.np[yz]"))


def size(count: int) -> str:
    return f"{count / 1e9:,.1f} GB" if count >= 10**9 else f"{count / 1e6:,.1f} MB"


def span(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:,.1f} h"
