"""The lines of `metrics.jsonl` shown elsewhere too: TensorBoard or Weights & Biases, by one word.

Does: open the one that `train.log_to` names and hand it each line. Does not: decide which lines
there are (``logbook``), or stand in for `metrics.jsonl`, which is written in any case.
Why the libraries' own writers and not accelerate's: they can go on with a broken run (TensorBoard
drops the points after the checkpoint, W&B takes the run up by its id); accelerate's begin anew.
"""

import json
import secrets
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from abc_embed.errors import MissingExtraError, OutputError, TrainingError
from abc_embed.storage.files import atomic_write
from abc_embed.train.config import TrainConfig

PROJECT = "abc-embed"
"""Name of the W&B project, unless WANDB_PROJECT gives another."""
_ID_FILE = "wandb.json"


class Tracker(Protocol):
    """Where lines go besides `metrics.jsonl`."""

    def log(self, values: Mapping[str, float], step: int) -> None:
        """One line; `step` counts from 1."""

    def close(self) -> None:
        """Write out what is still held back."""


class NoTracker:
    """`train.log_to = "none"`."""

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Nothing to do."""


def open_tracker(config: TrainConfig, out_dir: Path, first_step: int) -> Tracker:
    """The tracker that the configuration names; lines after `first_step` are told anew.

    Raises `MissingExtraError` when its library is not installed, `OutputError` when its folder
    cannot be written, `TrainingError` when W&B refuses.
    """
    return _OPENERS[config.train.log_to](config, out_dir, first_step)


def check_tracker(config: TrainConfig) -> None:
    """Raise `MissingExtraError` now if the library will be missing when training begins."""
    library = {"none": "json", "tensorboard": "tensorboard", "wandb": "wandb"}[config.train.log_to]
    _library(library, config.train.log_to)


class TensorBoard:
    """Scalars in `OUT/tensorboard`."""

    def __init__(self, config: TrainConfig, out_dir: Path, first_step: int) -> None:
        _library("tensorboard", "tensorboard")
        from torch.utils.tensorboard import SummaryWriter

        try:
            # What a broken run wrote after its checkpoint is told again: hide the first telling.
            purge = first_step + 1 if first_step else None
            self._writer = SummaryWriter(str(out_dir / "tensorboard"), purge_step=purge)
        except OSError as error:
            raise _unwritable(out_dir / "tensorboard", error) from error
        self._folder = out_dir / "tensorboard"

    def log(self, values: Mapping[str, float], step: int) -> None:
        try:
            for name, value in values.items():
                self._writer.add_scalar(f"train/{name}", value, step)
            self._writer.flush()
        except OSError as error:
            raise _unwritable(self._folder, error) from error

    def close(self) -> None:
        try:
            self._writer.close()
        except OSError as error:
            raise _unwritable(self._folder, error) from error


class Wandb:
    """A run of the project `abc-embed`, taken up again where it broke off.

    What W&B itself reads from the environment holds: WANDB_API_KEY, WANDB_PROJECT, WANDB_MODE.
    """

    def __init__(self, config: TrainConfig, out_dir: Path, first_step: int) -> None:
        wandb = _library("wandb", "wandb")
        settings = wandb.Settings(console="off", silent=True, x_disable_stats=True)
        settings.project = settings.project or PROJECT
        try:
            self._run = wandb.init(
                id=_run_id(out_dir, fresh=first_step == 0),
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


_OPENERS: dict[str, Callable[[TrainConfig, Path, int], Tracker]] = {
    "none": lambda *_: NoTracker(),
    "tensorboard": TensorBoard,
    "wandb": Wandb,
}


def _run_id(out_dir: Path, *, fresh: bool) -> str:
    """The W&B id of the run in `out_dir`; a new one for a run that begins."""
    path = out_dir / _ID_FILE
    if not fresh and path.is_file():
        try:
            return str(json.loads(path.read_text(encoding="utf-8"))["id"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise TrainingError(f"{path} is damaged; remove it to log a new W&B run") from error
    own = secrets.token_hex(8)
    with atomic_write(path) as file:
        file.write(json.dumps({"id": own}).encode() + b"\n")
    return own


def _library(name: str, word: str) -> Any:
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError as missing:
        raise MissingExtraError.of("log", f"train.log_to = {word!r}") from missing


def _unwritable(path: Path, error: OSError) -> OutputError:
    return OutputError(
        f"cannot write {path}: {error.strerror or error}; make room or choose another folder, then "
        "start again: the last good checkpoint is intact"
    )
