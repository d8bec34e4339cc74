"""Options that several commands take, declared once, and the model that they name.

A command takes such options as one object: a dataclass of them, which parser.py spreads out. An
option is named after its parameter or field. torch is imported only when a model is loaded.
"""

import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import typer

from abc_embed.errors import UsageError
from abc_embed.runtime import no_garbage_collection

if TYPE_CHECKING:
    from abc_embed.bench.encoders.registry import Encoder
    from abc_embed.cli.items import NamedItem
    from abc_embed.cli.remote import RemoteModel
    from abc_embed.devices import Stream
    from abc_embed.embedder import Embedder

STDIN = "-"
PIXELS_PER_TOKEN = 28 * 28
_UNITS = {"MB": 10**6, "GB": 10**9, "TB": 10**12}

MODEL = "bundled"
"""The model of every command that is given none: in the package, on any machine."""

OnError = Literal["raise", "skip"]
"""What a bad item does."""
Model = Annotated[
    str,
    typer.Option(
        help="bundled, a published name like TIGER-Lab/ABC-Qwen2VL-Instruct, or a saved folder."
    ),
]
IndexModel = Annotated[
    str,
    typer.Option(
        help="bundled, a published name, or a saved folder.",
        show_default="that of the index; else bundled",
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", help="section.field=value instead of the file's; may be repeated."),
]


def _known_device(name: str) -> str:
    """Refuse a name that no device has; torch is not asked."""
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", name):
        raise UsageError(f"device is {name!r}; use auto, cpu, cuda, cuda:N or mps")
    return name


Device = Annotated[
    str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.", callback=_known_device)
]
Dtype = Annotated[
    Literal["auto", "float32", "bfloat16", "float16"],
    typer.Option(
        metavar="TEXT",
        help="auto (float32 on a CPU, else bfloat16), float32, bfloat16 or float16.",
    ),
]
NumberFormat = Literal["float32", "float16", "int8", "uint8", "binary", "ubinary"]
"""Of vectors, as `vectors.OUTPUTS` has them."""
MaxPixels = Annotated[
    str | None,
    typer.Option(
        help='Largest area at which an image is seen: pixels, or "256 tokens" of 28 x 28.',
        show_default="as the model says",
    ),
]
Instruction = Annotated[str | None, typer.Option(help="What to look at in every image.")]
RankingPlot = Annotated[
    Path | None, typer.Option(help="Also draw image and rankings: .png, .jpg or .webp.")
]
ImageFolder = Annotated[
    Path | None,
    typer.Option(
        "--image-folder",
        help="Where the images lie that records or Parquet name by paths.",
        show_default="in the folder of the file",
    ),
]
BatchSize = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Most items that go through the model together.",
        show_default="by a budget of tokens that suits the device",
    ),
]
MaxPixelsList = Annotated[
    str | None,
    typer.Option(
        help='Largest area at which an image is seen: pixels, "256 tokens" of 28 x 28, or several.',
        show_default="as the model says",
    ),
]
ENCODERS = (
    "bundled, a folder, a published name, st:NAME, open_clip:MODEL/PRETRAINED, late:NAME or random."
)
EncoderName = Annotated[str, typer.Option(help=ENCODERS)]
Shape = Annotated[
    Literal["tiny", "2b", "7b"] | None,
    typer.Option(help="Random weights of that shape instead of a model."),
]
PictureSize = Annotated[str, typer.Option(help="Width x height of the pictures' files.")]
OnBadImage = Annotated[
    OnError, typer.Option(help="A bad image is left out and listed, or ends the work.")
]


PlanFile = Annotated[
    Path | None,
    typer.Option("--plan", help="A plan of this job (abc-embed plan): says how far off it was."),
]


Truncate = Annotated[
    Literal["error", "end"],
    typer.Option(help="Words that the model cannot read whole: a bad item, or cut at their end."),
]


OTHER_LIBRARIES = ("st", "open_clip", "late", "random")
"""What an encoder's name may begin with; bench/encoders/registry.py has them."""


def check_model(name: str) -> None:
    """Refuse a name that no model can have; the hub's package is imported only for names of it."""
    if name != MODEL and not Path(name).expanduser().is_dir():
        from abc_embed.hub import is_remote_folder, resolve

        if not is_remote_folder(name):
            resolve(name)


@contextmanager
def announced(what: str) -> Iterator[None]:
    """Say at once, to who looks at a terminal, what takes seconds; gone when it is done."""
    shown = sys.stderr.isatty()
    if shown:
        sys.stderr.write(f"{what} ...")
        sys.stderr.flush()
    try:
        yield
    finally:
        if shown:
            sys.stderr.write("\r\x1b[2K")


