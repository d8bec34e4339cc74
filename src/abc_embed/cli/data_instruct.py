"""`abc-embed data instruct`: an instruction for each chosen region, by a VLM or without one.

Does: check the options before anything is asked, and show estimate and report. Does not: choose or
ask (data/instruct.py does).
"""

import dataclasses
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from abc_embed.cli import options, vlm_options
from abc_embed.cli.output import say, show, show_json, show_table
from abc_embed.errors import CostLimitError, UsageError
from abc_embed.progress import progress_bar
from abc_embed.storage.files import check_writable

if TYPE_CHECKING:
    from collections.abc import Iterable

    from abc_embed.data.records import Record
    from abc_embed.vlm.client import VlmClient
    from abc_embed.vlm.instruct import InstructSettings, Report
    from abc_embed.vlm.regions import Similarity
    from abc_embed.vlm.rejects import Rejects

EXAMPLES = """\
Examples:

\b
  abc-embed data instruct scenes --own --drop-largest 0 --choose 2 --out scenes/instruct.jsonl
  abc-embed data instruct scenes --vlm NAME --drop-largest 0 --dry-run --out scenes/vlm.jsonl

The key is read from OPENAI_API_KEY. A run that was stopped goes on when the same command is given
again; what was answered is not asked again.
"""

Source = Annotated[
    Path,
    typer.Argument(
        help="Visual Genome's region_descriptions.json or its folder, a JSON file in COCO style, "
        "or records."
    ),
]
Out = Annotated[
    Path, typer.Option("--out", "-o", help="Records to write, in a folder above the images.")
]
Images = Annotated[
    Path | None,
    typer.Option("--images", help="Folder of the images.", show_default="that of the source"),
]
Own = Annotated[
    bool, typer.Option("--own", help="Take the records' own questions; needs no model.")
]
DropLargest = Annotated[
    int, typer.Option("--drop-largest", min=0, help="Boxes of each image, by area.")
]
Choose = Annotated[int, typer.Option("--choose", min=1, help="Regions of each image.")]
MaxIou = Annotated[
    float, typer.Option("--max-iou", min=0, max=1, help="Most that two regions overlap.")
]
MaxSimilarity = Annotated[
    float, typer.Option("--max-similarity", min=0, max=1, help="Most that two phrases are alike.")
]
SimilarityModel = Annotated[
    str | None,
    typer.Option("--similarity-model", help="Compare phrases by its vectors, not by their words."),
]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Another seed, other regions.")]
Fraction = Annotated[
    float, typer.Option("--fraction", min=0, max=1, help="Random share of the images.")
]
Limit = Annotated[int | None, typer.Option("--limit", min=1, help="Stop after so many images.")]
Tries = Annotated[
    int, typer.Option("--tries", min=1, help="Of a region whose prompt cannot be used.")
]


def register(app: typer.Typer) -> None:
    """Put the command among those of `abc-embed data`."""
    app.command(epilog=EXAMPLES)(instruct)


def instruct(
    source: Source,
    out: Out,
    images: Images = None,
    vlm: vlm_options.Vlm = None,
    own: Own = False,
    drop_largest: DropLargest = 5,
    choose: Choose = 4,
    max_iou: MaxIou = 0.5,
    max_similarity: MaxSimilarity = 0.5,
    similarity_model: SimilarityModel = None,
    seed: Seed = 0,
    fraction: Fraction = 1.0,
    limit: Limit = None,
    tries: Tries = 2,
    base_url: vlm_options.BaseUrl = None,
    key_variable: vlm_options.KeyVariable = "OPENAI_API_KEY",
    concurrency: vlm_options.Concurrency = 4,
    rpm: vlm_options.Rpm = None,
    tpm: vlm_options.Tpm = None,
    price_in: vlm_options.PriceIn = None,
    price_out: vlm_options.PriceOut = None,
    max_cost: vlm_options.MaxCost = None,
    max_tokens: vlm_options.MaxTokens = 128,
    image_tokens: vlm_options.ImageTokens = None,
    token_field: vlm_options.TokenField = "max_tokens",
    timeout: vlm_options.Timeout = 120.0,
    retries: vlm_options.Retries = 6,
    dry_run: vlm_options.DryRun = False,
    as_json: options.AsJson = False,
) -> None:
    """Write instructions for the regions of images, as records to train stage 2 on.

    Everything that is left out is in OUT.rejects.jsonl with its reason; OUT.report.json counts it.
    """
    told = dict(locals())  # the options by name, to hand on in groups
    if own == (vlm is not None):
        raise UsageError("say who writes: --vlm NAME, or --own for the records' own questions")
    if own and dry_run:
        raise UsageError(
            "--own asks nobody, so a dry run has nothing to say; leave one of them out"
        )
    _check_out(source, out)
    with ExitStack() as stack:
        settings, rejects, records = _prepare(told)
        client = None
        if vlm is not None:
            replies = out.with_name(f"{out.stem}.replies.sqlite")
            asking = {name: told[name] for name in vlm_options.NAMES}
            client = vlm_options.vlm_client(stack, vlm, replies, **asking)
        if client is not None and dry_run:
            from abc_embed.vlm.instruct import planned_requests
            from abc_embed.vlm.writers import RETRY_TOKENS

            requests = planned_requests(records, settings, rejects)
            vlm_options.show_estimate(client, requests, tries, RETRY_TOKENS, as_json)
            _show_rejected(dict(rejects.counts), as_json)
            return
        with progress_bar("regions") as on_progress:
            report = _run(records, out, client, settings, rejects, tries, on_progress)
    _show(report, out, max_cost, as_json)


