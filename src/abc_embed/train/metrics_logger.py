"""What a training run writes down: a line per step on disk, a progress bar for people.

Does: append to `metrics.jsonl`, show loss, accuracy, τ, gradient norm, items per second, the share
of time spent waiting for data and the time left on stderr, hand each line to a tracker as well.
Does not: decide anything.
A resumed run first drops the lines after its checkpoint, so that the file reads as if the run had
never been broken.
"""

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from abc_embed.errors import DataError, OutputError
from abc_embed.storage.files import atomic_write
from abc_embed.train.trackers import NoTracker, Tracker

PLAIN_LINE_EVERY_S = 30.0
"""Without a terminal there is no bar; then a line this often says that the run is alive."""


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One line of `metrics.jsonl`. Step 1 is the first; values are those of this step alone."""

    step: int
    loss: float
    accuracy: float
    """Share of queries whose right candidate was ranked first among all of the batch."""
    tau: float
    """τ that this step's scores were divided by."""
    grad_norm: float
    """Length of all gradients together, before clipping."""
    learning_rate: float
    queries: int
    candidates: int
    items_per_s: float = 0.0
    """Queries and candidates per second since the last line."""
    wait_share: float = 0.0
    """Share of the time since the last line in which the model waited for data."""
    elapsed_s: float = 0.0
    """Seconds since this process began to train."""


class MetricsLogger:
    """Context manager around a run; `write` once per step."""

    def __init__(
        self,
        path: Path,
        *,
        first_step: int,
        steps: int,
        every: int = 1,
        tracker: Tracker | None = None,
    ) -> None:
        """`first_step` steps are done already; their lines in `path` are kept, later ones not.
        `tracker` is given each line too, and closed in the end."""
        self._path = path
        self._every = every
        self._steps = steps
        self._tracker = tracker or NoTracker()
        _keep_until(path, first_step)
        self._console = Console(stderr=True)
        self._progress = Progress(
            TextColumn("step {task.completed:.0f}/{task.total:.0f}"),
            BarColumn(bar_width=20),
            TextColumn("{task.description}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=False),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._progress.add_task("", total=steps, completed=first_step)
        self._begin = self._line_time = self._shown_time = time.perf_counter()
        self._items = 0
        self._waited_s = 0.0

    def __enter__(self) -> Self:
        try:
            self._file = self._path.open("a", encoding="utf-8")
        except OSError as error:
            raise _unwritable(self._path, error) from error
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()
        try:
            self._file.close()
        except OSError as problem:  # what could not be flushed before: said already
            if error is None:
                raise _unwritable(self._path, problem) from problem
        finally:
            self._tracker.close()

    def waited(self, seconds: float) -> None:
        """Count time in which the model had nothing to do but wait for data."""
        self._waited_s += seconds

    def write(self, record: StepRecord) -> None:
        """Show the step, and append its line if it is due.

        Raises `OutputError` when the disk is full or the file gone.
        """
        now = time.perf_counter()
        self._items += record.queries + record.candidates
        passed = max(now - self._line_time, 1e-9)
        values = asdict(record) | {
            "items_per_s": round(self._items / passed, 2),
            "wait_share": round(self._waited_s / passed, 4),
            "elapsed_s": round(now - self._begin, 3),
        }
        self._show(StepRecord(**values), now)
        if record.step % self._every and record.step != self._steps:
            return
        try:
            self._file.write(json.dumps(values) + "\n")
            self._file.flush()
        except OSError as error:
            raise _unwritable(self._path, error) from error
        self._tracker.log({k: v for k, v in values.items() if k != "step"}, record.step)
        self._line_time, self._items, self._waited_s = now, 0, 0.0

    def _show(self, record: StepRecord, now: float) -> None:
        text = (
            f"loss {record.loss:.4f}  acc {record.accuracy:.3f}  τ {record.tau:.4f}  "
            f"grad {record.grad_norm:.3g}  {record.items_per_s:.1f} items/s  "
            f"waiting {record.wait_share:.0%}"
        )
        self._progress.update(self._task, completed=record.step, description=text)
        last = record.step == self._steps
        if self._progress.disable and (last or now - self._shown_time >= PLAIN_LINE_EVERY_S):
            self._shown_time = now
            self._console.print(
                f"step {record.step}/{self._steps}  {text}", highlight=False, soft_wrap=True
            )


def read_metrics(path: Path) -> list[dict[str, float]]:
    """All whole lines of a `metrics.jsonl`; a last line cut by a crash is left out.

    Raises `DataError` when it cannot be read, or a line before the last is damaged.
    """
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}; give a run's folder") from error
    rows: list[dict[str, float]] = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            if not isinstance(row, dict) or not isinstance(row.get("step"), int):
                raise ValueError(line)
        except ValueError as error:
            if number == len(lines):
                break
            raise DataError(
                f"{path}:{number}: this is no line of a training log; remove the line"
            ) from error
        rows.append(row)
    return rows


def _keep_until(path: Path, step: int) -> None:
    """Drop the lines after `step`, aside and then renamed."""
    if not path.exists():
        return
    kept = [row for row in read_metrics(path) if row["step"] <= step]
    with atomic_write(path) as file:
        file.write("".join(json.dumps(row) + "\n" for row in kept).encode())


def _unwritable(path: Path, error: OSError) -> OutputError:
    return OutputError(
        f"cannot write {path}: {error.strerror or error}; make room or choose another folder, then "
        "start again: the last good checkpoint is intact"
    )
