"""Splits of a data set: train, validation and test, told apart by names of files and folders."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from abc_embed.errors import DataError

SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
"""What a split is called -> which it is, as on the Hugging Face hub."""


def split_of(name: str) -> str | None:
    """The split that a path names: `data/train-00000-of-00002.parquet` is of "train"."""
    for part in reversed(name.lower().split("/")):
        for word in re.split("[^a-z]+", part):
            if word in SPLITS:
                return SPLITS[word]
    return None


def files_of_split(folder: Path, files: Sequence[Path], split: str | None) -> list[Path]:
    """The files of a split; without one, all, which must then be of one split at most."""
    found = {path: split_of(path.relative_to(folder).as_posix()) for path in files}
    if split is None:
        check_one_split(folder, found.values())
        return list(files)
    chosen = [path for path in files if found[path] == SPLITS[split]]
    if not chosen:
        raise DataError(f"there is no {folder / split}, and no file of {folder} is of that split")
    return chosen


def check_one_split(folder: Path, splits: Iterable[str | None]) -> None:
    """Raises `DataError` where there are several: read as one, a test set would be trained on."""
    several = sorted({split for split in splits if split})
    if len(several) > 1:
        names = " or ".join(str(folder / split) for split in several)
        raise DataError(f"{folder} holds several splits, which are no one data set; give {names}")