def _check_out(source: Path, out: Path) -> None:
    check_writable(out)
    if out.suffix != ".jsonl":
        raise UsageError(f"--out is {out.name!r}; give a file that ends in .jsonl")
    for path in (source, source / "records.jsonl"):
        if out.resolve() == path.resolve():
            raise UsageError("--out is the source itself; give another name next to it")


def _prepare(told: dict[str, Any]) -> "tuple[InstructSettings, Rejects, Iterable[Record]]":
    from abc_embed.vlm.instruct import InstructSettings
    from abc_embed.vlm.region_files import are_records, read_regions
    from abc_embed.vlm.regions import RegionSettings
    from abc_embed.vlm.rejects import Rejects

    names = ("drop_largest", "choose", "max_iou", "max_similarity", "seed")
    regions = RegionSettings(**{name: told[name] for name in names})
    rejects = Rejects()
    source, root = told["source"], told["out"].parent
    records = read_regions(source, root, rejects, told["images"])
    settings = InstructSettings(
        root=root,
        regions=regions,
        similarity=_similarity(told["similarity_model"]),
        limit=told["limit"],
        fraction=told["fraction"],
        trim=not are_records(source),
    )
    return settings, rejects, records


def _similarity(model: str | None) -> "Similarity | None":
    if model is None:
        return None
    from abc_embed.vlm.regions import vector_similarity

    return vector_similarity(options.load(model).embedder)


def _run(
    records: "Iterable[Record]",
    out: Path,
    client: "VlmClient | None",
    settings: "InstructSettings",
    rejects: "Rejects",
    tries: int,
    count: Any,
) -> "Report":
    from abc_embed.vlm.instruct import write_instructions
    from abc_embed.vlm.writers import OwnWriter, VlmWriter

    if client is None:
        writer = OwnWriter(settings.regions.seed)
        return write_instructions(
            records, out, writer, settings, rejects=rejects, on_progress=count
        )
    return write_instructions(
        records,
        out,
        VlmWriter(client, settings.root, tries=tries),
        settings,
        rejects=rejects,
        map_tasks=client.map,
        on_progress=count,
        endpoint_report=client.report,
    )


def _show(report: "Report", out: Path, max_cost: float | None, as_json: bool) -> None:
    from abc_embed.vlm.instruct import file_beside
    from abc_embed.vlm.rejects import Reason

    place = out if report.complete else file_beside(out, "partial.jsonl")
    if as_json:
        show_json({"out": str(place), **dataclasses.asdict(report)})
    else:
        rows: list[tuple[str, Any]] = [
            ("images read", report.images_read),
            ("images written", report.images_written),
            ("regions read", report.regions_read),
            ("dropped as largest", report.dropped_as_largest),
            ("regions chosen", report.chosen),
            ("instructions written", report.written),
            ("different instructions", report.distinct_prompts),
            ("asked a second time", report.tried_again),
        ]
        show_table(("instructions", ""), rows)
        _show_rejected(report.rejected, as_json)
        if report.asking:
            asked = [(name, str(value)) for name, value in report.asking.items()]
            show_table(("endpoint", ""), asked)
        rejects = file_beside(out, "rejects.jsonl")
        show(f"the records are in {place}; what was left out is in {rejects}")
    failed = report.rejected.get(Reason.ENDPOINT, 0)
    if failed:
        say(f"{failed} regions got no reply; the same command asks for them again")
    if not report.complete:
        raise CostLimitError(
            f"the cost limit of {max_cost:g} was reached with {report.not_asked:,} regions not "
            f"asked; raise --max-cost and run the same command again"
        )


def _show_rejected(rejected: dict[str, int], as_json: bool) -> None:
    if rejected and not as_json:
        show_table(("left out", ""), list(rejected.items()))
