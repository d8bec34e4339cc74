"""A set as the tasks that it asks.

Each other file here reads one layout into an `EvaluationSet`; `measure` makes a record's findings
of any of them.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from abc_embed.bench.encoders.base import Encoder
from abc_embed.bench.metrics import DRAWS, by_kind
from abc_embed.bench.retrieval import Retrieval, rank_tasks
from abc_embed.errors import DataError
from abc_embed.storage.files import read_file
from abc_embed.storage.hashing import sha256

Findings = dict[str, Any]
"""What a measurement gives, as JSON values; `records.make_record` adds by whom."""

NAMED_IMAGES = 10
"""Missing images that a message names; the record has all."""


@dataclass(frozen=True, kw_only=True)
class EvaluationSet:
    """What is asked, how it was read, and what is left out."""

    benchmark: str
    """What records call it."""
    tasks: Mapping[str, Retrieval]
    """Their names begin those of their scores; of an empty one nothing is put before."""
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
    if not any(task.queries for task in evaluation.tasks.values()):
        first = f", {evaluation.missing[0]} for one" if evaluation.missing else ""
        raise DataError(f"none of the set's images is there{first}; give the folder of the images")
    scores: dict[str, Any] = {}
    by_aspect: dict[str, Any] = {}
    for name, done in rank_tasks(encoder, evaluation.tasks).items():
        task = done.task
        for metric, function in task.scores.items():
            scores[f"{name}_{metric}" if name else metric] = function(done)
        if task.kinds:
            by_aspect |= by_kind(done.ranks == 1, task.golds, task.kinds, done.clusters)
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
