"""What a run learns from, by content: the model that it begins with, its records, its negatives.

A path says where something lies, not what it is. Checkpoints keep these names of contents, so that
a run which is taken up again after its base or its data were changed is refused instead of going on
with a mixture; and one whose data only moved can go on.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from abc_embed import hub
from abc_embed.errors import CheckpointError, DataError
from abc_embed.storage.hashing import sha256_file, sha256_json
from abc_embed.train.batches import GroupSampler
from abc_embed.train.config import TrainConfig


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """SHA-256 of each, in hex; empty for what is not known or not there."""

    base: str = ""
    """The files of `model.base`."""
    records: str = ""
    """What `data.records` says, and the images that lie in the same files."""
    negatives: str = ""
    """`data.negatives_file`."""


FIELD_OF = {"model.base": "base", "data.records": "records", "data.negatives_file": "negatives"}
"""The field of a configuration that names a place -> the part of a fingerprint that is there."""


def fingerprint_of(config: TrainConfig, sampler: GroupSampler) -> Fingerprint:
    """What a run with this configuration learns from; reads all weights once.

    A sampler of one's own may have a `fingerprint`, too.

    Raises:
        CheckpointError: a file of the model cannot be read; or as `hub.locate`.
        DataError: the negatives cannot be read.
    """
    path = config.data.negatives_file
    try:
        negatives = (
            _hash_files(Path(path), sorted(_files(Path(path), ("*.parquet",)))) if path else ""
        )
    except OSError as problem:
        raise DataError(f"{path} cannot be read: {problem.strerror}") from problem
    return Fingerprint(
        base=base_fingerprint(config.model.base),
        records=str(getattr(sampler, "fingerprint", "")),
        negatives=negatives,
    )


def is_embedder(base: str) -> bool:
    """Whether `base` names a model with a trained head: one of ours, or a published one."""
    known = base == hub.BUNDLED or base.partition("@")[0] in hub.PUBLISHED
    return known or (hub.model_folder(Path(base).expanduser()) / "abc.json").is_file()


def base_fingerprint(base: str) -> str:
    """The name of the files that make up a model, whatever its folder is called.

    Raises:
        CheckpointError: a file cannot be read; or as `hub.locate`.
    """
    parts: list[tuple[Path, tuple[str, ...]]] = []
    if is_embedder(base):
        recipe = hub.resolve(base)
        if isinstance(recipe, Path):
            parts = [(recipe, hub.BASE_FILES)]
        else:
            adapters = [name for name in (recipe.pretrain, recipe.instruct) if name is not None]
            wanted = [
                (recipe.base, hub.BASE_FILES),
                *((name, hub.ADAPTER_FILES) for name in adapters),
            ]
            parts = [(hub.locate(name, files)[0], files) for name, files in wanted]
    else:
        parts = [(hub.locate(base, hub.BASE_FILES)[0], hub.BASE_FILES)]
    try:
        return sha256_json([_hash_files(folder, _files(folder, names)) for folder, names in parts])
    except OSError as problem:
        raise CheckpointError(f"{problem.filename} cannot be read: {problem.strerror}") from problem


def _files(place: Path, patterns: tuple[str, ...]) -> Iterator[Path]:
    """The files of a folder, hidden ones left out; or the one file that it is."""
    if place.is_file():
        yield place
        return
    for folder, folders, names in os.walk(place):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if not name.startswith(".") and any(Path(name).match(pattern) for pattern in patterns):
                yield Path(folder, name)


def _hash_files(root: Path, files: Iterator[Path] | list[Path]) -> str:
    hashes = {os.path.relpath(path, root): sha256_file(path) for path in files}
    return sha256_json(hashes)
