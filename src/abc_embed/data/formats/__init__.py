"""The forms in which a data set can lie on disk, all opened by `open_dataset`."""

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from abc_embed.data.dataset import Dataset
from abc_embed.data.formats.folder import FolderDataset
from abc_embed.data.formats.jsonl import JsonlDataset
from abc_embed.data.formats.memory import MemoryDataset
from abc_embed.data.formats.parquet import ParquetDataset
from abc_embed.data.formats.splits import SPLITS, files_of_split
from abc_embed.data.formats.webdataset import TarDataset
from abc_embed.data.image_files import has_images, visible_files
from abc_embed.data.published.dataset import PublishedDataset, find_layout
from abc_embed.data.published.layouts import LAYOUTS
from abc_embed.data.records import RECORDS_FILE
from abc_embed.errors import DataError

logger = logging.getLogger(__name__)

_RECORDS = (RECORDS_FILE, f"{RECORDS_FILE}.gz")
_KINDS = {
    ".jsonl": (".jsonl", ".jsonl.gz"),
    ".parquet": (".parquet",),
    ".tar": (".tar", ".tar.gz", ".tgz"),
}
"""How the files of a form end."""


def open_dataset(
    name: Any,
    columns: Mapping[str, str] | None = None,
    *,
    image_folder: str | os.PathLike[str] | None = None,
    log_notes: bool = True,
) -> Dataset:
    """The data set of a name, whichever form it has, or of rows that are in memory.

    A `.jsonl` file or a folder with `records.jsonl`; a `.parquet` file or a folder of them; a
    `.tar` file or a folder of them (webdataset); a folder of images with captions next to them;
    a published set, as `"abc-pretrain:FOLDER"` or as a folder that `abc-embed data index` made
    ready. `.jsonl` and `.tar` may be gzipped. Of a folder whose files are of several splits,
    `FOLDER/train` is one. `columns` says how our fields are called there (`{"caption": "text"}`),
    in all but the first and the last. `image_folder` is where the images of records and Parquet
    lie that name them by paths, in it or from it; None: the folder of the file. With `log_notes`,
    what is not read is logged.

    Besides names: a `datasets.Dataset` of Hugging Face, an iterable of `Record`s or of dicts whose
    columns are read like those of Parquet, and a `Dataset`, which is given back as it is.

    Raises:
        DataError: there is nothing of the kind, it cannot be read, or it is not indexed.
    """
    if isinstance(name, Dataset):
        return name
    if not isinstance(name, str | os.PathLike):
        return MemoryDataset(name, columns or {})
    text = os.fspath(name)
    layout, colon, folder = text.partition(":")
    if text in LAYOUTS:
        raise DataError(
            f"{text} is a name without a folder; give {text}:FOLDER, after: abc-embed data fetch "
            f"{text} --out FOLDER"
        )
    if colon and layout in LAYOUTS:
        return PublishedDataset(Path(folder), layout)
    dataset = _open(Path(text), columns or {}, None if not image_folder else Path(image_folder))
    if log_notes:
        for note in dataset.notes:
            logger.warning("%s: %s", note.place, note.why)
    return dataset


def _open(path: Path, columns: Mapping[str, str], images: Path | None) -> Dataset:
    split = None
    if not path.exists() and path.name in SPLITS and path.parent.is_dir():
        path, split = path.parent, path.name
    if not path.exists():
        raise DataError(f"there is no {path}; give a data set: a file or a folder")
    if path.is_file():
        files = [path]
    elif records := [p for name in _RECORDS if (p := path / name).is_file()]:
        files = records[:1]
    elif find_layout(path):
        return PublishedDataset(path)
    else:
        files = _files_of(path, split)
    kinds = {_kind(file.name) for file in files}
    if images is not None and not images.is_dir():
        raise DataError(f"there is no folder {images} for images; check the path")
    if kinds == {".jsonl"}:
        return JsonlDataset(files[0], images)
    if kinds == {".parquet"}:
        return ParquetDataset(path, files, columns, images)
    if images is not None:
        raise DataError(f"{path} is not records or Parquet, so its images lie in no other folder")
    if kinds == {".tar"}:
        return TarDataset(path, files, columns)
    if len(kinds) > 1:
        names = " and ".join(sorted(map(str, kinds)))
        raise DataError(f"{path} holds {names} files; give one of them, or a folder of one kind")
    if not files and has_images(path):
        return FolderDataset(path, columns)
    raise DataError(
        f"{path} is no data set; give a .jsonl, .parquet or .tar file, a folder with one of these, "
        "or a folder of images with captions"
    )


def _files_of(folder: Path, split: str | None) -> list[Path]:
    """The Parquet and tar files of a folder; of one with neither these nor images, those below."""
    tables = (".parquet", ".tar")
    files = sorted(p for p in folder.iterdir() if _kind(p.name) in tables and p.is_file())
    if not files and not has_images(folder):
        files = [p for p in visible_files(folder) if _kind(p.name) in tables]
    return files_of_split(folder, files, split) if files or split else []


def _kind(name: str) -> str | None:
    """The form that a file's name says, or None."""
    return next((kind for kind, ends in _KINDS.items() if name.lower().endswith(ends)), None)
