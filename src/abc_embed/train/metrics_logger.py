"""What a training run writes down: a line per logged step on disk, a progress bar for people.

The lines of `metrics.jsonl` go to TensorBoard or Weights & Biases as well if `train.log_to` says
so, by the libraries' own writers and not accelerate's: they can go on with a broken run
(TensorBoard drops the points after the checkpoint, W&B takes the run up by its id); accelerate's
begin anew. A resumed run first drops the lines after its checkpoint, so that the file reads as if
the run had never been broken.
"""

import importlib
import json
import secrets
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from abc_embed.errors import DataError, MissingExtraError, OutputError, TrainingError
from abc_embed.progress import progress_bar
from abc_embed.storage.files import atomic_write
from abc_embed.storage.json_files import atomic_write_json, json_line, read_json
from abc_embed.train.config import TrainConfig

WANDB_PROJECT = "abc-embed"
"""Name of the W&B project, unless the environment's WANDB_PROJECT gives another."""


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
    rejected: int = 0
    """Rows of this step that were left out; `rejects.jsonl` names them."""
    items_per_s: float = 0.0
    """Queries and candidates per second since the last line."""
    wait_share: float = 0.0
    """Share of the time since the last line in which the model waited for data."""
    elapsed_s: float = 0.0
    """Seconds of training up to here, those of earlier processes of the run among them."""


class MetricsLogger:
    """Context manager around a run; `log` once per step."""

    def __init__(
        self,
        path: Path,
        *,
        first_step: int,
        steps: int,
        every: int = 1,
        tracker: "TensorBoard | Wandb | None" = None,
    ) -> None:
        """Go on with a log after `first_step`, of `steps` in all, with a line each `every` steps.

        The tracker is given each line too, and closed in the end.
        """
        self._path, self._tracker = path, tracker
        self._first_step, self._steps, self._every = first_step, steps, every
        kept = drop_lines_after(path, first_step)
        self._exit_stack = ExitStack()
        self._last_line = time.perf_counter()
        self._start = self._last_line - (kept[-1].get("elapsed_s", 0.0) if kept else 0.0)
        self._items, self._waited_s = 0, 0.0

    def __enter__(self) -> Self:
        bar = progress_bar("step", self._steps, first=self._first_step, transient=False)
        self._on_progress = self._exit_stack.enter_context(bar)
        return self

    def __exit__(self, *error: object) -> None:
        self._exit_stack.close()
        if self._tracker:
            with full_disk_is_one_sentence(self._path.parent):
                self._tracker.close()

    def track(self, values: Mapping[str, float], step: int) -> None:
        """Give the tracker further values, if there is one."""
        if self._tracker:
            with full_disk_is_one_sentence(self._path.parent):
                self._tracker.log(values, step)

    def log(self, record: StepRecord, waited_s: float = 0.0) -> None:
        """Show the step, and append its line if it is due; its fields of time are filled in here.

        For `waited_s` before it the model had nothing to do but wait for data.
        """
        now = time.perf_counter()
        self._items += record.queries + record.candidates
        self._waited_s += waited_s
        passed_s = max(now - self._last_line, 1e-9)
        values = asdict(record) | {
            "items_per_s": round(self._items / passed_s, 2),
            "wait_share": round(self._waited_s / passed_s, 4),
            "elapsed_s": round(now - self._start, 3),
        }
        self._on_progress(
            record.step,
            status=f"loss {record.loss:.4f}  acc {record.accuracy:.3f}  τ {record.tau:.4f}  "
            f"grad {record.grad_norm:.3g}  {values['items_per_s']:.1f} items/s  "
            f"waiting {values['wait_share']:.0%}",
        )
        if record.step % self._every and record.step != self._steps:
            return
        append_lines(self._path, [values])
        self.track({k: v for k, v in values.items() if k != "step"}, record.step)
        self._last_line, self._items, self._waited_s = now, 0, 0.0


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All whole lines of a `metrics.jsonl`; a last line cut by a crash is left out.

    Raises:
        DataError: it cannot be read, or a line before the last is damaged.
    """
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}; give a run's folder") from error
    rows: list[dict[str, Any]] = []
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


def append_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Append rows to a log of the run."""
    with full_disk_is_one_sentence(path), path.open("ab") as file:
        file.writelines(map(json_line, rows))


