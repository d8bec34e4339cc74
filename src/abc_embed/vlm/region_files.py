"""Regions with captions, from the files that have them -> records without instructions.

Does: read Visual Genome's own files, those of ADE20K, COCO-style boxes with captions, and our
records, in bounded memory: one image at a time, from files of any size. Rows that cannot be used
are handed to `bad` and the others go on. Does not: choose among regions (regions.py), or open
images.

    Visual Genome  region_descriptions.json  [{"id", "regions": [{"region_id", "phrase", "x", "y",
                                               "width", "height"}, …]}, …]
                   image_data.json           [{"image_id", "width", "height", "url"}, …]
    COCO style     {"images": [{"id", "file_name", "width", "height"}, …],
                    "annotations": [{"id", "image_id", "bbox": [x, y, w, h], "caption"}, …]}
                   instead of `caption`, `phrase` or `description` will do
    ADE20K         ADE_train_00000001.json beside ADE_train_00000001.jpg, in folders of any depth:
                   {"annotation": {"imsize": [height, width, 3], "object": [{"id", "name",
                    "raw_name", "parts": {"part_level"}, "polygon": {"x": […], "y": […]}}, …]}}
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from abc_embed.data.json_stream import stream_json
from abc_embed.data.records import RECORDS_FILE, Record, Region, parse_line
from abc_embed.errors import DataError, UsageError
from abc_embed.vlm.replies import Reason

VG_REGIONS = "region_descriptions.json"
VG_IMAGES = "image_data.json"
ADE_FILES = "ADE_*_*.json"
_PHRASES = ("caption", "phrase", "description")
_SMALLEST = 1.0  # pixels that a cut box must keep


@dataclass(frozen=True, slots=True, kw_only=True)
class Reject:
    """Something that was left out: where it stands, why, and what there was of it."""

    where: str
    reason: Reason
    detail: str = ""
    image: str = ""
    phrase: str = ""
    reply: str = ""


Bad = Callable[[Reject], None]


def are_records(source: Path) -> bool:
    """Whether `read_regions` takes it for our own records."""
    if source.is_dir():
        return not (source / VG_REGIONS).is_file() and not _is_ade20k(source)
    return source.suffix == ".jsonl"


def read_regions(
    source: str | os.PathLike[str],
    root: str | os.PathLike[str],
    bad: Bad,
    images: str | os.PathLike[str] | None = None,
) -> Iterator[Record]:
    """Records with regions from `source`, whose images are named from the folder `root`.

    `source` is a folder with Visual Genome's two files (or the first of them), a folder of ADE20K,
    a JSON file in COCO style, or a records file or its folder. `images` is where the images of
    Visual Genome and of COCO style lie; by default, next to the file. Nothing is read before the
    first record is asked for.

    Raises:
        UsageError: `root` is not above the images.
        DataError: a file is not there, is damaged, or is of no known form.
    """
    source, root = Path(source), Path(root)
    if are_records(source):
        path = source / RECORDS_FILE if source.is_dir() else source
        return _own(path, _below(root, path.parent), bad)
    if _is_ade20k(source):
        return _ade20k(source, _below(root, source), bad)
    if source.is_dir():
        source = source / VG_REGIONS
    if not source.is_file():
        raise DataError(
            f"there is no {source}; give {VG_REGIONS}, a JSON file in COCO style, or records"
        )
    folder = source.parent if images is None else Path(images)
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder}; give the one that holds the images")
    prefix = _below(root, folder)
    if source.name.startswith("region_descriptions"):
        return _visual_genome(source, folder, prefix, bad)
    return _coco(source, folder, prefix, bad)


def _below(root: Path, folder: Path) -> PurePosixPath:
    try:
        return PurePosixPath(folder.resolve().relative_to(root.resolve()).as_posix())
    except ValueError:
        raise UsageError(
            f"{root} is not above {folder}; write the records into the folder of the images or one "
            "above it, since the paths of images start there"
        ) from None


# -- our own records -------------------------------------------------------------------------------


def _own(path: Path, prefix: PurePosixPath, bad: Bad) -> Iterator[Record]:
    """The good lines of a records file; bad ones are told."""
    seen: set[str] = set()
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                where = f"{path}:{number}"
                try:
                    record = parse_line(line)
                    record = replace(record, image=str(prefix / record.image))
                    if record.id in seen:
                        raise DataError(f"the id {record.id!r} came before; give each its own")
                except DataError as wrong:
                    bad(Reject(where=where, reason=Reason.ROW, detail=str(wrong)))
                    continue
                seen.add(record.id)
                yield record
    except OSError as problem:
        raise DataError(
            f"{path} cannot be read ({problem.strerror}); give a records file or its folder"
        ) from problem


# -- Visual Genome ---------------------------------------------------------------------------------


def _visual_genome(path: Path, folder: Path, prefix: PurePosixPath, bad: Bad) -> Iterator[Record]:
    facts: dict[int, tuple[int, int, str]] = {}
    data = path.with_name(path.name.replace("region_descriptions", "image_data"))
    for _, number, row in stream_json(data):
        try:
            key = int(row["image_id"] if "image_id" in row else row["id"])
            facts[key] = (int(row["width"]), int(row["height"]), str(row.get("url") or ""))
        except (LookupError, TypeError, ValueError, AttributeError):
            detail = "an image has image_id, width and height; one of them is missing or no number"
            bad(Reject(where=f"{data}: element {number}", reason=Reason.ROW, detail=detail))
    for _, number, row in stream_json(path):
        where = f"{path}: element {number}"
        try:
            key = int(row["id"] if "id" in row else row["image_id"])
            rows = list(row["regions"])
        except (LookupError, TypeError, ValueError, AttributeError):
            detail = "an image has id and regions; one of them is missing or wrong"
            bad(Reject(where=where, reason=Reason.ROW, detail=detail))
            continue
        where = f"{path}: image {key}"
        if key not in facts:
            bad(Reject(where=where, reason=Reason.ROW, detail=f"it is not in {data.name}"))
            continue
        width, height, url = facts[key]
        image = _vg_file(folder, key, url)
        if image is None:
            detail = f"no file for it in {folder}"
            bad(Reject(where=where, reason=Reason.IMAGE, detail=detail, image=f"{key}.jpg"))
            continue
        boxes = [(_vg_name(r), _get(r, "phrase"), _vg_box(r)) for r in rows]
        about = {"source": "Visual Genome", "license": "CC BY 4.0", "meta": {"image_id": key}}
        yield from _record(f"vg-{key}", str(prefix / image), (width, height), boxes, about, bad)


def _vg_name(row: object) -> object:
    return _get(row, "region_id", _get(row, "id", "?"))


def _vg_box(row: object) -> tuple[object, ...]:
    return tuple(_get(row, name) for name in ("x", "y", "width", "height"))


def _vg_file(folder: Path, key: int, url: str) -> str | None:
    """The image's file in `folder`: as the address names it, or by its number alone."""
    parts = PurePosixPath(urlsplit(url).path).parts
    named = ["/".join(parts[-2:])] if len(parts) > 2 and ".." not in parts else []
    simple = (f"{place}{key}.jpg" for place in ("", "VG_100K/", "VG_100K_2/"))
    return next((name for name in [*named, *simple] if (folder / name).is_file()), None)


