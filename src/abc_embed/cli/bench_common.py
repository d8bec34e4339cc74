"""What the evaluations of others share on the command line: model, resolutions, records, figure.

Does: check what can be checked before the work, load, measure, show. Does not: know a set.
"""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from abc_embed.cli import options
from abc_embed.cli.output import print_json, print_message, print_table
from abc_embed.errors import UsageError
from abc_embed.storage.files import check_writable

if TYPE_CHECKING:
    from abc_embed.bench.encoders.registry import Encoder
    from abc_embed.bench.sets.findings import Findings

    Measure = Callable[[Encoder, int | None], Findings]

PIXELS_PER_TOKEN = 28 * 28


@dataclass(frozen=True, slots=True)
class Common:
    """What every one of these commands takes."""

    model: str
    areas: list[int | None]
    device: str
    dtype: str
    batch_size: int
    cache: Path | None
    out: Path | None
    figure: Path | None
    as_json: bool


def parse_areas(text: str | None) -> list[int | None]:
    """`"128,256 tokens"` or `"100352"` -> areas in pixels; None: as the model says.

    Raises:
        UsageError: a part is no area.
    """
    if text is None:
        return [None]
    parts = [part.strip() for part in text.split(",")]
    if parts[-1].endswith(("token", "tokens")):  # said once, for all
        parts = [part if "token" in part else f"{part} tokens" for part in parts]
    areas = [options.parse_area(part) for part in parts]
    return [number * PIXELS_PER_TOKEN if tokens else number for number, tokens in areas]


def checked(
    model: str,
    max_pixels: str | None,
    device: str,
    dtype: str,
    batch_size: int,
    cache: Path | None,
    out: Path | None,
    figure: Path | None,
    *,
    as_json: bool,
) -> Common:
    """Everything checked that can be before the work."""
    areas = parse_areas(max_pixels)
    if figure is not None and len(areas) < 2:
        raise UsageError("--figure needs several resolutions: --max-pixels '128,256,512 tokens'")
    if figure is not None:
        check_writable(figure)
    if out is not None:
        from abc_embed.storage.files import make_folder

        make_folder(out)
    return Common(model, areas, device, dtype, batch_size, cache, out, figure, as_json)


def load(common: Common, stack: ExitStack) -> "Encoder":
    """The model; its vectors are remembered, unless speed is to be measured."""
    from abc_embed.bench.encoders.registry import CachedEncoder, load_encoder

    encoder = load_encoder(
        common.model, device=common.device, dtype=common.dtype, batch_size=common.batch_size
    )
    if len(common.areas) > 1:
        return encoder
    return stack.enter_context(CachedEncoder(encoder, common.cache))


def measured(common: Common, encoder: "Encoder", measure: "Measure") -> "list[Findings]":
    """The findings at each resolution."""
    if len(common.areas) == 1:
        return [measure(encoder, common.areas[0])]
    from abc_embed.bench.sets.sweep import sweep

    return sweep(encoder, [area for area in common.areas if area is not None], measure)


def run(common: Common, score: str, measure: "Measure") -> None:
    """Load, measure, show; `score` is what a figure draws."""
    with ExitStack() as stack:
        encoder = load(common, stack)
        found = measured(common, encoder, measure)
    show_found(common, encoder, found, score)


def show_found(common: Common, encoder: "Encoder", found: "list[Findings]", score: str) -> None:
    """What was found, for people or programs; records and figure, where they were asked for."""
    from abc_embed.bench.records import make_record, write_record
    from abc_embed.bench.sets.findings import say_missing
    from abc_embed.bench.sets.sweep import draw

    records = [make_record(encoder, findings, encoder.name) for findings in found]
    for findings in found:
        if message := say_missing(findings["missing"]):
            print_message(f"{findings['benchmark']}: {message}")
    if common.as_json:
        print_json(records if len(records) > 1 else records[0])
    else:
        for findings in found:
            _table(findings)
    if common.out is not None:
        for record in records:
            print_message(f"the record is {write_record(record, common.out)}")
    if common.figure is not None:
        draw(found, score, common.figure)
        print_message(f"the figure is {common.figure}")


def _table(findings: "Findings") -> None:
    area = findings["settings"]["max_pixels"]
    rows: list[tuple[Any, ...]] = []
    for name, figure in findings["scores"].items():
        scale = 1 if name == "rsum" else 100
        interval = figure["interval"]
        span = "" if interval is None else f"{100 * interval[0]:.1f}–{100 * interval[1]:.1f}"
        rows.append((name.replace("_", " "), f"{scale * figure['value']:.1f}", span, figure["of"]))
    if findings.get("images_per_s"):
        rows.append(("items with an image per second", f"{findings['images_per_s']:.1f}", "", ""))
    title = findings["benchmark"] + (f", at most {area:,} pixels" if area else "")
    print_table(("", "%", "95 %", "queries"), rows, title=title)
