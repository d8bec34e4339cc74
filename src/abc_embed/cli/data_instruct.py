"""`abc-embed data instruct`: an instruction for each chosen region, by a VLM or without one."""

import dataclasses
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from abc_embed.cli import options, vlm_options
from abc_embed.cli.output import Printer, epilog, print_message
from abc_embed.errors import CostLimitError, UsageError
from abc_embed.progress import progress_bar
from abc_embed.storage.files import check_writable
from abc_embed.vlm.rejects import Reason, Rejects

if TYPE_CHECKING:
    from abc_embed.vlm.instruct import InstructSettings, Report

EXAMPLES = epilog("""
  abc-embed data instruct scenes --own --drop-largest 0 --choose 2 --out scenes/instruct.jsonl
  abc-embed data instruct scenes --vlm NAME --drop-largest 0 --dry-run --out scenes/vlm.jsonl

The key is read from OPENAI_API_KEY. A run that was stopped goes on when the same command is given
again; what was answered is not asked again.
""")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RegionOptions:
    """Which images and which of their regions get an instruction."""

    drop_largest: Annotated[int, typer.Option(min=0, help="Boxes of each image, by area.")] = 5
    choose: Annotated[int, typer.Option(min=1, help="Regions of each image.")] = 4
    max_iou: Annotated[float, typer.Option(min=0, max=1, help="Most that two regions overlap.")] = (
        0.5
    )
    max_similarity: Annotated[
        float, typer.Option(min=0, max=1, help="Most that two phrases are alike.")
    ] = 0.5
    similarity_model: Annotated[
        str | None, typer.Option(help="Compare phrases by its vectors, not by their words.")
    ] = None
    seed: Annotated[int, typer.Option(min=0, help="Another seed, other regions.")] = 0
    fraction: Annotated[float, typer.Option(min=0, max=1, help="Random share of the images.")] = 1.0
    limit: Annotated[int | None, typer.Option(min=1, help="Stop after so many images.")] = None

    def settings(self, source: Path, root: Path) -> "InstructSettings":
        """What is done with each record of `source`, whose images are named from `root`."""
        from abc_embed.vlm.instruct import InstructSettings
        from abc_embed.vlm.region_files import are_records
        from abc_embed.vlm.regions import RegionSettings, vector_similarity

        similarity = None
        if self.similarity_model is not None:
            model = options.ModelSettings(model=self.similarity_model)
            similarity = vector_similarity(model.load())
        names = [field.name for field in dataclasses.fields(RegionSettings)]
        regions = RegionSettings(**{name: getattr(self, name) for name in names})
        return InstructSettings(
            root=root,
            regions=regions,
            similarity=similarity,
            limit=self.limit,
            fraction=self.fraction,
            trim=not are_records(source),
        )


def instruct(
    source: Annotated[
        Path,
        typer.Argument(
            help="Visual Genome's region_descriptions.json or its folder, a JSON file in COCO "
            "style, or records."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Records to write, in a folder above the images.")],
    images: Annotated[
        Path | None, typer.Option(help="Folder of the images.", show_default="that of the source")
    ] = None,
    own: Annotated[
        bool, typer.Option(help="Take the records' own questions; needs no model.")
    ] = False,
    max_tokens: vlm_options.MaxTokens = 128,
    overwrite: Annotated[
        bool, typer.Option(help="Replace --out even by less than it holds.")
    ] = False,
    *,
    regions: RegionOptions,
    vlm: vlm_options.VlmSettings,
    printer: Printer,
) -> None:
    """Write instructions for the regions of images, as records to train stage 2 on.

    Everything that is left out is in OUT.rejects.jsonl with its reason; OUT.report.json counts it.
    """
    _check_options(source, out, own, vlm)
    from abc_embed.vlm.instruct import planned_requests, write_instructions
    from abc_embed.vlm.region_files import read_regions
    from abc_embed.vlm.writers import RETRY_TOKENS, OwnWriter, VlmWriter, Writer

    settings = regions.settings(source, out.parent)
    rejects = Rejects()
    records = read_regions(source, out.parent, rejects, images)
    writer: Writer = OwnWriter(regions.seed)
    with ExitStack() as stack:
        if not own:
            replies = out.with_name(f"{out.stem}.replies.sqlite")
            client = vlm.client(stack, replies, max_tokens=max_tokens)
            if vlm.dry_run:
                requests = planned_requests(records, settings, rejects)
                vlm.print_estimate(client, requests, RETRY_TOKENS, printer)
                _print_rejected(dict(rejects.counts), printer)
                return
            writer = VlmWriter(client, settings.root, tries=vlm.tries)
        report = write_instructions(
            *(records, out, writer, settings),
            rejects=rejects,
            overwrite=overwrite,
            on_progress=stack.enter_context(progress_bar("regions")),
        )
    _print_report(report, out, vlm.max_cost, printer)


def _check_options(source: Path, out: Path, own: bool, vlm: vlm_options.VlmSettings) -> None:
    if own == (vlm.vlm is not None):
        raise UsageError("say who writes: --vlm NAME, or --own for the records' own questions")
    if own and vlm.dry_run:
        raise UsageError(
            "--own asks nobody, so a dry run has nothing to say; leave one of them out"
        )
    check_writable(out)
    if out.suffix != ".jsonl":
        raise UsageError(f"--out is {out.name!r}; give a file that ends in .jsonl")
    for path in (source, source / "records.jsonl"):
        if out.resolve() == path.resolve():
            raise UsageError("--out is the source itself; give another name next to it")


def _print_report(report: "Report", out: Path, max_cost: float | None, printer: Printer) -> None:
    from abc_embed.vlm.instruct import file_beside

    place = out if report.complete else file_beside(out, "partial.jsonl")
    printer.json({"out": str(place), **dataclasses.asdict(report)})
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
    printer.table(("instructions", ""), rows)
    _print_rejected(report.rejected, printer)
    if report.asking:
        rows = [(name, str(value)) for name, value in report.asking.items()]
        printer.table(("endpoint", ""), rows)
    rejects = file_beside(out, "rejects.jsonl")
    printer.line(f"the records are in {place}; what was left out is in {rejects}")
    failed = report.rejected.get(Reason.ENDPOINT, 0)
    if failed:
        print_message(f"{failed} regions got no reply; the same command asks for them again")
    if not report.complete:
        raise CostLimitError(
            f"the cost limit of {max_cost:g} was reached with {report.not_asked:,} regions not "
            f"asked; raise --max-cost and run the same command again"
        )


def _print_rejected(rejected: dict[str, int], printer: Printer) -> None:
    if rejected:
        printer.table(("left out", ""), list(rejected.items()))