# -- ADE20K ----------------------------------------------------------------------------------------


def _is_ade20k(folder: Path) -> bool:
    if not folder.is_dir() or (folder / RECORDS_FILE).is_file():
        return False
    return next(folder.rglob(ADE_FILES), None) is not None


def _ade20k(folder: Path, prefix: PurePosixPath, bad: Bad) -> Iterator[Record]:
    """Whole objects with their names; parts of objects are left out, as no region of their own."""
    for path in sorted(folder.rglob(ADE_FILES)):
        image = path.with_suffix(".jpg")
        where, name = str(path), image.relative_to(folder).as_posix()
        if not image.is_file():
            bad(Reject(where=where, reason=Reason.IMAGE, detail="no file for it", image=name))
            continue
        try:
            # Some of the files are not UTF-8; names of objects are plain ASCII in all of them.
            found = json.loads(path.read_bytes().decode("utf-8", errors="replace"))["annotation"]
            height, width = found["imsize"][:2]
            objects = list(found["object"])
        except (OSError, ValueError, LookupError, TypeError) as problem:
            detail = f"it is no annotation of ADE20K ({problem!r})"
            bad(Reject(where=where, reason=Reason.ROW, detail=detail, image=name))
            continue
        boxes = [
            (_get(row, "id", "?"), _ade_name(row), _ade_box(row))
            for row in objects
            if not _get(_get(row, "parts"), "part_level", 0)
        ]
        about = {"source": "ADE20K", "meta": {"image_id": path.stem}}
        yield from _record(path.stem, str(prefix / name), (width, height), boxes, about, bad)


def _ade_name(row: object) -> object:
    """What the annotator wrote, or the first of the synonyms."""
    name = _get(row, "raw_name") or _get(row, "name")
    return name.split(",")[0] if isinstance(name, str) else name


