"""`abc-embed embed`: images and texts -> vectors in a file, or on stdout.

A run that is broken off after some seconds goes on where it was: see journal.py.
"""

import sys
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from abc_embed.cli import options
from abc_embed.cli.journal import Journal, item_key
from abc_embed.cli.options import OnError
from abc_embed.cli.output import Printer, epilog, print_message, print_skipped
from abc_embed.errors import AbcError, InputError, UsageError
from abc_embed.progress import progress_bar
from abc_embed.vectors import Writer, jsonl_line, open_writer

if TYPE_CHECKING:
    from abc_embed.cli.items import NamedItem
    from abc_embed.cli.remote import RemoteModel
    from abc_embed.devices import Stream
    from abc_embed.inputs import Item, Skipped
    from abc_embed.pipeline import Vector

EXAMPLES = epilog("""
  abc-embed embed photo.jpg -o out.npy
  abc-embed embed photos --instruction "what is on the left?" -o out.parquet
  abc-embed embed --text "a dog" --text "a cat" -o texts.jsonl
  abc-embed embed - -o out.npy --on-error skip < items.jsonl
  abc-embed embed - --window 1 --on-error skip < items.jsonl
  abc-embed embed photos -o out.npy --processes 2
  abc-embed embed photos -o out.npy --dim 64 --output ubinary
  abc-embed embed photo.jpg -o out.npy --server http://127.0.0.1:8765

A line of JSONL is {"image": ..., "instruction": ..., "text": ..., "id": ...}, with what it has.
""")

HEEDED = ("inputs", "text", "instruction", "out", "on_error", "window", "dim", "output")
"""What a server can heed."""


@dataclass(frozen=True, kw_only=True)
class JobSettings:
    """How the work is divided, and what was planned of it."""

    window: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Answer after so many lines of stdin each time; 1 for line by line.",
            show_default="2,048",
        ),
    ] = None
    processes: Annotated[
        int, typer.Option(min=1, help="Processes that share the items; each loads the model.")
    ] = 1
    plan: options.PlanFile = None

    def check(self, out: Path | None, *, on_stdin: bool) -> None:
        """Refuse what does not go together."""
        if self.plan is not None and (self.processes > 1 or out is None):
            raise UsageError("--plan is for a job in one process that writes a file; give -o alone")
        if self.window is not None and (not on_stdin or self.processes > 1):
            raise UsageError("--window is for lines on stdin (-), and one process")


def embed(
    context: typer.Context,
    *,
    source: options.ItemSettings,
    out: Annotated[
        Path | None,
        typer.Option(
            help="File to write: .npy (names in NAME.ids.json), .jsonl or .parquet.",
            show_default="JSONL on stdout",
        ),
    ] = None,
    on_error: Annotated[
        OnError, typer.Option(help="A bad item ends the work, or is left out and listed.")
    ] = "raise",
    job: JobSettings,
    settings: options.VectorSettings,
    remote: options.RemoteSettings,
    printer: Printer,
) -> None:
    """Write one vector per image or text, in the order given.

    Vectors have unit length: their dot product is their cosine. An image with an instruction has
    another vector than the image alone.
    """
    served = remote.connect(context, settings.model, HEEDED)
    named_items, total = source.read()
    if printer.as_json and out is None:
        raise UsageError("--json describes the file that is written; give one with -o")
    job.check(out, on_stdin=source.on_stdin)
    judged = None if job.plan is None else options.judge_plan(job.plan, "embed", settings.model)
    report = Report(on_error, of_many=total != 1)
    report.check(named_items)
    with ExitStack() as stack:
        writer = None if out is None else stack.enter_context(open_writer(out))
        if served is None:  # after the place to write to, before anything heavy
            settings.check()
        stream = _stream(served, settings, job.processes, total)
        journal = stack.enter_context(Journal(out if served is None else None, settings))
        vectors = _embed(named_items, report, stream, job.window, journal)
        dim = _write(vectors, writer, report, total, at_once=job.window is not None)
        if not report.written:
            report.print_skipped()
            raise InputError("nothing could be embedded, and nothing is written")
        if writer is not None:
            writer.finish()
        journal.remove()
    report.print_skipped()
    if writer is not None:
        report.print_written(writer.files, dim, (served or settings).model, printer)
    if judged is not None:
        print_message(judged(settings.device, report.written))


