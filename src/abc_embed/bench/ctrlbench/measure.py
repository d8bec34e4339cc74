"""CtrlBench: does the vector follow the instruction? One model, one tier, every control in one run.

Does: plan what must be embedded so that each picture is handed over once with all that is asked of
it, embed it, and form the query vectors of each way of asking. Does not: judge the folder (gate.py)
or make numbers of it (scores.py).

Ways of asking, all with the same checkpoint and the same candidates:

    joint     image + instruction: what is measured
    image     the image alone
    generic   the image with an instruction that asks for nothing in particular
    text      the instruction alone
    shuffled  the image with another instruction that the same image is asked
    other     the instruction with another image
    late      image vector + text vector: late fusion
    random    scores drawn at random

Shapes: `D` width, `Q` queries, `K` candidates.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from abc_embed.bench.ctrlbench import scores
from abc_embed.bench.ctrlbench.schema import PAIR_TIER, Benchmark, Query
from abc_embed.bench.ctrlbench.validate import gate
from abc_embed.bench.encoders.registry import Encoder
from abc_embed.errors import DataError, UsageError
from abc_embed.inputs import Item, Kind

Vectors = NDArray[np.float32]
Progress = Callable[[int, int], None]
Key = tuple[str | None, str | None]
"""(image_id, words): what an item shows and says."""

GENERIC = "what is shown in the picture?"
"""The instruction that asks for nothing in particular."""
IMAGES_AT_ONCE = 64
"""Pictures handed to the model in one call, each with all that is asked of it."""
OTHERS = 300
"""Most items that are embedded only to show another image with an instruction."""
NEEDS: dict[str, frozenset[Kind]] = {
    "joint": frozenset({Kind.INSTRUCTED}),
    "image": frozenset({Kind.IMAGE}),
    "generic": frozenset({Kind.INSTRUCTED}),
    "text": frozenset({Kind.TEXT}),
    "shuffled": frozenset({Kind.INSTRUCTED}),
    "other": frozenset({Kind.INSTRUCTED}),
    "late": frozenset({Kind.IMAGE, Kind.TEXT}),
    "random": frozenset(),
}
"""What a model must take for each way of asking; candidates are texts."""
WAYS = tuple(NEEDS)


@dataclass(frozen=True, slots=True)
class Plan:
    """What is asked: `queries` that are scored, then those that are there for their pair only."""

    benchmark: Benchmark
    tier: str
    queries: tuple[Query, ...]
    scored: int
    """How many of `queries` count in every score."""
    left_out: int
    """Questions of the tier whose picture is missing."""

    @property
    def kept(self) -> tuple[Query, ...]:
        """The queries that are scored."""
        return self.queries[: self.scored]


def plan(benchmark: Benchmark, tier: str, limit: int | None = None) -> Plan:
    """The questions of a tier whose pictures are there; of the first `limit` pictures, if given.

    Raises:
        DataError: none is left.
    """
    gone = set(benchmark.missing)
    there = [p.image_id for p in benchmark.images if p.file not in gone]
    wanted = [q for q in benchmark.queries if q.tier == tier]
    asked = {q.image_id for q in wanted}
    kept = [image for image in there if image in asked][:limit]
    images = set(kept)
    mirrors = {p.image_id: p.mirror for p in benchmark.images}
    pairs = {*images, *(mirrors[image] for image in kept)} & set(there)
    scored = [q for q in wanted if q.image_id in images]
    if not scored:
        first = f", {benchmark.missing[0]} for one" if gone else ""
        raise DataError(
            f"{benchmark.folder}: no picture of tier {tier} is there{first}; copy its pictures"
        )
    extra = [q for q in benchmark.queries if q.tier == PAIR_TIER and q.image_id in pairs]
    left_out = sum(q.image_id not in set(there) for q in wanted)
    return Plan(benchmark, tier, (*scored, *extra), len(scored), left_out)


def ways_of(encoder: Encoder, ways: Sequence[str] = WAYS) -> tuple[str, ...]:
    """The ways of asking that the model can be asked in.

    Raises:
        UsageError: it does not take texts, so it cannot read the candidates.
    """
    if Kind.TEXT not in encoder.supported_kinds:
        raise UsageError(
            f"{encoder.name} takes no texts, and the candidates are texts; choose a model that does"
        )
    return tuple(way for way in ways if NEEDS[way] <= encoder.supported_kinds)


def measure(
    encoder: Encoder,
    benchmark: Benchmark,
    tier: str,
    *,
    max_pixels: int | None = None,
    limit: int | None = None,
    draws: int = 2000,
    ways: Sequence[str] = WAYS,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Everything that is said of a model on a tier, as JSON values (`report.make_record` adds by
    whom).

    Args:
        encoder: the model; of what it cannot take, nothing is said.
        benchmark: a folder that was read; its gate is asked first.
        tier: of the folder's tiers.
        max_pixels: as in `Encoder.embed`.
        limit: only the first so many pictures; the candidates stay all.
        draws: bootstrap resamples for the 95 % intervals.
        ways: the ways of asking; fewer cost less.
        progress: called with the number of pictures done and of all.

    Raises:
        DataError: the gate refuses the folder, or it has no such tier.
        UsageError: the model takes no texts.
        NotFiniteError: the model gave a vector that is not finite.
    """
    bounds = gate(benchmark, tier)
    asked = plan(benchmark, tier, limit)
    possible = ways_of(encoder, ways)
    began = time.perf_counter()
    keys = {way: _keys(asked, way) for way in possible if way not in ("late", "random")}
    captions = encoder.embed([c.text for c in benchmark.corpus], max_pixels=max_pixels)
    vectors = dict(_embed(encoder, benchmark, keys.values(), max_pixels, progress))
    embedded_s = time.perf_counter() - began
    queries = {way: _stack(found, vectors, encoder.dim) for way, found in keys.items()}
    if "late" in possible:
        parts = (_stack(_keys(asked, way), vectors, encoder.dim) for way in ("image", "text"))
        queries["late"] = np.sum([*parts], axis=0)  # unit vectors, so neither outweighs the other
    found = scores.findings(asked, queries, captions, random="random" in possible, draws=draws)
    return {
        "benchmark": record_name(benchmark, tier),
        "benchmark_hash": benchmark.content_hash(),
        "settings": {
            "tier": tier,
            "max_pixels": max_pixels,
            "limit": limit,
            "draws": draws,
            "generic": GENERIC,
            "ways": list(possible),
        },
        "sizes": _sizes(asked),
        "missing": list(benchmark.missing),
        **found,
        "bounds": bounds,
        "cost": {
            "items": len(benchmark.corpus) + len(vectors),
            "items_of_joint_alone": len(benchmark.corpus) + len(set(keys.get("joint", ()))),
            "embedding_s": round(embedded_s, 2),
        },
        "seconds": round(time.perf_counter() - began, 1),
    }


