"""The gate: what a benchmark's files alone say about its fairness, before any model runs.

Does: bounds of what the picture alone and the words alone can reach; words of an answer that its
own question gives away; and for tiers G and B a refusal where one of them breaks the tier's promise
(bench ctrlbench and bench build both ask). Does not: read a pixel.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from abc_embed.bench.ctrlbench.schema import QUERIES_FILE, Benchmark, Query, normalised
from abc_embed.errors import DataError

ENOUGH = 500
"""Questions from which on the commonest answer's share says something."""
_NO_CONTENT = frozenset(
    (
        *("a", "an", "the", "of", "on", "in", "at", "to", "with", "and", "or", "for", "from", "by"),
        *("is", "are", "it", "its", "this", "that", "there", "which", "what", "who", "some", "no"),
    )
)


def content_words(text: str) -> set[str]:
    """The words of a text that say something; plurals count as their singular."""
    words = set(re.findall(r"[^\W_]+", normalised(text))) - _NO_CONTENT
    return {word[:-1] if len(word) > 3 and word.endswith("s") else word for word in words}


def leaks(instruction: str, answer: str) -> set[str]:
    """The content words of the answer that the question says itself."""
    return content_words(instruction) & content_words(answer)


def image_bound(queries: Sequence[Query]) -> float:
    """The most R@1 that the picture alone can have: one answer for all questions of a picture."""
    answers: dict[str, Counter[str]] = defaultdict(Counter)
    for query in queries:
        answers[query.image_id].update(query.positives)
    return sum(max(of.values()) for of in answers.values()) / len(queries)


def text_bound(queries: Sequence[Query], corpus: Mapping[str, str]) -> float:
    """The most R@1 that the words alone can have: the commonest answer to each instruction.

    Names of candidates within an instruction do not tell instructions apart ("left of the dog" and
    "left of the cat" are one), or a question that is asked once would bound nothing.
    """
    blank = _blanker(corpus.values())
    answers: dict[str, Counter[str]] = defaultdict(Counter)
    for query in queries:
        answers[blank(query.instruction)].update(query.positives)
    return sum(max(of.values()) for of in answers.values()) / len(queries)


def _blanker(captions: Iterable[str]) -> Any:
    names = sorted({re.sub(r"^(a|an|the) ", "", normalised(text)) for text in captions})
    by_length = sorted(filter(None, names), key=len, reverse=True)
    pattern = re.compile(rf"\b(?:{'|'.join(map(re.escape, by_length))})\b")
    return lambda instruction: pattern.sub("…", normalised(instruction))


def gate(benchmark: Benchmark, tier: str) -> dict[str, Any]:
    """The bounds of one tier and what was looked at, as JSON values.

    Raises:
        DataError: there is no such tier, or a promise of tier G or B is broken; names the question.
    """
    queries = [q for q in benchmark.queries if q.tier == tier]
    if not queries:
        raise DataError(
            f"{benchmark.folder / QUERIES_FILE} has no question of tier {tier!r}; "
            f"its tiers are {', '.join(benchmark.tiers) or 'none'}"
        )
    corpus = {caption.cap_id: caption.text for caption in benchmark.corpus}
    given_away = [q for q in queries if any(leaks(q.instruction, corpus[c]) for c in q.positives)]
    found = {
        "image": image_bound(queries),
        "text": text_bound(queries, corpus),
        "random": sum(len(q.positives) for q in queries) / len(queries) / len(corpus),
        "aspect_chance": sum(len(q.positives) / len(q.same_image) for q in queries) / len(queries),
        "leaks": len(given_away),
    }
    if tier == "G":
        _check_grid(benchmark, queries)
    if tier == "B":
        _check_binding(benchmark, queries, corpus)
    if tier in ("G", "B") and len(queries) >= ENOUGH and found["text"] > found["image"]:
        raise DataError(
            f"{benchmark.folder}: in tier {tier} the commonest answer to each instruction is right "
            f"in {found['text']:.0%}, more than the picture alone can reach; balance the answers"
        )
    return found


def _check_grid(benchmark: Benchmark, queries: Sequence[Query]) -> None:
    """As many questions of each picture, all with answers of their own: image-only <= 1/A."""
    groups: dict[str, list[Query]] = defaultdict(list)
    for query in queries:
        groups[query.image_id].append(query)
    aspects = len(next(iter(groups.values())))
    for its in groups.values():
        where = f"{benchmark.folder / QUERIES_FILE}: question {its[-1].query_id!r}"
        if len(its) != aspects or len({q.aspect for q in its}) != aspects:
            raise DataError(
                f"{where}: its picture is asked about {len({q.aspect for q in its})} aspects in "
                f"{len(its)} questions, others about {aspects}; ask each aspect once of every "
                "picture"
            )
        if len({cap for q in its for cap in q.positives}) != sum(len(q.positives) for q in its):
            raise DataError(
                f"{where}: another question of its picture has the same answer, so the picture "
                "alone could answer both; give each aspect an answer of its own"
            )


def _check_binding(
    benchmark: Benchmark, queries: Sequence[Query], corpus: Mapping[str, str]
) -> None:
    """No word of the answer in the question; all K objects candidates, each as often right."""
    by_image: dict[str, Counter[str]] = defaultdict(Counter)
    for query in queries:
        where = f"{benchmark.folder / QUERIES_FILE}: question {query.query_id!r}"
        said = {word for cap in query.positives for word in leaks(query.instruction, corpus[cap])}
        if said:
            raise DataError(
                f"{where}: it says {min(said)!r}, a word of its answer; ask in other words"
            )
        if len(query.same_image) < 2:
            raise DataError(f"{where}: its picture has one caption; give those of all its objects")
        by_image[query.image_id].update(query.positives)
    sizes = {q.image_id: len(q.same_image) for q in queries}
    for image, answers in by_image.items():
        if max(answers.values()) * sizes[image] > answers.total():
            raise DataError(
                f"{benchmark.folder / QUERIES_FILE}: in the questions of image {image!r} one answer"
                f" is right in {max(answers.values())} of {answers.total()}, more than 1 in "
                f"{sizes[image]}; ask for each of its objects as often"
            )