def _ade_box(row: object) -> tuple[object, ...]:
    """The box around a polygon; nothing where it has no corners."""
    corners = _get(row, "polygon")
    x, y = _get(corners, "x"), _get(corners, "y")
    try:
        left, top, right, bottom = min(x), min(y), max(x), max(y)  # type: ignore[call-overload]
        return (left, top, right - left, bottom - top)
    except (TypeError, ValueError):
        return ()


# -- COCO style ------------------------------------------------------------------------------------


def _coco(path: Path, folder: Path, prefix: PurePosixPath, bad: Bad) -> Iterator[Record]:
    """Annotations of an image stand anywhere in the file, so boxes and captions (only) are kept."""
    images: dict[object, Mapping[str, Any]] = {}
    boxes: dict[object, list[tuple[object, object, Sequence[object]]]] = {}
    licences: dict[object, str] = {}
    for name, number, row in stream_json(path):
        where = f"{path}: {name}[{number}]"
        if name not in ("images", "annotations", "licenses"):
            continue
        if not isinstance(row, dict):
            bad(Reject(where=where, reason=Reason.ROW, detail="it is no object {…}"))
        elif name == "images":
            kept = ("file_name", "width", "height", "license")
            images[_key(row.get("id"))] = {k: row.get(k) for k in kept}
        elif name == "licenses":
            licences[_key(row.get("id"))] = str(row.get("name") or row.get("url") or "")
        else:
            phrase = next((row[k] for k in _PHRASES if isinstance(row.get(k), str)), None)
            box = row.get("bbox")
            its = (row.get("id", number), phrase, tuple(box) if isinstance(box, list) else ())
            boxes.setdefault(_key(row.get("image_id")), []).append(its)
    if not images:
        raise DataError(f'{path} has no "images"; give a JSON file in COCO style, or {VG_REGIONS}')
    for key in boxes:
        if key not in images:
            detail = f"its {len(boxes[key])} annotations name an image that is not in the file"
            bad(Reject(where=f"{path}: image {key}", reason=Reason.ROW, detail=detail))
    for key, image in images.items():
        where, file = f"{path}: image {key}", str(image["file_name"])
        if not (folder / file).is_file():
            detail = f"no file for it in {folder}"
            bad(Reject(where=where, reason=Reason.IMAGE, detail=detail, image=file))
            continue
        size = (image["width"], image["height"])
        about = {"source": path.name, "license": licences.get(_key(image["license"]), "")}
        name = str(prefix / file)
        yield from _record(f"{path.stem}-{key}", name, size, boxes.get(key, []), about, bad)


def _key(value: object) -> object:
    """An id as a key: some files write the same number as a text in one place."""
    return str(value)


# -- what both share -------------------------------------------------------------------------------


def _get(row: object, name: str, instead: object = None) -> object:
    return row.get(name, instead) if isinstance(row, dict) else instead


def _record(
    name: str,
    image: str,
    size: tuple[Any, Any],
    boxes: Sequence[tuple[object, object, Sequence[object]]],
    about: Mapping[str, Any],
    bad: Bad,
) -> Iterator[Record]:
    """The record, if there is one in it, with the regions that can be used."""
    regions = []
    for region, phrase, box in boxes:
        where = f"{name}, region {region}"
        told = phrase.strip() if isinstance(phrase, str) else ""
        if not told:
            bad(Reject(where=where, reason=Reason.PHRASE, detail="no phrase", image=image))
            continue
        cut = _cut(box, size)
        if cut is None:
            detail = f"{list(box)!r} in an image of {size[0]} x {size[1]}"
            bad(Reject(where=where, reason=Reason.BOX, detail=detail, image=image, phrase=told))
            continue
        try:
            regions.append(Region(phrase=told, box=cut))
        except DataError as wrong:
            bad(Reject(where=where, reason=Reason.ROW, detail=str(wrong), image=image))
    try:
        width, height = size
        yield Record(
            id=name, image=image, width=width, height=height, regions=tuple(regions), **about
        )
    except DataError as wrong:
        bad(Reject(where=name, reason=Reason.ROW, detail=str(wrong), image=image))


def _cut(box: Sequence[object], size: tuple[Any, Any]) -> tuple[float, float, float, float] | None:
    """The part of a box inside the image; None if there is none, or these are no numbers.

    Boxes of Visual Genome reach out of their image now and then.
    """
    try:
        x, y, width, height = (float(value) for value in box)  # type: ignore[arg-type]
        right, bottom = min(x + width, float(size[0])), min(y + height, float(size[1]))
    except (TypeError, ValueError):
        return None
    x, y = max(x, 0.0), max(y, 0.0)
    inside = right - x >= _SMALLEST and bottom - y >= _SMALLEST  # false for what is not a number
    return (x, y, right - x, bottom - y) if inside else None
