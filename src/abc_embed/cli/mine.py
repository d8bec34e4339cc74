"""`abc-embed mine`: hard negatives for a data set, with a plan before and a report after."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from abc_embed.cli import options
from abc_embed.cli.output import Printer, duration, epilog, print_first, print_message
from abc_embed.errors import OutputError
from abc_embed.mining.settings import (
    EPSILON,
    NPROBE,
    POOL,
    SAMPLE_SIZE,
    Method,
    MiningSettings,
    Strategy,
)
from abc_embed.progress import progress_bar
from abc_embed.storage.json_files import atomic_write_json

if TYPE_CHECKING:
    from abc_embed.data import Dataset
    from abc_embed.mining.mine import Mined, MiningRun
    from abc_embed.mining.plan import MiningPlan
    from abc_embed.mining.report import MiningReport

EXAMPLES = epilog("""
  abc-embed mine scenes --out scenes/mined.jsonl
  abc-embed mine scenes --out scenes/mined.parquet --how bins --memory "512 MB"
""")

WORK = "mining-work"
BAD_SHOWN = 10
"""Bad rows that a message names; the rejects file has them all."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MiningOptions:
    """What is searched and drawn, with what, and where the work is kept."""

    epsilon: Annotated[
        float, typer.Option(help="Keep what scores at most this times the own caption.")
    ] = EPSILON
    pool: Annotated[int, typer.Option(min=1, help="The best so many below that.")] = POOL
    draw: Annotated[int, typer.Option(min=1, help="Negatives of each image.")] = SAMPLE_SIZE
    how: Annotated[
        Strategy, typer.Option(help="Any of the pool, or one of each five, from the best on.")
    ] = Strategy.UNIFORM
    seed: Annotated[int, typer.Option(min=0, help="Another seed, another draw.")] = 0
    search: Annotated[
        Method, typer.Option(help="flat and plain are exact, ivf is not; auto is flat.")
    ] = Method.AUTO
    cells: Annotated[
        int, typer.Option(min=0, help="ivf: cells; 0 for 4 times the root of all.")
    ] = 0
    probes: Annotated[int, typer.Option(min=1, help="ivf: cells to look into.")] = NPROBE
    memory: Annotated[str, typer.Option(help="Ceiling of the search, like 512 MB or 2 GB.")] = (
        "1 GB"
    )
    processes: Annotated[int, typer.Option(min=1, help="That embed; each loads the model.")] = 1
    work: Annotated[
        Path | None,
        typer.Option(
            help="Folder for vectors and pools, which stay.", show_default=f"{WORK} next to --out"
        ),
    ] = None
    vectors: Annotated[
        Path | None,
        typer.Option(help="A folder of `batch`: images that it holds are not embedded again."),
    ] = None
    store: Annotated[
        str, typer.Option(help="Vectors on disk: float32, or float16 for half of it.")
    ] = "float32"

    def settings(self, device: str) -> MiningSettings:
        """Raises `UsageError` when a value cannot be."""
        return MiningSettings(
            epsilon=self.epsilon,
            pool=self.pool,
            sample_size=self.draw,
            strategy=self.how,
            seed=self.seed,
            store=self.store,
            method=self.search,
            nlist=self.cells,
            nprobe=self.probes,
            memory_bytes=options.parse_size(self.memory, "--memory"),
            devices=() if device == "auto" else (device,),
        )


def mine(
    records: Annotated[
        str,
        typer.Argument(
            help="A data set: records, Parquet, tars, a folder, or abc-pretrain:FOLDER."
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            "--out", "-o", help="A .parquet of row numbers, or records next to the others."
        ),
    ],
    image_folder: options.ImageFolder = None,
    plan_only: Annotated[bool, typer.Option("--plan", help="Show the plan, and stop.")] = False,
    examples: Annotated[
        int, typer.Option(min=0, help="Rows on the page of examples; 0 for none.")
    ] = 12,
    *,
    mining: MiningOptions,
    model_settings: options.BatchSettings,
    printer: Printer,
) -> None:
    """Give each image captions of other images that nearly fit.

    What is embedded and searched stays in --work: a run that was stopped goes on when the same
    command is given again, and one with another draw needs seconds.
    """
    model_settings.check()
    settings = mining.settings(model_settings.device)
    from abc_embed.data import open_dataset

    dataset = open_dataset(records, image_folder=image_folder)
    from abc_embed.mining.output import check_out

    check_out(dataset, out)
    work = mining.work or out.parent / WORK
    run = _prepare(dataset, model_settings, settings, work, mining.vectors)
    plan = _plan(run, mining.processes)
    free_bytes = print_plan(plan, work, settings)
    if plan_only:
        printer.json(dataclasses.asdict(plan))
        return
    _check_room(plan, work, free_bytes)
    with progress_bar("mining") as on_progress:
        mined = run.mine(
            processes=mining.processes,
            on_progress=lambda stage, done, total: on_progress(done, total, stage),
        )
    source: dict[str, object] = {
        "model": model_settings.model,
        "fingerprint": run.setup.embedder.fingerprint,
        "settings": settings.as_json(),
        "plan": dataclasses.asdict(plan),
    }
    summary, pictures = _write(mined, out, examples, source)
    print_bad(mined.report, summary["rejects"])
    printer.json(summary)
    print_report(printer, mined.report, settings, out, pictures)


