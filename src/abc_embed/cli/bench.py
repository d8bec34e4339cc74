"""`abc-embed bench`: measure a model; a table for people, a record for the repository.

The sets of others are in bench_sets.py, and CtrlBench from one's own images in bench_replica.py.
"""

from contextlib import ExitStack
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from abc_embed.cli import bench_replica, bench_sets, bench_speed, options
from abc_embed.cli.output import Printer, epilog, print_message, print_result
from abc_embed.errors import UsageError
from abc_embed.progress import progress_bar
from abc_embed.storage.files import atomic_write, make_folder
from abc_embed.storage.json_files import atomic_write_json
from abc_embed.vectors import check_output

if TYPE_CHECKING:
    from abc_embed.bench.ctrlbench.schema import Benchmark
    from abc_embed.bench.encoders.base import Encoder

EXAMPLES = epilog("""
  abc-embed bench build --tier B --out ctrlbench-b
  abc-embed bench ctrlbench --model bundled --tier B --limit 20
  abc-embed bench ctrlbench --model runs/mine --data ctrlbench-b --limit 20 --out results
  abc-embed bench ctrlbench --model random --tier B --limit 20 --out results
  abc-embed bench ctrlbench --tier B --limit 20 --dims 256,64 --outputs float32,binary
  abc-embed bench diff results/before.json results/after.json
  abc-embed bench report results --out report
""")
AUDIT_EXAMPLES = epilog("""
  abc-embed bench audit scenes --limit 100
  abc-embed bench audit questions.jsonl --model bundled --model random --out audit

A line of questions.jsonl: {"image": "a.jpg", "instruction": "what is on the left?",
"answer": "a dog", "candidates": ["a dog", "a cat"]}; without candidates, every answer of the file
is one.
""")
EVIDENCE_EXAMPLES = epilog("""
  abc-embed bench evidence --scenes 20
  abc-embed bench evidence --model runs/mine --out results/evidence
""")
ROBUST_EXAMPLES = epilog("""
  abc-embed bench robust --scenes 50
  abc-embed bench robust --model runs/mine --out results/robust
""")
DRAWN = ("G", "B", "S")
"""The tiers that are drawn where they are needed; written out so that --help loads nothing."""

app = typer.Typer()


for _command in (
    bench_sets.coco,
    bench_sets.flickr30k,
    bench_sets.mmeb,
    bench_sets.zero_shot,
    bench_sets.records,
):
    app.command(epilog=bench_sets.EXAMPLES)(_command)
app.command(epilog=bench_replica.EXAMPLES)(bench_replica.build_replica)
app.command(epilog=bench_speed.EXAMPLES)(bench_speed.speed)


@app.command()
def ctrlbench(
    model: options.EncoderName = options.MODEL,
    tier: Annotated[
        list[str] | None,
        typer.Option(
            help=f"{', '.join(DRAWN)}, or one of the folder's; again for more.",
            show_default="G and B, or all of the folder",
        ),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="A CtrlBench folder of your own; else the tiers are drawn.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many images.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of records.", show_default="the cache folder")
    ] = None,
    again: Annotated[
        bool, typer.Option(help="Measure even if the record is there already.")
    ] = False,
    max_pixels: options.MaxPixelsList = None,
    dims: Annotated[
        str | None, typer.Option(help="Widths to cut vectors to, like 256,128,64.")
    ] = None,
    outputs: Annotated[
        str | None, typer.Option(help="Number formats of vectors, like float32,int8,binary.")
    ] = None,
    *,
    settings: options.EncoderSettings,
    printer: Printer,
) -> None:
    """Does the vector follow the instruction? With every control, the composition gap first.

    Asked with image + instruction, with either alone, with a generic, a shuffled and another
    image's instruction, with both vectors added, and at random. What was measured before is
    answered from its record.
    """
    areas = options.parse_areas(max_pixels)
    widths: list[int | None] = [*options.parse_widths("--dims", dims)] or [None]
    formats = _formats(outputs or "float32")
    choices = [] if dims is outputs is None else list(product(widths, formats))
    from abc_embed.storage.vector_cache import default_folder

    folder = make_folder(default_folder() / "results" if out is None else out)
    if data is None and set(tier or ()) <= set(DRAWN):  # before anything is drawn for it
        settings.check(model)
    benchmarks = _benchmarks(tier, data)
    encoder = settings.load_encoder(model, progress=not printer.as_json)
    from abc_embed.bench.encoders.registry import CachedEncoder

    with ExitStack() as stack:
        encoders: list[Encoder] = []
        for area in areas:
            cached = stack.enter_context(CachedEncoder(encoder.at(area), settings.cache))
            encoders += _formatted(encoder, cached, choices) if choices else [cached]
        records = []
        for (benchmark, name), measured in product(benchmarks, encoders):
            record = _measure(measured, benchmark, name, folder, limit, again)
            records.append(record)
            if not choices:
                _print_record(record, printer)
    printer.json(records if len(records) > 1 else records[0])
    if choices:
        _report_formats(records, None if out is None else folder / "formats.png", printer)


