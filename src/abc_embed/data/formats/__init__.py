"""Data sets in four forms, read alike: records, Parquet, webdataset tars, a folder with captions.

Does: tell by what lies at a path which form it has, and open it. Reading order: rows (what every
form gives), jsonl, parquet, webdataset, folder (one file per form), convert and check (what is done
with any of them). Does not: hold a data set in memory; rows are read when they are asked for.
"""

import os
from collections.abc import Mapping
from pathlib import Path

from abc_embed.data.formats.folder import FolderSet, is_folder_of_images
from abc_embed.data.formats.jsonl import JsonlSet
from abc_embed.data.formats.parquet import ParquetSet
from abc_embed.data.formats.rows import RecordSet, Rejected, Row, each_row
from abc_embed.data.formats.webdataset import TarSet
from abc_embed.data.records import RECORDS_FILE
from abc_embed.errors import DataError

__all__ = ["RecordSet", "Rejected", "Row", "each_row", "open_records"]


def open_records(
    path: str | os.PathLike[str], columns: Mapping[str, str] | None = None
) -> RecordSet:
    """The data set at a path, whichever form it has.

    A `.jsonl` file or a folder with `records.jsonl`; a `.parquet` file or a folder of them; a
    `.tar` file or a folder of them (webdataset); a folder of images with captions next to them.
    `columns` says how our fields are called there (`{"caption": "text"}`), in the last three.

    Raises:
        DataError: there is nothing of the kind, or it cannot be read.
    """
    path, columns = Path(path), columns or {}
    if not path.exists():
        raise DataError(f"there is no {path}; give a data set: a file or a folder")
    if path.is_file():
        inside = [path]
    elif (path / RECORDS_FILE).is_file():
        inside = [path / RECORDS_FILE]
    else:
        inside = sorted(p for p in path.iterdir() if p.suffix in (".parquet", ".tar"))
    kinds = {file.suffix for file in inside}
    if kinds == {".jsonl"}:
        return JsonlSet(inside[0])
    if kinds == {".parquet"}:
        return ParquetSet(inside, columns)
    if kinds == {".tar"}:
        return TarSet(inside, columns)
    if not inside and is_folder_of_images(path):
        return FolderSet(path, columns)
    raise DataError(
        f"{path} is no data set; give a .jsonl, .parquet or .tar file, a folder with one of these, "
        "or a folder of images with captions"
    )