def _prepare(
    dataset: "Dataset",
    model_settings: options.BatchSettings,
    settings: MiningSettings,
    work: Path,
    vectors: Path | None,
) -> "MiningRun":
    """The run, with its model loaded, its data set read, and the vectors that were made before."""
    if settings.method is Method.IVF:
        from abc_embed.mining.ivf import require_faiss  # torch comes with it: seconds

        require_faiss()
    embedder, max_pixels = model_settings.load_with_pixels()
    from abc_embed.mining.corpus import read_corpus
    from abc_embed.mining.mine import MiningRun
    from abc_embed.mining.shards import EmbedderSetup

    load, batch_size = model_settings.load_stream, model_settings.batch_size
    with progress_bar("reading") as on_progress:
        corpus = read_corpus(dataset, on_progress)
    run = MiningRun(corpus, EmbedderSetup(embedder, load, max_pixels, batch_size), settings, work)
    if vectors is not None:
        from abc_embed.storage.vector_folder import VectorFolder

        run.take_vectors(VectorFolder(vectors))
    return run


def _plan(run: "MiningRun", processes: int) -> "MiningPlan":
    """The plan, and how long embedding what is missing would take."""
    from abc_embed.mining.plan import embed_seconds, plan_mining

    width = run.setup.embedder.dim
    plan = plan_mining(len(run.rows), len(run.corpus.captions), width, run.settings)
    return dataclasses.replace(plan, embed_s=embed_seconds(run, processes))


def _check_room(plan: "MiningPlan", work: Path, free_bytes: int) -> None:
    earlier_bytes = sum(path.stat().st_size for path in work.rglob("*.np[yz]"))
    if plan.disk_bytes > free_bytes + earlier_bytes:
        raise OutputError(f"{work} has too little room; make room, or give another --work")


def _write(
    mined: "Mined", out: Path, examples: int, source: dict[str, object]
) -> tuple[dict[str, object], list[Path]]:
    """Write the result, and next to it a page of examples, histograms and all numbers as JSON.

    Returns:
        The numbers, and the files that were written besides the result.
    """
    from abc_embed.mining.output import draw_sheet, write_mined, write_rejects
    from abc_embed.mining.report import draw_report

    write_mined(mined, out)
    rejects = write_rejects(mined, out)
    summary: dict[str, object] = {
        "out": str(out),
        "rejects": None if rejects is None else str(rejects),
        "report": mined.report.as_json(),
        **source,
    }
    page = out.with_name(f"{out.stem}.report.png")
    pictures = [page, page.with_suffix(".json")]
    if examples:
        pictures.insert(0, out.with_suffix(".png"))
        draw_sheet(mined, pictures[0], examples)
    draw_report(mined.report, page)
    atomic_write_json(page.with_suffix(".json"), summary)
    return summary, pictures


def print_plan(plan: "MiningPlan", work: Path, settings: MiningSettings) -> int:
    """Bytes that are free for it."""
    from abc_embed.mining.plan import free_bytes

    free = free_bytes(work)
    print_message(
        f"plan: {plan.rows:,} images × {plan.captions:,} different captions ="
        f" {plan.scores:,} scores at width {plan.width:,}, by the search"
        f" {plan.method!r} on {', '.join(plan.devices)}, {plan.queries_at_once:,} ×"
        f" {plan.candidates_at_once:,} at a time"
    )
    print_message(
        f"plan: {size(plan.vector_bytes)} of disk for vectors in {settings.store} and"
        f" {size(plan.pool_bytes)} for pools ({size(free)} free in {work}); at most"
        f" {size(plan.memory_bytes)} of memory for the search"
    )
    print_message(
        f"plan: about {duration(plan.embed_s)} to embed what is missing and"
        f" {duration(plan.search_s)} to search, as a probe of some seconds has it"
    )
    return free


def print_bad(report: "MiningReport", rejects: object) -> None:
    if rejects is not None:
        print_message(
            f"{len(report.bad)} of {report.rows} rows were left out; all are in {rejects}:"
        )
    print_first([f"  {where}: {why}" for _, where, why in report.bad], BAD_SHOWN, "")


def print_report(
    printer: Printer,
    report: "MiningReport",
    settings: MiningSettings,
    out: Path,
    pictures: list[Path],
) -> None:
    rows = [
        ("rows", report.rows),
        ("without caption", report.without_caption),
        ("that cannot be used", len(report.bad)),
        ("mined", report.mined),
        ("with a pool that is not full", report.short_pools),
        (f"with fewer than {settings.sample_size} negatives", report.short_draws),
        ("without any negative", report.empty),
        ("whose own caption scores 0 or less", report.own_not_positive),
        ("whose own caption comes first", int(report.own_ranks[0])),
        ("vectors there already", report.remembered),
        ("searched before", report.searched_before),
    ]
    printer.table(("rows", ""), rows)
    pairs: list[tuple[str, int]] = [("scored", report.scored)]
    pairs += [(f"dropped: {rule}", count) for rule, count in report.dropped.items()]
    pairs += [("in the pools", report.pooled), ("drawn", report.drawn)]
    printer.table(("candidates, over all rows", ""), pairs)
    medians = (
        ("own captions", report.own_scores.median),
        ("pools", report.pool_scores.median),
        ("drawn negatives", report.drawn_scores.median),
    )
    printer.table(("median score", ""), [(n, "-" if v is None else v) for n, v in medians])
    if report.recall is not None:
        printer.line(f"recall of the pools against exact ones, on a sample: {report.recall:.4f}")
    printer.line(f"the negatives are in {out}; see {', '.join(map(str, pictures))}")


def size(count: int) -> str:
    return f"{count / 1e9:,.1f} GB" if count >= 10**9 else f"{count / 1e6:,.1f} MB"