def judge_plan(path: Path, job: str, model: str) -> Callable[[str, int], str]:
    """Read a plan before its job starts; what it gives, once the job is done, says how far off it
    was, from the device's name and the number of items or steps."""
    from abc_embed.speed.plan import Plan, check_job, comparison  # torch comes with it: seconds

    plan = Plan.read(path)
    check_job(plan, job, model)
    return partial(comparison, plan)


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """The model, and the machine that it computes on."""

    model: Model = MODEL
    device: Device = "auto"
    dtype: Dtype = "auto"
    weights: Annotated[
        Literal["int8", "int4"] | None,
        typer.Option(
            help="Hold the layers' weights in fewer bits: less memory, less exact.",
            show_default="as --dtype says",
        ),
    ] = None
    compile: Annotated[bool, typer.Option(help="Compile the layers first: for many items.")] = False

    @property
    def label(self) -> str:
        """What records call the model."""
        return self.model

    def load(self) -> "Embedder":
        """The model that the options name."""
        self.check()

        with announced(f"loading the model {self.model}"), no_garbage_collection():
            from abc_embed.embedder import Embedder  # torch comes with it: seconds

            return Embedder.from_pretrained(
                self.model,
                device=self.device,
                dtype=self.dtype,
                weights=self.weights,
                compile=self.compile,
            )

    def check(self) -> None:
        """Find out what is wrong with the options before anything heavy is imported."""
        check_model(self.model)


@dataclass(frozen=True, kw_only=True)
class ItemSettings:
    """Images and texts, as arguments or as lines on stdin."""

    inputs: Annotated[
        list[str] | None,
        typer.Argument(help="Image files, folders of images, or - for JSONL on stdin."),
    ] = None
    text: Annotated[list[str] | None, typer.Option(help="A text to embed; may be repeated.")] = None
    instruction: Instruction = None

    @property
    def on_stdin(self) -> bool:
        """Whether they come line by line."""
        return STDIN in (self.inputs or ())

    def read(self) -> "tuple[Iterable[NamedItem], int | None]":
        """The items, and how many they are, if that can be known."""
        from abc_embed.cli import items

        inputs, texts = self.inputs or [], self.text or []
        if self.on_stdin:
            if inputs != [STDIN] or texts or self.instruction is not None:
                raise UsageError(
                    "with - all items come from stdin; give instructions and texts in its lines"
                )
            return items.from_lines(sys.stdin.buffer), None
        if not inputs and not texts:
            raise UsageError(
                "there is nothing to embed; give images, folders, --text, or - for stdin"
            )
        if self.instruction is not None and not inputs:
            raise UsageError("an instruction goes with images; give at least one")
        named_items = items.from_arguments(inputs, texts, self.instruction)
        return named_items, len(named_items)


@dataclass(frozen=True, kw_only=True)
class RemoteSettings:
    """A running server that answers, so that no model has to be loaded."""

    server: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            envvar="ABC_EMBED_SERVER",
            help="Let a running `abc-embed serve` answer.",
            show_default="none: a model is loaded",
        ),
    ] = None
    api_key_file: Annotated[
        Path | None,
        typer.Option(
            envvar="ABC_EMBED_API_KEY_FILE", help="File whose first line is a key of --server."
        ),
    ] = None

    def connect(
        self, context: typer.Context, model: str, heeded: Iterable[str]
    ) -> "RemoteModel | None":
        """The model of the server; None where none was named.

        `model` is insisted on only where it stands on the command line. Other options than those
        `heeded` are a `UsageError`.
        """
        if not self.server:
            return None
        from abc_embed.cli.remote import RemoteModel, check_heeded

        check_heeded(context, heeded)
        source = context.get_parameter_source("model")
        insisted = source is not None and source.name == "COMMANDLINE"
        key = None
        if self.api_key_file is not None:
            from abc_embed.serve.settings import read_keys

            key = read_keys(self.api_key_file)[0]
        return RemoteModel(self.server, key, Path(model).name if insisted else None)


@dataclass(frozen=True, kw_only=True)
class ImageModelSettings(ModelSettings):
    """The model, and at what size it sees images."""

    max_pixels: MaxPixels = None
    decode_limit: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Largest image that is unpacked, in pixels; a file beyond it is refused unread.",
            show_default="89478485",
        ),
    ] = None
    truncate: Truncate = "error"

    def load_with_pixels(self) -> "tuple[Embedder, int | None]":
        """The model that the options name, and the `max_pixels` to call it with."""
        area = None if self.max_pixels is None else parse_area(self.max_pixels)
        embedder = self.load()
        embedder.processor.truncate = self.truncate
        if self.decode_limit is not None:
            embedder.processor.decode_limit = self.decode_limit
        if area is None:
            return embedder, None
        number, counts_tokens = area
        image = embedder.processor.image
        pixels = image.tokens_to_pixels(number) if counts_tokens else number
        image.limited(pixels)  # refuses one that is too small, before any image is opened
        return embedder, pixels


@dataclass(frozen=True, kw_only=True)
class BatchSettings(ImageModelSettings):
    """The model, and how many items go through it at once."""

    batch_size: BatchSize = None

    def load_stream(self, number: int) -> "Stream":
        """What embeds items in process `number`; with several GPUs and no choice, each its own."""
        from abc_embed.devices import device_of_process

        settings = replace(self, device=device_of_process(self.device, number))
        embedder, max_pixels = settings.load_with_pixels()
        return partial(embedder.stream, max_pixels=max_pixels, **self.stream_options())

    def stream_options(self) -> dict[str, Any]:
        """What `Embedder.stream` is told besides the area of pictures."""
        return {"batch_size": self.batch_size, "on_error": "skip"}


