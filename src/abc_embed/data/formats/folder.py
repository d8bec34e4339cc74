"""A folder of images with captions: in files of captions, or in a text file next to each image.

A file of captions is looked for in each folder, in this order: `metadata.jsonl`, `captions.jsonl`
(an object per line), `metadata.csv`, `captions.csv` (with a head), `captions.tsv`, `captions.txt`
(image, tab, caption; or a CSV all the same); it speaks of the images below its folder. Where there
is none, `a.txt` next to `a.jpg` does. An image may have several lines, which are its captions. A
caption whose image is missing is a row too, which cannot be used.
"""

import csv
import itertools
import re
import unicodedata
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from abc_embed.data.columns import ALIASES, ColumnDataset, names_of
from abc_embed.data.dataset import Rejected, Row
from abc_embed.data.formats.splits import check_one_split, split_of
from abc_embed.data.image_files import ImageRoot, visible_files
from abc_embed.errors import DataError
from abc_embed.inputs import IMAGE_SUFFIXES
from abc_embed.storage.files import open_file, read_file
from abc_embed.storage.readers import decode_text, load_json, read_lines, reader_errors

CAPTION_FILES = (
    *("metadata.jsonl", "captions.jsonl", "metadata.csv", "captions.csv"),
    *("captions.tsv", "captions.txt"),
)
_LINES_OF_A_ROW = 100  # of a CSV: no caption has so many; a quote was not closed
_ESCAPED = re.compile("[\udc80-\udcff]")  # bytes that are no UTF-8, as Python keeps them


@dataclass(slots=True)
class _Lines:
    """What a file of captions says of one image."""

    place: str
    """Of the first line."""
    values: list[dict[str, Any]] = field(default_factory=list)
    """The columns of each line."""