@dataclass
class Report:
    """How many vectors were written, and what was left out and why."""

    on_error: OnError
    of_many: bool = False
    written: int = 0
    skipped: list[tuple[str, str]] = field(default_factory=list)
    """Name and reason of each item that was left out."""

    def check(self, named_items: "Iterable[NamedItem]") -> None:
        """Find what is bad before a model is loaded for nothing, if that is known; as `skip`."""
        if isinstance(named_items, list) and self.on_error == "raise":
            for named in named_items:
                if named.error is not None:
                    self.skip(named, named.error)

    def skip(self, named: "NamedItem", error: AbcError) -> None:
        """Leave an item out.

        Raises:
            InputError, DataError: that very error, if a bad item is to end the work.
        """
        if self.on_error == "raise":
            sentence = str(error) if named.line is None else f"{named.where}: {error}"
            hint = "; --on-error skip leaves such an item out" if self.of_many else ""
            raise type(error)(f"{sentence}{hint}")
        self.skipped.append((named.where, str(error)))

    def print_skipped(self) -> None:
        """The list of what was left out."""
        lines = [f"{name}: {why}" for name, why in self.skipped]
        print_skipped(lines, self.written + len(lines))

    def print_written(
        self, files: tuple[Path, ...], dim: int, model: str, printer: Printer
    ) -> None:
        """What is in the files, vectors `(dim,)` of that model."""
        *ids, file = map(str, files)
        printer.json(
            {
                "out": file,
                "ids": ids[0] if ids else None,
                "count": self.written,
                "dim": dim,
                "model": model,
                "skipped": [{"id": name, "reason": why} for name, why in self.skipped],
            }
        )
        noun = "vector" if self.written == 1 else "vectors"
        names = "".join(f", names in {name}" for name in ids)
        printer.line(f"{self.written} {noun} of {dim} numbers in {file}{names}")


def _write(
    vectors: "Iterable[tuple[str, Vector]]",
    writer: Writer | None,
    report: Report,
    total: int | None,
    *,
    at_once: bool,
) -> int:
    """Every vector to the file or to stdout, `at_once` where somebody waits; how wide they are."""
    dim = 0
    with progress_bar("embedding", total) as on_progress:
        for name, vector in vectors:
            dim = len(vector)
            if writer is None:
                sys.stdout.write(jsonl_line(name, vector))
                if at_once:
                    sys.stdout.flush()
            else:
                writer.add(name, vector)
            report.written += 1
            on_progress(report.written + len(report.skipped))
    return dim


def _stream(
    served: "RemoteModel | None",
    settings: options.VectorSettings,
    processes: int,
    total: int | None,
) -> "Stream":
    """What embeds items: a running server, a model in this process, or one in each of several."""
    if served is not None:
        return partial(served.stream, dim=settings.dim, output=settings.output)
    if processes == 1:
        return settings.load_stream(0)
    from abc_embed.devices import stream_in_processes

    def stream(items: "Iterable[object]") -> "Iterator[Vector | Skipped]":
        results = stream_in_processes(
            settings.load_stream, enumerate(items), processes, on_error="skip", total=total
        )
        return (result for _, result in results)

    return stream


def _embed(
    named_items: "Iterable[NamedItem]",
    report: Report,
    stream: "Stream",
    window: int | None,
    journal: Journal,
) -> "Iterator[tuple[str, Vector]]":
    """Name and vector `(D,)` of every item that can be embedded, in order.

    Of a `window` of items all vectors are given before the next item is read. What is in the
    `journal` is taken from there, and the others are put into it.
    """
    from abc_embed.inputs import Skipped

    in_flight: deque[tuple[NamedItem, str]] = deque()  # their vectors are not back
    reached = 0

    def items() -> "Iterator[Item]":
        nonlocal reached
        for number, named in enumerate(named_items, 1):
            reached = number
            if named.item is None:
                report.skip(named, named.error or InputError("the item is empty"))
                continue
            key = item_key(named.item)
            in_flight.append((named, key))
            if key not in journal:
                yield named.item

    def known() -> "Iterator[tuple[str, Vector]]":
        while in_flight and (vector := journal.get(in_flight[0][1])) is not None:
            yield in_flight.popleft()[0].name, vector

    coming = items()
    if len(journal):
        first = list(islice(coming, 1))
        where = f"item {reached:,}" if first else "the end"
        print_message(
            f"{len(journal):,} vectors are there of a run that was broken off; going on at {where}"
        )
        coming = chain(first, coming)
    windows = [coming] if window is None else iter(lambda: list(islice(coming, window)), [])
    for some in windows:
        for result in stream(some):
            yield from known()
            named, key = in_flight.popleft()
            if isinstance(result, Skipped):
                report.skip(named, result.error)
                continue
            journal.add(key, result)
            yield named.name, result
    yield from known()
