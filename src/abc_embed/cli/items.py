"""Arguments, folders and JSONL -> items with names: what `abc-embed embed` reads.

Every item has a name, so that its vector can be found again; what cannot be an item is an error in
its place.

A line of JSONL is a text (`"a dog"`), or one of

    {"text": "a dog"}
    {"image": "photo.jpg"}
    {"image": "photo.jpg", "instruction": "what is on the left?"}

each with an `"id"` if it has one; else the number of the line is its name.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from abc_embed.cli.output import print_message, printable
from abc_embed.data.image_files import find_images, visible_files
from abc_embed.errors import DataError, ImageNotFoundError, InputError
from abc_embed.inputs import Item
from abc_embed.storage.readers import BOM, load_json

FIELDS = ("id", "text", "image", "instruction")


@dataclass(frozen=True, slots=True)
class NamedItem:
    """An item and what it is called; or why there is none."""

    name: str
    item: Item | None
    error: InputError | DataError | None = None
    line: int | None = None
    """The line of JSONL it comes from, counted from 1."""

    @property
    def where(self) -> str:
        """What it is called in a message."""
        return printable(self.name) if self.line is None else f"line {self.line}"


def from_arguments(
    paths: Sequence[str], texts: Sequence[str], instruction: str | None
) -> list[NamedItem]:
    """Image files and folders, then texts; `instruction` goes with every image."""
    named: list[NamedItem] = []
    for path in paths:
        if Path(path).is_dir():
            named += _pictures(Path(path), instruction)
        else:
            named.append(_image(path, instruction))
    return [*named, *(_named_item(text, text=text) for text in texts)]


def _pictures(folder: Path, instruction: str | None) -> list[NamedItem]:
    """Those of a folder, and as errors the folders inside that cannot be read."""
    unreadable: dict[Path, ImageNotFoundError] = {}
    pictures = find_images(folder, required=True, on_unreadable=unreadable.__setitem__)
    if others := len(visible_files(folder)) - len(pictures):
        print_message(f"{folder}: {len(pictures)} images; {others} other files left out")
    bad = [NamedItem(valid_name(str(path)), None, error) for path, error in unreadable.items()]
    return [*bad, *(_image(str(picture), instruction) for picture in pictures)]


def _image(path: str, instruction: str | None) -> NamedItem:
    is_url = path[:5].lower() == "data:" or "://" in path
    name = path if not is_url else f"{path[:60]}..."
    if is_url or _exists(path):
        return _named_item(name, image=path, instruction=instruction)
    error = ImageNotFoundError(
        f"there is no file {path!r}; check the path (a text is given with --text)"
    )
    return NamedItem(valid_name(name), None, error)


def _exists(path: str) -> bool:
    try:
        return Path(path).exists()
    except (OSError, ValueError):  # a name too long, say: opening it will say so
        return True


def _named_item(name: str, line: int | None = None, **fields: str | None) -> NamedItem:
    try:
        return NamedItem(valid_name(name), Item(**fields), line=line)
    except InputError as error:
        return NamedItem(valid_name(name), None, error, line)


def valid_name(name: str) -> str:
    """A name that can be written to any file: broken Unicode, as in some file names, is escaped."""
    return name.encode("utf-8", "backslashreplace").decode()


def from_lines(lines: Iterable[bytes]) -> Iterator[NamedItem]:
    """JSONL in UTF-8, line by line as it comes; empty lines are passed over.

    A line without an id is called by its number; an id that is the number of such a line is an
    error, as is a line whose number was an id.
    """
    unnamed, ids = bytearray(), set[int]()
    for number, line in enumerate(lines, 1):
        if not line.removeprefix(BOM).strip():
            continue
        unnamed.extend(bytes(number + 1 - len(unnamed)))
        try:
            fields = _fields(line)
            name = fields.pop("id", None)
            if name is None:
                unnamed[number], name, twice = 1, str(number), number in ids
            else:
                as_number = int(name) if name.isdecimal() and len(name) < 20 else -1
                twice = 0 < as_number < number and bool(unnamed[as_number])
                if as_number > number:
                    ids.add(as_number)
            if twice:
                raise DataError(
                    f"the name {name!r} is that of another line too, as one of them has no id; "
                    "give each line an id"
                )
        except DataError as error:
            yield NamedItem(str(number), None, error, number)
            continue
        yield _named_item(name, number, **fields)


def _fields(line: bytes) -> dict[str, str]:
    try:
        value = load_json(line)
    except DataError as problem:
        raise DataError(f"this {problem}; give one JSON value per line") from None
    if isinstance(value, str):
        return {"text": value}
    if not isinstance(value, dict):
        raise DataError(
            'this is neither a text nor an object; give "a dog", or {"image": "photo.jpg"}'
        )
    if unknown := sorted(set(value) - set(FIELDS)):
        raise DataError(f"{unknown[0]!r} is not known; the fields are {', '.join(FIELDS)}")
    if isinstance(value.get("id"), int):
        value["id"] = str(value["id"])
    for key, inner in value.items():
        if inner is not None and not isinstance(inner, str):
            raise DataError(f"{key!r} is no text; give it in quotes")
    return {key: inner for key, inner in value.items() if inner is not None}