def record_name(benchmark: Benchmark, tier: str) -> str:
    """What records call a tier of a folder."""
    name = benchmark.name
    return name if name.endswith(f"-{tier}") else f"{name}-{tier}"


def _sizes(asked: Plan) -> dict[str, int]:
    return {
        "queries": asked.scored,
        "queries_left_out": asked.left_out,
        "images": len({q.image_id for q in asked.kept}),
        "candidates": len(asked.benchmark.corpus),
        "mirrored_pairs": len(scores.pair_numbers(asked)),
    }


# -- what is embedded ------------------------------------------------------------------------------


def _keys(asked: Plan, way: str) -> list[Key | None]:
    """For each query what it shows and says in this way of asking; None where there is nothing."""
    kept = asked.kept
    if way == "joint":  # the pairs too
        return [(q.image_id, q.instruction) for q in asked.queries]
    if way == "image":
        return [(q.image_id, None) for q in kept]
    if way == "generic":
        return [(q.image_id, GENERIC) for q in kept]
    if way == "text":
        return [(None, q.instruction) for q in kept]
    return _shuffled(kept) if way == "shuffled" else _other_images(asked)


def _shuffled(kept: Sequence[Query]) -> list[Key | None]:
    """The next instruction of the same image that has another answer; None where there is none."""
    by_image: dict[str, list[Query]] = defaultdict(list)
    place: list[int] = []
    for query in kept:
        place.append(len(by_image[query.image_id]))
        by_image[query.image_id].append(query)
    found: list[Key | None] = []
    for query, number in zip(kept, place, strict=True):
        its = by_image[query.image_id]
        following = [*its[number + 1 :], *its[:number]]
        others = [q for q in following if not set(q.positives) & set(query.positives)]
        found.append((query.image_id, others[0].instruction) if others else None)
    return found


def _other_images(asked: Plan) -> list[Key | None]:
    """The same instruction with another image, never the mirror; drawn from a fixed seed.

    An image that is asked the same in any case is taken, since its vector is needed anyway. Of the
    queries whose instruction no other image is asked, `OTHERS` are drawn; the rest have None, and
    the score says on how many it stands.
    """
    rng = np.random.default_rng(25)
    mirrors = {p.image_id: p.mirror for p in asked.benchmark.images}
    images = list(dict.fromkeys(q.image_id for q in asked.kept))
    asking: dict[str, list[str]] = defaultdict(list)
    for query in asked.kept:
        asking[query.instruction].append(query.image_id)
    found: list[Key | None] = []
    alone: list[int] = []
    for number, query in enumerate(asked.kept):
        own = {query.image_id, mirrors[query.image_id]}
        others = [image for image in asking[query.instruction] if image not in own]
        if not others:
            alone.append(number)
        found.append(
            (others[int(rng.integers(len(others)))], query.instruction) if others else None
        )
    for number in rng.permutation(alone)[:OTHERS]:
        query = asked.kept[number]
        own = {query.image_id, mirrors[query.image_id]}
        others = [image for image in images if image not in own]
        if others:
            found[number] = (others[int(rng.integers(len(others)))], query.instruction)
    return found


def _embed(
    encoder: Encoder,
    benchmark: Benchmark,
    wanted: Any,
    max_pixels: int | None,
    progress: Progress | None,
) -> Iterator[tuple[Key, Vectors]]:
    """Each different item once; all that shows a picture in one call."""
    by_image: dict[str | None, dict[Key, None]] = defaultdict(dict)
    for keys in wanted:
        for key in keys:
            if key is not None:
                by_image[key[0]][key] = None
    texts = list(by_image.pop(None, {}))
    if texts:
        words_alone = [str(words) for _, words in texts]
        yield from zip(texts, encoder.embed(words_alone, max_pixels=max_pixels), strict=True)
    files = {p.image_id: benchmark.folder / p.file for p in benchmark.images}
    images = [image for image in files if image in by_image]
    for start in range(0, len(images), IMAGES_AT_ONCE):
        part = images[start : start + IMAGES_AT_ONCE]
        keys = [key for image in part for key in by_image[image]]
        items = [Item(image=files[str(image)], instruction=words) for image, words in keys]
        yield from zip(keys, encoder.embed(items, max_pixels=max_pixels), strict=True)
        if progress is not None:
            progress(start + len(part), len(images))


def _stack(keys: Sequence[Key | None], vectors: dict[Key, Vectors], width: int) -> Vectors:
    """`(Q, D)`; zeros where there is nothing."""
    nothing = np.zeros(width, dtype=np.float32)
    return np.stack([nothing if key is None else vectors[key] for key in keys])