def _formats(outputs: str) -> list[str]:
    names = [name.strip() for name in outputs.split(",")]
    for name in names:
        check_output(name)
    return names


def _measure(
    encoder: "Encoder",
    benchmark: "Benchmark",
    tier: str,
    folder: Path,
    limit: int | None,
    again: bool,
) -> dict[str, Any]:
    from abc_embed.bench.ctrlbench import tiers
    from abc_embed.bench.ctrlbench.measure import measure_once
    from abc_embed.bench.tables import chance_warnings

    unanswerable = tiers.unanswerable(benchmark, tier)
    record, path = measure_once(
        encoder, benchmark, tier, folder, again=again, limit=limit, unanswerable=unanswerable
    )
    date = record["time"][:10]
    print_message(
        f"measured on {date}, answered from the record; --again measures anew"
        if path is None
        else f"the record is {path}"
    )
    for sentence in chance_warnings(record["by_aspect"]):
        print_message(f"warning: {sentence}")
    return record


def _formatted(
    encoder: "Encoder", cached: "Encoder", choices: "list[tuple[int | None, str]]"
) -> "list[Encoder]":
    """The encoder at each width and in each number format; what is embedded is embedded once."""
    from abc_embed.bench.encoders.registry import NativeEncoder
    from abc_embed.bench.encoders.wrapped import FormattedEncoder

    facts = None
    if isinstance(encoder, NativeEncoder):
        facts = encoder.embedder.model.vector_facts
    return [FormattedEncoder(cached, dim, output, facts) for dim, output in choices]


def _report_formats(records: list[dict[str, Any]], figure: Path | None, printer: Printer) -> None:
    from abc_embed.bench import figures
    from abc_embed.bench.tables import first_recall, score_cell

    rows = []
    for record in records:
        form = record["model"]["config"]["vectors"]
        cell = score_cell(first_recall(record["scores"]["joint"]))
        name = (record["benchmark"], str(form["dim"]), form["output"], str(form["bytes"]))
        rows.append((*name, cell, score_cell(record["composition_gap"])))
    columns = ("", "width", "format", "bytes", "R@1, image + instruction", "composition gap")
    printer.table(columns, rows)
    if figure is not None:
        figures.draw_formats(records, figure)
        print_message(f"drawn: {figure}")


def _benchmarks(tiers: list[str] | None, data: Path | None) -> "list[tuple[Benchmark, str]]":
    """What is to be measured, read or drawn before a model is loaded for nothing."""
    from abc_embed.bench.ctrlbench.schema import read_benchmark

    if data is not None:
        benchmark = read_benchmark(data)
        return [(benchmark, name) for name in tiers or benchmark.tiers]
    return [(_drawn_tier(name), name) for name in tiers or ("G", "B")]


def _drawn_tier(name: str) -> "Benchmark":
    from abc_embed.bench.ctrlbench.tiers import load

    with progress_bar(f"drawing tier {name}") as on_progress:
        return load(name, on_progress)


