"""A folder of images with captions: in one file of captions, or in a text file next to each image.

Looked for in this order: `metadata.jsonl`, `captions.jsonl` (an object per line), `metadata.csv`,
`captions.csv` (with a head), `captions.tsv`, `captions.txt` (image, tab, caption); else `a.txt`
next to `a.jpg`. A caption whose image is missing is a row too, which cannot be used.
"""

import csv
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from abc_embed.data.dataset import ALIASES, Dataset, Row, record_from_columns
from abc_embed.data.fields import stays_inside
from abc_embed.data.image_files import find_images, has_images
from abc_embed.errors import DataError

CAPTION_FILES = (
    *("metadata.jsonl", "captions.jsonl", "metadata.csv", "captions.csv"),
    *("captions.tsv", "captions.txt"),
)


def is_folder_of_images(path: Path) -> bool:
    """Whether there is any image below the folder."""
    return path.is_dir() and has_images(path)


class FolderDataset(Dataset):
    """A row per image, by name, then one for each caption without an image.

    Names and captions are held in memory, images are not.
    """

    form = "folder"

    def __init__(self, path: Path, columns: Mapping[str, str]) -> None:
        """Raises `DataError` for a file of captions that cannot be read."""
        self.path, self._columns = path, dict(columns)
        names = [image.relative_to(path).as_posix() for image in find_images(path)]
        captions = next((path / name for name in CAPTION_FILES if (path / name).is_file()), None)
        self._captions: dict[str, tuple[str, dict[str, Any]]] = {}
        """Image -> place and values of its line."""
        if captions is not None:
            self._captions = dict(_read_captions(captions, columns))
        self._texts_beside = captions is None
        known = set(names)
        self._names = [*names, *(name for name in self._captions if name not in known)]

    def __len__(self) -> int:
        return len(self._names)

    def place(self, number: int) -> str:
        name = self._names[number]
        return self._captions[name][0] if name in self._captions else str(self.path / name)

    def row(self, number: int) -> Row:
        name = self._names[number]
        path = self.path / name
        values = self._captions[name][1] if name in self._captions else self._text_beside(path)
        if not stays_inside(name):
            raise DataError(f"the image {name!r} lies outside the folder; move it inside")
        record = record_from_columns({"id": name} | values, path, name, number, self._columns)
        return Row(self.place(number), record, path)

    def _text_beside(self, image: Path) -> dict[str, Any]:
        path = image.with_suffix(".txt")
        if not self._texts_beside or not path.is_file():
            return {}
        try:
            return {"caption": path.read_text(encoding="utf-8").strip() or None}
        except (OSError, UnicodeDecodeError) as problem:
            raise DataError(f"{path} cannot be read ({problem}); save it as UTF-8") from None


def _read_captions(
    path: Path, columns: Mapping[str, str]
) -> Iterator[tuple[str, tuple[str, dict[str, Any]]]]:
    """The image of each line, with the line's place and values."""
    wanted = (columns["image"],) if "image" in columns else ALIASES["image"]
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            for number, values in _read_lines(file, path):
                image = next((values[name] for name in wanted if values.get(name)), None)
                if not isinstance(image, str):
                    raise DataError(
                        f"{path}:{number}: no column names the image; call it {wanted[0]!r}"
                    )
                rest = {k: v for k, v in values.items() if k not in wanted and v not in ("", None)}
                yield image.replace("\\", "/"), (f"{path}:{number}", rest)
    except (OSError, UnicodeDecodeError, csv.Error) as problem:
        raise DataError(f"{path} cannot be read ({problem}); save it as UTF-8") from None


def _read_lines(file: Iterable[str], path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
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
