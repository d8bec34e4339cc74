"""Which questions of a set need both the picture and the words?

For each model of a panel the questions are counted that the image alone solves, the words alone, or
the sum of their two vectors (late fusion); beside it what image + instruction solves. The paper's
complaint (section 1) is that benchmarks of image + text can be solved without control: a set whose
questions fall to one modality, for any model of the panel, does not measure it, however high a
joint model scores.

A question is solved when a right candidate beats every wrong one; a tie counts against the model.

Shapes: `Q` questions, `K` candidates, `D` width.
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
from abc_embed.bench.encoders.base import Encoder, Vectors
from abc_embed.bench.encoders.wrapped import CachedEncoder
from abc_embed.errors import UsageError
from abc_embed.inputs import Item, Kind

WITHOUT_CONTROL = ("image", "words", "sum")
"""The conditions that need no joint model."""
REQUIRED_KINDS = {
    "image": {Kind.TEXT, Kind.IMAGE},
    "words": {Kind.TEXT},
    "sum": {Kind.TEXT, Kind.IMAGE},
    "both": {Kind.TEXT, Kind.INSTRUCTED},
}
"""What a model must take for each condition; candidates are texts."""
BLOCK = 1024
"""Questions whose scores are in memory together."""

Hits = NDArray[np.bool_]


def audit(
    encoders: Sequence[Encoder],
    questions: AuditSet,
    *,
    max_pixels: int | None = None,
    draws: int = metrics.DRAWS,
    cache: Path | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """Audit a set with a panel of models; returns JSON values.

    Args:
        encoders: the panel.
        max_pixels: as in `Embedder.embed`, like `progress`.
        draws: bootstrap resamples, of pictures with all their questions, for the 95 % intervals.
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
        hits = solved_questions(
            encoder, questions, max_pixels=max_pixels, cache=cache, progress=progress
        )
        solved_by_any.append(hits["any"])
        model = {"name": encoder.name, "fingerprint": encoder.fingerprint, **encoder.describe()}
        kinds = _by_kind(hits, questions, draws)
        rows.append({"model": model, "shares": _shares(hits, pictures, draws), "kinds": kinds})
    panel = _shares({"any": np.any(solved_by_any, axis=0)}, pictures, draws)
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
        "panel": panel["any"],
        "versions": runtime.versions(),
        "hardware": runtime.hardware(),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(time.perf_counter() - began, 1),
    }


def solved_questions(
    encoder: Encoder,
    questions: AuditSet,
    *,
    max_pixels: int | None = None,
    cache: Path | None = None,
    progress: bool = False,
) -> dict[str, Hits]:
    """Condition -> which questions it solves `(Q,)`; only the conditions that the model supports.

    Besides `image`, `words`, `sum` and `both`: `any` is solved by one of the first three, and
    `only together` by both together and by none of them.

    Raises:
        UsageError: the model does not take texts.
    """
    supported = encoder.supported_kinds
    conditions = [name for name, kinds in REQUIRED_KINDS.items() if kinds <= supported]
    if not conditions:
        raise UsageError(
            f"{encoder.name} does not embed texts, and answers are texts; choose a model that does"
        )
    with CachedEncoder(encoder, cache) as cached:
        texts, queries = _vectors(cached, questions, conditions, max_pixels, progress)
    hits = {name: _is_solved(queries[name], texts, questions) for name in conditions}
    hits["any"] = np.any([hits[name] for name in WITHOUT_CONTROL if name in hits], axis=0)
    if "both" in hits:
        hits["only together"] = hits["both"] & ~hits["any"]
    return hits


def _vectors(
    encoder: Encoder,
    questions: AuditSet,
    conditions: Sequence[str],
    max_pixels: int | None,
    progress: bool,
) -> tuple[Vectors, dict[str, Vectors]]:
    """Candidates `(K, D)`, and for each condition the queries `(Q, D)`; all from one call, so that
    a picture is encoded once."""
    asked, images = questions.questions, questions.images
    words = list(dict.fromkeys(q.instruction for q in asked))
    parts: list[Sequence[Item | str]] = [questions.texts, words]
    parts.append([Item(image=image) for image in images] if "image" in conditions else [])
    parts.append(
        [Item(image=images[q.image], instruction=q.instruction) for q in asked]
        if "both" in conditions
        else []
    )
    items = [item for part in parts for item in part]
    vectors = encoder.embed(items, max_pixels=max_pixels, progress=progress)
    texts, of_words, of_images, of_both = np.split(vectors, np.cumsum([*map(len, parts)])[:-1])
    place = {text: number for number, text in enumerate(words)}
    queries = {"words": of_words[[place[q.instruction] for q in asked]], "both": of_both}
    if "image" in conditions:
        queries["image"] = of_images[[q.image for q in asked]]
        queries["sum"] = queries["image"] + queries["words"]  # of unit vectors, so equal in weight
    return texts, queries


def _is_solved(queries: Vectors, texts: Vectors, questions: AuditSet) -> Hits:
    """Whether a right candidate comes first `(Q,)`."""
    hits = np.zeros(len(queries), dtype=np.bool_)
    open_ended = [n for n, q in enumerate(questions.questions) if q.candidates is None]
    for start in range(0, len(open_ended), BLOCK):
        part = open_ended[start : start + BLOCK]
        right = [questions.questions[n].right for n in part]
        hits[part] = metrics.best_ranks(queries[part] @ texts.T, right) == 1
    for number, question in enumerate(questions.questions):
        if question.candidates is not None:
            own = list(question.candidates)
            right = [tuple(own.index(text) for text in question.right)]
            scores = queries[number : number + 1] @ texts[own].T
            hits[number] = metrics.best_ranks(scores, right)[0] == 1
    return hits


def _shares(hits: Mapping[str, Hits], pictures: Sequence[int], draws: int) -> dict[str, Any]:
    """Each condition's share with its 95 % interval; pictures are resampled, not questions."""
    shares = {name: metrics.share(values, pictures, draws) for name, values in hits.items()}
    return {name: {key: s[key] for key in ("value", "interval")} for name, s in shares.items()}


def _by_kind(hits: Mapping[str, Hits], questions: AuditSet, draws: int) -> dict[str, Any]:
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
        draws,
    )
