"""What a command shows: results on stdout (a table, or JSON for programs), the rest on stderr.

rich is imported where it is used, so that `--help` does not pay for it.
"""

import json
import sys
from collections.abc import Sequence
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

PIPED_WIDTH = 160
"""Columns of a table that goes to a file or a pipe, where no terminal says how wide it is."""


def epilog(commands: str) -> str:
    """Examples below a help text, a command on each line: after `\\b` no lines are joined."""
    return f"Examples:\n\n\b{commands}"


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


def print_json(value: object) -> None:
    """A result for programs, on stdout."""
    sys.stdout.write(json.dumps(value, indent=2) + "\n")


def print_outcome(facts: object, sentence: str, as_json: bool) -> None:
    """What a command did: all of it for programs, or a sentence for people."""
    if as_json:
        print_json(facts)
    else:
        print_result(sentence)


def print_skipped(lines: Sequence[str], total: int) -> None:
    """What was left out of `total` items, on stderr; nothing if that is nothing."""
    if lines:
        print_message(f"skipped {len(lines)} of {total}:")
    for line in lines:
        print_message(f"  {line}")


def print_table(
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
            console.print(Text(printable(title), style="bold"))
        console.print(table)
    lines = (line.rstrip() for line in captured.get().rstrip().splitlines())
    sys.stdout.write("\n".join(lines) + "\n\n")


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
