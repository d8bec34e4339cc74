"""What several commands take, said once: the model, the machine, the resolution, bad items.

Does: declare the options, and load the model they name. Does not: import torch before that.
"""

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from abc_embed.errors import UsageError

if TYPE_CHECKING:
    from abc_embed.embedder import Embedder
    from abc_embed.processor import Processor

_UNITS = {"MB": 10**6, "GB": 10**9, "TB": 10**12}

MODEL = "bundled"
"""The model of every command that is given none: in the package, on any machine."""


class OnError(StrEnum):
    """What a bad item does."""

    RAISE = "raise"
    SKIP = "skip"


Model = Annotated[
    str,
    typer.Option(
        "--model",
        help="bundled, a published name like TIGER-Lab/ABC-Qwen2VL-Instruct, or a saved folder.",
    ),
]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:N or mps.")]
Dtype = Annotated[
    str,
    typer.Option(
        "--dtype",
        help="auto (float32 on a CPU, else bfloat16), float32, bfloat16 or float16.",
    ),
]
MaxPixels = Annotated[
    str | None,
    typer.Option(
        "--max-pixels",
        help='Largest area at which an image is seen: pixels, or "256 tokens" of 28 x 28.',
        show_default="as the model says",
    ),
]
DecodeLimit = Annotated[
    int | None,
    typer.Option(
        "--decode-limit",
        min=1,
        help="Largest image that is unpacked, in pixels; a file beyond it is refused unread.",
        show_default="89478485",
    ),
]
BatchSize = Annotated[
    int, typer.Option("--batch-size", min=1, help="Most items that go through the model together.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs, not a table.")]


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model as the options describe it."""

    embedder: "Embedder"
    max_pixels: int | None


def load(
    model: str,
    *,
    device: str = "auto",
    dtype: str = "auto",
    max_pixels: str | None = None,
    decode_limit: int | None = None,
) -> Loaded:
    """The model that the options name.

    Raises:
        UsageError: an option is wrong; found before anything is loaded, where that is possible.
        CheckpointError, DeviceError: as `Embedder.from_pretrained`.
    """
    area = None if max_pixels is None else parse_area(max_pixels)
    from abc_embed.embedder import Embedder  # torch comes with it: seconds

    embedder = Embedder.from_pretrained(model, device=device, dtype=dtype)
    if decode_limit is not None:
        embedder.processor.decode_limit = decode_limit
    return Loaded(embedder, None if area is None else _in_pixels(area, embedder.processor))


def parse_area(text: str) -> tuple[int, bool]:
    """`"200704"` or `"256 tokens"` -> the number, and whether it counts tokens.

    Raises:
        UsageError: it is neither.
    """
    found = re.fullmatch(r"\s*([0-9][0-9_]*)\s*(tokens?)?\s*", text)
    if not found:
        raise UsageError(
            f"--max-pixels is {text!r}; give a number of pixels, or of tokens like '256 tokens'"
        )
    return int(found[1]), found[2] is not None


def _in_pixels(area: tuple[int, bool], processor: "Processor") -> int:
    number, counts_tokens = area
    pixels = processor.image.tokens_to_pixels(number) if counts_tokens else number
    processor.image.limited(pixels)  # refuses one that is too small, before any image is opened
    return pixels


def size_in_bytes(text: str, option: str) -> int:
    """`"512 MB"` or `"2.5 GB"` -> bytes, powers of ten; `option` is named in the message.

    Raises:
        UsageError: it is no size.
    """
    found = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([MGT]B)\s*", text, re.IGNORECASE)
    if not found:
        raise UsageError(f"{option} is {text!r}; give a size like '512 MB' or '2 GB'")
    return int(float(found[1]) * _UNITS[found[2].upper()])
