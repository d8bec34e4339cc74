"""Regions with captions, from the files that have them -> records without instructions.

Memory is bounded: one image at a time, from files of any size. Rows that cannot be used go to
`rejects`, and the others go on.

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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from abc_embed.data.records import RECORDS_FILE, Record, Region, read_records
from abc_embed.errors import DataError, UsageError
from abc_embed.storage.files import read_file
from abc_embed.storage.json_stream import stream_json
from abc_embed.vlm.rejects import Reason, Rejects

VG_REGIONS = "region_descriptions.json"
ADE_FILES = "ADE_*_*.json"
_PHRASE_KEYS = ("caption", "phrase", "description")
_MIN_SIDE = 1.0  # pixels that a cut box must keep

Row = tuple[object, object, Sequence[object]]
"""A region as a file has it: id, phrase, box."""
_BAD_ROW = (LookupError, TypeError, ValueError, AttributeError)


def are_records(source: Path) -> bool:
    """Whether `read_regions` takes it for our own records."""
    if source.is_dir():
        return not (source / VG_REGIONS).is_file() and not _is_ade20k(source)
    return source.suffix == ".jsonl"


def _is_ade20k(folder: Path) -> bool:
    if not folder.is_dir() or (folder / RECORDS_FILE).is_file():
        return False
    return next(folder.rglob(ADE_FILES), None) is not None


def read_regions(
    source: str | os.PathLike[str],
    root: str | os.PathLike[str],
    rejects: Rejects,
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
        return _own_records(path, _prefix(root, path.parent), rejects)
    if _is_ade20k(source):
        return _ade20k(_Images(source, _prefix(root, source), rejects))
    if source.is_dir():
        source = source / VG_REGIONS
    if not source.is_file():
        raise DataError(
            f"there is no {source}; give {VG_REGIONS}, a JSON file in COCO style, or records"
        )
    folder = source.parent if images is None else Path(images)
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder}; give the one that holds the images")
    read = _visual_genome if source.name.startswith("region_descriptions") else _coco
    return read(source, _Images(folder, _prefix(root, folder), rejects))


def _prefix(root: Path, folder: Path) -> PurePosixPath:
    """The folder's path below `root`."""
    try:
        return PurePosixPath(folder.resolve().relative_to(root.resolve()).as_posix())
    except ValueError:
        raise UsageError(
            f"{root} is not above {folder}; write the records into the folder of the images or one "
            "above it, since the paths of images start there"
        ) from None


def _own_records(path: Path, prefix: PurePosixPath, rejects: Rejects) -> Iterator[Record]:
    def reject(where: str, error: DataError) -> None:
        rejects.add(Reason.ROW, where, str(error))

    for record in read_records(path, on_bad_line=reject):
        yield replace(record, image=str(prefix / record.image))


@dataclass(frozen=True, slots=True)
class _Images:
    """The folder of the images that a file of regions is about, and its path in records."""

    folder: Path
    prefix: PurePosixPath
    rejects: Rejects

    def record(
        self,
        id: str,
        where: str,
        image: str,
        size: tuple[Any, Any],
        rows: Sequence[Row],
        **about: Any,
    ) -> Iterator[Record]:
        """The record, if its image is there, with the regions that can be used."""
        if not (self.folder / image).is_file():
            self.rejects.add(Reason.IMAGE, where, f"no file for it in {self.folder}", image=image)
            return
        image = str(self.prefix / image)
        regions = tuple(self._regions(id, image, size, rows))
        try:
            width, height = size
            yield Record(id=id, image=image, width=width, height=height, regions=regions, **about)
        except DataError as error:
            self.rejects.add(Reason.ROW, id, str(error), image=image)

    def _regions(
        self, id: str, image: str, size: tuple[Any, Any], rows: Sequence[Row]
    ) -> Iterator[Region]:
        for region, phrase, box in rows:
            where = f"{id}, region {region}"
            text = phrase.strip() if isinstance(phrase, str) else ""
            inside = _clip(box, size)
            if not text:
                self.rejects.add(Reason.PHRASE, where, "no phrase", image=image)
            elif inside is None:
                detail = f"{list(box)!r} in an image of {size[0]} x {size[1]}"
                self.rejects.add(Reason.BOX, where, detail, image=image, phrase=text)
            else:
                try:
                    yield Region(phrase=text, box=inside)
                except DataError as error:
                    self.rejects.add(Reason.ROW, where, str(error), image=image)


def _clip(box: Sequence[object], size: tuple[Any, Any]) -> tuple[float, float, float, float] | None:
    """The part of a box inside the image; None if there is none, or these are no numbers.

    Boxes of Visual Genome reach out of their image now and then.
    """
    try:
        x, y, width, height = (float(value) for value in box)  # type: ignore[arg-type]
        right, bottom = min(x + width, float(size[0])), min(y + height, float(size[1]))
    except (TypeError, ValueError):
        return None
    x, y = max(x, 0.0), max(y, 0.0)
    inside = right - x >= _MIN_SIDE and bottom - y >= _MIN_SIDE  # false for what is not a number
    return (x, y, right - x, bottom - y) if inside else None


def _get(row: object, name: str, default: object = None) -> object:
    return row.get(name, default) if isinstance(row, dict) else default


