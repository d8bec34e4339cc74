"""A TOML file in, a trained model in a folder out: what `abc-embed train` calls.

What can be wrong is found before a model is loaded; the training itself is in `loop`.
"""

import logging
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from abc_embed import checkpoint, hub
from abc_embed.adapters import detach
from abc_embed.data import Dataset, open_dataset
from abc_embed.errors import ConfigError, OutputError
from abc_embed.model import AbcModel
from abc_embed.processor import Processor
from abc_embed.train.batches import GroupSampler
from abc_embed.train.checkpoints import LOCK_FILE, find_resumable, lock_run, read_state
from abc_embed.train.config import TrainConfig, load_config
from abc_embed.train.loop import autocast_dtype, run_stage
from abc_embed.train.metrics_logger import check_tracker
from abc_embed.train.provenance import fingerprint_of
from abc_embed.train.sampler import RecordSampler
from abc_embed.train.validation import Overlap, ValidationSet, read_validation

logger = logging.getLogger(__name__)


def train_from_config(
    path: str | Path,
    overrides: Sequence[str] = (),
    *,
    resume: bool = True,
    moved: bool = False,
    sampler: GroupSampler | None = None,
) -> Path:
    """Run what a TOML file says, as `train`; a `sampler` stands in for `data.records`."""
    config = read_run_config(path, overrides, needs_records=sampler is None)
    return _train(config, sampler, resume, moved)


def train(
    config: TrainConfig,
    dataset: Any = None,
    *,
    columns: Mapping[str, str] | None = None,
    resume: bool = True,
    moved: bool = False,
) -> Path:
    """Run a configuration on data that are in memory; called again, a broken run goes on.

    Args:
        config: As `load_config` reads it, or made in Python.
        dataset: What `data.open_dataset` takes: a `datasets.Dataset`, an iterable of `Record`s or
            of dicts with image, caption, or instruction and answer. None: `config.data.records`.
        columns: How our fields are called there, as `{"answer": "label"}`.
        resume: False refuses a folder that holds a run.
        moved: The base, the records or the negatives of a broken run lie somewhere else now.

    Returns:
        The folder of the trained model, ready for `Embedder.from_pretrained`.

    Raises:
        ConfigError: before anything is loaded.
        AbcError: as `run_stage`.
    """
    if dataset is not None and config.data.records:
        raise ConfigError(
            f"data.records is {config.data.records!r} and a data set is given besides; give one"
        )
    check_complete(config, "the configuration", needs_records=dataset is None)
    rows = None if dataset is None else open_dataset(dataset, columns)
    return _train(config, None, resume, moved, rows)


def _train(
    config: TrainConfig,
    sampler: GroupSampler | None,
    resume: bool,
    moved: bool,
    dataset: Dataset | None = None,
) -> Path:
    check_tracker(config)
    with ExitStack() as stack:
        last = check_folder(config, resume, moved)
        is_begun = last or (Path(config.out) / LOCK_FILE).exists()  # another run, maybe, by now
        if is_begun and os.environ.get("RANK", "0") == "0":  # of several processes, one writes
            stack.callback(lock_run(Path(config.out)).release)
        validation = None
        if config.validation.records:
            validation = read_validation(config.validation, config.stage)
        if sampler is None:
            sampler = _record_sampler(config, validation, dataset)
        fingerprint = fingerprint_of(config, sampler)
        if last:
            read_state(last, config, fingerprint, moved=moved)
        model, processor = load_for_training(config)
        run_stage(
            *(config, sampler, model, processor, config.out),
            resume=resume,
            fingerprint=fingerprint,
            moved=moved,
            validation=validation,
        )
    return Path(config.out) / "model"


def _record_sampler(
    config: TrainConfig, validation: ValidationSet | None, dataset: Dataset | None
) -> RecordSampler:
    """The records of a run, which must not show what it is validated with."""
    records = config.data.records if dataset is None else dataset
    if validation is None or config.validation.allow_overlap:
        return RecordSampler(records, config.stage, config.data)
    overlap = Overlap(validation)
    sampler = RecordSampler(records, config.stage, config.data, overlap.look)
    overlap.check()
    return sampler


def read_run_config(
    path: str | Path, overrides: Sequence[str] = (), *, needs_records: bool = True
) -> TrainConfig:
    """The configuration of a run that can start, by `load_config` and `check_complete`."""
    config = load_config(path, overrides)
    check_complete(config, str(path), needs_records)
    return config


def check_complete(config: TrainConfig, where: str, needs_records: bool = True) -> None:
    """Raise `ConfigError` where a run would not know what, on what or where."""
    needed = [("out", config.out), ("model.base", config.model.base)]
    needed += [("data.records", config.data.records)] if needs_records else []
    for name, value in needed:
        if not value:
            raise ConfigError(f"{name} is missing; give it a value ({where})")
    if config.stage == "instruct" and not hub.is_embedder(config.model.base):
        raise ConfigError(
            f"model.base is {config.model.base!r}; stage 2 needs a model that has passed stage 1, "
            f"like the folder that stage 1 saved ({where})"
        )


def check_folder(config: TrainConfig, resume: bool, moved: bool = False) -> Path | None:
    """The checkpoint that a run would go on from, if any; looked for before a model is loaded.

    Raises:
        OutputError: its folder cannot be written.
        TrainingError: the run in it cannot go on with this configuration, or must not.
    """
    out = Path(config.out)
    nearest = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        why = "may not be written" if nearest.is_dir() else "is a file"
        raise OutputError(f"cannot make the folder {out}: {nearest} {why}; choose another folder")
    last = find_resumable(out, resume)
    if last:
        read_state(last, config, moved=moved)
    return last


def load_for_training(config: TrainConfig) -> tuple[AbcModel, Processor]:
    """The model that a run begins with; stage 1 begins without a stage-2 adapter.

    The frozen weights are in the number format of training: half the memory in bfloat16.
    """
    settings = config.model
    dtype = autocast_dtype(settings) or torch.float32
    if hub.is_embedder(settings.base):
        model, processor = checkpoint.load(settings.base, dtype=dtype, attn=settings.attention)
    else:
        model, processor = checkpoint.load_base(
            settings.base,
            pixels=(settings.pixels[0] or None, settings.pixels[1] or None),
            head_width=settings.head_width,
            dtype=dtype,
            attn=settings.attention,
        )
    processor.truncate = config.data.truncate
    if model.has_instruct_adapter and config.stage == "instruct":
        logger.info("stage 2 goes on with the stage-2 adapter of %s", settings.base)
    elif model.has_instruct_adapter:
        logger.warning(
            "the stage-2 adapter of %s is left out: it belongs to the weights that stage 1 changes",
            settings.base,
        )
        detach(model)
    return model, processor
