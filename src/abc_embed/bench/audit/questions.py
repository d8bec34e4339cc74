"""What an audit is run on: questions about pictures, each with its candidates, whatever the source.

It is a CtrlBench folder, any data set whose records have instructions, the scene benchmark, or a
plain JSONL file, a line of which is

    {"image": "a.jpg", "instruction": "what is on the left?", "answer": "a dog",
     "candidates": ["a dog", "a cat"]}

`answer` may be a list, any of which is right. Without `candidates` every answer of the file is one
(retrieval); with them the question chooses among its own (VQA, multiple choice). `image` is a path
from the file's folder. A `kind` (what is asked for) has its own line in the result. `id` and `meta`
are left alone.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

from abc_embed.bench.ctrlbench.scene_benchmark import SIDE
from abc_embed.bench.ctrlbench.schema import PAIR_TIER, QUERIES_FILE, read_benchmark
from abc_embed.bench.ctrlbench.unseen_scenes import generate, split_mirrors
from abc_embed.bench.encoders.base import image_hash
from abc_embed.data import open_dataset
from abc_embed.data.fields import check_text, parse_json, parse_lines, parse_object
from abc_embed.errors import DataError
from abc_embed.inputs import ImageInput
from abc_embed.scenes.render import render
from abc_embed.storage.hashing import sha256

SCENES = "scenes"
"""The name of the scene benchmark, which is drawn and not read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One question. `right` and `candidates` are numbers of the set's texts."""

    image: int
    """Number of its picture."""
    instruction: str
    right: tuple[int, ...]
    candidates: tuple[int, ...] | None = None
    """None: all texts of the set."""
    kind: str = ""
    """What is asked for, where the source says it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditSet:
    """Questions, pictures and texts."""

    name: str
    questions: tuple[Question, ...]
    images: tuple[ImageInput, ...]
    texts: tuple[str, ...]
    missing: tuple[str, ...] = ()
    """Picture files that are not there; the questions about them are not among `questions`."""
    left_out: int = 0
    """Questions about missing pictures."""

    def content_hash(self) -> str:
        """SHA-256 of all that is asked, of whom, and of the pictures' content."""
        images = "".join(map(image_hash, self.images))
        asked = [(q.image, q.instruction, q.right, q.candidates) for q in self.questions]
        return sha256(images + json.dumps([self.texts, asked]))

    def chance(self) -> float:
        """What guessing solves: the mean share of right ones among the candidates."""
        shares = [len(q.right) / len(q.candidates or self.texts) for q in self.questions]
        return sum(shares) / len(shares)


class SourceQuestion(NamedTuple):
    """A question as its source has it; `picture` is what messages call its image."""

    picture: str
    image: Path | bytes
    instruction: str
    right: Sequence[str]
    candidates: Sequence[str] | None = None
    kind: str = ""


def read_audit_set(
    source: str | PathLike[str],
    *,
    limit: int | None = None,
    image_folder: str | PathLike[str] | None = None,
) -> AuditSet:
    """The questions of a CtrlBench folder, a data set, a plain JSONL file, or of `scenes`.

    `limit` takes the first so many questions; the candidates stay those of the whole set.
    `image_folder` is where a data set's images lie, as `open_dataset` takes it.

    Raises:
        DataError: there is no such set, a line of it is wrong, or none of its pictures is there.
    """
    if str(source) == SCENES:
        return _scenes(limit or 2000)
    path = Path(source)
    if (path / QUERIES_FILE).is_file():
        benchmark = read_benchmark(path)
        texts = {caption.cap_id: caption.text for caption in benchmark.corpus}
        files = {picture.image_id: picture.file for picture in benchmark.images}
        questions = (
            SourceQuestion(
                files[query.image_id],
                path / files[query.image_id],
                query.instruction,
                [texts[cap_id] for cap_id in query.positives],
                kind=query.aspect.partition(":")[0],
            )
            for query in benchmark.queries
            if query.tier != PAIR_TIER
        )
        return _collect(path, questions, limit, texts.values())
    is_dataset = path.suffix in (".parquet", ".tar") or _holds_records(path)
    if not is_dataset and (path.is_file() or path.suffix == ".jsonl"):
        return _collect(path, _plain_questions(path), limit)
    return _collect(path, _dataset_questions(source, image_folder), limit)


