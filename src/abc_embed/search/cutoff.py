"""Which hits are no answer: a line for each kind of query, drawn by the index's own scores.

A query half way between two unrelated ones is at best half right wherever it lands. The line is
what nine in ten such queries do not reach on this index: halves of everyday things for texts, and
for images with an instruction, whose vectors say texts; of its own images for images.

What a text finds, or an image with an instruction, is not scored by its cosine alone, since some
images are close to everything, but by how much better it fits than everyday things: its share of
the softmax over them, in logs, with the temperature of the model's training.

Shapes: `B` texts of the bank, `K` hits, `D` width.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from abc_embed.errors import UsageError
from abc_embed.search.settings import IndexParts
from abc_embed.vectors import l2_normalize

if TYPE_CHECKING:
    from abc_embed.embedder import Embedder
    from abc_embed.search.queries import Query

Vectors = NDArray[np.float32]

CANDIDATES = 50
"""The closest images of a query among which answers are looked for."""
HALF_QUERIES = 200
QUANTILE = 0.9
SAME_TEXT = 0.95
"""Cosine from which a text of the bank says the same as the query, and is no rival."""
SAME_ANSWER = 0.5
"""Cosine from which an image with an instruction says what the closest text of the bank says. With
the bundled model that text is at 0.55 to 0.91, the next one at 0.26 to 0.63 (nine in ten)."""


def make_bank(embedder: "Embedder") -> Vectors:
    """`(B, D)`: the names of everyday things."""
    from abc_embed.scenes.things import THINGS

    return embedder.embed([thing.phrase for thing in THINGS])


def halves(bank: Vectors, count: int, weights: Sequence[float] = (1.0,)) -> Vectors:
    """`(count, D)` queries half way between two of the bank; with weights, sums of such."""
    rng = np.random.default_rng(0)
    total = np.zeros((count, bank.shape[1]))
    opposite = UsageError("the vectors of the index cancel out")
    for weight in weights:
        first = rng.integers(0, len(bank), count)
        second = (first + rng.integers(1, len(bank), count)) % len(bank)  # always another
        total += weight * l2_normalize(bank[first] + bank[second], opposite)
    return l2_normalize(total, opposite).astype(np.float32)


def calibrate(index: IndexParts) -> dict[str, float]:
    """The cut-off of each kind of query, for the index as it is now."""
    cutoffs = {}
    bank = index.text_bank()
    if bank is not None:
        cutoffs["text"] = line(index, halves(bank, HALF_QUERIES), bank)
    images = index.table.sample(2 * HALF_QUERIES)
    if len(images) > 1:
        cutoffs["image"] = line(index, halves(images, HALF_QUERIES), None)
    return cutoffs


def answers(
    index: IndexParts, query: "Query", vector: Vectors, images: Vectors
) -> NDArray[np.bool_] | None:
    """For the vectors `(K, D)` of a query's hits whether each is an answer; None: not known."""
    bank = index.text_bank()
    threshold = None
    if query.kind != "mix":
        known = "text" if query.kind == "joint" else query.kind
        threshold = index.settings.get("cutoffs", {}).get(known)
    elif bank is not None:
        weights = [weight for weight, _ in query.parts]
        threshold = line(index, halves(bank, HALF_QUERIES // 4, weights), None)
    if threshold is None:
        return None
    rivals = bank if query.kind in ("text", "joint") else None
    scores = score(vector, images, rivals, _temperature(index), joint=query.kind == "joint")
    above: NDArray[np.bool_] = scores > threshold
    return above


def score(
    vector: Vectors,
    images: Vectors,
    bank: Vectors | None,
    temperature: float,
    *,
    joint: bool = False,
) -> Vectors:
    """`(K,)`: how good each hit `(K, D)` is: its cosine, or with a bank how it does beside that.

    A text that says the same as the query is no rival; of an image with an instruction (`joint`),
    whose vector is less near to its answer, that is the closest one.
    """
    own = images @ vector
    if bank is None:
        return own
    closeness = bank @ vector
    is_rival = closeness < SAME_TEXT
    if joint and closeness.max() >= SAME_ANSWER:
        is_rival[closeness.argmax()] = False
    rivals = images @ bank[is_rival].T
    logits = np.hstack([own[:, None], rivals]) / temperature
    highest = logits.max(axis=1)
    total: Vectors = highest + np.log(np.exp(logits - highest[:, None]).sum(axis=1))
    return own / temperature - total


def line(index: IndexParts, queries: Vectors, bank: Vectors | None) -> float:
    """What nine in ten of these queries do not reach with their best hit."""
    temperature = _temperature(index)
    best = [
        score(query, images, bank, temperature).max(initial=-np.inf)
        for query, (_, images) in zip(queries, index.nearest(queries, CANDIDATES), strict=True)
    ]
    return float(np.quantile(best, QUANTILE))


def _temperature(index: IndexParts) -> float:
    return index.settings.get("temperature") or 0.05
