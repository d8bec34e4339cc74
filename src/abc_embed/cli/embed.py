"""`abc-embed embed`: images and texts -> vectors in a file, or on stdout.

Does: read items (items.py), stream them through the model, write (writers.py), and end with what
was left out and why. Does not: resume; a run that is broken off leaves nothing.
"""

import sys
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from abc_embed.cli import options
from abc_embed.cli.options import OnError
from abc_embed.cli.output import say, show, show_json
from abc_embed.errors import AbcError, InputError, UsageError
from abc_embed.progress import progress_bar
from abc_embed.vectors import Writer, open_writer

if TYPE_CHECKING:
    from abc_embed.cli.items import Named
    from abc_embed.inputs import Item
    from abc_embed.pipeline import Vector

EXAMPLES = """\
Examples:

\b
  abc-embed embed photo.jpg -o out.npy
  abc-embed embed photos --instruction "what is on the left?" -o out.parquet
  abc-embed embed --text "a dog" --text "a cat" -o texts.jsonl
  abc-embed embed - -o out.npy --on-error skip < items.jsonl

A line of JSONL is {"image": ..., "instruction": ..., "text": ..., "id": ...}, with what it has.
"""

STDIN = "-"


def embed(
    inputs: Annotated[
        list[str] | None,
        typer.Argument(help="Image files, folders of images, or - for JSONL on stdin."),
    ] = None,
    text: Annotated[
        list[str] | None, typer.Option("--text", help="A text to embed; may be repeated.")
    ] = None,
    instruction: Annotated[
        str | None, typer.Option("--instruction", help="What to look at in every image.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="File to write: .npy (names in NAME.ids.json), .jsonl or .parquet.",
            show_default="JSONL on stdout",
        ),
    ] = None,
    on_error: Annotated[
        OnError,
        typer.Option("--on-error", help="A bad item ends the work, or is left out and listed."),
    ] = OnError.RAISE,
    model: options.Model = options.MODEL,
    max_pixels: options.MaxPixels = None,
    batch_size: options.BatchSize = 32,
    decode_limit: options.DecodeLimit = None,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    as_json: options.AsJson = False,
) -> None:
    """Write one vector per image or text, in the order given.

    Vectors have unit length: their dot product is their cosine. An image with an instruction has
    another vector than the image alone.
    """
    named, total = _named(inputs or [], text or [], instruction)
    if as_json and out is None:
        raise UsageError("--json describes the file that is written; give one with -o")
    reading = Reading(named, on_error)
    reading.check()
    with open_writer(out) as writer:
        loaded = options.load(
            model, device=device, dtype=dtype, max_pixels=max_pixels, decode_limit=decode_limit
        )
        with progress_bar("embedding", total) as on_progress:
            for name, vector in reading.vectors(loaded, batch_size):
                writer.add(name, vector)
                on_progress(reading.done)
        reading.finish()
        writer.finish()
    reading.report()
    _summarize(writer, reading, loaded.embedder.dim, model, as_json)


@dataclass
class Reading:
    """The items on their way into the model, and what became of them."""

    named: "Iterable[Named]"
    on_error: OnError
    skipped: list[tuple[str, str]] = field(default_factory=list)
    """Name and reason of each item that was left out."""
    written: int = 0
    # Those that the model has and whose vectors have not come back.
    _handed_out: "deque[Named]" = field(default_factory=deque)

    def check(self) -> None:
        """Find what is bad before a model is loaded for nothing.

        Raises:
            InputError: an item is bad, and that is to end the work.
        """
        if isinstance(self.named, list) and self.on_error is OnError.RAISE:
            for named in self.named:
                if named.error is not None:
                    self.skip(named, named.error)

    def vectors(self, loaded: options.Loaded, batch_size: int) -> "Iterator[tuple[str, Vector]]":
        """Name and vector `(D,)` of every good item.

        Raises:
            InputError, DataError: an item is bad, and that is to end the work.
        """
        from abc_embed.embedder import Skipped

        results = loaded.embedder.stream(
            self._items(), max_pixels=loaded.max_pixels, batch_size=batch_size, on_error="skip"
        )
        for result in results:
            named = self._handed_out.popleft()
            if isinstance(result, Skipped):
                self.skip(named, result.error)
            else:
                self.written += 1
                yield named.name, result

    def _items(self) -> "Iterator[Item]":
        for named in self.named:
            if named.item is None:
                self.skip(named, named.error or InputError("the item is empty"))
            else:
                self._handed_out.append(named)
                yield named.item

    @property
    def done(self) -> int:
        """How many items are behind us."""
        return self.written + len(self.skipped)

    def skip(self, named: "Named", error: AbcError) -> None:
        """Leave an item out.

        Raises:
            InputError, DataError: that very error, if a bad item is to end the work.
        """
        if self.on_error is OnError.RAISE:
            raise type(error)(str(error) if named.line is None else f"{named.where}: {error}")
        self.skipped.append((named.where, str(error)))

    def finish(self) -> None:
        """Raises `InputError` if nothing was embedded."""
        if not self.written:
            self.report()
            raise InputError("nothing could be embedded, and nothing is written")

    def report(self) -> None:
        """The list of what was left out."""
        if self.skipped:
            say(f"skipped {len(self.skipped)} of {self.done}:")
        for name, why in self.skipped:
            say(f"  {name}: {why}")


def _named(
    inputs: list[str], texts: list[str], instruction: str | None
) -> "tuple[Iterable[Named], int | None]":
    """What is to be embedded, and how many items that is, if it can be known."""
    from abc_embed.cli import items as sources

    if STDIN in inputs:
        if inputs != [STDIN] or texts or instruction is not None:
            raise UsageError(
                "with - all items come from stdin; give instructions and texts in its lines"
            )
        return sources.from_lines(sys.stdin.buffer), None
    if not inputs and not texts:
        raise UsageError("there is nothing to embed; give images, folders, --text, or - for stdin")
    if instruction is not None and not inputs:
        raise UsageError("an instruction goes with images; give at least one")
    found = sources.from_arguments(inputs, texts, instruction)
    return found, len(found)


def _summarize(writer: Writer, reading: Reading, dim: int, model: str, as_json: bool) -> None:
    if not writer.files:
        return
    out = str(writer.files[-1])
    if as_json:
        show_json(
            {
                "out": out,
                "ids": str(writer.files[0]) if len(writer.files) > 1 else None,
                "count": reading.written,
                "dim": dim,
                "model": model,
                "skipped": [{"id": name, "reason": why} for name, why in reading.skipped],
            }
        )
        return
    names = f", names in {writer.files[0]}" if len(writer.files) > 1 else ""
    what = "vector" if reading.written == 1 else "vectors"
    show(f"{reading.written} {what} of {dim} numbers in {out}{names}")
