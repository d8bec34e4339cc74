"""What a benchmark's files alone say about its fairness, before any model runs.

Bounds of what the picture alone and the words alone can reach; words of an answer that its own
question gives away; and for tiers G and B a refusal where one of them breaks the tier's promise.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from abc_embed.bench.ctrlbench.schema import (
    QUERIES_FILE,
    Benchmark,
    Query,
    normalize_text,
    questions_by_image,
)
from abc_embed.errors import DataError

MIN_QUERIES = 500
"""From so many questions on the commonest answer's share says something."""
_STOP_WORDS = frozenset(
    (
        *("a", "an", "the", "of", "on", "in", "at", "to", "with", "and", "or", "for", "from", "by"),
        *("is", "are", "it", "its", "this", "that", "there", "which", "what", "who", "some", "no"),
    )
)


def content_words(text: str) -> set[str]:
    """The words of a text that say something; plurals count as their singular."""
    words = set(re.findall(r"[^\W_]+", normalize_text(text))) - _STOP_WORDS
    return {word[:-1] if len(word) > 3 and word.endswith("s") else word for word in words}


def leaks(instruction: str, answer: str) -> set[str]:
    """The content words of the answer that the question says itself."""
    return content_words(instruction) & content_words(answer)


def image_bound(queries: Sequence[Query]) -> float:
    """The most R@1 that the picture alone can have: one answer for all questions of a picture."""
    return _commonest_answer(queries, lambda q: q.image_id)


def text_bound(queries: Sequence[Query], corpus: Mapping[str, str]) -> float:
    """The most R@1 that the words alone can have: the commonest answer to each instruction.

    Names of candidates within an instruction do not tell instructions apart ("left of the dog" and
    "left of the cat" are one), or a question that is asked once would bound nothing.
    """
    texts = {re.sub(r"^(a|an|the) ", "", normalize_text(text)) for text in corpus.values()}
    by_length = sorted(filter(None, sorted(texts)), key=len, reverse=True)
    names = re.compile(rf"\b(?:{'|'.join(map(re.escape, by_length))})\b")
    return _commonest_answer(queries, lambda q: names.sub("…", normalize_text(q.instruction)))


def _commonest_answer(queries: Sequence[Query], group_of: Callable[[Query], str]) -> float:
    """The share of queries that are right when each group has one answer."""
    answers: dict[str, Counter[str]] = defaultdict(Counter)
    for query in queries:
        answers[group_of(query)].update(query.positives)
    return sum(max(counts.values()) for counts in answers.values()) / len(queries)


def validate(benchmark: Benchmark, tier: str) -> dict[str, Any]:
    """The bounds of one tier and how many questions leak a word, as JSON values.

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
    bounds = {
        "image": image_bound(queries),
        "text": text_bound(queries, corpus),
        "random": sum(len(q.positives) for q in queries) / len(queries) / len(corpus),
        "aspect_chance": sum(len(q.positives) / len(q.same_image) for q in queries) / len(queries),
        "leaks": sum(any(leaks(q.instruction, corpus[c]) for c in q.positives) for q in queries),
    }
    if tier == "G":
        _check_grid(benchmark, queries)
    if tier == "B":
        _check_binding(benchmark, queries, corpus)
    if tier in ("G", "B") and len(queries) >= MIN_QUERIES and bounds["text"] > bounds["image"]:
        raise DataError(
            f"{benchmark.folder}: in tier {tier} the commonest answer to each instruction is right "
            f"in {bounds['text']:.0%}, more than the picture alone can reach; balance the answers"
        )
    return bounds


def _check_grid(benchmark: Benchmark, queries: Sequence[Query]) -> None:
    """As many questions of each picture, all with answers of their own: image-only <= 1/A."""
    groups = questions_by_image(queries)
    aspects = len(next(iter(groups.values())))
    for group in groups.values():
        where = f"{benchmark.folder / QUERIES_FILE}: question {group[-1].query_id!r}"
        different = len({query.aspect for query in group})
        if len(group) != aspects or different != aspects:
            raise DataError(
                f"{where}: its picture is asked about {different} aspects in {len(group)} "
                f"questions, others about {aspects}; ask each aspect once of every picture"
            )
        answers = [cap for query in group for cap in query.positives]
        if len(set(answers)) != len(answers):
            raise DataError(
                f"{where}: another question of its picture has the same answer, so the picture "
                "alone could answer both; give each aspect an answer of its own"
            )


def _check_binding(
    benchmark: Benchmark, queries: Sequence[Query], corpus: Mapping[str, str]
) -> None:
    """No word of the answer in the question; all K objects candidates, each as often right."""
    for query in queries:
        where = f"{benchmark.folder / QUERIES_FILE}: question {query.query_id!r}"
        leaked = {word for cap in query.positives for word in leaks(query.instruction, corpus[cap])}
        if leaked:
            raise DataError(
                f"{where}: it says {min(leaked)!r}, a word of its answer; ask in other words"
            )
        if len(query.same_image) < 2:
            raise DataError(f"{where}: its picture has one caption; give those of all its objects")
    for image, group in questions_by_image(queries).items():
        answers = Counter(cap for query in group for cap in query.positives)
        count = len(group[-1].same_image)
        if max(answers.values()) * count > answers.total():
            raise DataError(
                f"{benchmark.folder / QUERIES_FILE}: in the questions of image {image!r} one answer"
                f" is right in {max(answers.values())} of {answers.total()}, more than 1 in "
                f"{count}; ask for each of its objects as often"
            )
