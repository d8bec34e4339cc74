"""A CtrlBench folder: pictures, captions, questions, and a card that says how it was made.

It is read strictly (file, line, what is wrong, the mend), and has one hash for its content; whether
its questions are fair says `validate.py`.

    images.jsonl   {"image_id", "file", "sha256", "source", "license"[, "mirror", "group"]}
    corpus.jsonl   {"cap_id", "text"}; no text comes twice, not even in other letters or spacing
    queries.jsonl  {"query_id", "image_id", "tier", "aspect", "instruction", "paraphrases",
                    "positives", "same_image"}
    card.json      any object: how it was made, seeds, counts; written last, with the content's hash

`positives` are the captions that answer the question, `same_image` all captions that belong to its
picture, the positives among them. `mirror` names the picture with left and right swapped.
"""

import dataclasses
import json
import os
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from abc_embed.data.fields import (
    check_image,
    check_text,
    check_texts,
    parse_json,
    parse_lines,
    parse_object,
)
from abc_embed.errors import DataError
from abc_embed.storage.files import atomic_write, make_folder, read_file
from abc_embed.storage.hashing import sha256
from abc_embed.storage.json_files import atomic_write_json, read_json

IMAGES_FILE = "images.jsonl"
CORPUS_FILE = "corpus.jsonl"
QUERIES_FILE = "queries.jsonl"
CARD_FILE = "card.json"
PAIR_TIER = "mirror"
"""The tier of a question that is asked for its mirrored pair only, and counts in no other score."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """One picture. `sha256` is that of the file's bytes, in hex; `file` is within the folder."""

    image_id: str
    file: str
    sha256: str
    source: str = ""
    license: str = ""
    mirror: str | None = None
    """The picture that shows the same with left and right swapped; it names this one too."""
    group: str = ""
    """Any word that sorts pictures; scores are also given by it."""

    def __post_init__(self) -> None:
        check_text("image_id", self.image_id)
        check_image(self.file)
        if not re.fullmatch("[0-9a-f]{64}", str(self.sha256)):
            raise DataError("sha256 is no SHA-256 in hex; give the 64 digits of the file's bytes")
        for name in ("source", "license", "group"):
            if not isinstance(getattr(self, name), str):
                raise DataError(f"{name} is no text; give a text, or leave it out")
        if self.mirror is not None:
            check_text("mirror", self.mirror)


@dataclass(frozen=True, slots=True, kw_only=True)
class Caption:
    """One candidate answer."""

    cap_id: str
    text: str

    def __post_init__(self) -> None:
        check_text("cap_id", self.cap_id)
        check_text("text", self.text)


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """One question about one picture. `tier` and `aspect` sort questions; `R`, `G` or `B` and what
    is asked for. A colon in an aspect ends its general part: "place:left" is of "place"."""

    query_id: str
    image_id: str
    tier: str
    aspect: str
    instruction: str
    positives: tuple[str, ...]
    same_image: tuple[str, ...]
    paraphrases: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("query_id", "image_id", "tier", "aspect", "instruction"):
            check_text(name, getattr(self, name))
        for name in ("paraphrases", "positives", "same_image"):
            check_texts(name, getattr(self, name))
        if not self.positives:
            raise DataError("positives is empty; name the caption that answers the question")
        if len(set(self.same_image)) != len(self.same_image):
            raise DataError("same_image names a caption twice; name each once")
        strange = [cap for cap in self.positives if cap not in self.same_image]
        if strange:
            raise DataError(f"the positive {strange[0]!r} is not in same_image; put it there too")


