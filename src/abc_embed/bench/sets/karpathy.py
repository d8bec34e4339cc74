"""MSCOCO and Flickr30K in Karpathy's split: `dataset_coco.json`, `dataset_flickr30k.json`, images.

Does: read the file, take the images of a split and the first five captions of each, find the image
files. Does not: embed. MSCOCO 5K has 25,000 captions by this rule, as the published figures do;
mteb's copy has 24,809, so that the two do not belong in one table.

Shapes: `I` images, `C` captions.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from abc_embed.errors import DataError

CAPTIONS = 5
"""Captions of an image that take part; some of MSCOCO have six or seven."""


@dataclass(frozen=True, slots=True)
class CaptionSet:
    """Images and captions, each of one image."""

    name: str
    images: tuple[Path, ...]
    """`I` files that are there."""
    image_ids: tuple[int, ...]
    """`(I,)`: COCO's number of an image, else its place in the file."""
    captions: tuple[str, ...]
    """`C` texts."""
    caption_ids: tuple[int, ...]
    """`(C,)`: COCO's number of a caption."""
    image_of: tuple[int, ...]
    """`(C,)`: which image a caption is of."""
    missing: tuple[str, ...]
    """Images of the split without a file; they and their captions take no part."""


def load_karpathy(file: Path, images: Path, *, split: str = "test") -> CaptionSet:
    """The images of a split; `images` is the folder that their paths start from.

    A path is `filepath/filename` (MSCOCO: `val2014/…`) or `filename` alone.

    Raises:
        DataError: the file is not of this kind, names no image of the split, or an entry lacks
            something.
    """
    entries = _entries(file, split)
    found: list[Path] = []
    ids: list[int] = []
    missing: list[str] = []
    captions: list[tuple[int, int, str]] = []
    for place, entry in entries:
        name, number, texts = _parse(file, place, entry)
        path = next((p for p in _places(images, entry, name) if p.is_file()), None)
        if path is None:
            missing.append(name)
            continue
        captions += [(len(found), its, text) for its, text in texts]
        found.append(path)
        ids.append(number)
    return CaptionSet(
        name=_name(file, len(entries)),
        images=tuple(found),
        image_ids=tuple(ids),
        captions=tuple(text for _, _, text in captions),
        caption_ids=tuple(number for _, number, _ in captions),
        image_of=tuple(image for image, _, _ in captions),
        missing=tuple(missing),
    )


def _entries(file: Path, split: str) -> list[tuple[int, dict[str, Any]]]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        entries = content["images"]
        chosen = [(n, entry) for n, entry in enumerate(entries) if entry["split"] == split]
    except FileNotFoundError:
        raise DataError(
            f"there is no {file}; give dataset_coco.json or dataset_flickr30k.json"
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as problem:
        raise DataError(
            f"{file} is no file of Karpathy's splits ({problem!r}); get it again"
        ) from None
    if not chosen:
        splits = ", ".join(sorted({str(entry["split"]) for entry in entries}))
        raise DataError(f"{file} has no image of the split {split!r}; it has {splits or 'none'}")
    return chosen


def _parse(file: Path, place: int, entry: dict[str, Any]) -> tuple[str, int, list[tuple[int, str]]]:
    """Name of the image, its number, and its captions with their numbers."""
    try:
        name = str(entry["filename"])
        texts = [
            (int(sentence["sentid"]), str(sentence["raw"]).strip())
            for sentence in entry["sentences"][:CAPTIONS]
        ]
        number = int(entry.get("cocoid", entry.get("imgid", place)))
    except (KeyError, TypeError, ValueError) as problem:
        raise DataError(
            f"{file}: images[{place}] lacks something ({problem!r}); get the file again"
        ) from None
    if not texts or not all(text for _, text in texts):
        raise DataError(f"{file}: images[{place}] has no caption, or an empty one; get it again")
    return name, number, texts


def _places(folder: Path, entry: dict[str, Any], name: str) -> tuple[Path, ...]:
    """Where the image may lie; never outside of the folder."""
    parts = [str(entry["filepath"]), name] if entry.get("filepath") else [name]
    if any(part.startswith(("/", "\\")) or ".." in Path(part).parts for part in parts):
        return ()
    return (folder.joinpath(*parts), folder / name)


def _name(file: Path, images: int) -> str:
    """ "coco-5k" of dataset_coco.json with 5,000 images."""
    stem = file.stem.removeprefix("dataset_")
    return f"{stem}-{images // 1000}k" if images and images % 1000 == 0 else f"{stem}-{images}"
