"""`abc-embed bench speed`: what the engine reaches on this machine, with any model or shape."""

import re
from collections.abc import Callable
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
    from abc_embed.bench.encoders.base import Encoder
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

    shape: Annotated[
        Literal["tiny", "2b", "7b"] | None,
        typer.Option(help="Random weights of that shape, made on the device, instead of a model."),
    ] = None

    def __post_init__(self) -> None:
        if self.shape and (self.model != options.MODEL or self.weights):
            other = "--weights" if self.weights else "--model"
            raise UsageError(f"--shape has random weights of its own; leave out {other}")

    def load(self) -> "Embedder":
        if self.shape is None:
            return super().load()
        self.check()
        with options.announced(f"making weights of shape {self.shape}"):
            from abc_embed.speed.shapes import random_embedder

            device = runtime.resolve_device(self.device)
            dtype = runtime.resolve_dtype(self.dtype, device)
            embedder = random_embedder(self.shape, device, dtype)
            if self.compile:
                embedder.compile()
            return embedder


def speed(
    images: Annotated[int, typer.Option(min=4, help="Pictures of the workload of images.")] = 32,
    instructions: Annotated[int, typer.Option(min=1, help="Instructions a picture.")] = 4,
    size: Annotated[str, typer.Option(help="Width x height of the pictures' files.")] = "784x512",
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
    area = None if max_pixels is None else options.area_in_pixels(max_pixels)
    width, height = parse_sides(size)
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
    keep(record, out, bench.draw, printer)


def run(
    bench: ModuleType,
    settings: options.ModelSettings,
    out: Path | None,
    what: str,
    printer: Printer,
    **measure_options: Any,
) -> dict[str, Any]:
    """The record of a model, once its folder is there, with its table; the bar counts `what`.

    `bench` is a module that measures an `Embedder`: `speed.measure`, `evidence` or `robust`.
    """
    from abc_embed.bench.records import make_record

    if out is not None:
        make_folder(out)
    embedder = settings.load()
    with progress_bar(what) as on_progress:
        findings = bench.measure(embedder, on_progress=on_progress, **measure_options)
    record = make_record(_encoder(settings, embedder), findings)
    printer.table(bench.HEAD, bench.rows(record))
    return record


def keep(
    record: dict[str, Any],
    folder: Path | None,
    draw: Callable[[dict[str, Any], Path], None],
    printer: Printer,
) -> None:
    """Print a record for programs, and put it with its figure into a folder if there is one."""
    from abc_embed.bench.records import write_record

    printer.json(record)
    if folder is not None:
        path = write_record(record, folder)
        draw(record, path.with_suffix(".png"))
        print_message(f"the record is {path}, drawn beside it")


def _encoder(settings: options.ModelSettings, embedder: "Embedder") -> "Encoder":
    """The embedder as records describe it."""
    from abc_embed.bench.encoders.registry import NativeEncoder

    if not isinstance(settings, SpeedSettings) or settings.shape is None:
        return NativeEncoder(embedder, settings.model)
    from abc_embed.speed.shapes import shape_fingerprint

    # Gigabytes of random numbers are not hashed: their recipe is.
    embedder._fingerprint = shape_fingerprint(settings.shape)
    return NativeEncoder(embedder, settings.shape)


def parse_sides(text: str) -> tuple[int, int]:
    """`"784x512"` -> width and height.

    Raises:
        UsageError: it is no size.
    """
    sides = re.fullmatch(r"\s*([1-9]\d{0,4})\s*[x×]\s*([1-9]\d{0,4})\s*", text)
    if not sides:
        raise UsageError(f"--size is {text!r}; give width x height in pixels, like 784x512")
    return int(sides[1]), int(sides[2])
