"""Records of one's own as they are: image to caption, and image + instruction to answer, by kind.

All captions of the set are candidates for an image, all answers for a question. Texts that differ
in case, spacing or a full stop alone are one. Where several images have the same caption it is
right for each of them (`repeated="equal"`), or each caption counts as its own image's alone, and an
equal one of another image as wrong (`"apart"`), as benchmarks of captions count it.

Shapes: `Q` queries, `K` candidates, `D` width.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from abc_embed.bench.ctrlbench.schema import normalize_text
from abc_embed.bench.encoders.base import Encoder
from abc_embed.bench.metrics import DRAWS, Ints, by_kind, rank_vectors, share
from abc_embed.bench.sets.findings import Findings, check_takes_both, content_hash
from abc_embed.data import Dataset, Rejected
from abc_embed.data.records import Instruction, Record
from abc_embed.errors import DataError
from abc_embed.inputs import Item, Kind

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


@dataclass
class OwnRecords:
    """What a data set asks: images with captions, and questions with answers."""

    name: str
    repeated: Repeated
    limit: int | None
    images: list[Path | bytes] = field(default_factory=list)
    captions: Texts = field(default_factory=Texts)
    answers: Texts = field(default_factory=Texts)
    instructions: list[str] = field(default_factory=list)
    """Of each query of `answers`."""
    kinds: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    """Rows that cannot be used, and images that are not there: where, and why."""


def read_own_records(
    dataset: Dataset, *, repeated: Repeated = "equal", limit: int | None = None
) -> OwnRecords:
    """The questions of a data set, or of its first `limit` images.

    Several answers to one question of an image are all right.

    Raises:
        DataError: no row has an image and a caption or an instruction.
    """
    read = OwnRecords(dataset.folder.resolve().name, repeated, limit)
    for record, image in _rows(dataset, read.missing):
        if limit is not None and len(read.images) == limit:
            break
        if not record.captions and not record.instructions:
            continue
        number = len(read.images)
        read.images.append(image)
        if record.captions:
            read.captions.add(number, record.captions, repeated)
        asked: dict[str, list[Instruction]] = {}
        for ask in record.instructions:
            asked.setdefault(ask.instruction, []).append(ask)
        for instruction, asks in asked.items():
            # Answers are names of things, which many images share: those are always equal.
            read.answers.add(number, [ask.answer for ask in asks], "equal")
            read.instructions.append(instruction)
            read.kinds.append(asks[0].kind)
    if not read.images:
        why = f" ({read.missing[0]})" if read.missing else ""
        raise DataError(
            f"{dataset.path} has no image with a caption or an instruction{why}; nothing is asked"
        )
    return read


def _rows(dataset: Dataset, missing: list[str]) -> Iterator[tuple[Record, Path | bytes]]:
    """Record and image of each row that can be used; the others go on the list `missing`."""
    for row in dataset.rows():
        if isinstance(row, Rejected):  # a record of a measurement names no path of this machine
            missing.append(f"{row.place.removeprefix(f'{dataset.folder}/')}: {row.why}")
        elif isinstance(row.image, Path) and not row.image.is_file():
            missing.append(row.record.image)
        else:
            yield row.record, row.image


def measure(
    encoder: Encoder,
    read: OwnRecords,
    *,
    max_pixels: int | None = None,
    progress: bool = False,
) -> Findings:
    """R@1, R@5 and R@10 of both tasks with intervals by image, and R@1 of every kind of question.

    Questions are also answered by the image alone, since what it solves needs no instruction.

    Raises:
        UsageError: the encoder takes no images or no texts.
        NotFiniteError, InputError: as the encoder.
    """
    check_takes_both(encoder)
    captions, answers = read.captions, read.answers
    images = encoder.embed(
        [Item(image=image) for image in read.images], max_pixels=max_pixels, progress=progress
    )
    scores: dict[str, Any] = {}
    by_aspect: dict[str, Any] = {}
    if captions.golds:
        texts = encoder.embed(captions.texts)
        ranks = rank_vectors(images[captions.images], texts, captions.golds)
        scores |= _scores("image_to_caption", ranks, captions)
    if answers.golds:
        texts = encoder.embed(answers.texts)
        alone = rank_vectors(images[answers.images], texts, answers.golds)
        if Kind.INSTRUCTED in encoder.supported_kinds:
            items = [
                Item(image=read.images[image], instruction=words)
                for image, words in zip(answers.images, read.instructions, strict=True)
            ]
            joint = encoder.embed(items, max_pixels=max_pixels, progress=progress)
            ranks = rank_vectors(joint, texts, answers.golds)
            scores |= _scores("instruction_to_answer", ranks, answers)
            by_aspect = by_kind(ranks == 1, answers.golds, read.kinds, answers.images)
        scores["image_alone_to_answer_r1"] = share(alone == 1, answers.images)
    rows = zip(read.instructions, read.kinds, answers.golds, strict=True)
    return {
        "benchmark": f"records-{read.name}",
        "benchmark_hash": content_hash(
            [*rows, captions.texts, captions.golds, answers.texts], read.images
        ),
        "settings": {
            "repeated": read.repeated,
            "limit": read.limit,
            "max_pixels": max_pixels,
            "draws": DRAWS,
        },
        "sizes": {
            "images": len(read.images),
            "captions": len(captions.texts),
            "captions_of_several_images": captions.repeated,
            "questions": len(answers.golds),
            "answers": len(answers.texts),
        },
        "missing": read.missing,
        "scores": scores,
        "by_aspect": by_aspect,
    }


def repeated_message(findings: Findings) -> str:
    """How captions that stand at several images were counted, or nothing where there are none."""
    count = findings["sizes"]["captions_of_several_images"]
    if not count:
        return ""
    many = f"{count:,} captions stand" if count > 1 else "1 caption stands"
    if findings["settings"]["repeated"] == "equal":
        return f"{many} at several images, and counts as right for each (--repeated equal)"
    return f"{many} at several images, and counts as right for its own alone (--repeated apart)"


def _scores(task: str, ranks: Ints, texts: Texts) -> dict[str, Any]:
    return {f"{task}_r{k}": share(ranks <= k, texts.images) for k in (1, 5, 10)}
