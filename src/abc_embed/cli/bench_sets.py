"""`abc-embed bench coco|flickr30k|mmeb|zero-shot`: evaluations of others, in their own layouts.

Does: load model and set, measure at one resolution or at several, show, record. Does not: register
itself; cli/bench.py does.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from abc_embed.cli import options
from abc_embed.cli.bench_common import Common, checked, load, measured, run, show_found
from abc_embed.cli.output import print_message, print_table
from abc_embed.errors import UsageError

if TYPE_CHECKING:
    from abc_embed.bench.encoders.registry import Encoder
    from abc_embed.bench.sets.findings import Findings

EXAMPLES = """\
Examples:

\b
  abc-embed bench coco --data dataset_coco.json --images coco --positives cxc --positives eccv
  abc-embed bench flickr30k --data dataset_flickr30k.json --images flickr30k-images
  abc-embed bench mmeb --data MMEB-eval --task GQA --task TextVQA --out results
  abc-embed bench zero-shot --data photos-by-class --max-pixels "128,256,512,1024 tokens"

Several resolutions are measured one after the other, and drawn with --figure.
"""

Out = Annotated[
    Path | None, typer.Option("--out", "-o", help="Folder to put the records in, as JSON.")
]
Figure = Annotated[
    Path | None, typer.Option("--figure", help="PNG of several resolutions: score and speed.")
]
Cache = Annotated[
    Path | None, typer.Option("--cache", help="Folder to keep vectors in between runs.")
]
Areas = Annotated[
    str | None,
    typer.Option(
        "--max-pixels",
        help='Largest area at which an image is seen: pixels, "256 tokens" of 28 x 28, or several.',
        show_default="as the model says",
    ),
]
Model = Annotated[
    str,
    typer.Option(
        "--model",
        help="bundled, a folder, a published name, st:NAME, open_clip:MODEL/PRETRAINED, "
        "late:NAME or random.",
    ),
]
Split = Annotated[str, typer.Option("--split", help="Of Karpathy's splits.")]
Karpathy = Annotated[
    Path, typer.Option("--data", help="dataset_coco.json or dataset_flickr30k.json.")
]
Images = Annotated[Path, typer.Option("--images", help="Folder that the images' paths start from.")]


def register(app: typer.Typer) -> None:
    """Add the commands to `abc-embed bench`."""
    app.command("coco", epilog=EXAMPLES)(coco)
    app.command("flickr30k", epilog=EXAMPLES)(flickr30k)
    app.command("mmeb", epilog=EXAMPLES)(mmeb)
    app.command("zero-shot", epilog=EXAMPLES)(zero_shot)


def coco(
    data: Karpathy,
    images: Images,
    positives: Annotated[
        list[str] | None,
        typer.Option("--positives", help="cxc or eccv: further right pairs; may be repeated."),
    ] = None,
    split: Split = "test",
    model: Model = options.MODEL,
    max_pixels: Areas = None,
    out: Out = None,
    figure: Figure = None,
    cache: Cache = None,
    batch_size: options.BatchSize = 32,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    as_json: options.AsJson = False,
) -> None:
    """MSCOCO 5K in Karpathy's split: 25,000 captions, both directions, RSUM."""
    common = checked(
        model, max_pixels, device, dtype, batch_size, cache, out, figure, as_json=as_json
    )
    _captions(data, images, split, positives or [], common)


def flickr30k(
    data: Karpathy,
    images: Images,
    split: Split = "test",
    model: Model = options.MODEL,
    max_pixels: Areas = None,
    out: Out = None,
    figure: Figure = None,
    cache: Cache = None,
    batch_size: options.BatchSize = 32,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    as_json: options.AsJson = False,
) -> None:
    """Flickr30K 1K in Karpathy's split: 5,000 captions, both directions, RSUM."""
    common = checked(
        model, max_pixels, device, dtype, batch_size, cache, out, figure, as_json=as_json
    )
    _captions(data, images, split, [], common)


