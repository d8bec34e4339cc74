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
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from abc_embed.errors import OutputError, TrainingError
from abc_embed.storage.files import is_partial, unwritable
from abc_embed.storage.folders import atomic_folder
from abc_embed.train.config import TrainConfig, ValidationConfig, default_config
from abc_embed.train.provenance import FIELD_OF, Fingerprint, provenance
from abc_embed.train.sharding import full_tensor, shard_like
from abc_embed.train.stages import Stage
from abc_embed.train.toml_config import flatten
from abc_embed.train.validation import ValidationRecord

CHANGEABLE_FIELDS = frozenset(
    {
        "out",
        "model.device",
        "data.workers",
        "train.chunk_size",
        "train.chunk_tokens",
        "train.gradient_checkpointing",
        "train.checkpoint_every",
        "train.keep_checkpoints",
        "train.log_every",
        "train.log_to",
        "data.on_error",
        "data.max_bad_share",
        *(f"validation.{item.name}" for item in fields(ValidationConfig)),
    }
)
"""May differ when a run goes on: they say where and how it runs, not what is learnt."""
STEP_FOLDER = re.compile(r"step-\d{8}")
"""What a checkpoint is called; other names in its folder are somebody's, and left alone."""
LOCK_FILE = ".lock"
"""In a run's folder: held by the process that writes there."""


@dataclass(frozen=True, slots=True)
class RunState:
    """Where a run stands."""

    step: int
    """Steps done."""
    at_floor: int = 0
    """For how many steps in a row τ has lain at its floor."""
    planned_steps: int = 0
    """`train.steps` when the checkpoint was written; 0 for a run that begins."""
    best: ValidationRecord | None = None
    """The best validation so far."""
    not_better: int = 0
    """How many came after it."""


@dataclass(frozen=True, slots=True)
class CheckpointManager:
    """The checkpoints of one run, in `folder`."""

    folder: Path
    stage: Stage
    fingerprint: Fingerprint = field(default_factory=Fingerprint)
    """What the run learns from."""
    moved: bool = False
    """Whether that may lie somewhere else than when a checkpoint was written."""
    earlier: Sequence[dict[str, Any]] = ()
    """The provenance of the model that the run begins with."""

    def provenance(self, steps: int) -> list[dict[str, Any]]:
        """How the model came about that has done so many steps."""
        return [*self.earlier, provenance(self.stage.config, self.fingerprint, steps)]

    def save(self, state: RunState, name: str = "") -> None:
        """Write a checkpoint, then remove those beyond `train.keep_checkpoints`.

        With a `name` it is kept under that, until another takes it. All processes call it and one
        writes; what it cannot write is an `OutputError` on all, and older ones are untouched.
        """
        # Where weights are split, all processes bring their parts together here.
        tensors = {
            "trained": {
                name: full_tensor(value.detach()).cpu().contiguous()
                for name, value in self.stage.parameters.items()
            },
            "optimizer": self.stage.optimizer.state_dict(),
        }
        with self.stage.process_group.propagate_errors():
            if self.stage.process_group.is_main:
                self._write(state, tensors, name or f"step-{state.step:08d}")

    def _write(self, state: RunState, tensors: dict[str, dict[str, Tensor]], name: str) -> None:
        """Write a checkpoint called `name`; of `tensors` each table is a file."""
        config, text_cache = self.stage.config, self.stage.text_cache
        if text_cache:
            tensors["vectors"] = {"vectors": torch.stack(list(text_cache.values()))}
        values = {
            "config": asdict(config),
            "fingerprint": asdict(self.fingerprint),
            "texts": list(text_cache),
            **asdict(state),
            "training": self.provenance(state.step),
        }
        del values["planned_steps"]  # the configuration has them
        try:
            with atomic_folder(self.folder / name) as partial:
                for file, table in tensors.items():
                    save_file(table, partial / f"{file}.safetensors")
                text = json.dumps(values, indent=1)
                (partial / "state.json").write_text(text, encoding="utf-8")
        except (OSError, SafetensorError) as error:  # which of the two a full disk is, varies
            raise OutputError(
                f"cannot write a checkpoint to {self.folder} ({error}); make room or choose "
                "another folder, then start again: the last good checkpoint is intact"
            ) from error
        for old in list_checkpoints(self.folder)[: -config.train.keep_checkpoints]:
            shutil.rmtree(old, ignore_errors=True)

    def load(self, path: Path) -> RunState:
        """Put a checkpoint back into the stage and its optimizer; where the run stands."""
        values = read_state(path, self.stage.config, self.fingerprint, moved=self.moved)
        try:
            trained = load_file(path / "trained.safetensors")
            vectors = path / "vectors.safetensors"
            rows = list(load_file(vectors)["vectors"]) if vectors.exists() else []
            text_cache = dict(zip(values["texts"], rows, strict=True))
            optimizer_state = load_file(path / "optimizer.safetensors")
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            raise _unreadable(path, error) from error
        _fill(self.stage.parameters, trained, path)
        self.stage.optimizer.load_state_dict(optimizer_state)
        self.stage.text_cache = text_cache
        return RunState(
            step=values["step"],
            at_floor=values["at_floor"],
            planned_steps=int(flatten(values["config"])["train.steps"]),
            best=ValidationRecord(**values["best"]) if values.get("best") else None,
            not_better=values.get("not_better", 0),
        )