def _print_record(record: dict[str, Any], printer: Printer) -> None:
    from abc_embed.bench import tables

    title = f"{record['benchmark']}, {record['model']['name']}"
    if area := record["settings"]["max_pixels"]:
        title += f", at most {area:,} pixels"
    printer.table(("", "value (95 %)", "target"), tables.summary(record), title=title)
    printer.line(tables.sizes_line(record))


@app.command()
def build(
    tier: Annotated[str, typer.Option(help=f"{', '.join(DRAWN)}.")],
    out: Annotated[Path, typer.Option(help="Folder to put the benchmark in.")],
    *,
    printer: Printer,
) -> None:
    """Draw a frozen tier into a folder: the same bytes everywhere, or an error."""
    from abc_embed.bench.ctrlbench import tiers
    from abc_embed.bench.ctrlbench.validate import validate

    with progress_bar(f"drawing tier {tier}") as on_progress:
        benchmark = tiers.build(tier, out, on_progress)
    summary = {**benchmark.card["counts"], **validate(benchmark, tier)}
    printer.json({"out": str(out), **summary, "content_hash": benchmark.content_hash()})
    printer.table((f"tier {tier}", ""), list(summary.items()))
    printer.line(f"the benchmark is in {out}")


@app.command()
def diff(
    a: Annotated[Path, typer.Argument(metavar="BEFORE.json", help="A record.")],
    b: Annotated[
        Path, typer.Argument(metavar="AFTER.json", help="Another, of the same questions.")
    ],
    *,
    printer: Printer,
) -> None:
    """Compare two records query by query: what the second gains, by a paired permutation test.

    The difference is the second minus the first, so name the older one first.
    """
    from abc_embed.bench.records import compare_records, read_record
    from abc_embed.bench.tables import CONDITIONS

    records = read_record(a), read_record(b)
    rows = compare_records(*records)
    printer.json(rows)
    names = [record["model"]["name"] for record in records]
    if names[0] == names[1]:
        names = [a.stem, b.stem] if a.stem != b.stem else [str(a), str(b)]
    lines = []
    for row in rows:
        low, high = row["interval"]
        change = f"{row['difference']:+.3f} ({low:+.3f} to {high:+.3f})"
        lines.append((CONDITIONS[row["way"]], row["a"], row["b"], change, f"{row['p']:.4f}"))
    minus = f"{names[1]} − {names[0]} (95 %)"
    printer.table(("R@1", *names, minus, "p"), lines, title=records[0]["benchmark"])


@app.command()
def report(
    results: Annotated[Path, typer.Argument(metavar="RESULTS", help="Folder of records.")],
    out: Annotated[Path, typer.Option(help="Folder for the report.")],
    data: Annotated[
        list[Path] | None,
        typer.Option(help="A CtrlBench folder that was measured; again for more."),
    ] = None,
) -> None:
    """Make report.md, report.csv, a picture of all scores, and one of each record's answers."""
    from abc_embed.bench import figures, tables
    from abc_embed.bench.ctrlbench.schema import read_benchmark
    from abc_embed.bench.records import read_records

    records = read_records(results)
    if not records:
        raise UsageError(f"{results} holds no records; measure a model with --out {results}")
    folders = {b.content_hash(): b for b in map(read_benchmark, data or ())}
    make_folder(out)
    for name, text in (
        ("report.md", tables.markdown(records)),
        ("report.csv", tables.as_csv(records)),
    ):
        with atomic_write(out / name) as file:
            file.write(text.encode())
    ctrlbench_records = [record for record in records if tables.is_ctrlbench(record)]
    if ctrlbench_records:
        figures.draw_bars(ctrlbench_records, out / "report.png")
    for number, record in enumerate(ctrlbench_records):
        benchmark = folders.get(record["benchmark_hash"]) or _drawn(record)
        if benchmark is not None and record.get("top"):
            path = out / f"answers-{number:02}-{record['benchmark']}.png"
            figures.draw_examples(record, benchmark, path)
    print_result(f"the report is in {out}")


