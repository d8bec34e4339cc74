"""The card of a data set: what it holds, how it was made, seeds, counts, licences, hashes.

Does: look at a folder of records (drawn scenes, one's own, with what mining and other tools left
beside them), or at a published set that was fetched, and write `DATASET_CARD.md` for people and
`card.json` for programs. Does not: judge the data (`data check` and `data complete` do), or write
down the time: equal folders get equal cards.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from abc_embed.data.card_text import card_text
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
from abc_embed.errors import DataError
from abc_embed.storage.files import atomic_write
from abc_embed.storage.hashing import sha256_file

CARD_FILE = "DATASET_CARD.md"
FACTS_FILE = "card.json"

_NOTE_LIMIT = 1 << 16  # bytes of a JSON file that is taken for a note of how something was made
_MOST = 20  # different licences, sources or kinds that are told apart

Counted = Callable[[int, int], None]


def write_card(
    folder: Path, *, counted: Counted = lambda done, of: None
) -> tuple[dict[str, Any], Path]:
    """Write both files into the folder; returns the facts and where the card is.

    Raises:
        DataError: the folder holds no data set, or a record or an image of it cannot be read.
        OutputError: the card cannot be written.
    """
    facts = describe(folder, counted=counted)
    with atomic_write(folder / FACTS_FILE) as file:
        file.write((json.dumps(facts, indent=2, ensure_ascii=False) + "\n").encode())
    with atomic_write(folder / CARD_FILE) as file:
        file.write(card_text(facts).encode())
    return facts, folder / CARD_FILE


def describe(folder: Path, *, counted: Counted = lambda done, of: None) -> dict[str, Any]:
    """The facts of a data set, as JSON values."""
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder}; give the folder of a data set")
    from abc_embed import __version__

    facts: dict[str, Any] = {"name": folder.resolve().name, "card_of": f"abc-embed {__version__}"}
    published = _published(folder)
    records = _records(folder, counted)
    mined = list(_mined(folder))
    if not (published or records or mined):
        raise DataError(
            f"{folder} holds neither records (.jsonl) nor a published data set; give the folder of "
            "one"
        )
    facts["notes"] = _notes(folder)
    noted = {**facts["notes"], **{found["file"]: found["notes"] for found in mined}}
    facts["seeds"] = dict(_seeds(noted))
    facts["published"] = published
    facts["records"] = records
    facts["mined"] = mined
    facts["files"] = list(_files(folder))
    return facts


def _records(folder: Path, counted: Counted) -> list[dict[str, Any]]:
    """What each file of records holds; other .jsonl files are passed over."""
    found = []
    images: dict[str, str] = {}
    for path in sorted(folder.glob("*.jsonl")):
        try:
            records = list(read_records(path)) if _looks_like_records(path) else []
        except DataError as wrong:
            raise DataError(f"{wrong}; see all that is wrong with: abc-embed data check") from None
        if records:
            facts = _count(records)
            hashes = _image_hashes(folder, records, images, counted)
            facts["images"] = len(hashes)
            facts["images_sha256"] = _together(hashes)
            found.append({"file": path.name, **facts})
    return found


def _looks_like_records(path: Path) -> bool:
    """Its first line has what only records have; a rejects file, say, has not."""
    try:
        with path.open("rb") as file:
            first = json.loads(next((line for line in file if line.strip()), b"null"))
    except OSError as problem:
        raise DataError(f"{path} cannot be read: {problem.strerror}") from problem
    except ValueError:
        return False
    return isinstance(first, dict) and {"id", "image", "width", "height"} <= set(first)


def _count(records: list[Record]) -> dict[str, Any]:
    captions = [record.caption for record in records if record.caption]
    asked = [ask for record in records for ask in record.instructions]
    return {
        "rows": len(records),
        "with_caption": len(captions),
        "different_captions": len(set(captions)),
        "regions": sum(len(record.regions) for record in records),
        "instructions": len(asked),
        "different_instructions": len({ask.instruction for ask in asked}),
        "kinds_of_instruction": _most_common(ask.kind for ask in asked),
        "negatives": sum(len(record.negatives) for record in records),
        "licenses": _most_common(record.license or "not stated" for record in records),
        "sources": _most_common(record.source or "not stated" for record in records),
        "sides": _sides(records),
    }


def _sides(records: list[Record]) -> dict[str, int]:
    """Of the images, in pixels."""
    sides = [side for record in records for side in (record.width, record.height)]
    return {"least": min(sides), "most": max(sides)}


def _most_common(values: Iterator[str]) -> dict[str, int]:
    counts = Counter(values)
    kept = dict(counts.most_common(_MOST))
    if rest := counts.total() - sum(kept.values()):
        kept[f"{len(counts) - len(kept)} others"] = rest
    return kept


def _image_hashes(
    folder: Path, records: list[Record], known: dict[str, str], counted: Counted
) -> dict[str, str]:
    hashes = {}
    for number, record in enumerate(records):
        if record.image not in known:
            try:
                known[record.image] = sha256_file(folder / record.image)
            except OSError as problem:
                raise DataError(
                    f"record {record.id!r}: the image {record.image} cannot be read "
                    f"({problem.strerror}); see all that is wrong with: abc-embed data check"
                ) from problem
        hashes[record.image] = known[record.image]
        counted(number + 1, len(records))
    return hashes


def _together(hashes: dict[str, str]) -> str:
    """One hash for named hashes, whatever their order."""
    lines = "".join(f"{digest}  {name}\n" for name, digest in sorted(hashes.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def _mined(folder: Path) -> Iterator[dict[str, Any]]:
    """Parquet files of mined negatives: rows, how many of them, and what their maker noted."""
    for path in sorted(folder.glob("*.parquet")):
        try:
            import pyarrow
            import pyarrow.parquet as parquet
        except ModuleNotFoundError:
            return  # then no such file was made here; the files are listed all the same
        try:
            schema = parquet.read_schema(path)
            if not {"row", "negatives"} <= set(schema.names):
                continue
            lists = parquet.read_table(path, columns=["negatives"]).column("negatives")
        except (OSError, pyarrow.ArrowException) as problem:
            raise DataError(f"{path} is no whole Parquet file; mine again") from problem
        notes = {}
        for key, value in (schema.metadata or {}).items():
            with suppress(ValueError):
                notes[key.decode()] = json.loads(value)
        yield {
            "file": path.name,
            "rows": len(lists),
            "negatives": sum(len(row) for row in lists.to_pylist() if row),
            "notes": {k: v for k, v in notes.items() if k.startswith(("abc", "mine"))},
        }


def _published(folder: Path) -> dict[str, Any] | None:
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
        images = open_images(folder)
        summary = images.summary()
        images.close()
        facts["images"] = summary.images
        facts["image_bytes"] = summary.image_bytes
        facts["left_out_of_archives"] = len(summary.left_out)
    with suppress(DataError):
        dataset = PublishedDataset(folder)
        facts |= {"name": dataset.name, "about": dataset.layout.about, "rows": len(dataset)}
    with suppress(OSError, ValueError, KeyError):
        checked = json.loads(own_file(folder, COMPLETE_FILE).read_text(encoding="utf-8"))
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
        if path.name == FACTS_FILE or path.stat().st_size > _NOTE_LIMIT:
            continue
        with suppress(ValueError, OSError):
            value = json.loads(path.read_text(encoding="utf-8"))
            if isinstance(value, dict):
                notes[path.name] = value
    return notes


def _seeds(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """Every value that is called a seed, with where it stands."""
    if not isinstance(value, dict):
        return
    for name, inner in value.items():
        where = f"{place}: {name}" if place else str(name)
        if "seed" in str(name).lower() and isinstance(inner, int | str):
            yield where, inner
        else:
            yield from _seeds(inner, where)


def _files(folder: Path) -> Iterator[dict[str, Any]]:
    """The files of the folder itself, but for the card and what a manifest names already."""
    named = {FACTS_FILE, CARD_FILE}
    if own_file(folder, MANIFEST_FILE).is_file():
        named |= {file.name for file in read_manifest(folder).files}
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.name not in named and not path.name.startswith("."):
            yield {"name": path.name, "bytes": path.stat().st_size, "sha256": sha256_file(path)}
