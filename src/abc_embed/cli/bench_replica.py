"""`abc-embed bench build-replica`: CtrlBench tier R from one's own images."""

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from abc_embed.cli import vlm_options
from abc_embed.cli.output import Printer, epilog
from abc_embed.errors import CostLimitError, UsageError
from abc_embed.progress import progress_bar

if TYPE_CHECKING:
    from abc_embed.bench.ctrlbench.schema import Benchmark

EXAMPLES = epilog("""
  abc-embed bench build-replica photos --vlm NAME --dry-run --out ctrlbench-r
  abc-embed bench build-replica scenes/instruct.jsonl --out ctrlbench-r

The key is read from OPENAI_API_KEY. A build that was stopped goes on when the same command is given
again; what was answered is not asked again.
""")

DEFAULT_COUNT = 1000
"""Images that a VLM is asked about, unless told otherwise; so many the published recipe has."""


def build_replica(
    source: Annotated[
        Path,
        typer.Argument(
            help="With --vlm a folder of images; without, records with instructions, as "
            "`abc-embed data instruct` writes them for human region captions."
        ),
    ],
    out: Annotated[Path, typer.Option(help="New folder for the benchmark.")],
    count: Annotated[
        int | None,
        typer.Option(
            "--count",
            "-n",
            min=1,
            help="Images, drawn at random.",
            show_default="1000 with --vlm, else all",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Another seed, other images.")] = 0,
    license: Annotated[str, typer.Option(help="Of the images, for the rows.")] = "",
    leaks: Annotated[
        bool, typer.Option(help="Keep prompts with a word of their answer, as published.")
    ] = False,
    json_mode: Annotated[
        Literal["schema", "object", "none"],
        typer.Option(metavar="TEXT", help="How JSON is asked for: schema, object or none."),
    ] = "schema",
    max_tokens: vlm_options.MaxTokens = 1024,
    *,
    vlm: vlm_options.VlmSettings,
    printer: Printer,
) -> None:
    """Build tier R: five questions about each of your images, by a VLM or from human captions.

    What is left out is in the folder's rejects.jsonl, with its reason, and counted in its card.
    """
    from abc_embed.bench.ctrlbench import replica

    if vlm.vlm is None:
        if vlm.dry_run:
            raise UsageError("without --vlm nobody is asked; leave --dry-run out")
        _print_benchmark(*_from_records(source, out, count, seed, leaks), printer)
        return
    files = replica.sample(source, count or DEFAULT_COUNT, seed)
    replies = out.with_name(f"{out.name}.replies.sqlite")
    with ExitStack() as stack:
        client = vlm.client(stack, replies, max_tokens=max_tokens, json_mode=json_mode)
        if vlm.dry_run:
            requests = replica.planned_requests(files)
            vlm.print_estimate(client, requests, replica.RETRY_TOKENS, printer)
            return
        about = {**replica.about(client), "seed": seed, "license": license}
        how = "a VLM, one request an image"
        pairs = replica.pairs_from_model(files, source, client, license=license, tries=vlm.tries)
        on_progress = stack.enter_context(progress_bar("images", len(files)))
        try:
            benchmark, left_out = replica.build(
                out, pairs, how=how, about=about, leaks=leaks, on_progress=on_progress
            )
        except CostLimitError as reached:
            raise CostLimitError(f"{reached} (--max-cost)") from None
    _print_benchmark(benchmark, left_out, printer)


def _from_records(
    source: Path, out: Path, count: int | None, seed: int, leaks: bool
) -> "tuple[Benchmark, dict[str, int]]":
    from abc_embed.bench.ctrlbench import replica
    from abc_embed.data.records import read_records

    folder = source if source.is_dir() else source.parent
    about: dict[str, Any] = {"records": source.name}
    if count is not None:
        about |= {"count": count, "seed": seed}
    how = "records with instructions, such as human region captions"
    chosen = replica.sample_records(lambda: read_records(source), count, seed)
    pairs = replica.pairs_from_records(chosen, folder)
    with progress_bar("images") as on_progress:
        return replica.build(out, pairs, how=how, about=about, leaks=leaks, on_progress=on_progress)


def _print_benchmark(benchmark: "Benchmark", left_out: dict[str, int], printer: Printer) -> None:
    from abc_embed.bench.ctrlbench.validate import validate

    bounds = validate(benchmark, "R")
    counts = {
        "images": len(benchmark.images),
        "captions": len(benchmark.corpus),
        "questions": len(benchmark.queries),
    }
    summary = {"out": str(benchmark.folder), **counts, "left_out": left_out, "gate": bounds}
    printer.json({**summary, "content_hash": benchmark.content_hash()})
    printer.table(("tier R", ""), list(counts.items()))
    if left_out:
        printer.table(("left out", ""), list(left_out.items()))
    rows: list[tuple[str, Any]] = [
        ("R@1 of the image alone, at most", bounds["image"]),
        ("R@1 of the words alone, at most", bounds["text"]),
        ("R@1 by chance", bounds["random"]),
        ("prompts with a word of their answer", bounds["leaks"]),
    ]
    printer.table(("from the files alone", ""), rows)
    printer.line(f"the benchmark is in {benchmark.folder}")
