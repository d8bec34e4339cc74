"""What an audit is run on: questions about pictures, each with its candidates, whatever the source.

A CtrlBench folder, any data set with instructions (`open_dataset`), the drawn scenes, or a plain
JSONL file, of which a line is

    {"image": "a.jpg", "instruction": "what is on the left?", "answer": "a dog",
     "candidates": ["a dog", "a cat"]}

`answer` may be a list, any of which is right. Without `candidates` every answer of the file is one
(retrieval); with them the question chooses among its own (VQA, multiple choice). `image` is a path
from the file's folder. `id` and `meta` are left alone.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

from abc_embed.bench.ctrlbench.scene_benchmark import SIDE
from abc_embed.bench.ctrlbench.schema import PAIR_TIER, QUERIES_FILE, read_benchmark
from abc_embed.bench.ctrlbench.unseen_scenes import generate, split_mirrors
from abc_embed.bench.encoders.base import image_hash
from abc_embed.data import open_dataset
from abc_embed.data.fields import check_text, parse_json, parse_lines, parse_object
from abc_embed.data.records import RECORDS_FILE
from abc_embed.errors import DataError
from abc_embed.inputs import ImageInput
from abc_embed.scenes.render import render

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
        digest = hashlib.sha256()
        for image in self.images:
            digest.update(image_hash(image).encode())
        asked = [(q.image, q.instruction, q.right, q.candidates) for q in self.questions]
        digest.update(json.dumps([self.texts, asked]).encode())
        return digest.hexdigest()

    def chance(self) -> float:
        """What guessing solves: the mean share of right ones among the candidates."""
        shares = [len(q.right) / len(q.candidates or self.texts) for q in self.questions]
        return sum(shares) / len(shares)


def read_set(source: "str | PathLike[str]", *, limit: int | None = None) -> AuditSet:
    """The questions of a CtrlBench folder, a data set, a plain JSONL file, or of `scenes`.

    `limit` takes the first so many questions; the candidates stay those of the whole set.

    Raises:
        DataError: there is no such set, a line of it is wrong, or none of its pictures is there.
    """
    if str(source) == SCENES:
        return _scenes(limit or 2000)
    path = Path(source)
    if (path / QUERIES_FILE).is_file():
        made = _ctrlbench(path)
    elif path.suffix in (".parquet", ".tar") or _holds_records(path):
        made = _dataset(path)
    elif path.is_file() or path.suffix == ".jsonl":
        made = _plain(path)
    else:
        made = _dataset(path)
    return made.finished(path, limit)


@dataclass(slots=True)
class _Making:
    """A set while it is read."""

    texts: dict[str, int] = field(default_factory=dict)
    image_numbers: dict[str, int] = field(default_factory=dict)
    images: list[Path | bytes] = field(default_factory=list)
    questions: list[Question] = field(default_factory=list)

    def text(self, text: str) -> int:
        return self.texts.setdefault(text, len(self.texts))

    def ask(
        self,
        name: str,
        image: Path | bytes,
        instruction: str,
        right: Sequence[str],
        candidates: Sequence[str] | None = None,
    ) -> None:
        """Add a question; `name` is that of its picture, in the set."""
        number = self.image_numbers.setdefault(name, len(self.images))
        if number == len(self.images):
            self.images.append(image)
        self.questions.append(
            Question(
                image=number,
                instruction=instruction,
                right=tuple(dict.fromkeys(map(self.text, right))),
                candidates=None
                if candidates is None
                else tuple(dict.fromkeys(map(self.text, candidates))),
            )
        )

    def finished(self, path: Path, limit: int | None) -> AuditSet:
        """Without the questions whose pictures are not there, which are counted."""
        gone = {
            number: name
            for name, number in self.image_numbers.items()
            if isinstance(image := self.images[number], Path) and not image.is_file()
        }
        missing = tuple(gone.values())
        asked = self.questions[:limit]
        here = [q for q in asked if q.image not in gone]
        if not here:
            what = "no question" if not asked else f"no picture ({missing[0]} is the first)"
            raise DataError(f"{path} has {what} to audit; check the file and its folder")
        shown = list(dict.fromkeys(q.image for q in here))
        number = {old: new for new, old in enumerate(shown)}
        return AuditSet(
            name=path.resolve().stem,
            questions=tuple(
                Question(
                    image=number[q.image],
                    instruction=q.instruction,
                    right=q.right,
                    candidates=q.candidates,
                )
                for q in here
            ),
            images=tuple(self.images[old] for old in shown),
            texts=tuple(self.texts),
            missing=missing,
            left_out=len(asked) - len(here),
        )


# -- sources ---------------------------------------------------------------------------------------


def _scenes(count: int) -> AuditSet:
    """Unseen scenes with all their answers as candidates, as CtrlBench's tier S asks."""
    spec = generate(count, 1)
    images, queries = split_mirrors(spec)
    texts = {text: number for number, text in enumerate(spec.candidates)}
    return AuditSet(
        name=SCENES,
        questions=tuple(
            Question(image=q.image, instruction=q.instruction, right=(texts[q.answer],))
            for q in queries
        ),
        images=tuple(render(image.scene, SIDE) for image in images),
        texts=tuple(spec.candidates),
    )


