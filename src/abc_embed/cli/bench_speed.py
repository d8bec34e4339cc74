"""`abc-embed bench speed`: what the engine reaches on this machine, with any model or shape."""

from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from abc_embed import runtime
from abc_embed.cli import options
from abc_embed.cli.output import Printer, epilog, print_message
from abc_embed.errors import UsageError
from abc_embed.progress import progress_bar
from abc_embed.storage.files import make_folder

if TYPE_CHECKING:
    from abc_embed.embedder import Embedder

EXAMPLES = epilog("""
  abc-embed bench speed --shape tiny --images 8 --rounds 1
  abc-embed bench speed --model bundled --against sentence-transformers --out results/speed
  abc-embed bench speed --shape 7b --device cuda --images 128 --out results/speed
""")


RecordFolder = Annotated[
    Path | None, typer.Option("--out", "-o", help="Folder for the record and its figure.")
]


@dataclass(frozen=True, kw_only=True)
class SpeedSettings(options.ModelSettings):
    """A model, or a shape with random weights."""

    shape: options.Shape = None

    def __post_init__(self) -> None:
        if self.shape and (self.model != options.MODEL or self.weights):
            other = "--weights" if self.weights else "--model"
            raise UsageError(f"--shape has random weights of its own; leave out {other}")

    @property
    def label(self) -> str:
        return self.shape or self.model

    def load(self) -> "Embedder":
        if self.shape is None:
            return super().load()
        self.check()
        with options.announced(f"making weights of shape {self.shape}"):
            from abc_embed.speed.shapes import random_embedder, shape_fingerprint

            device = runtime.resolve_device(self.device)
            dtype = runtime.resolve_dtype(self.dtype, device)
            embedder = random_embedder(self.shape, device, dtype)
            # Gigabytes of random numbers are not hashed: their recipe is.
            embedder._fingerprint = shape_fingerprint(self.shape)
            if self.compile:
                embedder.compile()
            return embedder


def speed(
    images: Annotated[int, typer.Option(min=4, help="Pictures of the workload of images.")] = 32,
    instructions: Annotated[int, typer.Option(min=1, help="Instructions a picture.")] = 4,
    size: options.PictureSize = "784x512",
    rounds: Annotated[int, typer.Option(min=1, help="Rounds; the median counts.")] = 3,
    against: Annotated[
        Literal["sentence-transformers"] | None,
        typer.Option(help="The same weights and items through that library's encode besides."),
    ] = None,
    max_pixels: options.MaxPixels = None,
    out: RecordFolder = None,
    *,
    settings: SpeedSettings,
    printer: Printer,
) -> None:
    """Items a second, decoding included; share of the device's peak; where the time goes.

    Texts, images, a mixed list, several instructions a picture with the stage-2 adapter on and
    off; the forward pass alone beside `embed`. All ways take turns in each round. On a CPU shares
    are of processor time, on a GPU of the clock.
    """
    area = options.area_in_pixels(max_pixels)
    width, height = options.parse_sides(size)
    settings.check()
    from abc_embed.speed import measure as bench

    record = run(
        *(bench, settings, out, "workloads", printer),
        images=images,
        instructions=instructions,
        size=(width, height),
        rounds=rounds,
        max_pixels=area,
        against=against is not None,
    )
    printer.table(("ms an item", *bench.STAGES), bench.stage_rows(record))
    printer.line(
        f"{record['peak_flops'] / 1e9:,.0f} GFLOP/s is the matrix product's peak on "
        f"{record['settings']['hardware']} in {record['model']['dtype']}"
    )


def run(
    bench: ModuleType,
    settings: options.ModelSettings,
    out: Path | None,
    what: str,
    printer: Printer,
    **measure_options: Any,
) -> dict[str, Any]:
    """Measure a model: its table, and its record with a figure in the folder `out`, if any.

    `bench` is a module that measures an `Embedder`: `speed.measure`, `evidence` or `robust`. The
    progress bar counts `what`.
    """
    from abc_embed.bench.encoders.registry import NativeEncoder
    from abc_embed.bench.records import make_record, write_record

    if out is not None:
        make_folder(out)
    embedder = settings.load()
    with progress_bar(what) as on_progress:
        findings = bench.measure(embedder, on_progress=on_progress, **measure_options)
    record = make_record(NativeEncoder(embedder, settings.label), findings)
    printer.json(record)
    printer.table(bench.HEAD, bench.rows(record))
    if out is not None:
        path = write_record(record, out)
        bench.draw(record, path.with_suffix(".png"))
        print_message(f"the record is {path}, drawn beside it")
    return record
