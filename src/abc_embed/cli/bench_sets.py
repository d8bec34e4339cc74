"""`abc-embed bench coco|flickr30k|mmeb|zero-shot|records`: sets of others in their own layouts, and
records of one's own."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from abc_embed.cli import options
from abc_embed.cli.output import Printer, epilog, print_message
from abc_embed.errors import UsageError
from abc_embed.storage.files import check_writable, make_folder

if TYPE_CHECKING:
    from abc_embed.bench.encoders.registry import Encoder
    from abc_embed.bench.sets.evaluation import EvaluationSet, Findings

EXAMPLES = epilog("""
  abc-embed bench coco --data dataset_coco.json --images coco --positives cxc --positives eccv
  abc-embed bench flickr30k --data dataset_flickr30k.json --images flickr30k-images
  abc-embed bench mmeb --data MMEB-eval --task GQA --task TextVQA --out results
  abc-embed bench records data/scenes --model runs/mine --limit 50 --out results
  abc-embed bench zero-shot --data photos-by-class --max-pixels "128,256,512,1024 tokens"

Several resolutions are measured one after the other, and drawn with --figure.
""")

Split = Annotated[str, typer.Option(help="Of Karpathy's splits.")]
Karpathy = Annotated[Path, typer.Option(help="dataset_coco.json or dataset_flickr30k.json.")]
Images = Annotated[Path, typer.Option(help="Folder that the images' paths start from.")]


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings(options.EncoderSettings):
    """The model, the resolutions, and what becomes of the results.

    Raises:
        UsageError: a resolution that is none, or a figure of a single one.
        OutputError: the figure cannot be written.
    """

    model: options.EncoderName = options.MODEL
    max_pixels: options.MaxPixelsList = None
    out: Annotated[Path | None, typer.Option(help="Folder to put the records in, as JSON.")] = None
    figure: Annotated[
        Path | None, typer.Option(help="PNG of several resolutions: score and speed.")
    ] = None

    def __post_init__(self) -> None:
        several = len(self.areas) > 1
        if self.figure is not None and not several:
            raise UsageError(
                "--figure needs several resolutions: --max-pixels '128,256,512 tokens'"
            )
        if self.figure is not None:
            check_writable(self.figure)

    @property
    def areas(self) -> list[int | None]:
        """The resolutions, in pixels; None: as the model says."""
        return options.parse_areas(self.max_pixels)


def coco(
    data: Karpathy,
    images: Images,
    positives: Annotated[
        list[str] | None, typer.Option(help="cxc or eccv: further right pairs; may be repeated.")
    ] = None,
    split: Split = "test",
    *,
    settings: EvaluationSettings,
    printer: Printer,
) -> None:
    """MSCOCO 5K in Karpathy's split: 25,000 captions, both directions, RSUM."""
    unknown = [name for name in positives or () if name not in ("cxc", "eccv")]
    if unknown:
        raise UsageError(f"--positives is {unknown[0]!r}; give cxc or eccv")
    from abc_embed.bench.sets.captions import evaluation_set, load_karpathy, load_positives

    captions = load_karpathy(data, images, split=split)
    further = [load_positives(name, captions) for name in positives or ()]
    for pairs in further:
        if pairs.absent:
            print_message(
                f"{pairs.name}: {pairs.absent:,} judged pairs are not in the set, and left out"
            )

    evaluate(settings, printer, "image_to_text_r1", [evaluation_set(captions, further)])


def flickr30k(
    data: Karpathy,
    images: Images,
    split: Split = "test",
    *,
    settings: EvaluationSettings,
    printer: Printer,
) -> None:
    """Flickr30K 1K in Karpathy's split: 5,000 captions, both directions, RSUM."""
    coco(data, images, split=split, settings=settings, printer=printer)


def mmeb(
    data: Annotated[Path, typer.Option(help="A local copy of TIGER-Lab/MMEB-eval.")],
    task: Annotated[
        list[str] | None,
        typer.Option(help="A set by its name; may be repeated.", show_default="all there"),
    ] = None,
    prefix: Annotated[bool, typer.Option(help="Keep MMEB's words before a question.")] = False,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Only the first rows of each set.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Shuffles the candidates.")] = 0,
    *,
    settings: EvaluationSettings,
    printer: Printer,
) -> None:
    """MMEB v1: 9 classification and 10 VQA sets of the paper, and the other sets that are there."""
    from abc_embed.bench.sets.mmeb import load_task, table_rows, tasks_in

    names = task or tasks_in(data)
    if settings.figure is not None and len(names) > 1:
        raise UsageError("--figure draws one set; give one --task")

    def each_task() -> "Iterator[EvaluationSet]":
        for name in names:
            loaded = load_task(data, name, prefix=prefix, seed=seed, limit=limit)
            print_message(f"{name}: {loaded.sizes['queries']:,} questions")
            yield loaded

    findings = evaluate(settings, printer, "accuracy", each_task())
    if len(settings.areas) == 1:
        printer.table(("MMEB v1, %", "rows", "accuracy", "paper"), table_rows(findings))


