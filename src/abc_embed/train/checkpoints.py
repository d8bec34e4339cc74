"""Checkpoints of a run in progress: written whole or not at all, and taken back exactly.

Does: keep what changes in training (trained weights, optimizer, cached vectors, step), so that a
killed run goes on with the same loss curve to the last bit. Does not keep: the frozen weights,
which the run begins with anyway; the learning rate, data order and dropout, which follow from the
step number and the seed. What is not stored cannot be stored wrongly.

    checkpoints/step-00000100/   trained.safetensors  optimizer.safetensors
                                 vectors.safetensors  state.json

A folder is filled under another name, flushed to the disk, and renamed: a crash at any moment
leaves the last good one intact and no half one to load.

With several processes the main one writes, whole tensors also where weights or means are split, and
all of them read: a run may go on with another number of processes, or split where it was not.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from abc_embed.errors import OutputError, TrainingError
from abc_embed.storage.files import replace_folder
from abc_embed.train.config import TrainConfig
from abc_embed.train.optimizer import Optimizer
from abc_embed.train.processes import ProcessGroup
from abc_embed.train.sharding import like, whole
from abc_embed.train.toml_config import flat

FREE_FIELDS = frozenset(
    {
        "out",
        "model.device",
        "data.workers",
        "train.chunk_size",
        "train.gradient_checkpointing",
        "train.checkpoint_every",
        "train.keep_checkpoints",
        "train.log_every",
        "train.log_to",
    }
)
"""May differ when a run goes on: they say where and how it runs, not what is learnt."""


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a run stands."""

    step: int
    """Steps done."""
    at_floor: int = 0
    """For how many steps in a row τ has lain at its floor."""


class CheckpointManager:
    """The checkpoints of one run, in `folder`."""

    def __init__(self, folder: Path, config: TrainConfig, team: ProcessGroup) -> None:
        self._folder = folder
        self._config = config
        self._team = team

    def latest(self) -> Path | None:
        """The newest whole checkpoint, or None."""
        return latest(self._folder)

    def save(
        self,
        progress: Progress,
        parameters: Mapping[str, nn.Parameter],
        optimizer: Optimizer,
        memory: Mapping[str, Tensor],
    ) -> None:
        """Write a checkpoint, then remove those beyond `train.keep_checkpoints`.

        All processes call it and one writes. Raises `OutputError` on all of them for a full disk or
        a folder that cannot be written; older checkpoints are untouched then.
        """
        # Whole tensors: where weights are split, all processes bring their parts together here.
        trained = {k: whole(v.detach()).cpu().contiguous() for k, v in parameters.items()}
        means = optimizer.means()
        with self._team.propagate_errors():
            if self._team.main:
                self._write(progress, trained, means, memory)

    def _write(
        self,
        progress: Progress,
        trained: Mapping[str, Tensor],
        means: Mapping[str, Tensor],
        memory: Mapping[str, Tensor],
    ) -> None:
        aside = self._folder / ".partial"
        state = {"config": asdict(self._config), "texts": list(memory), **asdict(progress)}
        try:
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir(parents=True)
            save_file(dict(trained), aside / "trained.safetensors")
            if memory:
                vectors = torch.stack(list(memory.values()))
                save_file({"vectors": vectors}, aside / "vectors.safetensors")
            save_file(dict(means), aside / "optimizer.safetensors")
            (aside / "state.json").write_text(json.dumps(state, indent=1), encoding="utf-8")
            replace_folder(aside, self._folder / f"step-{progress.step:08d}")
        except (OSError, SafetensorError) as error:  # which of the two a full disk is, varies
            shutil.rmtree(aside, ignore_errors=True)
            raise OutputError(
                f"cannot write a checkpoint to {self._folder} ({error}); make room or choose "
                "another folder, then start again: the last good checkpoint is intact"
            ) from error
        for old in sorted(self._folder.glob("step-*"))[: -self._config.train.keep_checkpoints]:
            shutil.rmtree(old, ignore_errors=True)

    def load(
        self,
        path: Path,
        parameters: Mapping[str, nn.Parameter],
        optimizer: Optimizer,
    ) -> tuple[Progress, dict[str, Tensor]]:
        """Put a checkpoint back into parameters and optimizer; progress and cached vectors.

        Raises `TrainingError` when it belongs to another run or is damaged.
        """
        state = check(path, self._config)
        try:
            trained = load_file(path / "trained.safetensors")
            vectors = path / "vectors.safetensors"
            rows = list(load_file(vectors)["vectors"]) if vectors.exists() else []
            memory = dict(zip(state["texts"], rows, strict=True))
            means = load_file(path / "optimizer.safetensors")
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            raise _unreadable(path, error) from error
        _fill(parameters, trained, path)
        optimizer.restore(means)
        return Progress(step=state["step"], at_floor=state["at_floor"]), memory


def latest(folder: Path) -> Path | None:
    """The newest whole checkpoint in a folder of checkpoints, or None."""
    found = sorted(folder.glob("step-*"))
    return found[-1] if found else None


def check(path: Path, config: TrainConfig) -> dict[str, Any]:
    """What `state.json` of a checkpoint says; needs no model, so it can be asked before one loads.

    Raises `TrainingError` when it is damaged, or of a run with another configuration.
    """
    try:
        state: dict[str, Any] = json.loads((path / "state.json").read_text(encoding="utf-8"))
        then = flat(state["config"])
        _ = state["step"], state["at_floor"], state["texts"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _unreadable(path, error) from error
    now = flat(json.loads(json.dumps(asdict(config))))
    for name in sorted(now.keys() | then.keys()):
        if name not in FREE_FIELDS and now.get(name) != then.get(name):
            raise TrainingError(
                f"{name} was {then.get(name)!r} when {path} was written and is "
                f"{now.get(name)!r} now; put it back to go on, or train into another folder"
            )
    return state


def _unreadable(path: Path, error: Exception) -> TrainingError:
    return TrainingError(
        f"the checkpoint {path} cannot be read ({error}); remove it to go on from the one before"
    )


def _fill(
    parameters: Mapping[str, nn.Parameter], trained: Mapping[str, Tensor], path: Path
) -> None:
    """Copy stored values into parameters; names and shapes must agree exactly."""
    odd = sorted(parameters.keys() ^ trained.keys()) or sorted(
        name for name, value in trained.items() if value.shape != parameters[name].shape
    )
    if odd:
        raise TrainingError(
            f"the checkpoint {path} is of another model: {odd[0]} does not fit; begin with the "
            "model that the run began with"
        )
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(like(trained[name], parameter))
