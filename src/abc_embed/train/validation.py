"""What a model in training can do on pictures that it does not learn from.

Asked as the stage trains: with the image alone in stage 1, with image + instruction in stage 2 and
wherever the set has questions; there the image alone is asked too, as the control. Loss is that of
training without smoothing, at the τ of the moment; a tie counts as wrong. Nothing random is drawn
and nothing kept in the model, so the run is the same to the last bit as without.

Shapes: `N` items, `D` width, `Q` questions, `C` candidates (all different texts of the set).
"""

from collections import ChainMap
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from abc_embed.bench.ctrlbench.schema import IMAGES_FILE, read_benchmark
from abc_embed.bench.metrics import by_kind
from abc_embed.data import Row, open_dataset
from abc_embed.errors import DataError, InputError
from abc_embed.inputs import ImageInput, Item
from abc_embed.processor import Features, Processor
from abc_embed.storage.hashing import sha256, sha256_file
from abc_embed.train.config import StageName, ValidationConfig
from abc_embed.train.stages import Stage

VALIDATION_FILE = "validation.jsonl"
CHUNK = 32
"""Items in one pass where `train.chunk_size` says nothing."""


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked of one image, and which candidates answer it."""

    image: int
    instruction: str
    """Empty: it is asked with the image alone."""
    right: tuple[int, ...]
    kind: str = ""
    """What is asked for; empty for a caption."""


@dataclass(frozen=True, slots=True, eq=False)
class ValidationSet:
    """Images, questions about them, and the texts that may answer."""

    images: tuple[ImageInput, ...]
    places: tuple[str, ...]
    """Where each image stands, for messages."""
    questions: tuple[Question, ...]
    """Those of one image one after the other."""
    texts: tuple[str, ...]


def read_validation(config: ValidationConfig, stage: StageName) -> ValidationSet:
    """The set of a configuration: its first `validation.images` images that can be asked about.

    Raises:
        DataError: there is no such set, a row of it is wrong, or there is nothing to ask.
    """
    path = Path(config.records)
    is_benchmark = (path / IMAGES_FILE).is_file()
    found = _of_benchmark(path, config) if is_benchmark else _of_records(config, stage)
    if not found.questions or len(found.texts) < 2:
        needed = "captions" if stage == "pretrain" else "instructions"
        raise DataError(
            f"validation.records ({config.records}) has nothing to choose between; give records "
            f"with {needed} that differ"
        )
    return found


def _of_records(config: ValidationConfig, stage: StageName) -> ValidationSet:
    images: list[ImageInput] = []
    places: list[str] = []
    questions: list[Question] = []
    numbers: dict[str, int] = {}
    for row in open_dataset(config.records):
        record = row.record
        asked: list[tuple[str, str, str]] = []
        if stage == "instruct":
            asked = [(ask.instruction, ask.answer, ask.kind) for ask in record.instructions]
        elif record.caption:
            asked = [("", record.caption, "")]
        if not asked:
            continue
        for instruction, text, kind in asked:
            right = numbers.setdefault(text, len(numbers))
            questions.append(Question(len(images), instruction, (right,), kind))
        images.append(row.image)
        places.append(row.place)
        if len(images) == config.images:
            break
    return ValidationSet(tuple(images), tuple(places), tuple(questions), tuple(numbers))


def _of_benchmark(path: Path, config: ValidationConfig) -> ValidationSet:
    benchmark = read_benchmark(path)
    missing = set(benchmark.missing)
    chosen = [p for p in benchmark.images if p.file not in missing][: config.images]
    place = {picture.image_id: number for number, picture in enumerate(chosen)}
    caption = {c.cap_id: number for number, c in enumerate(benchmark.corpus)}
    asked = sorted(
        (q for q in benchmark.queries if q.image_id in place and q.tier in benchmark.tiers),
        key=lambda query: place[query.image_id],
    )
    questions = (
        Question(
            place[q.image_id],
            q.instruction,
            tuple(caption[c] for c in q.positives),
            q.aspect.partition(":")[0],
        )
        for q in asked
    )
    files = [path / picture.file for picture in chosen]
    texts = tuple(c.text for c in benchmark.corpus)
    return ValidationSet(tuple(files), tuple(map(str, files)), tuple(questions), texts)


# -- measuring -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ValidationRecord:
    """One line of `validation.jsonl`."""

    step: int
    """Steps done; 0 is the model before training."""
    loss: float
    r1: float
    """Share of questions whose right text is ranked first, asked as the file's head says."""
    image_loss: float | None
    """The same with the image alone, where there are instructions to leave out."""
    image_r1: float | None
    questions: int
    candidates: int
    kinds: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Of image + instruction by kind of question: R@1 with its interval, and its chance."""

    def sentence(self, better: bool) -> str:
        """For people."""
        alone = "" if self.image_r1 is None else f" (image alone {self.image_r1:.3f})"
        kinds = "".join(f", {name} {found['value']:.3f}" for name, found in self.kinds.items())
        return (
            f"step {self.step}: validation loss {self.loss:.4f}, R@1 {self.r1:.3f}{alone}{kinds}"
            f"{', the best so far' if better else ''}"
        )

    def numbers(self) -> dict[str, float]:
        """For a tracker: every number by its name there."""
        values = asdict(self) | {f"r1_{name}": one["value"] for name, one in self.kinds.items()}
        del values["kinds"]
        return {f"validation_{name}": v for name, v in values.items() if v is not None}

    def better_than(self, other: "ValidationRecord | None") -> bool:
        """Whether more is right, or as much at a smaller loss."""
        return other is None or (self.r1, -self.loss) > (other.r1, -other.loss)


class Validator:
    """Measures the model of a stage on one set, again and again."""

    def __init__(self, chosen: ValidationSet, stage: Stage, processor: Processor) -> None:
        self._set, self._stage, self._processor = chosen, stage, processor
        self._texts: torch.Tensor | None = None

    def measure(self, step: int) -> ValidationRecord:
        """All processes call it, each embeds a part, and all have the same result.

        Raises:
            InputError: an image or a text of the set cannot be used.
        """
        questions = self._set.questions
        texts = self._texts
        if texts is None:
            texts = self._embed([(None, text) for text in self._set.texts])
            if self._stage.config.stage == "instruct":  # nothing that could change them trains
                self._texts = texts
        keys = sorted({(q.image, words) for q in questions for words in ("", q.instruction)})
        vectors = dict(zip(keys, self._embed(keys), strict=True))
        query = torch.stack([vectors[q.image, ""] for q in questions])
        loss, hit = self._score(query, texts, questions)
        image_loss, image_r1, kinds = None, None, {}
        if with_words := [q for q in questions if q.instruction]:
            image_loss, image_r1 = loss, _mean(hit)
            query = torch.stack([vectors[q.image, q.instruction] for q in with_words])
            loss, hit = self._score(query, texts, with_words)
            right, kind, image = zip(*((q.right, q.kind, q.image) for q in with_words), strict=True)
            kinds = by_kind(hit, right, kind, image)
        return ValidationRecord(
            step=step,
            loss=loss,
            r1=_mean(hit),
            image_loss=image_loss,
            image_r1=image_r1,
            questions=len(questions),
            candidates=len(texts),
            kinds=kinds,
        )

    def _score(
        self, query: torch.Tensor, texts: torch.Tensor, questions: Sequence[Question]
    ) -> tuple[float, NDArray[np.bool_]]:
        """Loss of `(Q, D)` among `(C, D)`, and whether the first choice is right, `(Q,)`."""
        scores = query @ texts.T  # (Q, C)
        right = torch.zeros_like(scores, dtype=torch.bool)
        for number, question in enumerate(questions):
            right[number, list(question.right)] = True
        logs = torch.log_softmax(scores / self._stage.model.temperature.value, dim=1)
        loss = -logs.masked_fill(~right, -torch.inf).logsumexp(dim=1).mean()
        best = scores.masked_fill(~right, -torch.inf).amax(dim=1)
        wrong = scores.masked_fill(right, -torch.inf).amax(dim=1)
        return round(loss.item(), 6), (best > wrong).numpy()

    def _embed(self, keys: Sequence[tuple[int | None, str]]) -> torch.Tensor:
        """`N` pairs of image number and words -> `(N, D)` float64 on the CPU.

        Where weights are split every process must make equally many passes, so one that has no
        chunk left embeds something once more.
        """
        group, size = self._stage.process_group, self._stage.config.train.chunk_size or CHUNK
        chunks = [keys[i : i + size] for i in range(0, len(keys), size)]
        own: dict[int, NDArray[np.float32]] = {}
        for first in range(0, len(chunks), group.world_size):
            number = first + group.rank
            chunk = chunks[number] if number < len(chunks) else chunks[-1][:1]
            with group.propagate_errors():
                features = self._features(chunk)
            vectors = self._stage.embed(features).cpu().numpy()
            if number < len(chunks):
                own[number] = vectors
        parts = dict(ChainMap(*group.all_gather_object(own)))
        rows = np.concatenate([parts[number] for number in range(len(chunks))])
        return torch.from_numpy(rows).double()

    def _features(self, keys: Sequence[tuple[int | None, str]]) -> list[Features]:
        features: list[Features] = []
        processor, area = self._processor, self._stage.config.data.max_pixels or None
        opened: int | None = None
        for number, words in keys:
            if number is None:
                features.append(processor.features(Item(text=words)))
                continue
            image = self._set.images[number]
            try:
                if number != opened:
                    opened, pixels = number, processor.pixels(image, max_pixels=area)
                item = Item(image=image, instruction=words or None)
                features.append(processor.features(item, max_pixels=area, pixels=pixels))
            except InputError as error:
                raise type(error)(f"{self._set.places[number]}: {error}") from error
        return features


def _mean(hit: NDArray[np.bool_]) -> float:
    return round(float(hit.mean()), 6)


# -- pictures that are in both ---------------------------------------------------------------------


class Overlap:
    """Looks for the images of a set among the rows of another, by their bytes.

    A picture that was saved anew has other bytes, and is not found.
    """

    def __init__(self, chosen: ValidationSet) -> None:
        """Raises `DataError` when an image cannot be read."""
        self._sizes: dict[int, dict[str, str]] = {}
        """Size of a file -> SHA-256 of those that have it -> where each stands."""
        self._found: list[tuple[str, str]] = []
        """Places in the other set and in this one."""
        for image, place in zip(chosen.images, chosen.places, strict=True):
            try:
                if isinstance(image, bytes | Path):
                    self._sizes.setdefault(_size(image), {})[_sha256(image)] = place
            except OSError as problem:
                raise DataError(f"{place}: the image cannot be read ({problem.strerror})") from None

    def look(self, row: Row) -> None:
        """A row of the other set. Only images of a size that was expected are read."""
        try:
            same_size = self._sizes.get(_size(row.image))
            place = same_size and same_size.get(_sha256(row.image))
        except OSError:
            return  # training says so when its turn comes
        if place:
            self._found.append((row.place, place))

    def check(self) -> None:
        """Raise `DataError` when training and validation show the same pictures."""
        if self._found:
            there, here = self._found[0]
            raise DataError(
                f"{len(self._found):,} pictures of data.records are in validation.records too, "
                f"{there} as {here} the first; a score on them would be memory: take them out of "
                "one, or set validation.allow_overlap = true"
            )


def _size(image: Path | bytes) -> int:
    return len(image) if isinstance(image, bytes) else image.stat().st_size


def _sha256(image: Path | bytes) -> str:
    return sha256(image) if isinstance(image, bytes) else sha256_file(image)