def _ctrlbench(folder: Path) -> _Making:
    bench = read_benchmark(folder)
    texts = {caption.cap_id: caption.text for caption in bench.corpus}
    files = {picture.image_id: picture.file for picture in bench.images}
    made = _Making()
    for text in texts.values():
        made.text(text)
    for query in bench.queries:
        if query.tier != PAIR_TIER:
            right = [texts[cap] for cap in query.positives]
            file = files[query.image_id]
            made.ask(file, folder / file, query.instruction, right)
    return made


def _dataset(path: Path) -> _Making:
    """Every instruction of every row; all answers of the data set are candidates."""
    made = _Making()
    for row in open_dataset(path):
        for ask in row.record.instructions:
            made.ask(row.record.image, row.image, ask.instruction, [ask.answer])
    return made


def _holds_records(path: Path) -> bool:
    """Whether a file's first line is a record of ours rather than a question."""
    if path.name == RECORDS_FILE:
        return True
    try:
        with path.open("rb") as file:
            first = parse_json(next((line for line in file if line.strip()), b"{}"))
    except (OSError, DataError):
        return False  # whoever reads it in earnest says what is wrong
    return isinstance(first, Mapping) and {"width", "height"} <= set(first)


@dataclass(frozen=True, kw_only=True)
class _Row:
    """A line of a plain file."""

    image: str
    instruction: str
    answer: Any
    candidates: Any = None
    id: Any = None
    meta: Any = None


def _plain(path: Path) -> _Making:
    made = _Making()
    try:
        for _ in parse_lines(
            path, lambda line: _add(made, path.parent, parse_object(_Row, parse_json(line)))
        ):
            pass
    except OSError as problem:
        raise DataError(
            f"{path} cannot be read ({problem.strerror}); give a JSONL file, a folder of records or"
            f" of CtrlBench, or {SCENES}"
        ) from None
    return made


def _add(made: _Making, folder: Path, row: _Row) -> None:
    check_text("image", row.image)
    check_text("instruction", row.instruction)
    right = row.answer if isinstance(row.answer, list) else [row.answer]
    for text in right:
        check_text("answer", text)
    if not right:
        raise DataError("answer is an empty list; give the right answer")
    if row.candidates is None:
        made.ask(row.image, folder / row.image, row.instruction, right)
        return
    if not isinstance(row.candidates, list):
        raise DataError("candidates is no list; give the texts to choose from")
    for text in row.candidates:
        check_text("candidates", text)
    strange = [text for text in right if text not in row.candidates]
    if strange:
        raise DataError(f"the answer {strange[0]!r} is none of the candidates; put it there too")
    if len(set(row.candidates)) < 2:
        raise DataError("candidates has only one text, so nothing is asked; give wrong ones too")
    made.ask(row.image, folder / row.image, row.instruction, right, row.candidates)