def _drawn(record: dict[str, Any]) -> "Benchmark | None":
    """The frozen tier that a record is of, if it is of one."""
    from abc_embed.bench.ctrlbench import tiers

    for tier, frozen_tier in tiers.TIERS.items():
        if frozen_tier.content_hash == record["benchmark_hash"]:
            return _drawn_tier(tier)
    print_message(
        f"the pictures of {record['benchmark']} are not at hand; name their folder with --data"
    )
    return None


@app.command(epilog=AUDIT_EXAMPLES)
def audit(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SET", help="A JSONL file, a folder of records or of CtrlBench, or scenes."
        ),
    ],
    model: Annotated[
        list[str],
        typer.Option(help=f"A model of the panel; give it again for more. {options.ENCODERS}"),
    ] = [options.MODEL],  # noqa: B006  (typer copies it)
    limit: Annotated[
        int | None, typer.Option(min=1, help="Only the first so many questions.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for audit.json, audit.md and audit.png.")
    ] = None,
    image_folder: options.ImageFolder = None,
    max_pixels: options.MaxPixels = None,
    *,
    settings: options.EncoderSettings,
    printer: Printer,
) -> None:
    """Count the questions that the image alone solves, the words alone, or the sum of both vectors.

    What is left over needs a model that reads the picture and the words together.
    """
    area = options.area_in_pixels(max_pixels)
    settings.check(*model)
    if settings.name is not None and len(set(model)) > 1:
        raise UsageError("--name is for one model, and several are given; leave it out")
    from abc_embed.bench import audit as bench

    if out is not None:
        make_folder(out)
    questions = bench.read_audit_set(source, limit=limit, image_folder=image_folder)
    panel = [
        settings.load_encoder(name, progress=not printer.as_json).at(area)
        for name in dict.fromkeys(model)
    ]
    findings = bench.audit(panel, questions, cache=settings.cache)
    printer.json(findings)
    printer.table(bench.HEAD, bench.rows(findings))
    if by_kind := bench.kind_rows(findings):
        printer.table(bench.KINDS_HEAD, by_kind)
    printer.line(bench.summary(findings))
    for sentence in bench.warnings(findings):
        print_message(f"warning: {sentence}")
    if out is not None:
        atomic_write_json(out / "audit.json", findings)
        with atomic_write(out / "audit.md") as file:
            file.write(bench.markdown(findings).encode())
        bench.draw_bars(findings, out / "audit.png")
        print_message(f"the audit is in {out}")


Scenes = Annotated[int, typer.Option(min=2, help="How many generated scenes are asked about.")]


@app.command(epilog=EVIDENCE_EXAMPLES)
def evidence(
    scenes: Scenes = 200,
    out: bench_speed.RecordFolder = None,
    *,
    settings: options.ModelSettings,
    printer: Printer,
) -> None:
    """Point to the thing that was asked for, on scenes whose boxes are known.

    Every method of `Embedder.explain`, with controls: random maps, a model with random layers, the
    instruction of another scene.
    """
    settings.check()
    from abc_embed.bench import evidence as bench

    bench_speed.run(bench, settings, out, "methods and controls", printer, scenes=scenes)


@app.command(epilog=ROBUST_EXAMPLES)
def robust(
    scenes: Scenes = 300,
    out: bench_speed.RecordFolder = None,
    *,
    settings: options.ModelSettings,
    printer: Printer,
) -> None:
    """Ask the same in other words, of smaller, darker, turned or compressed pictures.

    Also with vectors cut to fewer numbers or rounded to int8, and about things that are not there.
    """
    settings.check()
    from abc_embed.bench import robust as bench

    record = bench_speed.run(bench, settings, out, "conditions", printer, scenes=scenes)
    if not printer.as_json:
        print_message(
            "answerable questions score above unanswerable ones in "
            f"{record['nothing_fits']['auc']:.3f} of pairs"
        )
