"""A set as what it asks: queries that choose among candidates, and what is counted of them.

Each other file here reads one layout into an `EvaluationSet`; `measure` makes a record's findings
of any of them. Ties count against the model, and what is not finite is an error, not a score.

Shapes: `Q` queries, `K` candidates, `D` width.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from numpy.typing import ArrayLike

from abc_embed.bench.encoders.base import Encoder, Vectors
from abc_embed.bench.metrics import DRAWS, Ints, by_kind, rank_vectors, share
from abc_embed.errors import DataError
from abc_embed.inputs import Item
from abc_embed.storage.files import read_file
from abc_embed.storage.hashing import sha256

Findings = dict[str, Any]
"""What a measurement gives, as JSON values; `records.make_record` adds by whom."""

NAMED_IMAGES = 10
"""Missing images that a message names; the record has all."""


@dataclass(frozen=True, kw_only=True)
class Retrieval:
    """Queries that choose among candidates, and the scores that are taken of them."""

    queries: Sequence[Item]
    """`Q`."""
    candidates: Sequence[Item]
    """`K`."""
    golds: Sequence[Sequence[int]]
    """`(Q,)`: numbers of a query's right candidates."""
    scores: "Mapping[str, Metric]"
    """Name of a score -> what it is."""
    among: Sequence[Sequence[int]] | None = None
    """`(Q,)`: numbers of the candidates that a query chooses from; None: all."""
    clusters: Sequence[int] | None = None
    """`(Q,)`: the image of a query, with which it is resampled; None: each for itself."""
    kinds: Sequence[str] = ()
    """`(Q,)`: what is asked for, where R@1 of each kind is a score too."""
    optional: bool = False
    """Whether it is left out for a model that does not take its queries."""


@dataclass(frozen=True)
class Ranked:
    """A task that a model has done: what a score is taken of."""

    task: Retrieval
    queries: Vectors
    """`(Q, D)`."""
    candidates: Vectors
    """`(K, D)`."""
    ranks: Ints
    """`(Q,)`: of the best right candidate, from 1."""

    @property
    def clusters(self) -> Sequence[int]:
        """`(Q,)`."""
        return range(len(self.ranks)) if self.task.clusters is None else self.task.clusters

    def share(self, values: ArrayLike) -> dict[str, Any]:
        """The mean of values `(Q,)` with its interval, as `metrics.share`."""
        return share(values, self.clusters)


Metric = Callable[[Ranked], dict[str, Any]]
"""A score with its interval, as `metrics.share` gives one."""


def recall(k: int) -> Metric:
    """R@k: the share of queries with a right candidate among the first `k`."""
    return lambda ranked: ranked.share(ranked.ranks <= k)


def recalls(task: str) -> dict[str, Metric]:
    """R@1, R@5 and R@10 of a task under their names in records."""
    return {f"{task}_r{k}": recall(k) for k in (1, 5, 10)}


@dataclass(frozen=True, kw_only=True)
class EvaluationSet:
    """What is asked, how it was read, and what is left out."""

    benchmark: str
    """What records call it."""
    tasks: Sequence[Retrieval]
    rows: Sequence[object]
    """All that is asked; its `repr` is a part of the set's hash, as are the images' bytes."""
    images: Sequence[Path | bytes]
    sizes: Mapping[str, int]
    settings: Mapping[str, Any] = field(default_factory=dict)
    """How it was read."""
    missing: Sequence[str] = ()
    """Images that are not there; what needs one takes no part."""
    summarize: Callable[[Mapping[str, Any]], Mapping[str, Any]] = lambda scores: {}
    """Further scores that follow from those of the tasks."""


def measure(encoder: Encoder, evaluation: EvaluationSet) -> Findings:
    """Every score of a set, all embedded in one call; R@1 of each kind of question is `by_aspect`.

    Raises:
        DataError: not one image is there.
        UsageError: the encoder does not take what the set shows.
        NotFiniteError, InputError: as the encoder.
    """
    if not any(task.queries for task in evaluation.tasks):
        first = f", {evaluation.missing[0]} for one" if evaluation.missing else ""
        raise DataError(f"none of the set's images is there{first}; give the folder of the images")
    tasks = [
        task
        for task in evaluation.tasks
        if not task.optional or {q.kind for q in task.queries} <= encoder.supported_kinds
    ]
    sides = [side for task in tasks for side in (task.queries, task.candidates)]
    groups = {str(number): [(item,) for item in side] for number, side in enumerate(sides)}
    vectors = list(encoder.embed_sums(groups).values())
    scores: dict[str, Any] = {}
    by_aspect: dict[str, Any] = {}
    for task, queries, candidates in zip(tasks, vectors[::2], vectors[1::2], strict=True):
        ranks = rank_vectors(queries, candidates, task.golds, task.among)
        ranked = Ranked(task, queries, candidates, ranks)
        scores |= {name: metric(ranked) for name, metric in task.scores.items()}
        if task.kinds:
            by_aspect |= by_kind(ranks == 1, task.golds, task.kinds, ranked.clusters)
    return {
        "benchmark": evaluation.benchmark,
        "benchmark_hash": content_hash(evaluation.rows, evaluation.images),
        "settings": {**evaluation.settings, "max_pixels": encoder.max_pixels, "draws": DRAWS},
        "sizes": dict(evaluation.sizes),
        "missing": list(evaluation.missing),
        "scores": {**scores, **evaluation.summarize(scores)},
        "by_aspect": by_aspect,
    }


def content_hash(rows: Iterable[object], images: Iterable[Path | bytes]) -> str:
    """SHA-256 of what is asked (rows, as their `repr`) and of every image's bytes."""
    text = "".join(f"{row!r}\n" for row in rows).encode()
    contents = (image if isinstance(image, bytes) else read_file(image) for image in images)
    return sha256(text + b"".join(bytes.fromhex(sha256(content)) for content in contents))


def missing_images_message(missing: Sequence[str]) -> str:
    """One line about images that are not there, or nothing."""
    if not missing:
        return ""
    names = ", ".join(missing[:NAMED_IMAGES]) + (" …" if len(missing) > NAMED_IMAGES else "")
    return f"{len(missing):,} images are missing and left out: {names}"