# -- Visual Genome ---------------------------------------------------------------------------------


def _visual_genome(path: Path, images: _Images) -> Iterator[Record]:
    rejects = images.rejects
    facts: dict[int, tuple[int, int, str]] = {}
    facts_path = path.with_name(path.name.replace("region_descriptions", "image_data"))
    for _, number, row in stream_json(facts_path):
        try:
            key = int(row["image_id"] if "image_id" in row else row["id"])
            facts[key] = (int(row["width"]), int(row["height"]), str(row.get("url") or ""))
        except _BAD_ROW:
            detail = "an image has image_id, width and height; one of them is missing or no number"
            rejects.add(Reason.ROW, f"{facts_path}: element {number}", detail)
    for _, number, row in stream_json(path):
        try:
            key = int(row["id"] if "id" in row else row["image_id"])
            regions = list(row["regions"])
        except _BAD_ROW:
            detail = "an image has id and regions; one of them is missing or wrong"
            rejects.add(Reason.ROW, f"{path}: element {number}", detail)
            continue
        where = f"{path}: image {key}"
        if key not in facts:
            rejects.add(Reason.ROW, where, f"it is not in {facts_path.name}")
            continue
        width, height, url = facts[key]
        rows = [
            (
                _get(region, "region_id", _get(region, "id", "?")),
                _get(region, "phrase"),
                tuple(_get(region, name) for name in ("x", "y", "width", "height")),
            )
            for region in regions
        ]
        yield from images.record(
            *(f"vg-{key}", where, _vg_file(images.folder, key, url), (width, height), rows),
            source="Visual Genome",
            license="CC BY 4.0",
            meta={"image_id": key},
        )


def _vg_file(folder: Path, key: int, url: str) -> str:
    """The image's file in `folder`: as the address names it, or by its number alone."""
    parts = PurePosixPath(urlsplit(url).path).parts
    named = ["/".join(parts[-2:])] if len(parts) > 2 and ".." not in parts else []
    names = [*named, *(f"{part}{key}.jpg" for part in ("", "VG_100K/", "VG_100K_2/"))]
    return next((name for name in names if (folder / name).is_file()), f"{key}.jpg")


# -- ADE20K ----------------------------------------------------------------------------------------


def _ade20k(images: _Images) -> Iterator[Record]:
    """Whole objects with their names; parts of objects are left out, as no region of their own."""
    for path in sorted(images.folder.rglob(ADE_FILES)):
        image = path.with_suffix(".jpg").relative_to(images.folder).as_posix()
        try:
            # Some of the files are not UTF-8; names of objects are plain ASCII in all of them.
            content = json.loads(read_file(path).decode("utf-8", errors="replace"))
            height, width = content["annotation"]["imsize"][:2]
            objects = list(content["annotation"]["object"])
        except (OSError, *_BAD_ROW) as error:
            detail = f"it is no annotation of ADE20K ({error!r})"
            images.rejects.add(Reason.ROW, str(path), detail, image=image)
            continue
        rows = [
            (_get(row, "id", "?"), _ade_name(row), _ade_box(row))
            for row in objects
            if not _get(_get(row, "parts"), "part_level", 0)
        ]
        yield from images.record(
            *(path.stem, str(path), image, (width, height), rows),
            source="ADE20K",
            meta={"image_id": path.stem},
        )


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


def _coco(path: Path, images: _Images) -> Iterator[Record]:
    """Annotations of an image stand anywhere in the file, so boxes and captions (only) are kept.

    Ids are compared as texts: some files write the same number as a text in one place.
    """
    rejects = images.rejects
    facts: dict[str, Mapping[str, Any]] = {}
    rows: dict[str, list[Row]] = {}
    licenses: dict[str, str] = {}
    for name, number, row in stream_json(path):
        if name not in ("images", "annotations", "licenses"):
            continue
        if not isinstance(row, dict):
            rejects.add(Reason.ROW, f"{path}: {name}[{number}]", "it is no object {…}")
        elif name == "images":
            keys = ("file_name", "width", "height", "license")
            facts[str(row.get("id"))] = {key: row.get(key) for key in keys}
        elif name == "licenses":
            licenses[str(row.get("id"))] = str(row.get("name") or row.get("url") or "")
        else:
            phrase = next((row[k] for k in _PHRASE_KEYS if isinstance(row.get(k), str)), None)
            box = tuple(row["bbox"]) if isinstance(row.get("bbox"), list) else ()
            key = str(row.get("image_id"))
            rows.setdefault(key, []).append((row.get("id", number), phrase, box))
    if not facts:
        raise DataError(f'{path} has no "images"; give a JSON file in COCO style, or {VG_REGIONS}')
    for key in [key for key in rows if key not in facts]:
        detail = f"its {len(rows[key])} annotations name an image that is not in the file"
        rejects.add(Reason.ROW, f"{path}: image {key}", detail)
    for key, image in facts.items():
        yield from images.record(
            f"{path.stem}-{key}",
            f"{path}: image {key}",
            str(image["file_name"]),
            (image["width"], image["height"]),
            rows.get(key, []),
            source=path.name,
            license=licenses.get(str(image["license"]), ""),
        )