class FolderDataset(ColumnDataset):
    """A row per image, by name, then one for each caption without an image.

    Names and captions are held in memory, images are not.
    """

    form = "folder"

    def __init__(self, path: Path, columns: Mapping[str, str]) -> None:
        """Raises `DataError` for a file of captions that cannot be read, or several splits."""
        self.path, self.columns = path, dict(columns)
        self._root = ImageRoot(path)
        unreadable: list[OSError] = []
        links: list[Path] = []
        files = visible_files(path, unreadable.append, links.append)
        self.notes: list[Rejected] = [
            Rejected(str(p), "a linked folder, which is not entered") for p in links
        ]
        names = [p.relative_to(path).as_posix() for p in files]
        images = [name for name in names if PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES]
        check_one_split(path, (split_of(n.partition("/")[0]) for n in images if "/" in n))
        lost = [
            Rejected(str(p.filename), f"the folder cannot be read ({p.strerror})")
            for p in unreadable
        ]
        known = set(images)
        self._by_form = {unicodedata.normalize("NFC", name): name for name in images}
        self._captions: dict[str, _Lines] = {}
        there: dict[str, list[str]] = {}
        """Folders whose images a file of captions speaks of, and these files."""
        for folder, _, file in (name.rpartition("/") for name in names):
            if file in CAPTION_FILES:
                there.setdefault(folder, []).append(file)
        self._caption_files = self._choose_captions(there)
        for file in self._caption_files:
            lost += self._read(path / file, known)
        self._texts = self._find_texts(names, images, there)
        self._names = [*images, *(name for name in self._captions if name not in known)]
        self.faults = dict(enumerate(lost, start=len(self._names)))

    def __len__(self) -> int:
        return len(self._names) + len(self.faults)

    def files(self) -> Sequence[Path]:
        return [self.path / name for name in (*self._caption_files, *sorted(self._texts))]

    def _place(self, number: int) -> str:
        name = self._names[number]
        return self._captions[name].place if name in self._captions else str(self.path / name)

    def _row(self, number: int) -> Row:
        name = self._names[number]
        lines = self._captions.get(name)
        _, path = self._root.find(name)
        with reader_errors("the row", "mend it, or leave it out"):
            values = self._text_beside(name) if lines is None else self._merge(lines.values)
        if "id" not in values and "id" not in self.columns:
            values = {"id": name} | values
        return self._row_of(number, values, path, name)

    # -- what lies there ---------------------------------------------------------------------------

    def _choose_captions(self, there: Mapping[str, Sequence[str]]) -> list[str]:
        """The file of captions of each folder; others there are noted."""
        found = []
        for folder, files in there.items():
            first, *others = sorted(files, key=CAPTION_FILES.index)
            found.append(f"{folder}/{first}" if folder else first)
            for other in others:
                self.notes.append(
                    Rejected(str(self.path / folder / other), f"is not read, as {first} is there")
                )
        return found

    def _find_texts(
        self, names: Sequence[str], images: Sequence[str], governed: Container[str]
    ) -> set[str]:
        """The texts next to images that no file of captions speaks of; what else lies there is
        noted: texts that are not read, and those without an image."""
        stems = {name.rpartition(".")[0] for name in images}
        texts: set[str] = set()
        left: dict[str, list[str]] = {}
        captions = set(self._caption_files)
        for name in names:
            if not name.endswith(".txt") or name in captions or name.endswith("/captions.txt"):
                continue
            folders = ("", *map(str, PurePosixPath(name).parents))
            if any(folder in governed for folder in folders):
                why = "texts are not read, as a file of captions is there"
                left.setdefault(why, []).append(name)
            elif name.removesuffix(".txt") in stems:
                texts.add(name)
            elif name != "captions.txt":
                left.setdefault("texts have no image next to them", []).append(name)
        for why, which in left.items():
            self.notes.append(
                Rejected(str(self.path), f"{len(which):,} {why} (the first: {which[0]!r})")
            )
        return texts

    def _text_beside(self, image: str) -> dict[str, Any]:
        name = f"{image.rpartition('.')[0]}.txt"
        if name not in self._texts:
            return {}
        path = self.path / name
        self._root.check_link(path)
        with reader_errors(str(path), "save it as UTF-8"):
            return {"caption": decode_text(read_file(path)).strip() or None}

    # -- captions ----------------------------------------------------------------------------------

    def _read(self, file: Path, known: set[str]) -> Iterator[Rejected]:
        """Keep the lines of a file of captions by the image that each is about; yields the rest."""
        self._root.check_link(file)
        base = file.parent.relative_to(self.path).as_posix()
        wanted = names_of("image", self.columns)
        for number, values in _read_lines(file):
            place = f"{file}:{number}"
            if isinstance(values, str):
                yield Rejected(place, values)
                continue
            column = next((name for name in wanted if values.get(name)), None)
            image = values.pop(column) if column else None
            if not isinstance(image, str):
                raise DataError(f"{place}: no column names the image; call it {wanted[0]!r}")
            try:
                name = self._name(image, base, known)
            except DataError as wrong:
                yield Rejected(place, str(wrong))
                continue
            lines = self._captions.setdefault(name, _Lines(place))
            lines.values.append({k: v for k, v in values.items() if v not in ("", None)})

    def _name(self, image: str, base: str, known: set[str]) -> str:
        """The image's path from the folder of the data set."""
        if base == "." or image.startswith("/"):
            name = self._root.plain_name(image)
        else:
            name = f"{base}/{ImageRoot(self.path / base).plain_name(image)}"
        if name in known:
            return name
        return self._by_form.get(unicodedata.normalize("NFC", name), name)

    def _merge(self, lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """The lines about one image as one row: their captions as a list. Another column that
        differs is a list too, and goes into meta; the image's name is the id where ids differ.

        Raises:
            DataError: lines differ in what an image has one of, such as its width.
        """
        if len(lines) == 1:
            return lines[0]
        wanted = names_of("caption", self.columns)
        captions: list[Any] = []
        merged: dict[str, Any] = {}
        for name in dict.fromkeys(name for line in lines for name in line):
            values = [line.get(name) for line in lines]
            if all(value == values[0] for value in values) and name not in wanted:
                merged[name] = values[0]
            elif name == self.columns.get("id", "id") or name in ("key", "caption_id"):
                merged[f"{name}s"] = values
            elif name in ("width", "height", "regions", "instructions", "negatives", "meta"):
                raise DataError(f"its {len(lines)} lines differ in {name}; give it one value")
            elif name not in wanted:
                merged[name] = values
        for line in lines:
            column = next((name for name in wanted if line.get(name)), None)
            if column is not None:
                said = line[column]
                captions += said if isinstance(said, list) else [said]
                merged |= {k: line[k] for k in wanted if k in line and k != column}
        return {**merged, "captions": captions} if captions else merged


Line = tuple[int, dict[str, Any] | str]
"""Number of a line, and its columns; or why it cannot be read."""


def _read_lines(path: Path) -> Iterator[Line]:
    """The lines of a file of captions; `DataError` where it cannot be read on."""
    with reader_errors(str(path), "save it as UTF-8"), open_file(path) as file:
        numbered = ((number, line) for number, _, line in read_lines(file, path))
        first = next(numbered, None)
        if first is None:
            return
        lines = itertools.chain([first], numbered)
        if path.suffix == ".csv" or (path.suffix == ".txt" and _is_csv_head(first[1])):
            yield from _read_csv(path, (line for _, line in lines))
        elif path.suffix == ".jsonl":
            yield from ((number, _object(line)) for number, line in lines)
        else:
            yield from ((number, _image_and_caption(line)) for number, line in lines)


def _object(line: bytes) -> dict[str, Any] | str:
    try:
        values = load_json(line)
    except DataError as problem:
        return f"the line {problem}; mend it"
    return values if isinstance(values, dict) else "the line is no JSON object; mend it"


def _image_and_caption(line: bytes) -> dict[str, Any] | str:
    try:
        image, tab, caption = decode_text(line).partition("\t")
    except UnicodeDecodeError:
        return "the line is not UTF-8; save the file as UTF-8"
    if not tab:
        return "no tab between image and caption; put one there"
    return {"image": image.strip(), "caption": caption.strip()}


def _is_csv_head(line: bytes) -> bool:
    """Whether a first line names columns, one of them an image's, as in Flickr8k's captions.txt."""
    names = {name.strip().strip('"') for name in line.decode(errors="replace").split(",")}
    return b"\t" not in line and len(names) > 1 and not names.isdisjoint(ALIASES["image"])


def _read_csv(path: Path, lines: Iterable[bytes]) -> Iterator[Line]:
    """Rows under the names of the first; a cell that is not UTF-8 costs its row."""
    reader = csv.reader(line.decode(errors="surrogateescape") for line in lines)
    names = [name.strip() for name in next(reader)]
    names[0] = names[0].removeprefix("\ufeff")
    if len(set(names)) < len(names):
        raise DataError(f"{path}: two columns have one name; rename one of them")
    before = reader.line_num
    for row in reader:
        number, before = before + 1, reader.line_num
        if before - number > _LINES_OF_A_ROW:
            raise DataError(
                f"{path}:{number}: a quote opens here and is not closed for {before - number:,} "
                "lines; close it"
            )
        if len(row) > len(names):
            yield (
                number,
                f"the line has {len(row)} cells and the head {len(names)}; put a text with commas "
                "into quotes",
            )
        elif any(not cell.isascii() and _ESCAPED.search(cell) for cell in row):
            yield number, "the line is not UTF-8; save the file as UTF-8"
        elif row:
            yield number, dict(zip(names, row, strict=False))