@dataclass(frozen=True, slots=True, kw_only=True)
class Benchmark:
    """A folder that was read. `folder` is where `Picture.file` is relative to."""

    folder: Path
    images: tuple[Picture, ...]
    corpus: tuple[Caption, ...]
    queries: tuple[Query, ...]
    card: Mapping[str, Any] = field(default_factory=dict)
    missing: tuple[str, ...] = ()
    """Files of `images` that are not there."""

    @property
    def name(self) -> str:
        """What the card calls it, else the folder's name."""
        name = self.card.get("name")
        return name if isinstance(name, str) and name else self.folder.resolve().name

    @property
    def tiers(self) -> tuple[str, ...]:
        """The tiers of its questions, in their order."""
        return tuple(dict.fromkeys(q.tier for q in self.queries if q.tier != PAIR_TIER))

    def content_hash(self) -> str:
        """SHA-256 of all rows; the pictures take part by their own hashes, the card does not."""
        return sha256(b"".join(_lines(rows) + b"\n" for rows in self._tables().values()))

    def _tables(self) -> dict[str, Sequence[Any]]:
        """File -> its rows."""
        return {IMAGES_FILE: self.images, CORPUS_FILE: self.corpus, QUERIES_FILE: self.queries}


def normalize_text(text: str) -> str:
    """The text without what does not make it another one: case, spacing, a full stop at the end."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split()).rstrip(".").rstrip()


# -- reading ---------------------------------------------------------------------------------------


def read_benchmark(folder: str | os.PathLike[str]) -> Benchmark:
    """Read a folder, and check every row and every reference between rows.

    A picture that is not there is no error: it is listed in `missing`, for the score to say so. The
    bytes of the others must have the hash of their row.

    Raises:
        DataError: a file is not there, a row is wrong, or the card's hash is another; names the
            file, the line and the mend.
    """
    folder = Path(folder)
    images = _read(folder / IMAGES_FILE, Picture, lambda row: row.image_id)
    corpus = _read(folder / CORPUS_FILE, Caption, lambda row: row.cap_id)
    queries = _read(folder / QUERIES_FILE, Query, lambda row: row.query_id)
    _check_corpus(folder, corpus)
    _check_references(folder, images, corpus, queries)
    missing = []
    for number, picture in images.items():
        try:
            data = read_file(folder / picture.file)
        except OSError:
            missing.append(picture.file)
            continue
        if sha256(data) != picture.sha256:
            raise DataError(
                f"{folder / IMAGES_FILE}:{number}: {picture.file} has other bytes than its sha256 "
                "says; copy the picture again, or build the folder anew"
            )
    benchmark = Benchmark(
        folder=folder,
        images=tuple(images.values()),
        corpus=tuple(corpus.values()),
        queries=tuple(queries.values()),
        card=read_json(
            folder / CARD_FILE,
            error=DataError,
            mend="the folder may be half written, so build it anew",
        ),
        missing=tuple(missing),
    )
    content_hash = benchmark.card.get("content_hash")
    if content_hash is not None and content_hash != benchmark.content_hash():
        raise DataError(
            f"{folder / CARD_FILE}: the rows are not those that its content_hash names; "
            "copy the folder again, or build it anew"
        )
    return benchmark


def _read(path: Path, kind: type[T], id_of: Callable[[T], str]) -> dict[int, T]:
    """Line number -> row, each with an id of its own."""
    try:
        rows = dict(parse_lines(path, lambda line: parse_object(kind, parse_json(line)), id_of))
    except FileNotFoundError:
        raise DataError(
            f"there is no {path}; give a folder that holds {IMAGES_FILE}, {CORPUS_FILE}, "
            f"{QUERIES_FILE} and {CARD_FILE}"
        ) from None
    except OSError as problem:
        raise DataError(f"{path} cannot be read: {problem.strerror}; mend that") from problem
    if not rows:
        raise DataError(f"{path} has no rows; build the folder anew")
    return rows


def _check_corpus(folder: Path, corpus: Mapping[int, Caption]) -> None:
    first: dict[str, int] = {}
    for number, caption in corpus.items():
        other = first.setdefault(normalize_text(caption.text), number)
        if other != number:
            raise DataError(
                f"{folder / CORPUS_FILE}:{number}: the text {caption.text!r} is that of line "
                f"{other} too; keep one of them, and name it in {QUERIES_FILE}"
            )


def _check_references(
    folder: Path,
    images: Mapping[int, Picture],
    corpus: Mapping[int, Caption],
    queries: Mapping[int, Query],
) -> None:
    pictures = {picture.image_id: picture for picture in images.values()}
    captions = {caption.cap_id for caption in corpus.values()}
    for number, picture in images.items():
        if picture.mirror is None:
            continue
        other = pictures.get(picture.mirror)
        if other is None or other.mirror != picture.image_id or other is picture:
            raise DataError(
                f"{folder / IMAGES_FILE}:{number}: mirror is {picture.mirror!r}, which is no "
                "picture that names this one as its mirror; mend one of the two"
            )
    for number, query in queries.items():
        where = f"{folder / QUERIES_FILE}:{number}"
        if query.image_id not in pictures:
            raise DataError(
                f"{where}: the image_id {query.image_id!r} is not in {IMAGES_FILE}; mend one"
            )
        unknown = [cap for cap in query.same_image if cap not in captions]
        if unknown:
            raise DataError(f"{where}: the caption {unknown[0]!r} is not in {CORPUS_FILE}; mend it")


# -- writing ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TextQuery:
    """A question before rows have ids: about the image number `image`, its answer as a text."""

    image: int
    tier: str
    aspect: str
    instruction: str
    answer: str
    paraphrases: tuple[str, ...] = ()


def image_id(number: int) -> str:
    """The id of an image by its number."""
    return f"i{number:05}"


def query_rows(
    queries: Iterable[TextQuery], captions: Iterable[Iterable[str]], corpus: Iterable[Caption]
) -> list[Query]:
    """Rows with ids; `captions` are the texts that belong to each image, answers among them."""
    ids = {normalize_text(caption.text): caption.cap_id for caption in corpus}
    own = [tuple(dict.fromkeys(ids[normalize_text(text)] for text in of)) for of in captions]
    return [
        Query(
            query_id=f"q{number:05}",
            image_id=image_id(query.image),
            tier=query.tier,
            aspect=query.aspect,
            instruction=query.instruction,
            paraphrases=query.paraphrases,
            positives=(ids[normalize_text(query.answer)],),
            same_image=own[query.image],
        )
        for number, query in enumerate(queries)
    ]


def write_benchmark(
    folder: str | os.PathLike[str],
    *,
    images: Sequence[Picture],
    corpus: Sequence[Caption],
    queries: Sequence[Query],
    card: Mapping[str, Any],
) -> Benchmark:
    """Write the four files into a folder whose pictures are there already, and read it back.

    The card gets `counts` and `content_hash`, and is written last: without it the folder is not
    finished. Equal rows make equal bytes.

    Raises:
        DataError: the rows do not fit each other, as `read_benchmark` says.
        OutputError: a file cannot be written.
    """
    folder = make_folder(folder)
    benchmark = Benchmark(
        folder=folder, images=tuple(images), corpus=tuple(corpus), queries=tuple(queries)
    )
    full_card = {
        **card,
        "counts": {"images": len(images), "captions": len(corpus), "queries": len(queries)},
        "content_hash": benchmark.content_hash(),
    }
    files = {name: _lines(rows) for name, rows in benchmark._tables().items()}
    for name, content in files.items():
        with atomic_write(folder / name) as file:
            file.write(content)
    atomic_write_json(folder / CARD_FILE, full_card, ensure_ascii=False)
    return read_benchmark(folder)


def write_picture(folder: Path, image_id: str, file: str, data: bytes, **facts: Any) -> Picture:
    """Write a file of the folder; its row, with further fields in `facts`.

    Raises:
        OutputError: it cannot be written.
    """
    make_folder((folder / file).parent)
    with atomic_write(folder / file) as out:
        out.write(data)
    return Picture(image_id=image_id, file=file, sha256=sha256(data), **facts)


def _lines(rows: Iterable[Any]) -> bytes:
    """The rows as JSON lines, fields in one order, those left out as they are understood."""
    lines = (json.dumps(dataclasses.asdict(row), ensure_ascii=False) + "\n" for row in rows)
    return "".join(lines).encode()


# -- which questions are asked ---------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TierQueries:
    """The questions of a tier whose pictures are there."""

    benchmark: Benchmark
    tier: str
    scored: tuple[Query, ...]
    """Those that count in every score."""
    pairs_only: tuple[Query, ...]
    """Those that are asked for their mirrored pair only."""
    left_out: int
    """Questions of the tier whose picture is missing."""

    @property
    def all(self) -> tuple[Query, ...]:
        """Those that are scored, then the others."""
        return self.scored + self.pairs_only

    def sizes(self) -> dict[str, int]:
        """On how much the scores stand."""
        return {
            "queries": len(self.scored),
            "queries_left_out": self.left_out,
            "images": len({query.image_id for query in self.scored}),
            "candidates": len(self.benchmark.corpus),
            "mirrored_pairs": len(self.mirrored_pairs()),
        }

    def caption_numbers(self, captions: Sequence[tuple[str, ...]]) -> list[list[int]]:
        """Ids of captions -> their places in the corpus."""
        places = {c.cap_id: number for number, c in enumerate(self.benchmark.corpus)}
        return [[places[cap_id] for cap_id in cap_ids] for cap_ids in captions]

    def clusters(self) -> NDArray[np.int64]:
        """For each of `all` the number of its picture; a picture and its mirror have one."""
        numbers: dict[str, int] = {}
        for picture in self.benchmark.images:
            known = numbers.get(picture.mirror or "")
            numbers[picture.image_id] = len(numbers) if known is None else known
        return np.array([numbers[query.image_id] for query in self.all])

    def mirrored_pairs(self) -> list[tuple[int, int]]:
        """Places in `all` of one question that is asked of a picture and of its mirror, and has
        another answer there. Where questions are asked for their pair only, these are the pairs."""
        tier = PAIR_TIER if self.pairs_only else self.tier
        mirrors = {p.image_id: p.mirror for p in self.benchmark.images}
        queries = self.all
        places = {
            (query.image_id, query.instruction): number
            for number, query in enumerate(queries)
            if query.tier == tier
        }
        pairs = []
        for (image, instruction), number in places.items():
            twin = places.get((mirrors[image] or "", instruction), -1)
            if twin > number and set(queries[number].positives) != set(queries[twin].positives):
                pairs.append((number, twin))
        return pairs


def select_queries(benchmark: Benchmark, tier: str, limit: int | None = None) -> TierQueries:
    """The questions of a tier whose pictures are there; of the first `limit` pictures, if given.

    Raises:
        DataError: none is left.
    """
    missing = set(benchmark.missing)
    present = {p.image_id: p.mirror for p in benchmark.images if p.file not in missing}
    of_tier = [q for q in benchmark.queries if q.tier == tier]
    asked = {q.image_id for q in of_tier}
    chosen = [image for image in present if image in asked][:limit]
    scored = tuple(q for q in of_tier if q.image_id in set(chosen))
    if not scored:
        first = f", {benchmark.missing[0]} for one" if missing else ""
        raise DataError(
            f"{benchmark.folder}: no picture of tier {tier} is there{first}; copy its pictures"
        )
    paired = {*chosen, *(present[image] for image in chosen)} & set(present)
    pairs_only = tuple(q for q in benchmark.queries if q.tier == PAIR_TIER and q.image_id in paired)
    left_out = sum(q.image_id not in present for q in of_tier)
    return TierQueries(benchmark, tier, scored, pairs_only, left_out)


def questions_by_image(queries: Iterable[Query]) -> dict[str, list[Query]]:
    """image_id -> its questions, in the order in which pictures first come."""
    groups: dict[str, list[Query]] = {}
    for query in queries:
        groups.setdefault(query.image_id, []).append(query)
    return groups
