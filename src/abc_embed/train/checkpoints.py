"""Checkpoints of a run in progress: written whole or not at all, and taken back exactly.

They hold what changes in training, so that a killed run goes on with the same loss curve to the
last bit. The frozen weights, which the run begins with anyway, are not in them, nor what follows
from the step number and the seed: learning rate, data order, dropout. What is not stored cannot be
stored wrongly.

    checkpoints/step-00000100/   trained.safetensors  optimizer.safetensors
                                 vectors.safetensors  state.json

With several processes the main one writes, full tensors also where weights or optimizer are split,
and all of them read: a run may go on with another number of processes, or split where it was not.
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
from abc_embed.train.processes import ProcessGroup
from abc_embed.train.sharding import full_tensor, shard_like
from abc_embed.train.toml_config import flatten
from abc_embed.train.zero import Optimizer

CHANGEABLE_FIELDS = frozenset(
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
class RunState:
    """Where a run stands."""

    step: int
    """Steps done."""
    at_floor: int = 0
    """For how many steps in a row τ has lain at its floor."""


@dataclass(frozen=True, slots=True)
class CheckpointManager:
    """The checkpoints of one run, in `folder`."""

    folder: Path
    config: TrainConfig
    process_group: ProcessGroup

    def save(
        self,
        state: RunState,
        parameters: Mapping[str, nn.Parameter],
        optimizer: Optimizer,
        text_cache: Mapping[str, Tensor],
    ) -> None:
        """Write a checkpoint, then remove those beyond `train.keep_checkpoints`.

        All processes call it and one writes.

        Raises:
            OutputError: on all of them, for a full disk or a folder that cannot be written; older
                checkpoints are untouched then.
        """
        # Where weights are split, all processes bring their parts together here.
        trained = {k: full_tensor(v.detach()).cpu().contiguous() for k, v in parameters.items()}
        optimizer_state = optimizer.state_dict()
        with self.process_group.propagate_errors():
            if self.process_group.is_main:
                self._write(state, trained, optimizer_state, text_cache)

    def _write(
        self,
        state: RunState,
        trained: dict[str, Tensor],
        optimizer_state: dict[str, Tensor],
        text_cache: Mapping[str, Tensor],
    ) -> None:
        partial = self.folder / ".partial"
        values = {"config": asdict(self.config), "texts": list(text_cache), **asdict(state)}
        try:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            save_file(trained, partial / "trained.safetensors")
            if text_cache:
                vectors = torch.stack(list(text_cache.values()))
                save_file({"vectors": vectors}, partial / "vectors.safetensors")
            save_file(optimizer_state, partial / "optimizer.safetensors")
            (partial / "state.json").write_text(json.dumps(values, indent=1), encoding="utf-8")
            replace_folder(partial, self.folder / f"step-{state.step:08d}")
        except (OSError, SafetensorError) as error:  # which of the two a full disk is, varies
            shutil.rmtree(partial, ignore_errors=True)
            raise OutputError(
                f"cannot write a checkpoint to {self.folder} ({error}); make room or choose "
                "another folder, then start again: the last good checkpoint is intact"
            ) from error
        for old in sorted(self.folder.glob("step-*"))[: -self.config.train.keep_checkpoints]:
            shutil.rmtree(old, ignore_errors=True)

    def load(
        self,
        path: Path,
        parameters: Mapping[str, nn.Parameter],
        optimizer: Optimizer,
    ) -> tuple[RunState, dict[str, Tensor]]:
        """Put a checkpoint back into parameters and optimizer.

        Returns:
            Where the run stands, and the cached vectors.

        Raises:
            TrainingError: it belongs to another run or is damaged.
        """
        values = read_state(path, self.config)
        try:
            trained = load_file(path / "trained.safetensors")
            vectors = path / "vectors.safetensors"
            rows = list(load_file(vectors)["vectors"]) if vectors.exists() else []
            text_cache = dict(zip(values["texts"], rows, strict=True))
            optimizer_state = load_file(path / "optimizer.safetensors")
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            raise _unreadable(path, error) from error
        _fill(parameters, trained, path)
        optimizer.load_state_dict(optimizer_state)
        return RunState(step=values["step"], at_floor=values["at_floor"]), text_cache


def find_resumable(run_folder: Path, resume: bool) -> Path | None:
    """The newest whole checkpoint of a run, or None.

    Raises:
        TrainingError: there is one, and `resume` is False.
    """
    found = sorted((run_folder / "checkpoints").glob("step-*"))
    if found and not resume:
        raise TrainingError(
            f"{run_folder} holds a run already ({found[-1].name}); choose another folder"
        )
    return found[-1] if found else None


def read_state(path: Path, config: TrainConfig) -> dict[str, Any]:
    """What `state.json` of a checkpoint says; needs no model, so it can be asked before one loads.

    Raises:
        TrainingError: it is damaged, or of a run with another configuration.
    """
    try:
        state: dict[str, Any] = json.loads((path / "state.json").read_text(encoding="utf-8"))
        then = flatten(state["config"])
        _ = state["step"], state["at_floor"], state["texts"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _unreadable(path, error) from error
    now = flatten(json.loads(json.dumps(asdict(config))))
    for name in sorted(now.keys() | then.keys()):
        if name not in CHANGEABLE_FIELDS and now.get(name) != then.get(name):
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
            parameter.copy_(shard_like(trained[name], parameter))
