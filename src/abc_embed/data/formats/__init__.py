"""The forms in which a data set can lie on disk, all opened by `open_dataset`."""

import os
from collections.abc import Mapping
from pathlib import Path

from abc_embed.data.dataset import Dataset
from abc_embed.data.formats.folder import FolderDataset, is_folder_of_images
from abc_embed.data.formats.jsonl import JsonlDataset
from abc_embed.data.formats.parquet import ParquetDataset
from abc_embed.data.formats.webdataset import TarDataset
from abc_embed.data.published.dataset import PublishedDataset, find_layout
from abc_embed.data.published.layouts import LAYOUTS
from abc_embed.data.records import RECORDS_FILE
from abc_embed.errors import DataError


def open_dataset(name: str | os.PathLike[str], columns: Mapping[str, str] | None = None) -> Dataset:
    """The data set of a name, whichever form it has.

    A `.jsonl` file or a folder with `records.jsonl`; a `.parquet` file or a folder of them; a
    `.tar` file or a folder of them (webdataset); a folder of images with captions next to them;
    a published set, as `"abc-pretrain:FOLDER"` or as a folder that `abc-embed data index` made
    ready. `columns` says how our fields are called there (`{"caption": "text"}`), in all but the
    first and the last.

    Raises:
        DataError: there is nothing of the kind, it cannot be read, or it is not indexed.
    """
    text, columns = os.fspath(name), columns or {}
    layout, colon, folder = text.partition(":")
    if text in LAYOUTS:
        raise DataError(
            f"{text} is a name without a folder; give {text}:FOLDER, after: abc-embed data fetch "
            f"{text} --out FOLDER"
        )
    if colon and layout in LAYOUTS:
        return PublishedDataset(Path(folder), layout)
    path = Path(text)
    if not path.exists():
        raise DataError(f"there is no {path}; give a data set: a file or a folder")
    if path.is_file():
        files = [path]
    elif (path / RECORDS_FILE).is_file():
        files = [path / RECORDS_FILE]
    elif find_layout(path):
        return PublishedDataset(path)
    else:
        files = sorted(p for p in path.iterdir() if p.suffix in (".parquet", ".tar"))
    kinds = {file.suffix for file in files}
    if kinds == {".jsonl"}:
        return JsonlDataset(files[0])
    if kinds == {".parquet"}:
        return ParquetDataset(path, files, columns)
    if kinds == {".tar"}:
        return TarDataset(path, files, columns)
    if not files and is_folder_of_images(path):
        return FolderDataset(path, columns)
    raise DataError(
        f"{path} is no data set; give a .jsonl, .parquet or .tar file, a folder with one of these, "
        "or a folder of images with captions"
    )
