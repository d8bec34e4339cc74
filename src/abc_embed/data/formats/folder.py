"""A folder of images with captions: in one file of captions, or in a text file next to each image.

Does: find the captions, whichever way they lie there, and give a row per image. Does not: go
without a word over a caption whose image is missing; it is a row too, which cannot be used.

Looked for in this order: `metadata.jsonl`, `captions.jsonl` (an object per line), `metadata.csv`,
`captions.csv` (with a head), `captions.tsv`, `captions.txt` (image, tab, caption); else `a.txt`
next to `a.jpg`.
"""

import csv
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from abc_embed.data.dataset import ALIASES, Dataset, Row, record_from_columns
from abc_embed.data.image_files import find_images
from abc_embed.errors import DataError

CAPTION_FILES = (
    *("metadata.jsonl", "captions.jsonl", "metadata.csv", "captions.csv"),
    *("captions.tsv", "captions.txt"),
)


def is_folder_of_images(path: Path) -> bool:
    """Whether there is any image below the folder."""
    return path.is_dir() and bool(find_images(path).files)


class FolderDataset(Dataset):
    """A row per image, by name, then one for each caption without an image.

    Names and captions are held in memory, images are not.
    """

    form = "folder"

    def __init__(self, path: Path, columns: Mapping[str, str]) -> None:
        """Raises `DataError` for a file of captions that cannot be read."""
        self.path, self._columns = path, dict(columns)
        names = [str(image.relative_to(path).as_posix()) for image in find_images(path).files]
        self._said: dict[str, tuple[str, dict[str, Any]]] = {}
        found = next((name for name in CAPTION_FILES if (path / name).is_file()), None)
        if found is not None:
            for place, name, values in _captions(path / found, columns):
                self._said[name] = (place, values)
        self._beside = found is None
        self._names = [*names, *(name for name in self._said if name not in set(names))]

    def __len__(self) -> int:
        return len(self._names)

    def place(self, number: int) -> str:
        name = self._names[number]
        return self._said[name][0] if name in self._said else str(self.path / name)

    def row(self, number: int) -> Row:
        name = self._names[number]
        values = self._said[name][1] if name in self._said else self._text_beside(name)
        path = self.path / name
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise DataError(f"the image {name!r} lies outside the folder; move it inside")
        return Row(
            self.place(number),
            record_from_columns({"id": name} | values, path, name, number, self._columns),
            path,
        )

    def _text_beside(self, name: str) -> dict[str, Any]:
        path = (self.path / name).with_suffix(".txt")
        if not self._beside or not path.is_file():
            return {}
        try:
            return {"caption": path.read_text(encoding="utf-8").strip() or None}
        except (OSError, UnicodeDecodeError) as problem:
            raise DataError(f"{path} cannot be read ({problem}); save it as UTF-8") from None


def _captions(path: Path, columns: Mapping[str, str]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """`(place, image, values)` of each line."""
    wanted = (columns["image"],) if "image" in columns else ALIASES["image"]
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            for number, values in _lines(file, path):
                image = next((values[name] for name in wanted if values.get(name)), None)
                if not isinstance(image, str):
                    raise DataError(
                        f"{path}:{number}: no column names the image; call it {wanted[0]!r}"
                    )
                rest = {k: v for k, v in values.items() if k not in wanted and v not in ("", None)}
                yield f"{path}:{number}", image.replace("\\", "/"), rest
    except (OSError, UnicodeDecodeError, csv.Error) as problem:
        raise DataError(f"{path} cannot be read ({problem}); save it as UTF-8") from None


def _lines(file: Any, path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    if path.suffix == ".csv":
        reader = csv.DictReader(file)
        for row in reader:
            yield reader.line_num, {k: v for k, v in row.items() if k is not None}
        return
    for number, line in enumerate(file, start=1):
        if not line.strip():
            continue
        if path.suffix == ".jsonl":
            try:
                values = json.loads(line)
            except ValueError:
                values = None
            if not isinstance(values, dict):
                raise DataError(f"{path}:{number}: the line is no JSON object; mend it")
            yield number, values
        else:
            image, tab, caption = line.rstrip("\r\n").partition("\t")
            if not tab:
                raise DataError(f"{path}:{number}: no tab between image and caption; put one there")
            yield number, {"image": image.strip(), "caption": caption.strip()}
