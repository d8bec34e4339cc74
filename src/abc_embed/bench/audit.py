"""Which questions of a set need both the picture and the words?

For each model of a panel the questions are counted that the image alone solves, the words alone, or
the sum of their two vectors (late fusion); beside it what image + instruction solves. The paper's
complaint (section 1) is that benchmarks of image + text can be solved without control: a set whose
questions fall to one modality, for any model of the panel, does not measure it, however high a
joint model scores. A question is solved when a right candidate beats every wrong one; a tie counts
against the model.

A set is a CtrlBench folder, any data set whose records have instructions, the scene benchmark, or a
plain JSONL file, a line of which is

    {"image": "a.jpg", "instruction": "what is on the left?", "answer": "a dog",
     "candidates": ["a dog", "a cat"]}

`answer` may be a list, any of which is right. Without `candidates` every answer of the file is one
(retrieval); with them the question chooses among its own (VQA, multiple choice). `image` is a path
from the file's folder. A `kind` (what is asked for) has its own line in the result. `id` and `meta`
are left alone.

Shapes: `Q` questions, `K` candidates, `D` width.
"""

import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from abc_embed import figures, runtime
from abc_embed.bench import metrics
from abc_embed.bench.ctrlbench.scene_benchmark import SIDE
from abc_embed.bench.ctrlbench.schema import PAIR_TIER, QUERIES_FILE, read_benchmark
from abc_embed.bench.ctrlbench.unseen_scenes import generate, split_mirrors
from abc_embed.bench.encoders.base import Encoder, Parts, image_hash
from abc_embed.bench.encoders.wrapped import CachedEncoder
from abc_embed.bench.retrieval import Retrieval, rank_tasks
from abc_embed.bench.tables import chance_warnings, markdown_head, markdown_row, score_cell
from abc_embed.data import open_dataset
from abc_embed.data.fields import check_text, parse_json, parse_lines, parse_object
from abc_embed.errors import DataError, UsageError
from abc_embed.inputs import ImageInput, Item, Kind
from abc_embed.scenes.render import render
from abc_embed.storage.hashing import sha256

SCENES = "scenes"
"""The name of the scene benchmark, which is drawn and not read."""
WITHOUT_CONTROL = ("image", "words", "sum")
"""The conditions that need no joint model."""
COLUMNS = {
    "image": "image alone",
    "words": "words alone",
    "sum": "their sum",
    "any": "any of these",
    "both": "image + instruction",
    "only together": "only together",
}
HEAD = ("model", *COLUMNS.values())
KINDS_HEAD = ("model", "asked for", "image + instruction", "at chance")
COLOURS = {
    COLUMNS["image"]: "#9ab8dc",
    COLUMNS["words"]: "#e0b98a",
    COLUMNS["sum"]: "#a9c9a4",
    COLUMNS["any"]: "#5b6470",
    COLUMNS["both"]: figures.BLUE,
}

Hits = NDArray[np.bool_]
Findings = Mapping[str, Any]


# -- the questions ---------------------------------------------------------------------------------


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
    image: ImageInput
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
        return _collect(Path(SCENES), *_scene_questions(limit or 2000))
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
        return _collect(path, questions, texts.values(), limit)
    is_dataset = path.suffix in (".parquet", ".tar") or _holds_records(path)
    if not is_dataset and (path.is_file() or path.suffix == ".jsonl"):
        return _collect(path, _plain_questions(path), limit=limit)
    return _collect(path, _dataset_questions(source, image_folder), limit=limit)


