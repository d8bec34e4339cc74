"""What a run learns from, by content: the model that it begins with, its records, its negatives.

A path says where something lies, not what it is. Checkpoints keep these names of contents, so that
a run which is taken up again after its base or its data were changed is refused instead of going on
with a mixture; and one whose data only moved can go on.
"""

from dataclasses import dataclass
from pathlib import Path

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
    path = config.data.negatives_file
    try:
        negatives = (
            hub.hash_files(Path(path), hub.files_of(Path(path), ("*.parquet",))) if path else ""
        )
    except OSError as problem:
        raise DataError(f"{path} cannot be read: {problem.strerror}") from problem
    return Fingerprint(
        base=hub.fingerprint(config.model.base),
        records=str(getattr(sampler, "fingerprint", "")),
        negatives=negatives,
    )
