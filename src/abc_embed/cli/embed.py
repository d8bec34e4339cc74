"""`abc-embed embed`: images and texts -> vectors in a file, or on stdout.

A run that is broken off leaves nothing; there is no resuming.
"""

import sys
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Self

import typer

from abc_embed.cli import options
from abc_embed.cli.options import OnError
from abc_embed.cli.output import print_json, print_message, print_result
from abc_embed.errors import AbcError, InputError, UsageError
from abc_embed.progress import progress_bar
from abc_embed.vectors import Writer, jsonl_line, open_writer

if TYPE_CHECKING:
    from abc_embed.cli.items import NamedItem
    from abc_embed.embedder import Embedder
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


@options.with_settings
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
    *,
    settings: options.BatchSettings,
    as_json: options.AsJson = False,
) -> None:
    """Write one vector per image or text, in the order given.

    Vectors have unit length: their dot product is their cosine. An image with an instruction has
    another vector than the image alone.
    """
    named_items, total = _read_items(inputs or [], text or [], instruction)
    if as_json and out is None:
        raise UsageError("--json describes the file that is written; give one with -o")
    run = EmbeddingRun(named_items, on_error)
    run.check()
    opened: Writer | StdoutWriter = StdoutWriter() if out is None else open_writer(out)
    with opened as writer:
        embedder, max_pixels = settings.load_with_pixels()
        with progress_bar("embedding", total) as on_progress:
            for name, vector in run.vectors(embedder, max_pixels, settings.batch_size):
                writer.add(name, vector)
                on_progress(run.done)
        run.check_written()
        writer.finish()
    run.report()
    if out is not None:
        _summarize(writer.files, run, embedder.dim, settings.model, as_json)


class StdoutWriter:
    """`{"id": ..., "vector": [...]}` per line, on stdout."""

    files: tuple[Path, ...] = ()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        """stdout is not ours to close."""

    def add(self, name: str, vector: "Vector") -> None:
        """One vector `(D,)` and what it is called."""
        sys.stdout.write(jsonl_line(name, vector))

    def finish(self) -> None:
        """Everything is printed."""
        sys.stdout.flush()


@dataclass
class EmbeddingRun:
    """The items on their way into the model, and what became of them."""

    named_items: "Iterable[NamedItem]"
    on_error: OnError
    skipped: list[tuple[str, str]] = field(default_factory=list)
    """Name and reason of each item that was left out."""
    written: int = 0
    # Those that the model has and whose vectors have not come back.
    _in_flight: "deque[NamedItem]" = field(default_factory=deque)

    def check(self) -> None:
        """Find what is bad before a model is loaded for nothing.

        Raises:
            InputError: an item is bad, and that is to end the work.
        """
        if isinstance(self.named_items, list) and self.on_error is OnError.RAISE:
            for named in self.named_items:
                if named.error is not None:
                    self.skip(named, named.error)

    def vectors(
        self, embedder: "Embedder", max_pixels: int | None, batch_size: int
    ) -> "Iterator[tuple[str, Vector]]":
        """Name and vector `(D,)` of every good item.

        Raises:
            InputError, DataError: an item is bad, and that is to end the work.
        """
        from abc_embed.embedder import Skipped

        results = embedder.stream(
            self._items(), max_pixels=max_pixels, batch_size=batch_size, on_error="skip"
        )
        for result in results:
            named = self._in_flight.popleft()
            if isinstance(result, Skipped):
                self.skip(named, result.error)
            else:
                self.written += 1
                yield named.name, result

    def _items(self) -> "Iterator[Item]":
        for named in self.named_items:
            if named.item is None:
                self.skip(named, named.error or InputError("the item is empty"))
            else:
                self._in_flight.append(named)
                yield named.item

    @property
    def done(self) -> int:
        """How many items are behind us."""
        return self.written + len(self.skipped)

    def skip(self, named: "NamedItem", error: AbcError) -> None:
        """Leave an item out.

        Raises:
            InputError, DataError: that very error, if a bad item is to end the work.
        """
        if self.on_error is OnError.RAISE:
            raise type(error)(str(error) if named.line is None else f"{named.where}: {error}")
        self.skipped.append((named.where, str(error)))

    def check_written(self) -> None:
        """Raises `InputError` if nothing was embedded."""
        if not self.written:
            self.report()
            raise InputError("nothing could be embedded, and nothing is written")

    def report(self) -> None:
        """The list of what was left out."""
        if self.skipped:
            print_message(f"skipped {len(self.skipped)} of {self.done}:")
        for name, why in self.skipped:
            print_message(f"  {name}: {why}")


def _read_items(
    inputs: list[str], texts: list[str], instruction: str | None
) -> "tuple[Iterable[NamedItem], int | None]":
    """What is to be embedded, and how many items that is, if it can be known."""
    from abc_embed.cli import items

    if STDIN in inputs:
        if inputs != [STDIN] or texts or instruction is not None:
            raise UsageError(
                "with - all items come from stdin; give instructions and texts in its lines"
            )
        return items.from_lines(sys.stdin.buffer), None
    if not inputs and not texts:
        raise UsageError("there is nothing to embed; give images, folders, --text, or - for stdin")
    if instruction is not None and not inputs:
        raise UsageError("an instruction goes with images; give at least one")
    named_items = items.from_arguments(inputs, texts, instruction)
    return named_items, len(named_items)


def _summarize(
    files: tuple[Path, ...], run: EmbeddingRun, dim: int, model: str, as_json: bool
) -> None:
    ids = str(files[0]) if len(files) > 1 else None
    if as_json:
        print_json(
            {
                "out": str(files[-1]),
                "ids": ids,
                "count": run.written,
                "dim": dim,
                "model": model,
                "skipped": [{"id": name, "reason": why} for name, why in run.skipped],
            }
        )
        return
    names = "" if ids is None else f", names in {ids}"
    noun = "vector" if run.written == 1 else "vectors"
    print_result(f"{run.written} {noun} of {dim} numbers in {files[-1]}{names}")