def _collect(
    path: Path,
    source: Iterable[SourceQuestion],
    candidates: Iterable[str] = (),
    limit: int | None = None,
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


def _scene_questions(count: int) -> tuple[Iterator[SourceQuestion], list[str]]:
    """Unseen scenes with all their answers as candidates, as CtrlBench's tier S asks."""
    spec = generate(count, 1)
    images, queries = split_mirrors(spec)
    pictures = [render(image.scene, SIDE) for image in images]
    asked = (
        SourceQuestion(str(q.image), pictures[q.image], q.instruction, [q.answer], kind=q.aspect)
        for q in queries
    )
    return asked, spec.candidates


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


# -- the audit -------------------------------------------------------------------------------------


def audit(
    encoders: Sequence[Encoder],
    questions: AuditSet,
    *,
    cache: Path | None = None,
) -> dict[str, Any]:
    """Audit a set with a panel of models; returns JSON values.

    Args:
        encoders: the panel, which sees pictures at one `max_pixels`.
        cache: a folder to keep vectors in.

    Raises:
        UsageError: there is no model, or one does not take texts.
        NotFiniteError: a model gave a vector that is not finite.
        InputError: a picture cannot be opened.
    """
    if not encoders:
        raise UsageError("an audit needs at least one model; give it with --model")
    began = time.perf_counter()
    pictures = [question.image for question in questions.questions]
    rows, solved_by_any = [], []
    for encoder in encoders:
        hits = solved_questions(encoder, questions, cache=cache)
        solved_by_any.append(hits["any"])
        model = {"name": encoder.name, "fingerprint": encoder.fingerprint, **encoder.describe()}
        kinds = _by_kind(hits, questions)
        rows.append({"model": model, "shares": _shares(hits, pictures), "kinds": kinds})
    panel = _shares({"any": np.any(solved_by_any, axis=0)}, pictures)
    return {
        "audit": questions.name,
        "set_hash": questions.content_hash(),
        "settings": {"max_pixels": encoders[0].max_pixels, "draws": metrics.DRAWS},
        "sizes": {
            "questions": len(questions.questions),
            "images": len(questions.images),
            "texts": len(questions.texts),
            "left_out": questions.left_out,
        },
        "missing": list(questions.missing),
        "chance": questions.chance(),
        "models": rows,
        "panel": panel["any"],
        "versions": runtime.versions(),
        "hardware": runtime.hardware(),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(time.perf_counter() - began, 1),
    }


def solved_questions(
    encoder: Encoder, questions: AuditSet, *, cache: Path | None = None
) -> dict[str, Hits]:
    """Condition -> which questions it solves `(Q,)`; only the conditions that the model supports.

    Besides `image`, `words`, `sum` and `both`: `any` is solved by one of the first three, and
    `only together` by both together and by none of them.

    Raises:
        UsageError: the model does not take texts.
    """
    if Kind.TEXT not in encoder.supported_kinds:
        raise UsageError(
            f"{encoder.name} does not embed texts, and answers are texts; choose a model that does"
        )
    with CachedEncoder(encoder, cache) as cached:
        done = rank_tasks(cached, _tasks(questions))
    hits: dict[str, Hits] = {condition: ranked.ranks == 1 for condition, ranked in done.items()}
    hits["any"] = np.any([hits[name] for name in WITHOUT_CONTROL if name in hits], axis=0)
    if "both" in hits:
        hits["only together"] = hits["both"] & ~hits["any"]
    return hits


def _tasks(questions: AuditSet) -> dict[str, Retrieval]:
    """Condition -> all questions, asked so."""
    pairs = [(questions.images[q.image], q.instruction) for q in questions.questions]
    asked: dict[str, list[Parts]] = {
        "image": [(Item(image=image),) for image, _ in pairs],
        "words": [(Item(text=words),) for _, words in pairs],
        "sum": [(Item(image=image), Item(text=words)) for image, words in pairs],
        "both": [(Item(image=image, instruction=words),) for image, words in pairs],
    }
    return {
        condition: Retrieval(
            queries=queries,
            candidates=[(Item(text=text),) for text in questions.texts],
            golds=[question.right for question in questions.questions],
            among=[question.candidates for question in questions.questions],
            optional=True,
        )
        for condition, queries in asked.items()
    }


def _shares(hits: Mapping[str, Hits], pictures: Sequence[int]) -> dict[str, Any]:
    """Each condition's share with its 95 % interval; pictures are resampled, not questions."""
    shares = {name: metrics.share(values, pictures) for name, values in hits.items()}
    return {name: {key: s[key] for key in ("value", "interval")} for name, s in shares.items()}


def _by_kind(hits: Mapping[str, Hits], questions: AuditSet) -> dict[str, Any]:
    """Image + instruction by kind of question, where the set names kinds."""
    named = [number for number, q in enumerate(questions.questions) if q.kind]
    if "both" not in hits or not named:
        return {}
    asked = [questions.questions[number] for number in named]
    return metrics.by_kind(
        hits["both"][named],
        [q.right for q in asked],
        [q.kind for q in asked],
        [q.image for q in asked],
    )


# -- for people ------------------------------------------------------------------------------------


def rows(findings: Findings) -> list[tuple[str, ...]]:
    """One row for each model, `–` where it does not take such inputs; below, the whole panel."""
    lines = [
        (row["model"]["name"], *(score_cell(row["shares"].get(column)) for column in COLUMNS))
        for row in findings["models"]
    ]
    if len(lines) > 1:
        cells = [score_cell(findings["panel"]) if column == "any" else "" for column in COLUMNS]
        lines.append(("any model of the panel", *cells))
    return lines


def kind_rows(findings: Findings) -> list[tuple[str, ...]]:
    """Image + instruction, a row for each model and kind of question; none if kinds have no name.

    The last cell is chance where a model does not get beyond it.
    """
    return [
        (row["model"]["name"], kind, score_cell(figure),
         f"{figure['chance']:.3f}" if metrics.at_chance(figure) else "")
        for row in findings["models"]
        for kind, figure in row["kinds"].items()
    ]  # fmt: skip


def warnings(findings: Findings) -> list[str]:
    """A sentence for each kind of question that a model may only guess at."""
    return [
        f"{row['model']['name']}: {sentence}"
        for row in findings["models"]
        for sentence in chance_warnings(row["kinds"])
    ]


def summary(findings: Findings) -> str:
    """What the shares are of, in one or two sentences."""
    sizes = findings["sizes"]
    text = (
        f"{findings['audit']}: {sizes['questions']:,} questions about {sizes['images']:,} pictures,"
        f" {sizes['texts']:,} texts; guessing solves {findings['chance']:.3f}."
    )
    if sizes["left_out"]:
        text += (
            f" Questions left out for want of their pictures: {sizes['left_out']:,}; pictures"
            f" missing: {len(findings['missing']):,}, {findings['missing'][0]} the first."
        )
    return text


def markdown(findings: Findings) -> str:
    """The table with its sentence, for a document."""
    lines = [
        f"Share of questions solved, with 95 % intervals by picture. {summary(findings)}",
        "",
        *markdown_head(HEAD),
        *map(markdown_row, rows(findings)),
    ]
    if by_kind := kind_rows(findings):
        lines += ["", *markdown_head(KINDS_HEAD), *map(markdown_row, by_kind)]
        lines += [line for sentence in warnings(findings) for line in ("", f"Warning: {sentence}.")]
    return "\n".join(lines) + "\n"


def draw_bars(findings: Findings, path: Path) -> None:
    """Bars with intervals, model by model; the dashed line is what guessing solves.

    Raises:
        MissingExtraError: matplotlib is not installed.
        OutputError: the file cannot be written.
    """
    models = findings["models"]
    figure = figures.new_figure(7.5, 1.6 + 1.25 * len(models))
    axes = figure.subplots()
    figures.score_axes(axes, [row["model"]["name"] for row in models])
    for row, model in enumerate(models):
        shares = {COLUMNS[key]: share for key, share in model["shares"].items()}
        figures.score_bars(axes, row, shares, COLOURS, fontsize=8)
    chance = findings["chance"]
    axes.axvline(chance, color=figures.BOUND, linestyle="--", linewidth=1, label="guessing")
    axes.set_xlabel("share of questions solved (95 % intervals by picture)")
    axes.set_title(f"What does it take to solve {findings['audit']}?", loc="left")
    figures.legend_below(figure, columns=3, fontsize=10)
    figures.save_figure(figure, path, dpi=150)
