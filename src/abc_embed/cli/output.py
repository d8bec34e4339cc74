"""What a command shows: results on stdout (a table, or JSON for programs), the rest on stderr.

Does: print, count progress, and find out whether a file can be written. Does not: know what it
shows.
rich is imported where it is used, so that `--help` does not pay for it.
"""

import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from rich.console import Console

PIPED_WIDTH = 160
"""Columns of a table that goes to a file or a pipe, where no terminal says how wide it is."""
PLAIN_LINE_EVERY_S = 30.0
"""Without a terminal there is no bar; then a line this often says that the work goes on."""


def say(message: str) -> None:
    """One line of message, on stderr."""
    sys.stderr.write(f"{shown(message)}\n")


def show(text: str) -> None:
    """One line of result, on stdout."""
    sys.stdout.write(f"{shown(text)}\n")


def show_json(value: object) -> None:
    """A result for programs, on stdout."""
    sys.stdout.write(json.dumps(value, indent=2) + "\n")


def show_table(
    columns: Sequence[str], rows: Sequence[Sequence[object]], *, title: str | None = None
) -> None:
    """A result for people, on stdout; numbers stand on the right, decimals with three places."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, show_header=any(columns))
    for index, column in enumerate(columns):
        numbers = all(isinstance(row[index], int | float) for row in rows)
        table.add_column(column, justify="right" if numbers else "left", overflow="fold")
    for row in rows:
        # Text, not str: a text of the user's may look like rich's own markup.
        table.add_row(*(Text(_cell(value)) for value in row))
    console = _console(sys.stdout)
    with console.capture() as captured:
        if title is not None:
            console.print(Text(shown(title), style="bold"))
        console.print(table)
    lines = (line.rstrip() for line in captured.get().rstrip().splitlines())
    sys.stdout.write("\n".join(lines) + "\n\n")


def _cell(value: object) -> str:
    return f"{value:.3f}" if isinstance(value, float) else shown(str(value))


def shown(text: str) -> str:
    """`text` as it can be printed: control characters and broken Unicode become escapes."""
    if text.isprintable():
        return text
    kept = (c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)
    return "".join(kept)


def _console(file: IO[str]) -> "Console":
    from rich.console import Console

    return Console(file=file, width=None if file.isatty() else PIPED_WIDTH, highlight=False)


class Count(Protocol):
    """What `progress` gives."""

    def __call__(self, done: int, of: int | None = None) -> None:
        """So many are done, of so many if that is known by now."""


@contextmanager
def progress(what: str, total: int | None = None) -> Iterator[Count]:
    """Counts on stderr, as a bar on a terminal and as a line now and then elsewhere."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = Console(file=sys.stderr)
    bar = Progress(
        TextColumn(what),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    task = bar.add_task(what, total=total)
    said = time.monotonic()

    def count(done: int, of: int | None = None) -> None:
        nonlocal said
        total_now = total if of is None else of
        bar.update(task, completed=done, total=total_now)
        if bar.disable and time.monotonic() - said >= PLAIN_LINE_EVERY_S:
            said = time.monotonic()
            say(f"{what} {done:,}" + ("" if total_now is None else f" of {total_now:,}"))

    with bar:
        yield count