def list_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a run's `checkpoints/`, oldest first."""
    names = sorted(folder.glob("step-*"))
    return [path for path in names if STEP_FOLDER.fullmatch(path.name) and path.is_dir()]


def clear_leftovers(run_folder: Path) -> None:
    """Remove what a killed process was writing into a run's folder. Needs the run's lock."""
    checkpoints = run_folder / "checkpoints"
    hidden = [*run_folder.glob(".*"), *checkpoints.glob(".*")]
    parts = [checkpoints / ".partial", *filter(is_partial, hidden)]
    replaced = [*checkpoints.glob("*.old"), run_folder / "model.old"]
    for path in [*parts, *(old for old in replaced if old.with_suffix("").exists())]:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def lock_run(run_folder: Path) -> FileLock:
    """The lock of a run's folder, taken; it can be taken again by who has it."""
    lock = FileLock(run_folder / LOCK_FILE, is_singleton=True)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise TrainingError(
            f"another process is training in {run_folder}; wait for its end, or choose another "
            "folder (out)"
        ) from None
    except OSError as error:
        raise unwritable(run_folder / LOCK_FILE, error) from error
    return lock


def find_resumable(run_folder: Path, resume: bool) -> Path | None:
    """The newest whole checkpoint of a run, or None; with `resume` False there must be none."""
    found = list_checkpoints(run_folder / "checkpoints")
    if found and not resume:
        raise TrainingError(
            f"{run_folder} holds a run already ({found[-1].name}); choose another folder"
        )
    return found[-1] if found else None


def read_state(
    path: Path,
    config: TrainConfig,
    fingerprint: Fingerprint | None = None,
    *,
    moved: bool = False,
) -> dict[str, Any]:
    """What `state.json` of a checkpoint says; needs no model, so it can be asked before one loads.

    Args:
        fingerprint: What the run would learn from now; None: that is looked at later.
        moved: Base, records and negatives may lie somewhere else, if their content is the same.

    Raises:
        TrainingError: it is damaged, or of a run with another configuration, base or data.
    """
    try:
        state: dict[str, Any] = json.loads((path / "state.json").read_text(encoding="utf-8"))
        then = flatten(state["config"])
        known = {str(k): str(v) for k, v in state.get("fingerprint", {}).items()}
        _ = state["step"], state["at_floor"], state["texts"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _unreadable(path, error) from error
    now = _flat(config)
    # A field that was added since then had no other value than its default.
    then = _flat(default_config(config)) | then
    for name in sorted(now.keys() | then.keys()):
        if name not in CHANGEABLE_FIELDS and now.get(name) != then.get(name):
            _check_change(name, then.get(name), now.get(name), path, state["step"], moved)
    for name, part in FIELD_OF.items() if fingerprint else ():
        _check_content(name, known.get(part, ""), getattr(fingerprint, part), path, now, then)
    return state


def _flat(config: TrainConfig) -> dict[str, Any]:
    return flatten(json.loads(json.dumps(asdict(config))))


def _check_change(name: str, then: object, now: object, path: Path, step: int, moved: bool) -> None:
    """Raise `TrainingError` unless a run may go on with this field changed."""
    if name in FIELD_OF and moved:
        return  # whether the content is the same is looked at by its fingerprint
    mend = "put it back to go on, or train into another folder"
    if name in FIELD_OF:
        mend = f"if it is the same in another place, add --moved; else {mend}"
    if name == "train.steps" and isinstance(then, int) and isinstance(now, int):
        if step == then < now:
            return  # a finished run is made longer
        mend += "; a run can be made longer once it is finished"
    raise TrainingError(f"{name} was {then!r} when {path} was written and is {now!r} now; {mend}")


def _check_content(
    name: str, then: str, now: str, path: Path, values: Mapping[str, Any], old: Mapping[str, Any]
) -> None:
    """Raise `TrainingError` when a place holds something else than it did; what a checkpoint of an
    older version does not say is not compared, unless the place is another one."""
    compared = bool(then and now)
    if then == now if compared else values[name] == old.get(name):
        return
    why = "has other content than" if compared else "cannot be compared with what there was"
    raise TrainingError(
        f"{name} ({values[name]}) {why} when {path} was written; put it back to go on, or train "
        "into another folder"
    )


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
