"""`abc-embed mine`: hard negatives for a data set, with a plan before and a report after.

Does: check the options before anything is loaded, and show plan and report. Does not: score
(mining/ does).
"""

import dataclasses
import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from abc_embed.cli import options
from abc_embed.cli.mine_report import say_bad, say_plan, show_report
from abc_embed.cli.output import show_json
from abc_embed.mining.engines import Method
from abc_embed.mining.sample import DRAW, How
from abc_embed.progress import progress_bar
from abc_embed.storage.files import check_writable

if TYPE_CHECKING:
    from abc_embed.embedder import Embedder
    from abc_embed.mining.embed import Model
    from abc_embed.mining.mine import Mined
    from abc_embed.mining.plan import Plan, Settings
    from abc_embed.mining.rows import Rows

EXAMPLES = """\
Examples:

\b
  abc-embed mine scenes --out scenes/mined.jsonl
  abc-embed mine scenes --out scenes/mined.parquet --how bins --memory "512 MB"
"""

WORK = "mining-work"


Records = Annotated[
    str,
    typer.Argument(help="A data set: records, Parquet, tars, a folder, or abc-pretrain:FOLDER."),
]
Out = Annotated[
    Path,
    typer.Option("--out", "-o", help="A .parquet of row numbers, or records next to the others."),
]
Epsilon = Annotated[
    float, typer.Option("--epsilon", help="Keep what scores at most this times the own caption.")
]
Pool = Annotated[int, typer.Option("--pool", min=1, help="The best so many below that.")]
Draw = Annotated[int, typer.Option("--draw", min=1, help="Negatives of each image.")]
HowOption = Annotated[
    How, typer.Option("--how", help="Any of the pool, or one of each five, from the best on.")
]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Another seed, another draw.")]
Search = Annotated[
    Method,
    typer.Option("--search", help="flat and plain are exact; auto is flat if faiss is there."),
]
Cells = Annotated[
    int, typer.Option("--cells", min=0, help="ivf: cells; 0 for 4 times the root of all.")
]
Probes = Annotated[int, typer.Option("--probes", min=1, help="ivf: cells to look into.")]
Memory = Annotated[
    str, typer.Option("--memory", help="Ceiling of the search, like 512 MB or 2 GB.")
]
Processes = Annotated[
    int, typer.Option("--processes", min=1, help="That embed; each loads the model.")
]
Work = Annotated[
    Path | None,
    typer.Option(
        "--work",
        help="Folder for vectors and pools, which stay.",
        show_default=f"{WORK} next to --out",
    ),
]
Store = Annotated[
    str, typer.Option("--store", help="Vectors on disk: float32, or float16 for half of it.")
]
PlanOnly = Annotated[bool, typer.Option("--plan", help="Show the plan, and stop.")]
Examples = Annotated[
    int, typer.Option("--examples", min=0, help="Rows on the page of examples; 0 for none.")
]


def mine(
    records: Records,
    out: Out,
    epsilon: Epsilon = 0.95,
    pool: Pool = 100,
    draw: Draw = DRAW,
    how: HowOption = How.UNIFORM,
    seed: Seed = 0,
    search: Search = Method.AUTO,
    cells: Cells = 0,
    probes: Probes = 16,
    memory: Memory = "1 GB",
    processes: Processes = 1,
    work: Work = None,
    store: Store = "float32",
    plan_only: PlanOnly = False,
    examples: Examples = 12,
    model: options.Model = options.MODEL,
    max_pixels: options.MaxPixels = None,
    batch_size: options.BatchSize = 32,
    decode_limit: options.DecodeLimit = None,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    as_json: options.AsJson = False,
) -> None:
    """Give each image captions of other images that nearly fit.

    What is embedded and searched stays in --work: a run that was stopped goes on when the same
    command is given again, and one with another draw needs seconds.
    """
    from abc_embed.mining import plan as plans
    from abc_embed.mining.rows import read_rows
    from abc_embed.mining.search import How as SearchHow

    settings = plans.Settings(
        epsilon=epsilon,
        pool=pool,
        draw=draw,
        how=how,
        seed=seed,
        store=store,
        search=SearchHow(search, options.size_in_bytes(memory, "--memory"), cells, probes, seed),
    )
    _check_out(records, out, settings)
    place = out.parent / WORK if work is None else work
    loaded = _model(model, device, dtype, max_pixels, decode_limit, batch_size)
    with progress_bar("reading") as on_progress:
        rows = read_rows(records, on_progress)
    planned = _plan(rows, loaded, settings, place, processes)
    say_plan(planned, place, settings, whole=not plan_only)
    if plan_only:
        if as_json:
            show_json(dataclasses.asdict(planned))
        return
    mined = _mine(rows, loaded, settings, place, processes)
    told = _write(mined, out, {"model": model, "fingerprint": loaded.embedder.fingerprint})
    told |= {"settings": dataclasses.asdict(settings), "plan": dataclasses.asdict(planned)}
    pictures = _pictures(mined, out, examples, told)
    say_bad(mined.report, told["rejects"])
    if as_json:
        show_json(told)
    else:
        show_report(mined.report, settings, out, pictures)


