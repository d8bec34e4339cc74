"""The card of a data set: what it holds, how it was made, seeds, counts, licences, hashes.

It describes a folder of records, with what mining and other tools left beside them, a published set
that was fetched, or a data set of any other form; equal folders get equal cards, so there is no
date in it.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import jinja2

from abc_embed.data.dataset import Dataset, Rejected
from abc_embed.data.formats import open_dataset
from abc_embed.data.published.dataset import (
    COMPLETE_FILE,
    INDEX_FILE,
    PublishedDataset,
    open_images,
    own_file,
)
from abc_embed.data.published.fetch import MANIFEST_FILE, read_manifest
from abc_embed.data.published.layouts import LAYOUTS
from abc_embed.data.records import Record, read_records
from abc_embed.errors import DataError, MissingExtraError
from abc_embed.storage.files import atomic_write, open_file
from abc_embed.storage.hashing import sha256, sha256_file
from abc_embed.storage.json_files import atomic_write_json, read_json
from abc_embed.storage.parquet import import_pyarrow
from abc_embed.storage.readers import load_json

CARD_FILE = "DATASET_CARD.md"
FACTS_FILE = "card.json"

_NOTE_LIMIT = 1 << 16  # bytes of a JSON file that is taken for a note of how something was made
_MOST = 20  # different licences, sources or kinds that are told apart
_TEMPLATE = Path(__file__).with_name("card.md.jinja")

OnProgress = Callable[[int, int], None]


def write_card(
    data: Path, *, on_progress: OnProgress = lambda done, of: None
) -> tuple[dict[str, Any], Path]:
    """Write `DATASET_CARD.md` for people and `card.json` for programs beside a data set.

    Returns:
        The facts, and where the card is.

    Raises:
        DataError: there is no data set, or a record or an image of it cannot be read.
        OutputError: the card cannot be written.
    """
    facts, folder = _describe(data, on_progress)
    atomic_write_json(folder / FACTS_FILE, facts, indent=2, ensure_ascii=False)
    with atomic_write(folder / CARD_FILE) as file:
        file.write(card_text(facts).encode(errors="replace"))  # a file's name may be no Unicode
    return facts, folder / CARD_FILE


# -- facts -----------------------------------------------------------------------------------------


def _describe(data: Path, on_progress: OnProgress) -> tuple[dict[str, Any], Path]:
    """The facts of a data set, as JSON values, and its folder."""
    from abc_embed import __version__

    if not data.is_dir() and not data.exists() and ":" not in str(data):
        raise DataError(f"there is no folder {data}, nor a file; give a data set")
    folder = data if data.is_dir() else open_dataset(data).folder
    published = _published_facts(folder)
    records = _records_facts(folder, on_progress) if data == folder else []
    mined = list(_mined_facts(folder))
    if not (published or records or mined):
        try:
            dataset = open_dataset(data)
        except DataError as wrong:
            raise DataError(
                f"{data} holds neither records (.jsonl) nor a published data set, and no other: "
                f"{wrong}"
            ) from None
        records = [_dataset_facts(dataset, on_progress)]
    notes = _notes(folder)
    facts = {
        "name": folder.resolve().name,
        "card_of": f"abc-embed {__version__}",
        "notes": notes,
        "seeds": dict(_seeds(notes | {facts["file"]: facts["notes"] for facts in mined})),
        "published": published,
        "records": records,
        "mined": mined,
        "files": list(_files(folder)),
    }
    return facts, folder


def _records_facts(folder: Path, on_progress: OnProgress) -> list[dict[str, Any]]:
    """What each file of records holds; other .jsonl files are passed over."""
    files = []
    hashes: dict[str, str] = {}
    for path in sorted(folder.glob("*.jsonl")):
        try:
            records = list(read_records(path)) if _looks_like_records(path) else []
        except DataError as wrong:
            raise DataError(f"{wrong}; see all that is wrong with: abc-embed data check") from None
        for number, record in enumerate(records, start=1):
            if record.image not in hashes:
                hashes[record.image] = _hash_image(folder, record)
            on_progress(number, len(records))
        if records:
            images = sorted({record.image for record in records})
            lines = "".join(f"{hashes[name]}  {name}\n" for name in images)
            facts = {"images": len(images), "images_sha256": sha256(lines)}
            files.append({"file": path.name, **_count(records), **facts})
    return files


def _dataset_facts(dataset: Dataset, on_progress: OnProgress) -> dict[str, Any]:
    """What a data set of another form holds; rows that cannot be used are counted."""
    records: list[Record] = []
    lines: list[str] = []
    bad = 0
    for number, row in enumerate(dataset.rows(), start=1):
        try:
            if isinstance(row, Rejected):
                raise DataError(row.why)
            lines.append(f"{sha256(row.read_image())}  {row.record.image}\n")
            records.append(row.record)
        except (DataError, OSError):
            bad += 1
        on_progress(number, len(dataset))
    if not records:
        raise DataError(f"{dataset.path} has no row that can be used; see: abc-embed data check")
    images = sorted(set(lines))
    facts = {"images": len(images), "images_sha256": sha256("".join(images))}
    bad_rows = {"rows_that_cannot_be_used": bad} if bad else {}
    name = f"{dataset.path.name} ({dataset.form})"
    return {"file": name, **_count(records), **bad_rows, **facts}


def _looks_like_records(path: Path) -> bool:
    """Its first line has what only records have; a rejects file, say, has not."""
    try:
        with open_file(path) as file:
            first = load_json(next((line for line in file if line.strip()), b"null"))
    except OSError as problem:
        raise DataError(f"{path} cannot be read: {problem.strerror}") from problem
    except DataError:
        return False
    return isinstance(first, dict) and {"id", "image", "width", "height"} <= set(first)


def _hash_image(folder: Path, record: Record) -> str:
    try:
        return sha256_file(folder / record.image)
    except OSError as problem:
        raise DataError(
            f"record {record.id!r}: the image {record.image} cannot be read ({problem.strerror}); "
            "see all that is wrong with: abc-embed data check"
        ) from problem


def _count(records: list[Record]) -> dict[str, Any]:
    captions = [caption for record in records for caption in record.captions]
    instructions = [ask for record in records for ask in record.instructions]
    sides = [side for record in records for side in (record.width, record.height)]
    return {
        "rows": len(records),
        "with_caption": sum(bool(record.captions) for record in records),
        "captions": len(captions),
        "different_captions": len(set(captions)),
        "regions": sum(len(record.regions) for record in records),
        "instructions": len(instructions),
        "different_instructions": len({ask.instruction for ask in instructions}),
        "kinds_of_instruction": _most_common(ask.kind for ask in instructions),
        "negatives": sum(len(record.negatives) for record in records),
        "licenses": _most_common(record.license or "not stated" for record in records),
        "sources": _most_common(record.source or "not stated" for record in records),
        "sides": {"least": min(sides), "most": max(sides)},  # of the images, in pixels
    }


def _most_common(values: Iterable[str]) -> dict[str, int]:
    counts = Counter(values)
    shown = dict(counts.most_common(_MOST))
    if rest := counts.total() - sum(shown.values()):
        shown[f"{len(counts) - len(shown)} others"] = rest
    return shown


def _mined_facts(folder: Path) -> Iterator[dict[str, Any]]:
    """Parquet files of mined negatives: rows, how many of them, and what their maker noted."""
    for path in sorted(folder.glob("*.parquet")):
        try:
            arrow = import_pyarrow()
        except MissingExtraError:
            return  # then no such file was made here; the files are listed all the same
        try:
            schema = arrow.parquet.read_schema(path)
            if not {"row", "negatives"} <= set(schema.names):
                continue
            lists = arrow.parquet.read_table(path, columns=["negatives"]).column("negatives")
        except (OSError, arrow.ArrowException) as problem:
            raise DataError(f"{path} is no whole Parquet file; mine again") from problem
        notes = {}
        for key, value in (schema.metadata or {}).items():
            if key.startswith((b"abc", b"mine")):
                with suppress(ValueError):
                    notes[key.decode()] = json.loads(value)
        negatives = sum(len(row) for row in lists.to_pylist() if row)
        yield {"file": path.name, "rows": len(lists), "negatives": negatives, "notes": notes}


def _published_facts(folder: Path) -> dict[str, Any] | None:
    """What is known of a published set; None where there is none."""
    facts: dict[str, Any] = {}
    if own_file(folder, MANIFEST_FILE).is_file():
        manifest = read_manifest(folder)
        facts = {
            "name": manifest.source,
            "repository": manifest.repository,
            "commit": manifest.commit,
            "about": LAYOUTS[manifest.source].about,
            "files": [
                {
                    "name": file.name,
                    "bytes": file.size,
                    "sha256": file.sha256,
                    "compared": manifest.is_checked(folder, file),
                }
                for file in manifest.files
            ],
        }
    if own_file(folder, INDEX_FILE).is_file():
        with closing(open_images(folder)) as images:
            counts = images.counts()
            facts |= {name: counts[name] for name in ("images", "image_bytes")}
            facts["left_out_of_archives"] = len(images.left_out())
    with suppress(DataError):
        dataset = PublishedDataset(folder)
        facts |= {"name": dataset.name, "about": dataset.layout.about, "rows": len(dataset)}
    with suppress(DataError, KeyError):
        checked = read_json(own_file(folder, COMPLETE_FILE), error=DataError)
        facts["complete"] = checked["complete"]
        facts["rows_without_image"] = len(checked["missing"])
        facts["bad_rows"] = len(checked["bad"])
    if facts:
        facts["license"] = "as its page on the hub says; the files do not state one"
    return facts or None


def _notes(folder: Path) -> dict[str, Any]:
    """What tools wrote beside the data: small JSON files, such as the plan of drawn scenes."""
    notes = {}
    for path in sorted(folder.glob("*.json")):
        if path.name != FACTS_FILE and path.stat().st_size <= _NOTE_LIMIT:
            with suppress(DataError):
                notes[path.name] = read_json(path, error=DataError)
    return notes


def _seeds(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """Every value that is called a seed, with where it stands."""
    if not isinstance(value, dict):
        return
    for name, inner in value.items():
        inner_place = f"{place}: {name}" if place else str(name)
        if "seed" in str(name).lower() and isinstance(inner, int | str):
            yield inner_place, inner
        else:
            yield from _seeds(inner, inner_place)


def _files(folder: Path) -> Iterator[dict[str, Any]]:
    """The files of the folder itself, but for the card and what a manifest names already."""
    named = {FACTS_FILE, CARD_FILE}
    if own_file(folder, MANIFEST_FILE).is_file():
        named |= {file.name for file in read_manifest(folder).files}
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.name not in named and not path.name.startswith("."):
            yield {"name": path.name, "bytes": path.stat().st_size, "sha256": sha256_file(path)}


# -- as Markdown -----------------------------------------------------------------------------------


def card_text(facts: Mapping[str, Any]) -> str:
    """`DATASET_CARD.md`, from what `describe` returns."""
    environment = jinja2.Environment(
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    environment.filters |= {"cell": _cell, "flat": lambda note: list(_flat(note))}
    return environment.from_string(_TEMPLATE.read_text(encoding="utf-8")).render(facts)


def _flat(value: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for name, inner in value.items():
        if isinstance(inner, dict):
            yield from _flat(inner, f"{before}{name}.")
        else:
            yield f"{before}{name}", inner


def _cell(value: Any) -> str:
    """In one cell of a table, whatever it holds."""
    text = f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
    text = text if len(text) <= 200 else f"{text[:199]}…"
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