def zero_shot(
    data: Annotated[Path, typer.Option(help="A folder with a subfolder per class.")],
    labels: Annotated[
        Path | None, typer.Option(help="JSON object: subfolder -> words for its class.")
    ] = None,
    template: Annotated[str, typer.Option(help="How a class is worded.")] = "A photo of a {label}.",
    *,
    settings: EvaluationSettings,
    printer: Printer,
) -> None:
    """Zero-shot classification on any folder of images."""
    from abc_embed.bench.sets.zero_shot import load_image_folder

    evaluate(settings, printer, "accuracy", [load_image_folder(data, labels, template=template)])


def records(
    source: Annotated[
        str, typer.Argument(metavar="RECORDS", help="Any data set: a file, a folder, NAME:FOLDER.")
    ],
    repeated: Annotated[
        Literal["equal", "apart"],
        typer.Option(help="A caption of several images is right for each, or for its own alone."),
    ] = "equal",
    limit: Annotated[
        int | None, typer.Option(min=1, help="Only the first so many images, and their texts.")
    ] = None,
    image_folder: options.ImageFolder = None,
    *,
    settings: EvaluationSettings,
    printer: Printer,
) -> None:
    """Your own records: image to caption, image + instruction to answer, by kind of question.

    All captions, and all answers, of the set are candidates.
    """
    settings.check(settings.model)
    from abc_embed.bench.sets.own_records import read_own_records, repeated_message
    from abc_embed.bench.tables import chance_warnings
    from abc_embed.data import open_dataset

    dataset = open_dataset(source, image_folder=image_folder)
    own = read_own_records(dataset, repeated=repeated, limit=limit)
    score = "instruction_to_answer_r1" if own.sizes["questions"] else "image_to_caption_r1"
    for findings in evaluate(settings, printer, score, [own]):
        for sentence in [repeated_message(findings), *chance_warnings(findings["by_aspect"])]:
            if sentence:
                print_message(sentence)


def evaluate(
    settings: EvaluationSettings, printer: Printer, score: str, sets: "Iterable[EvaluationSet]"
) -> "list[Findings]":
    """Load the model, measure at each resolution, print, and write what was asked for.

    Vectors are cached, unless speed is to be measured, at several resolutions. `score` is what a
    figure draws.
    """
    from abc_embed.bench.encoders.registry import CachedEncoder
    from abc_embed.bench.sets.evaluation import measure
    from abc_embed.bench.sets.sweep import sweep

    if settings.out is not None:
        make_folder(settings.out)
    encoder = settings.load_encoder(settings.model, progress=not printer.as_json)
    if len(settings.areas) == 1:
        with CachedEncoder(encoder.at(settings.areas[0]), settings.cache) as cached:
            findings = [measure(cached, each) for each in sets]
    else:
        areas = [area for area in settings.areas if area is not None]
        findings = [found for each in sets for found in sweep(encoder, areas, each)]
    _report(settings, printer, encoder, findings, score)
    return findings


def _report(
    settings: EvaluationSettings,
    printer: Printer,
    encoder: "Encoder",
    findings: "list[Findings]",
    score: str,
) -> None:
    from abc_embed.bench.records import make_record, write_record
    from abc_embed.bench.sets.evaluation import missing_images_message
    from abc_embed.bench.sets.sweep import draw

    records = [make_record(encoder, result) for result in findings]
    for result in findings:
        if message := missing_images_message(result["missing"]):
            print_message(f"{result['benchmark']}: {message}")
    printer.json(records if len(records) > 1 else records[0])
    for result in findings:
        _print_scores(result, printer)
    if settings.out is not None:
        for record in records:
            print_message(f"the record is {write_record(record, settings.out)}")
    if settings.figure is not None:
        draw(findings, score, settings.figure)
        print_message(f"the figure is {settings.figure}")


def _print_scores(result: "Findings", printer: Printer) -> None:
    area = result["settings"]["max_pixels"]
    rows: list[tuple[Any, ...]] = []
    kinds = result.get("by_aspect", {})
    by_kind = {f"instruction to answer r1, {kind}": figure for kind, figure in kinds.items()}
    for name, figure in (result["scores"] | by_kind).items():
        scale = 1 if name == "rsum" else 100
        interval = figure["interval"]
        span = "" if interval is None else f"{100 * interval[0]:.1f}–{100 * interval[1]:.1f}"
        rows.append((name.replace("_", " "), f"{scale * figure['value']:.1f}", span, figure["of"]))
    if result.get("images_per_s"):
        rows.append(("items with an image per second", f"{result['images_per_s']:.1f}", "", ""))
    title = result["benchmark"] + (f", at most {area:,} pixels" if area else "")
    printer.table(("", "%", "95 %", "queries"), rows, title=title)