def _mine(
    rows: "Rows", model: "Model", settings: "Settings", place: Path, processes: int
) -> "Mined":
    from abc_embed.mining.mine import mine as run

    with progress_bar("mining") as on_progress:
        return run(
            rows,
            model,
            settings,
            work=place,
            processes=processes,
            counted=lambda what, done, of: on_progress(done, of),
        )


def _write(mined: "Mined", out: Path, told: dict[str, object]) -> dict[str, object]:
    """The result and what was left out; what to tell of both."""
    from abc_embed.mining.output import write_mined, write_rejects

    write_mined(mined, out)
    rejects = write_rejects(mined, out)
    found = {"out": str(out), "rejects": None if rejects is None else str(rejects)}
    return {**found, **told, "report": mined.report.as_json()}


def _model(
    model: str,
    device: str,
    dtype: str,
    max_pixels: str | None,
    decode_limit: int | None,
    batch_size: int,
) -> "Model":
    loaded = options.load(
        model, device=device, dtype=dtype, max_pixels=max_pixels, decode_limit=decode_limit
    )
    from abc_embed.mining.embed import Model

    loading = partial(_embedder, model, device, dtype, max_pixels, decode_limit)
    return Model(loaded.embedder, loading, loaded.max_pixels, batch_size)


def _embedder(
    model: str,
    device: str,
    dtype: str,
    max_pixels: str | None,
    decode_limit: int | None,
    number: int,
) -> "Embedder":
    """The model in process `number`; with several GPUs and no choice, each has its own."""
    if device == "auto":
        import torch

        if torch.cuda.device_count() > 1:
            device = f"cuda:{number % torch.cuda.device_count()}"
    return options.load(
        model, device=device, dtype=dtype, max_pixels=max_pixels, decode_limit=decode_limit
    ).embedder


def _check_out(records: str, out: Path, settings: "Settings") -> None:
    """Before the work: method and memory will do, the place can be written, and images will be
    found from there."""
    from abc_embed.data import open_dataset
    from abc_embed.mining.engines import blocks, resolve_method
    from abc_embed.mining.output import PARQUET, check_can_write
    from abc_embed.mining.rows import check_can_hold_texts

    blocks(settings.search.memory_bytes, 1, settings.pool, resolve_method(settings.search.method))
    check_writable(out)
    dataset = open_dataset(records)
    if out.suffix == PARQUET:
        check_can_write(out, dataset.path)
    else:
        check_can_hold_texts(dataset, out)


def _plan(
    rows: "Rows", model: "Model", settings: "Settings", place: Path, processes: int
) -> "Plan":
    """The plan, and how long embedding what is missing would take."""
    from abc_embed.inputs import Item
    from abc_embed.mining.mine import vectors_of
    from abc_embed.mining.plan import embed_seconds, plan

    planned = plan(len(rows.minable), len(rows.captions), model.embedder.dim, settings)
    captions, images = vectors_of(rows, model, settings, place)
    left = [
        [n for shard in one.missing() for n in range(*one.span(shard).indices(one.shape[0]))]
        for one in (captions, images)
    ]
    texts = [Item(text=rows.captions[n]) for n in left[0][:64]]
    pictures = [Item(image=rows.image(int(rows.minable[n]))) for n in left[1][:64]]
    of_image, of_text = embed_seconds(model, pictures, texts)
    whole = of_text * len(left[0]) + of_image * len(left[1])
    return dataclasses.replace(planned, embed_s=whole / processes)


def _pictures(mined: "Mined", out: Path, examples: int, told: dict[str, object]) -> list[Path]:
    """The page of examples, the histograms, and all numbers as JSON, next to the result."""
    from abc_embed.mining.report import draw_report
    from abc_embed.mining.sheet import draw_sheet
    from abc_embed.storage.files import atomic_write

    written = []
    if examples:
        draw_sheet(mined, out.with_suffix(".png"), examples)
        written.append(out.with_suffix(".png"))
    page = out.with_name(f"{out.stem}.report.png")
    draw_report(mined.report, page)
    with atomic_write(page.with_suffix(".json")) as file:
        file.write(json.dumps(told, indent=1).encode() + b"\n")
    return [*written, page, page.with_suffix(".json")]
