"""Progress of long work on stderr: a bar on a terminal, elsewhere a line now and then.

rich is imported where a bar is drawn; nothing else pays for it.
"""

import os
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Protocol, TypeVar

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

T = TypeVar("T")

PLAIN_LINE_EVERY_S = 30.0
"""Without a terminal there is no bar; then a line this often says that the work goes on."""
FORCED = {"FORCE_COLOR", "TTY_COMPATIBLE"}
"""With one of these variables rich may take anything for a terminal."""


class ProgressCallback(Protocol):
    """What long work calls as it goes on."""

    def __call__(self, done: int, total: int | None = None) -> None:
        """So many are done, of so many if that is known by now."""


class StatusCallback(ProgressCallback, Protocol):
    """What `progress_bar` gives: it can also show what goes on."""

    def __call__(self, done: int, total: int | None = None, status: str = "") -> None:
        """As `ProgressCallback`, with a text beside the bar."""


def progress_bar(
    description: str,
    total: int | None = None,
    *,
    first: int = 0,
    unit: int = 1,
    transient: bool = True,
) -> AbstractContextManager[StatusCallback]:
    """Shows on stderr what is reported to the callback that it gives.

    Args:
        description: what is being done, in a word or two.
        total: how many there are, where that is known before the work.
        first: how many were done before; the time left does not count on them.
        unit: shows whole units of so many, like `2**20` for bytes in MB.
        transient: leaves nothing behind; else the last state stays.
    """
    if sys.stderr.isatty() or "IPython" in sys.modules or FORCED & os.environ.keys():
        from rich.console import Console

        console = Console(file=sys.stderr)
        if console.is_terminal or console.is_jupyter:
            return _drawn(console, description, total, first, unit, transient)
    return _printed(description, total, unit, transient)


@contextmanager
def _printed(
    description: str, total: int | None, unit: int, transient: bool
) -> Iterator[StatusCallback]:
    """A line now and then, and the last state where it is to stay."""
    last_line = time.monotonic()
    state = printed = ""

    def on_progress(done: int, total: int | None = total, status: str = "") -> None:
        nonlocal last_line, state, printed
        of = "" if total is None else f" of {total // unit:,}"
        state = f"{description} {done // unit:,}{of}  {status}".rstrip() + "\n"
        if time.monotonic() - last_line >= PLAIN_LINE_EVERY_S:
            last_line, printed = time.monotonic(), state
            sys.stderr.write(state)

    yield on_progress
    if not transient and state != printed:
        sys.stderr.write(state)


@contextmanager
def _drawn(
    console: "Console",
    description: str,
    total: int | None,
    first: int,
    unit: int,
    transient: bool,
) -> Iterator[StatusCallback]:
    """The bar with its total and times, which 80 columns hold, and under it what goes on."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class StatusBelow(Progress):
        def get_renderables(self) -> Iterable["RenderableType"]:
            yield self.make_tasks_table(self.tasks)
            for task in self.tasks:
                if status := task.fields["status"]:
                    yield Text(status, no_wrap=True, overflow="ellipsis")

    bar = StatusBelow(
        TextColumn(description),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=transient,
    )
    task = bar.add_task(
        description, total=total and total // unit, completed=first // unit, status=""
    )

    def on_progress(done: int, total: int | None = total, status: str = "") -> None:
        bar.update(task, completed=done // unit, total=total and total // unit, status=status)

    with bar:
        yield on_progress


def track(results: Iterable[T], total: int | None, shown: bool) -> Iterator[T]:
    """The results of embedding as they come; with `shown` a progress bar counts them."""
    if not shown:
        yield from results
        return
    with progress_bar("embedding", total, transient=not sys.stderr.isatty()) as on_progress:
        for done, result in enumerate(results, 1):
            on_progress(done)
            yield result