@dataclass(frozen=True, kw_only=True)
class VectorSettings(BatchSettings):
    """The same, and in what form vectors are stored."""

    dim: Annotated[
        int | None,
        typer.Option(min=1, help="Width to cut vectors to.", show_default="all of the model's"),
    ] = None
    output: Annotated[
        NumberFormat,
        typer.Option(metavar="TEXT", help="float32, float16, int8, uint8, binary or ubinary."),
    ] = "float32"

    def stream_options(self) -> dict[str, Any]:
        """What `Embedder.stream` is told besides the area of pictures."""
        return super().stream_options() | {"dim": self.dim, "output": self.output}


@dataclass(frozen=True, kw_only=True)
class IndexSettings(BatchSettings):
    """The same for what may be an index, which knows its model by name."""

    model: IndexModel = ""

    def for_index(self, folder: Path) -> Self:
        """The settings with the model of the index that lies there, if the user named none."""
        from abc_embed.search.settings import is_index, read_settings

        known = read_settings(folder)["model"] if is_index(folder) else None
        return replace(self, model=self.model or known or MODEL)


@dataclass(frozen=True, kw_only=True)
class EncoderSettings:
    """How a benchmark computes its vectors."""

    cache: Annotated[Path | None, typer.Option(help="Folder to keep vectors in between runs.")] = (
        None
    )
    batch_size: BatchSize = None
    device: Device = "auto"
    dtype: Dtype = "auto"
    truncate: Truncate = "error"
    name: Annotated[
        str | None,
        typer.Option(
            help="What records and charts call the model.",
            show_default="its run, folder or published name",
        ),
    ] = None

    def load_encoder(self, name: str, *, progress: bool) -> "Encoder":
        """A model of ours or of another library; with `progress` it draws a bar as it embeds."""
        self.check(name)
        with announced(f"loading the model {name}"):
            from abc_embed.bench.encoders.registry import load_encoder

            encoder = load_encoder(
                name,
                device=self.device,
                dtype=self.dtype,
                batch_size=self.batch_size,
                truncate=self.truncate,
                progress=progress,
            )
        encoder.name = self.name or encoder.name
        return encoder

    def check(self, *names: str) -> None:
        """Find out what is wrong before anything heavy is imported; as `ModelSettings.check`."""
        for name in names:
            if name.partition(":")[0] not in OTHER_LIBRARIES:
                check_model(name)


def parse_widths(name: str, text: str | None) -> list[int]:
    """`"256,128"` -> widths of vectors; None: none. A refusal names the option."""
    try:
        return [] if text is None else [int(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(f"{name} is {text!r}; give whole numbers like 256,128,64") from None


def parse_area(text: str) -> tuple[int, bool]:
    """`"200704"` or `"256 tokens"` -> the number, and whether it counts tokens."""
    match = re.fullmatch(r"\s*([0-9][0-9_]*)\s*(tokens?)?\s*", text)
    if not match:
        raise UsageError(
            f"--max-pixels is {text!r}; give a number of pixels, or of tokens like '256 tokens'"
        )
    return int(match[1]), match[2] is not None


def area_in_pixels(text: str | None) -> int | None:
    """`"256 tokens"` or `"200704"` -> pixels, a token being 28 x 28 for all models; None: as the
    model says."""
    if text is None:
        return None
    number, counts_tokens = parse_area(text)
    return number * PIXELS_PER_TOKEN if counts_tokens else number


def parse_areas(text: str | None) -> list[int | None]:
    """`"128,256 tokens"` or `"100352"` -> areas in pixels; None: as the model says."""
    if text is None:
        return [None]
    parts = [part.strip() for part in text.split(",")]
    if parts[-1].endswith(("token", "tokens")):  # the unit of all
        parts = [part if "token" in part else f"{part} tokens" for part in parts]
    return [area_in_pixels(part) for part in parts]


def parse_size(text: str, option: str) -> int:
    """`"512 MB"` or `"2.5 GB"` -> bytes, powers of ten. A refusal names the option."""
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([MGT]B)\s*", text, re.IGNORECASE)
    if not match:
        raise UsageError(f"{option} is {text!r}; give a size like '512 MB' or '2 GB'")
    return int(float(match[1]) * _UNITS[match[2].upper()])


def parse_sides(text: str) -> tuple[int, int]:
    """`"784x512"` -> width and height.

    Raises:
        UsageError: it is no size.
    """
    sides = re.fullmatch(r"\s*([1-9]\d{0,4})\s*[x×]\s*([1-9]\d{0,4})\s*", text)
    if not sides:
        raise UsageError(f"--size is {text!r}; give width x height in pixels, like 784x512")
    return int(sides[1]), int(sides[2])
