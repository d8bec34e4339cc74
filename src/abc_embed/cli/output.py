"""What a command shows: results on stdout (a table, or JSON for programs), the rest on stderr.

rich is imported where it is used, so that `--help` does not pay for it.
"""

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Literal

import typer

from abc_embed.errors import OutputError, UsageError
from abc_embed.storage.files import check_writable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs, not a table.")]
OPENING_S = 3.0
"""By then a desktop has said that it cannot open a file."""
PIPED_WIDTH = 160
"""Columns of a table that goes to a file or a pipe, where no terminal says how wide it is."""
_NUMBERS = re.compile(r"[-+−0-9.,%()–/ ]*|[-+0-9.]+ \([-+0-9. to]*\)")
"""What reads as a number, with its interval maybe."""


def epilog(commands: str) -> str:
    """Examples below a help text, a command on each line: after `\\b` no lines are joined."""
    return f"Examples:\n\n\b{commands}"


def counted(count: int, noun: str) -> str:
    """A number of things, in words that fit it."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def print_message(message: str) -> None:
    """One line of message, on stderr."""
    sys.stderr.write(f"{printable(message)}\n")


def print_first(lines: Sequence[str], count: int, more: str) -> None:
    """The first lines of message, and how many more there are; `more` says where."""
    for line in lines[:count]:
        print_message(line)
    if len(lines) > count:
        print_message(f"and {len(lines) - count:,} more{more}")


def print_result(text: str) -> None:
    """One line of result, on stdout."""
    sys.stdout.write(f"{printable(text)}\n")


@dataclass(frozen=True, kw_only=True)
class Printer:
    """The results of a command, on stdout: with --json for programs, else for people.

    What is meant for the others is not printed.
    """

    as_json: AsJson = False

    def json(self, value: object) -> None:
        """For programs: all that was found."""
        if self.as_json:
            sys.stdout.write(json.dumps(value, indent=2) + "\n")

    def line(self, text: str) -> None:
        """For people: a sentence."""
        if not self.as_json:
            print_result(text)

    def table(
        self, columns: Sequence[str], rows: Sequence[Sequence[object]], *, title: str | None = None
    ) -> None:
        """For people: numbers stand on the right, decimals with three places.

        No number is broken. Where they do not fit side by side, rows and columns change places.
        """
        if self.as_json:
            return
        from rich.text import Text

        console = _console(sys.stdout)
        table = _table(columns, rows)
        if columns[:1] and len(rows) < len(columns) and _width(table, console) > console.width:
            turned = list(zip(columns[1:], *(row[1:] for row in rows), strict=True))
            table = _table([columns[0], *(_cell(row[0]) for row in rows)], turned)
        with console.capture() as captured:
            if title is not None:
                console.print(Text(printable(title), style="bold"))
            console.print(table)
        lines = (line.rstrip() for line in captured.get().rstrip().splitlines())
        sys.stdout.write("\n".join(lines) + "\n\n")


def check_plot(plot: Path | None, explain: bool, endings: Sequence[str]) -> None:
    """Find out before the work whether the picture of --plot can be written.

    Raises:
        UsageError: its name has none of the `endings`; or there is none for --explain to draw on.
        OutputError: it cannot be written.
    """
    if plot is None:
        if explain:
            raise UsageError("--explain is drawn; say where with --plot, like --plot page.png")
        return
    if plot.suffix.lower() not in endings:
        raise UsageError(f"{str(plot)!r} does not end in {', '.join(endings)}; give such a name")
    check_writable(plot)


def print_skipped(lines: Sequence[str], total: int) -> None:
    """What was left out of `total` items, on stderr; nothing if that is nothing."""
    if lines:
        print_message(f"skipped {len(lines)} of {total}:")
    for line in lines:
        print_message(f"  {line}")


def _table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> "Table":
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, show_header=any(columns))
    for index, column in enumerate(columns):
        cells = [row[index] for row in rows]
        side: Literal["left", "right"] = "left"
        if all(isinstance(cell, int | float) for cell in cells):
            side = "right"
        whole = all(
            isinstance(cell, int | float) or _NUMBERS.fullmatch(str(cell)) for cell in cells
        )
        # Text, not str: a text of the user's may look like rich's own markup.
        table.add_column(Text(column), justify=side, overflow="fold", no_wrap=whole and bool(cells))
    for row in rows:
        table.add_row(*(Text(_cell(value)) for value in row))
    return table


def _width(table: "Table", console: "Console") -> int:
    """The least that a table takes without breaking a number or a word."""
    return table.__rich_measure__(console, console.options).minimum


def _cell(value: object) -> str:
    return f"{value:.3f}" if isinstance(value, float) else printable(str(value))


def printable(text: str) -> str:
    """`text` as it can be printed: control characters and broken Unicode become escapes."""
    if text.isprintable():
        return text
    kept = (c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)
    return "".join(kept)


def _console(file: IO[str]) -> "Console":
    from rich.console import Console

    return Console(file=file, width=None if file.isatty() else PIPED_WIDTH, highlight=False)


def open_file(path: Path) -> None:
    """Have the desktop show a file in the program that it has for it.

    Raises:
        OutputError: it does not, as where there is no desktop.
    """
    if sys.platform.startswith("linux"):  # typer would let its complaints through
        command = ["xdg-open", str(path)]
        try:
            opener = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            failed = opener.wait(OPENING_S) != 0
        except FileNotFoundError:
            failed = True
        except subprocess.TimeoutExpired:  # it is the program itself, and shows the file
            failed = False
    else:
        failed = typer.launch(str(path)) != 0
    if failed:
        raise OutputError(f"{str(path)!r} cannot be opened here; that takes a desktop")


def duration(seconds: float) -> str:
    """In words that suit it."""
    if seconds < 120:
        return f"{seconds:.1f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} minutes"
    return f"{seconds / 3600:,.1f} hours"
