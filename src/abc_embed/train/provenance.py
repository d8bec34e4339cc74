"""What a run learns from, by content, and what the trained model says of its making.

A path says where something lies, not what it is. Checkpoints keep these names of contents, so that
a run which is taken up again after its base or its data were changed is refused instead of going on
with a mixture; and one whose data only moved can go on.
"""

from dataclasses import asdict, dataclass
from pathlib import Path, PurePath
from typing import Any

from abc_embed import hub
from abc_embed.errors import DataError
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


FIELD_OF = {
    "model.base": "base",
    "data.records": "records",
    "data.image_folder": "records",
    "data.negatives_file": "negatives",
}
"""The field of a configuration that names a place -> the part of a fingerprint that is there."""


def fingerprint_of(config: TrainConfig, sampler: GroupSampler) -> Fingerprint:
    """What a run with this configuration learns from; reads all weights once.

    A sampler of one's own may have a `fingerprint`, too.

    Raises:
        CheckpointError: a file of the model cannot be read; or as `hub.locate`.
        DataError: the negatives cannot be read.
    """
    negatives = ""
    if config.data.negatives_file:
        path = Path(config.data.negatives_file)
        try:
            negatives = hub.hash_files(path, hub.files_of(path, ("*.parquet",)))
        except OSError as problem:
            raise DataError(f"{path} cannot be read: {problem.strerror}") from problem
    return Fingerprint(
        base=hub.fingerprint(config.model.base),
        records=str(getattr(sampler, "fingerprint", "")),
        negatives=negatives,
    )


def provenance(config: TrainConfig, fingerprint: Fingerprint, steps: int) -> dict[str, Any]:
    """One run of so many steps, as JSON values: for `abc.json`, the card, and from there every
    record. Paths of one machine are cut to their last part."""
    return {
        "stage": config.stage,
        "steps": steps,
        "parent": _name(config.model.base),
        "parent_fingerprint": fingerprint.base,
        "records": _name(config.data.records),
        "records_fingerprint": fingerprint.records,
        "recipe": _without_paths(asdict(config)),
    }


def _name(place: str) -> str:
    """A place as people call it: of what lies in a run's folder the run."""
    path = PurePath(place)
    inner = path.name == "model" and path.parent.name and place != hub.BUNDLED
    return path.parent.name if inner else path.name if path.is_absolute() else place


def _without_paths(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_paths(inner) for key, inner in value.items()}
    if isinstance(value, tuple):
        return list(value)
    is_path = isinstance(value, str) and PurePath(value).is_absolute()
    return PurePath(value).name if is_path else value
