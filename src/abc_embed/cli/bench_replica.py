"""`abc-embed bench build-replica`: CtrlBench tier R from one's own images.

Does: check the options, show what was made. Does not: ask or write (bench/replica.py does).
"""

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from abc_embed.cli import options, vlm_options
from abc_embed.cli.output import show, show_json, show_table
from abc_embed.errors import CostLimitError, UsageError
from abc_embed.progress import progress_bar

if TYPE_CHECKING:
    from abc_embed.bench.ctrlbench.schema import Benchmark

EXAMPLES = """\
Examples:

\b
  abc-embed bench build-replica photos --vlm NAME --dry-run --out ctrlbench-r
  abc-embed bench build-replica scenes/instruct.jsonl --out ctrlbench-r

The key is read from OPENAI_API_KEY. A build that was stopped goes on when the same command is given
again; what was answered is not asked again.
"""

Source = Annotated[
    Path,
    typer.Argument(
        help="With --vlm a folder of images; without, records with instructions, as "
        "`abc-embed data instruct` writes them for human region captions."
    ),
]
Out = Annotated[Path, typer.Option("--out", "-o", help="New folder for the benchmark.")]
Count = Annotated[
    int, typer.Option("--count", "-n", min=1, help="Images, drawn at random from the folder.")
]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Another seed, other images.")]
Licence = Annotated[str, typer.Option("--license", help="Of the images, for the rows.")]
Leaks = Annotated[
    bool,
    typer.Option("--leaks", help="Keep prompts with a word of their answer, as published."),
]
Tries = Annotated[int, typer.Option("--tries", min=1, help="Of a reply that has no such form.")]
JsonMode = Annotated[
    str, typer.Option("--json-mode", help="How JSON is asked for: schema, object or none.")
]


def register(app: typer.Typer) -> None:
    """Put the command among those of `abc-embed bench`."""
    app.command("build-replica", epilog=EXAMPLES)(build_replica)


def build_replica(
    source: Source,
    out: Out,
    vlm: vlm_options.Vlm = None,
    count: Count = 1000,
    seed: Seed = 0,
    license: Licence = "",
    leaks: Leaks = False,
    tries: Tries = 2,
    json_mode: JsonMode = "schema",
    base_url: vlm_options.BaseUrl = None,
    key_variable: vlm_options.KeyVariable = "OPENAI_API_KEY",
    concurrency: vlm_options.Concurrency = 4,
    rpm: vlm_options.Rpm = None,
    tpm: vlm_options.Tpm = None,
    price_in: vlm_options.PriceIn = None,
    price_out: vlm_options.PriceOut = None,
    max_cost: vlm_options.MaxCost = None,
    max_tokens: vlm_options.MaxTokens = 1024,
    image_tokens: vlm_options.ImageTokens = None,
    token_field: vlm_options.TokenField = "max_tokens",
    timeout: vlm_options.Timeout = 120.0,
    retries: vlm_options.Retries = 6,
    dry_run: vlm_options.DryRun = False,
    as_json: options.AsJson = False,
) -> None:
    """Build tier R: five questions about each of your images, by a VLM or from human captions.

    What is left out is in the folder's rejects.jsonl, with its reason, and counted in its card.
    """
    told = dict(locals())  # the options by name, to hand on in groups
    if vlm is None:
        if dry_run:
            raise UsageError("without --vlm nobody is asked; leave --dry-run out")
        _show(*_from_records(source, out, leaks), as_json)
        return
    from abc_embed.bench.ctrlbench import replica

    files = replica.sample(source, count, seed)
    with ExitStack() as stack:
        replies = out.with_name(f"{out.name}.replies.sqlite")
        asking = {name: told[name] for name in vlm_options.NAMES}
        client = vlm_options.vlm_client(stack, vlm, replies, json_mode=json_mode, **asking)
        if dry_run:
            requests = replica.planned_requests(files)
            vlm_options.show_estimate(client, requests, tries, replica.RETRY_TOKENS, as_json)
            return
        about = {**replica.about(client), "seed": seed, "license": license}
        how = "a VLM, one request an image"
        pairs = replica.pairs_from_model(files, source, client, license=license, tries=tries)
        try:
            with progress_bar("images", len(files)) as on_progress:
                found = replica.build(
                    out, pairs, how=how, about=about, leaks=leaks, on_progress=on_progress
                )
        except CostLimitError as reached:
            raise CostLimitError(f"{reached} (--max-cost)") from None
    _show(*found, as_json)


def _from_records(source: Path, out: Path, leaks: bool) -> "tuple[Benchmark, dict[str, int]]":
    from abc_embed.bench.ctrlbench import replica
    from abc_embed.data.records import read_records

    folder = source if source.is_dir() else source.parent
    about = {"records": source.name}
    how = "records with instructions, such as human region captions"
    pairs = replica.pairs_from_records(read_records(source), folder)
    with progress_bar("images") as on_progress:
        return replica.build(out, pairs, how=how, about=about, leaks=leaks, on_progress=on_progress)


def _show(benchmark: "Benchmark", left_out: dict[str, int], as_json: bool) -> None:
    from abc_embed.bench.ctrlbench.validate import gate

    bounds = gate(benchmark, "R")
    counts = {
        "images": len(benchmark.images),
        "captions": len(benchmark.corpus),
        "questions": len(benchmark.queries),
    }
    if as_json:
        told = {"out": str(benchmark.folder), **counts, "left_out": left_out, "gate": bounds}
        show_json({**told, "content_hash": benchmark.content_hash()})
        return
    show_table(("tier R", ""), list(counts.items()))
    if left_out:
        show_table(("left out", ""), list(left_out.items()))
    rows: list[tuple[str, Any]] = [
        ("R@1 of the image alone, at most", bounds["image"]),
        ("R@1 of the words alone, at most", bounds["text"]),
        ("R@1 by chance", bounds["random"]),
        ("prompts with a word of their answer", bounds["leaks"]),
    ]
    show_table(("from the files alone", ""), rows)
    show(f"the benchmark is in {benchmark.folder}")