def _captions(
    data: Path, images: Path, split: str, positives: Sequence[str], common: Common
) -> None:
    wrong = [name for name in positives if name not in ("cxc", "eccv")]
    if wrong:
        raise UsageError(f"--positives is {wrong[0]!r}; give cxc or eccv")
    from abc_embed.bench.sets.karpathy import load_karpathy
    from abc_embed.bench.sets.positives import load_positives
    from abc_embed.bench.sets.retrieval import measure

    captions = load_karpathy(data, images, split=split)
    further = [load_positives(name, captions) for name in positives]
    for one in further:
        if one.absent:
            print_message(
                f"{one.name}: {one.absent:,} judged pairs are not in the set, and left out"
            )
    run(
        common,
        "image_to_text_r1",
        lambda encoder, area: measure(
            encoder, captions, further, max_pixels=area, progress=not common.as_json
        ),
    )


def mmeb(
    data: Annotated[Path, typer.Option("--data", help="A local copy of TIGER-Lab/MMEB-eval.")],
    task: Annotated[
        list[str] | None,
        typer.Option(
            "--task", help="A set by its name; may be repeated.", show_default="all there"
        ),
    ] = None,
    prefix: Annotated[
        bool, typer.Option("--prefix", help="Keep MMEB's words before a question.")
    ] = False,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="Only the first rows of each set.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Shuffles the candidates.")] = 0,
    model: Model = options.MODEL,
    max_pixels: Areas = None,
    out: Out = None,
    figure: Figure = None,
    cache: Cache = None,
    batch_size: options.BatchSize = 32,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    as_json: options.AsJson = False,
) -> None:
    """MMEB v1: 9 classification and 10 VQA sets of the paper, and the other sets that are there."""
    common = checked(
        model, max_pixels, device, dtype, batch_size, cache, out, figure, as_json=as_json
    )
    from abc_embed.bench.sets.mmeb import Task, load_task, measure, tasks_in
    from abc_embed.bench.sets.mmeb_table import rows

    names = task or tasks_in(data)
    if figure is not None and len(names) > 1:
        raise UsageError("--figure draws one set; give one --task")
    found = []
    with ExitStack() as stack:
        encoder = load(common, stack)
        for name in names:
            chosen = load_task(data, name, prefix=prefix, seed=seed, limit=limit)
            print_message(f"{name}: {len(chosen.choices):,} questions")

            def measure_it(e: "Encoder", area: int | None, chosen: Task = chosen) -> "Findings":
                return measure(e, chosen, max_pixels=area, progress=not common.as_json)

            found += measured(common, encoder, measure_it)
    show_found(common, encoder, found, "accuracy")
    if not common.as_json and len(common.areas) == 1:
        print_table(("MMEB v1, %", "rows", "accuracy", "paper"), rows(found))


def zero_shot(
    data: Annotated[Path, typer.Option("--data", help="A folder with a subfolder per class.")],
    labels: Annotated[
        Path | None, typer.Option("--labels", help="JSON object: subfolder -> words for its class.")
    ] = None,
    template: Annotated[
        str, typer.Option("--template", help="How a class is worded.")
    ] = "A photo of a {label}.",
    model: Model = options.MODEL,
    max_pixels: Areas = None,
    out: Out = None,
    figure: Figure = None,
    cache: Cache = None,
    batch_size: options.BatchSize = 32,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    as_json: options.AsJson = False,
) -> None:
    """Zero-shot classification on any folder of images."""
    common = checked(
        model, max_pixels, device, dtype, batch_size, cache, out, figure, as_json=as_json
    )
    from abc_embed.bench.sets.zero_shot import load_image_folder, measure

    folder = load_image_folder(data, labels)
    run(
        common,
        "accuracy",
        lambda encoder, area: measure(
            encoder, folder, template=template, max_pixels=area, progress=not common.as_json
        ),
    )