def _collect(
    path: Path,
    source: Iterable[SourceQuestion],
    limit: int | None,
    candidates: Iterable[str] = (),
) -> AuditSet:
    """Numbers for texts and pictures; questions whose pictures are not there are counted."""
    texts = {text: number for number, text in enumerate(candidates)}
    images: dict[str, ImageInput] = {}  # those that are asked about, by name
    places: dict[str, int] = {}
    missing: dict[str, None] = {}
    questions: list[Question] = []
    asked = 0

    def numbers(values: Sequence[str]) -> tuple[int, ...]:
        return tuple(dict.fromkeys(texts.setdefault(text, len(texts)) for text in values))

    for name, image, instruction, right, own_candidates, kind in source:
        right_numbers = numbers(right)
        candidate_numbers = None if own_candidates is None else numbers(own_candidates)
        if isinstance(image, Path) and name not in images and not image.is_file():
            missing[name] = None
        if limit is not None and asked == limit:
            continue
        asked += 1
        if name not in missing:
            images.setdefault(name, image)
            questions.append(
                Question(
                    image=places.setdefault(name, len(places)),
                    instruction=instruction,
                    right=right_numbers,
                    candidates=candidate_numbers,
                    kind=kind,
                )
            )
    if not questions:
        what = f"no picture ({next(iter(missing))} is the first)" if asked else "no question"
        raise DataError(f"{path} has {what} to audit; check the file and its folder")
    return AuditSet(
        name=path.resolve().stem,
        questions=tuple(questions),
        images=tuple(images.values()),
        texts=tuple(texts),
        missing=tuple(missing),
        left_out=asked - len(questions),
    )


def _scenes(count: int) -> AuditSet:
    """Unseen scenes with all their answers as candidates, as CtrlBench's tier S asks."""
    spec = generate(count, 1)
    images, queries = split_mirrors(spec)
    texts = {text: number for number, text in enumerate(spec.candidates)}
    return AuditSet(
        name=SCENES,
        questions=tuple(
            Question(
                image=q.image, instruction=q.instruction, right=(texts[q.answer],), kind=q.aspect
            )
            for q in queries
        ),
        images=tuple(render(image.scene, SIDE) for image in images),
        texts=tuple(texts),
    )


def _dataset_questions(
    source: str | PathLike[str], image_folder: str | PathLike[str] | None
) -> Iterator[SourceQuestion]:
    """Every instruction of every record; all answers of the set are candidates."""
    for row in open_dataset(source, image_folder=image_folder):
        name = row.record.image if isinstance(row.image, Path) else row.place
        for ask in row.record.instructions:
            yield SourceQuestion(name, row.image, ask.instruction, [ask.answer], kind=ask.kind)


def _holds_records(path: Path) -> bool:
    """Whether a file's first line is a record of ours rather than a question."""
    try:
        first = next((row for _, row in parse_lines(path, parse_json)), None)
    except (OSError, DataError):
        return False  # whoever reads it in earnest says what is wrong
    return isinstance(first, dict) and {"width", "height"} <= set(first)


@dataclass(frozen=True, kw_only=True)
class _PlainRow:
    """A line of a plain file."""

    image: str
    instruction: str
    answer: Any
    candidates: Any = None
    kind: str = ""
    id: Any = None
    meta: Any = None


def _plain_questions(path: Path) -> Iterator[SourceQuestion]:
    def parse(line: bytes) -> SourceQuestion:
        row = parse_object(_PlainRow, parse_json(line))
        check_text("image", row.image)
        check_text("instruction", row.instruction)
        right = row.answer if isinstance(row.answer, list) else [row.answer]
        for text in right:
            check_text("answer", text)
        if not right:
            raise DataError("answer is an empty list; give the right answer")
        if row.candidates is not None:
            _check_candidates(row.candidates, right)
        image = path.parent / row.image
        return SourceQuestion(row.image, image, row.instruction, right, row.candidates, row.kind)

    try:
        for _, question in parse_lines(path, parse):
            yield question
    except OSError as problem:
        raise DataError(
            f"{path} cannot be read ({problem.strerror}); give a JSONL file, a data set, a folder"
            f" of CtrlBench, or {SCENES}"
        ) from None


def _check_candidates(candidates: Any, right: Sequence[str]) -> None:
    if not isinstance(candidates, list):
        raise DataError("candidates is no list; give the texts to choose from")
    for text in candidates:
        check_text("candidates", text)
    strange = [text for text in right if text not in candidates]
    if strange:
        raise DataError(f"the answer {strange[0]!r} is none of the candidates; put it there too")
    if len(set(candidates)) < 2:
        raise DataError("candidates has only one text, so nothing is asked; give wrong ones too")