def drop_lines_after(path: Path, step: int) -> list[dict[str, Any]]:
    """Cut a log off after a step; the lines that stay."""
    if not path.exists():
        return []
    rows = [row for row in read_metrics(path) if row["step"] <= step]
    with atomic_write(path) as file:
        file.writelines(map(json_line, rows))
    return rows


def open_tracker(
    config: TrainConfig, out_dir: Path, first_step: int
) -> "TensorBoard | Wandb | None":
    """The tracker that `train.log_to` names; lines after `first_step` are logged anew."""
    if config.train.log_to == "tensorboard":
        return TensorBoard(out_dir, first_step)
    return Wandb(config, out_dir, first_step) if config.train.log_to == "wandb" else None


def check_tracker(config: TrainConfig) -> None:
    """Raise `MissingExtraError` now if the library will be missing when training begins."""
    if config.train.log_to != "none":
        _import_library(config.train.log_to)


class TensorBoard:
    """Scalars in `OUT/tensorboard`."""

    def __init__(self, out_dir: Path, first_step: int) -> None:
        _import_library("tensorboard")
        from torch.utils.tensorboard import SummaryWriter

        # Points that a broken run wrote after its checkpoint are written again: hide the first.
        purge = first_step + 1 if first_step else None
        with full_disk_is_one_sentence(out_dir / "tensorboard"):
            self._writer = SummaryWriter(str(out_dir / "tensorboard"), purge_step=purge)

    def log(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(f"train/{name}", value, step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class Wandb:
    """A run of the project `abc-embed`, taken up again where it broke off.

    What W&B itself reads from the environment holds: WANDB_API_KEY, WANDB_PROJECT, WANDB_MODE.
    """

    def __init__(self, config: TrainConfig, out_dir: Path, first_step: int) -> None:
        wandb = _import_library("wandb")
        settings = wandb.Settings(console="off", silent=True, x_disable_stats=True)
        settings.project = settings.project or WANDB_PROJECT
        try:
            self._run = wandb.init(
                id=_wandb_id(out_dir, fresh=first_step == 0),
                name=out_dir.name,
                dir=str(out_dir),
                resume="allow",
                config=asdict(config),
                settings=settings,
            )
        except (wandb.errors.Error, OSError) as error:
            raise TrainingError(
                f"Weights & Biases cannot be used ({' '.join(str(error).split())}); log in with "
                "wandb login, set WANDB_MODE=offline, or set train.log_to to 'none'"
            ) from error

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


def _wandb_id(out_dir: Path, *, fresh: bool) -> str:
    """The W&B id of the run in `out_dir`; a new one for a run that begins."""
    path = out_dir / "wandb.json"
    if not fresh and path.is_file():
        mend = "remove it to log a new W&B run"
        content = read_json(path, error=TrainingError, mend=mend)
        if not isinstance(content.get("id"), str):
            raise TrainingError(f"{path} is damaged (no id); {mend}")
        return str(content["id"])
    new_id = secrets.token_hex(8)
    atomic_write_json(path, {"id": new_id}, indent=None)
    return new_id


def _import_library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as missing:
        raise MissingExtraError.of("log", f"train.log_to = {name!r}") from missing


@contextmanager
def full_disk_is_one_sentence(path: Path) -> Iterator[None]:
    """A file of the run that cannot be written is an `OutputError` that says what is kept."""
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"cannot write {path}: {error.strerror or error}; make room or choose another folder, "
            "then start again: the last good checkpoint is intact"
        ) from error
