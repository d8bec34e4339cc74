"""Which questions of a set need both the picture and the words?

Does: for each model of a panel, count the questions that the image alone solves, the words alone,
or the sum of their two vectors (late fusion); beside it what image + instruction solves. Does not:
read a set (audit_sets.py), draw (audit_table.py).
Why: the paper's complaint (section 1) is that benchmarks of image + text can be solved without
control. A set whose questions fall to one modality, for any model of the panel, does not measure
it, however high a joint model scores.

A question is solved when a right candidate beats every wrong one; a tie counts against the model.

Shapes: `Q` questions, `K` candidates, `D` width, `W` ways of asking.
"""

import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from abc_embed import runtime
from abc_embed.bench import metrics
from abc_embed.bench.audit.questions import AuditSet
from abc_embed.bench.encoders.base import Vectors
from abc_embed.bench.encoders.registry import CachedEncoder, Encoder
from abc_embed.errors import UsageError
from abc_embed.inputs import Item, Kind

ALONE = ("image", "words", "sum")
"""The ways that need no joint model."""
NEEDS = {
    "image": {Kind.TEXT, Kind.IMAGE},
    "words": {Kind.TEXT},
    "sum": {Kind.TEXT, Kind.IMAGE},
    "both": {Kind.TEXT, Kind.INSTRUCTED},
}
"""What a model must take to be asked in each way; candidates are texts."""
AT_ONCE = 1024
"""Questions whose scores are in memory together."""

Hits = NDArray[np.bool_]


def run(
    encoders: Sequence[Encoder],
    questions: AuditSet,
    *,
    max_pixels: int | None = None,
    draws: int = 2000,
    cache: Path | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """Audit a set with a panel of models; returns JSON values.

    ``max_pixels`` is as in `Embedder.embed`; ``draws`` bootstrap resamples, of whole pictures with
    all their questions, give the 95 % intervals; ``cache`` is a folder to keep vectors in.

    Raises:
        UsageError: there is no model, or one does not take texts.
        NotFiniteError: a model gave a vector that is not finite.
        InputError: a picture cannot be opened.
    """
    if not encoders:
        raise UsageError("an audit needs at least one model; give it with --model")
    began = time.perf_counter()
    pictures = [question.image for question in questions.questions]
    rows, alone = [], []
    for encoder in encoders:
        hits = solved(encoder, questions, max_pixels=max_pixels, cache=cache, progress=progress)
        alone.append(hits["any"])
        shares = _shares(hits, pictures, draws)
        about = {"name": encoder.name, "fingerprint": encoder.fingerprint, **encoder.describe()}
        rows.append({"model": about, "shares": shares})
    panel = {"any": np.any(alone, axis=0)}
    return {
        "audit": questions.name,
        "set_hash": questions.content_hash(),
        "settings": {"max_pixels": max_pixels, "draws": draws},
        "sizes": {
            "questions": len(questions.questions),
            "images": len(questions.images),
            "texts": len(questions.texts),
            "left_out": questions.left_out,
        },
        "missing": list(questions.missing),
        "chance": questions.chance(),
        "models": rows,
        "panel": _shares(panel, pictures, draws)["any"],
        "versions": runtime.versions(),
        "hardware": runtime.hardware(),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(time.perf_counter() - began, 1),
    }


def solved(
    encoder: Encoder,
    questions: AuditSet,
    *,
    max_pixels: int | None = None,
    cache: Path | None = None,
    progress: bool = False,
) -> dict[str, Hits]:
    """Way of asking -> which questions it solves `(Q,)`; only the ways that the model takes.

    Besides `image`, `words`, `sum` and `both`: `any` is solved by one of the first three, and
    `only together` by both together and by none of them.

    Raises:
        UsageError: the model does not take texts.
    """
    ways = [way for way, kinds in NEEDS.items() if kinds <= encoder.supported_kinds]
    if not ways:
        raise UsageError(
            f"{encoder.name} does not embed texts, and answers are texts; choose a model that does"
        )
    texts, asked = _vectors(encoder, questions, ways, max_pixels, cache, progress)
    found = {way: _first(asked[way], texts, questions) for way in ways}
    found["any"] = np.any([found[way] for way in ALONE if way in found], axis=0)
    if "both" in found:
        found["only together"] = found["both"] & ~found["any"]
    return found


def _vectors(
    encoder: Encoder,
    questions: AuditSet,
    ways: Sequence[str],
    max_pixels: int | None,
    cache: Path | None,
    progress: bool,
) -> tuple[Vectors, dict[str, Vectors]]:
    """Candidates `(K, D)`, and for each way the queries `(Q, D)`; all from one call, so that a
    picture is encoded once."""
    words = list(dict.fromkeys(q.instruction for q in questions.questions))
    place = {text: number for number, text in enumerate(words)}
    pictures = [Item(image=image) for image in questions.images] if "image" in ways else []
    joint = [
        Item(image=questions.images[q.image], instruction=q.instruction)
        for q in (questions.questions if "both" in ways else ())
    ]
    parts: list[Sequence[Item | str]] = [questions.texts, words, pictures, joint]
    with CachedEncoder(encoder, cache) as remembering:
        everything = [item for part in parts for item in part]
        vectors = remembering.embed(everything, max_pixels=max_pixels, progress=progress)
    texts, of_words, of_pictures, of_both = np.split(
        vectors, np.cumsum([len(part) for part in parts])[:-1]
    )
    asked = {"words": of_words[[place[q.instruction] for q in questions.questions]]}
    if "image" in ways:
        asked["image"] = of_pictures[[q.image for q in questions.questions]]
        asked["sum"] = asked["image"] + asked["words"]  # unit vectors: neither outweighs the other
    if "both" in ways:
        asked["both"] = of_both
    return texts, asked


def _first(asked: Vectors, texts: Vectors, questions: AuditSet) -> Hits:
    """Whether a right candidate comes first `(Q,)`."""
    hits = np.zeros(len(asked), dtype=np.bool_)
    open_ended = [n for n, q in enumerate(questions.questions) if q.candidates is None]
    for start in range(0, len(open_ended), AT_ONCE):
        part = open_ended[start : start + AT_ONCE]
        right = [questions.questions[n].right for n in part]
        hits[part] = metrics.best_ranks(asked[part] @ texts.T, right) == 1
    for number, question in enumerate(questions.questions):
        if question.candidates is not None:
            own = list(question.candidates)
            right = [tuple(own.index(text) for text in question.right)]
            scores = asked[number : number + 1] @ texts[own].T
            hits[number] = metrics.best_ranks(scores, right)[0] == 1
    return hits


def _shares(hits: Mapping[str, Hits], pictures: Sequence[int], draws: int) -> dict[str, Any]:
    """Each way's share with its 95 % interval; pictures are resampled, not questions."""
    table = np.stack(list(hits.values()), axis=1).astype(np.float64)
    means = metrics.resampled_means(table, pictures, draws=draws)
    return {
        way: {"value": float(table[:, n].mean()), "interval": metrics.interval(means[:, n])}
        for n, way in enumerate(hits)
    }
