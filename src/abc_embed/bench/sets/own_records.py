"""Records of one's own as they are: image to caption, and image + instruction to answer, by kind.

All captions of the set are candidates for an image, all answers for a question. Texts that differ
in case, spacing or a full stop alone are one. Where several images have the same caption it is
right for each of them (`repeated="equal"`), or each caption counts as its own image's alone, and an
equal one of another image as wrong (`"apart"`), as benchmarks of captions count it.

Shapes: `Q` queries, `K` candidates, `D` width.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from abc_embed.bench.ctrlbench.schema import normalize_text
from abc_embed.bench.retrieval import RECALLS, Retrieval
from abc_embed.bench.sets.evaluation import EvaluationSet, Findings
from abc_embed.data import Dataset, Rejected
from abc_embed.data.records import Instruction, Record
from abc_embed.errors import DataError
from abc_embed.inputs import Item

Repeated = Literal["equal", "apart"]


@dataclass
class Texts:
    """Candidates, and which of them each query has right."""

    texts: list[str] = field(default_factory=list)
    golds: list[list[int]] = field(default_factory=list)
    """`(Q,)` of numbers of `texts`."""
    images: list[int] = field(default_factory=list)
    """`(Q,)`: the image of each query, which is its cluster."""
    repeated: int = 0
    """Texts that stand at more than one image."""
    _known: dict[object, int] = field(default_factory=dict)
    _images_of: dict[str, set[int]] = field(default_factory=dict)

    def add(self, image: int, right: Sequence[str], repeated: Repeated) -> None:
        """One query and the texts that are right for it."""
        numbers = []
        for text in right:
            same = normalize_text(text)
            owners = self._images_of.setdefault(same, set())
            self.repeated += len(owners) == 1 and image not in owners
            owners.add(image)
            key = same if repeated == "equal" else (same, image)
            if key not in self._known:
                self._known[key] = len(self.texts)
                self.texts.append(text)
            numbers.append(self._known[key])
        self.golds.append(sorted(set(numbers)))
        self.images.append(image)


def read_own_records(
    dataset: Dataset, *, repeated: Repeated = "equal", limit: int | None = None
) -> EvaluationSet:
    """The questions of a data set, or of its first `limit` images.

    Several answers to one question of an image are all right. Questions are also answered by the
    image alone, since what it solves needs no instruction.

    Raises:
        DataError: no row has an image and a caption or an instruction.
    """
    images: list[Path | bytes] = []
    captions, answers = Texts(), Texts()
    asked: list[tuple[str, str]] = []  # instruction and kind of each query of `answers`
    missing: list[str] = []
    for record, image in _rows(dataset, missing):
        if limit is not None and len(images) == limit:
            break
        if not record.captions and not record.instructions:
            continue
        number = len(images)
        images.append(image)
        if record.captions:
            captions.add(number, record.captions, repeated)
        by_words: dict[str, list[Instruction]] = {}
        for ask in record.instructions:
            by_words.setdefault(ask.instruction, []).append(ask)
        for words, asks in by_words.items():
            # Answers are names of things, which many images share: those are always equal.
            answers.add(number, [ask.answer for ask in asks], "equal")
            asked.append((words, asks[0].kind))
    if not images:
        why = f" ({missing[0]})" if missing else ""
        raise DataError(
            f"{dataset.path} has no image with a caption or an instruction{why}; nothing is asked"
        )
    rows = [(*each, golds) for each, golds in zip(asked, answers.golds, strict=True)]
    return EvaluationSet(
        benchmark=f"records-{dataset.folder.resolve().name}",
        tasks=_tasks(images, captions, answers, asked),
        rows=[*rows, captions.texts, captions.golds, answers.texts],
        images=images,
        sizes={
            "images": len(images),
            "captions": len(captions.texts),
            "captions_of_several_images": captions.repeated,
            "questions": len(answers.golds),
            "answers": len(answers.texts),
        },
        settings={"repeated": repeated, "limit": limit},
        missing=missing,
    )


def _tasks(
    images: Sequence[Path | bytes],
    captions: Texts,
    answers: Texts,
    asked: Sequence[tuple[str, str]],
) -> dict[str, Retrieval]:
    """Image to caption; image + instruction to answer; the image alone to the same answers."""
    to_caption = Retrieval(
        queries=[(Item(image=images[number]),) for number in captions.images],
        candidates=[(Item(text=text),) for text in captions.texts],
        golds=captions.golds,
        clusters=captions.images,
        scores=RECALLS,
    )
    joint = Retrieval(
        queries=[
            (Item(image=images[number], instruction=words),)
            for number, (words, _) in zip(answers.images, asked, strict=True)
        ],
        candidates=[(Item(text=text),) for text in answers.texts],
        golds=answers.golds,
        clusters=answers.images,
        kinds=[kind for _, kind in asked],
        scores=RECALLS,
        optional=True,
    )
    alone = replace(
        joint,
        queries=[(Item(image=images[number]),) for number in answers.images],
        kinds=(),
        scores={"r1": RECALLS["r1"]},
        optional=False,
    )
    tasks = {
        "image_to_caption": to_caption,
        "instruction_to_answer": joint,
        "image_alone_to_answer": alone,
    }
    return {name: task for name, task in tasks.items() if task.queries}


def _rows(dataset: Dataset, missing: list[str]) -> Iterator[tuple[Record, Path | bytes]]:
    """Record and image of each row that can be used; the others go on the list `missing`."""
    for row in dataset.rows():
        if isinstance(row, Rejected):  # a record of a measurement names no path of this machine
            missing.append(f"{row.place.removeprefix(f'{dataset.folder}/')}: {row.why}")
        elif isinstance(row.image, Path) and not row.image.is_file():
            missing.append(row.record.image)
        else:
            yield row.record, row.image


def repeated_message(findings: Findings) -> str:
    """How captions that stand at several images were counted, or nothing where there are none."""
    count = findings["sizes"]["captions_of_several_images"]
    if not count:
        return ""
    many = f"{count:,} captions stand" if count > 1 else "1 caption stands"
    if findings["settings"]["repeated"] == "equal":
        return f"{many} at several images, and counts as right for each (--repeated equal)"
    return f"{many} at several images, and counts as right for its own alone (--repeated apart)"
