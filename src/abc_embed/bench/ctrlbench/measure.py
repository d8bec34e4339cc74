"""CtrlBench: does the vector follow the instruction? One model, one tier, every control in one run.

Plans what must be embedded, all in one call so that each picture is encoded once, and forms the
query vectors of each condition; `scores.py` makes numbers of them. The conditions, all with the
same checkpoint and the same candidates:

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
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from abc_embed.bench import records
from abc_embed.bench.ctrlbench.schema import (
    Benchmark,
    TierQueries,
    questions_by_image,
    select_queries,
)
from abc_embed.bench.ctrlbench.scores import compute_scores
from abc_embed.bench.ctrlbench.validate import validate
from abc_embed.bench.encoders.base import Encoder, Vectors
from abc_embed.bench.metrics import DRAWS
from abc_embed.errors import UsageError
from abc_embed.inputs import Item, Kind

ItemKey = tuple[str | None, str | None]
"""(image_id, words): what an item shows and says."""

GENERIC = "what is shown in the picture?"
"""The instruction that asks for nothing in particular."""
MAX_OTHERS = 300
"""Most items that are embedded only to show another image with an instruction."""
REQUIRED_KINDS: dict[str, frozenset[Kind]] = {
    "joint": frozenset({Kind.INSTRUCTED}),
    "image": frozenset({Kind.IMAGE}),
    "generic": frozenset({Kind.INSTRUCTED}),
    "text": frozenset({Kind.TEXT}),
    "shuffled": frozenset({Kind.INSTRUCTED}),
    "other": frozenset({Kind.INSTRUCTED}),
    "late": frozenset({Kind.IMAGE, Kind.TEXT}),
    "random": frozenset(),
}
"""What a model must take for each condition; candidates are texts."""
CONDITIONS = tuple(REQUIRED_KINDS)


def measure(
    encoder: Encoder,
    benchmark: Benchmark,
    tier: str,
    *,
    max_pixels: int | None = None,
    limit: int | None = None,
    draws: int = DRAWS,
    conditions: Sequence[str] = CONDITIONS,
    unanswerable: Sequence[tuple[str, str]] = (),
    progress: bool = False,
) -> dict[str, Any]:
    """Everything that is reported of a model on a tier, as JSON values.

    `records.make_record` adds by whom.

    Args:
        encoder: of conditions that it does not support, nothing is reported.
        benchmark: validated first.
        max_pixels: as in `Encoder.embed`, like `progress`.
        limit: only the first so many pictures; the candidates stay all.
        draws: bootstrap resamples for the 95 % intervals.
        conditions: of `CONDITIONS`; fewer cost less.
        unanswerable: (image_id, instruction) of questions that have no answer, to see whether
            their best score is lower than that of the others (`tiers.unanswerable`).

    Raises:
        DataError: the folder breaks a promise of its tier, or has no such tier.
        UsageError: the model takes no texts.
        NotFiniteError: the model gave a vector that is not finite.
    """
    bounds = validate(benchmark, tier)
    queries = select_queries(benchmark, tier, limit)
    supported = supported_conditions(encoder, conditions)
    began = time.perf_counter()
    keys = {name: item_keys(queries, name) for name in supported if name != "random"}
    captions = encoder.embed([c.text for c in benchmark.corpus], max_pixels=max_pixels)
    asked = {query.image_id for query in queries.scored}
    nothing = [key for key in unanswerable if key[0] in asked and "joint" in keys]
    all_keys = (key for parts in keys.values() for part in parts for key in part)
    wanted = [key for key in dict.fromkeys((*all_keys, *nothing)) if key is not None]
    vectors = _embed_keys(encoder, benchmark, wanted, max_pixels, progress)
    embedding_s = time.perf_counter() - began
    query_vectors = {  # two parts are two unit vectors, so neither outweighs the other
        name: np.sum([np.stack([vectors[key] for key in part]) for part in parts], axis=0)
        for name, parts in keys.items()
    }
    scores = compute_scores(
        queries,
        query_vectors,
        captions,
        unanswerable={key[0]: vectors[key] for key in nothing},
        random="random" in supported,
        draws=draws,
    )
    joint_items = {key for part in keys.get("joint", ()) for key in part}
    return {
        **_identity(
            *(encoder, benchmark, tier, conditions, unanswerable),
            max_pixels=max_pixels,
            limit=limit,
            draws=draws,
        ),
        "sizes": queries.sizes(),
        "missing": list(benchmark.missing),
        **scores,
        "bounds": bounds,
        "cost": {
            "items": len(benchmark.corpus) + len(wanted),
            "items_of_joint_alone": len(benchmark.corpus) + len(joint_items),
            "embedding_s": round(embedding_s, 2),
        },
        "seconds": round(time.perf_counter() - began, 1),
    }


def _embed_keys(
    encoder: Encoder,
    benchmark: Benchmark,
    keys: Sequence[ItemKey],
    max_pixels: int | None,
    progress: bool,
) -> dict[ItemKey | None, Vectors]:
    """The vector of each key in one call; zeros for None, where there is nothing to ask."""
    files = {p.image_id: benchmark.folder / p.file for p in benchmark.images}
    items = [
        Item(text=words) if image is None else Item(image=files[image], instruction=words)
        for image, words in keys
    ]
    embedded = encoder.embed(items, max_pixels=max_pixels, progress=progress)
    nothing = np.zeros(encoder.dim, dtype=np.float32)
    return {None: nothing, **dict(zip(keys, embedded, strict=True))}


def measure_once(
    encoder: Encoder,
    benchmark: Benchmark,
    tier: str,
    folder: Path,
    *,
    again: bool = False,
    progress: bool = False,
    **settings: Any,
) -> tuple[dict[str, Any], Path | None]:
    """The record, and where it was written; no path where it was there already in `folder`.

    `settings` are those of `measure`, but for the conditions; `again` measures even so.

    Raises:
        DataError: a file of the folder is no record, or as `measure`.
        OutputError: the record cannot be written.
    """
    if not again:
        identity = _identity(encoder, benchmark, tier, **settings)
        identity["missing"] = list(benchmark.missing)
        key = records.record_key(records.make_record(encoder, identity))
        for record in records.read_records(folder):
            if records.record_key(record) == key:
                return {**record, "model": {**record["model"], "name": encoder.name}}, None
    findings = measure(encoder, benchmark, tier, progress=progress, **settings)
    record = records.make_record(encoder, findings)
    return record, records.write_record(record, folder)


def supported_conditions(
    encoder: Encoder, conditions: Sequence[str] = CONDITIONS
) -> tuple[str, ...]:
    """The conditions that the model can be measured in.

    Raises:
        UsageError: it does not take texts, so it cannot read the candidates.
    """
    if Kind.TEXT not in encoder.supported_kinds:
        raise UsageError(
            f"{encoder.name} takes no texts, and the candidates are texts; choose a model that does"
        )
    return tuple(name for name in conditions if REQUIRED_KINDS[name] <= encoder.supported_kinds)


def _identity(
    encoder: Encoder,
    benchmark: Benchmark,
    tier: str,
    conditions: Sequence[str] = CONDITIONS,
    unanswerable: Sequence[tuple[str, str]] = (),
    *,
    max_pixels: int | None = None,
    limit: int | None = None,
    draws: int = DRAWS,
) -> dict[str, Any]:
    """What is measured, and how; older records asked nothing that has no answer."""
    name = benchmark.name
    return {
        "benchmark": name if name.endswith(f"-{tier}") else f"{name}-{tier}",
        "benchmark_hash": benchmark.content_hash(),
        "settings": {
            "tier": tier,
            "max_pixels": max_pixels,
            "limit": limit,
            "draws": draws,
            **({"unanswerable": len(unanswerable)} if unanswerable else {}),
            "generic": GENERIC,
            "ways": list(supported_conditions(encoder, conditions)),
        },
    }


# -- what is embedded ------------------------------------------------------------------------------


def item_keys(queries: TierQueries, condition: str) -> list[list[ItemKey | None]]:
    """What each query shows and says in a condition, in one part or two whose vectors are added;
    None where there is nothing to ask."""
    scored = queries.scored
    images: list[ItemKey | None] = [(q.image_id, None) for q in scored]
    words: list[ItemKey | None] = [(None, q.instruction) for q in scored]
    if condition == "joint":  # the pairs too
        return [[(q.image_id, q.instruction) for q in queries.all]]
    if condition == "generic":
        return [[(q.image_id, GENERIC) for q in scored]]
    if condition == "shuffled":
        return [_shuffled(queries)]
    if condition == "other":
        return [_other_images(queries)]
    return {"image": [images], "text": [words], "late": [images, words]}[condition]


def _shuffled(queries: TierQueries) -> list[ItemKey | None]:
    """The next instruction of the same image that has another answer; None where there is none."""
    keys: dict[str, ItemKey | None] = {}
    for image, group in questions_by_image(queries.scored).items():
        for number, query in enumerate(group):
            following = [*group[number + 1 :], *group[:number]]
            others = [q for q in following if not set(q.positives) & set(query.positives)]
            keys[query.query_id] = (image, others[0].instruction) if others else None
    return [keys[query.query_id] for query in queries.scored]


def _other_images(queries: TierQueries) -> list[ItemKey | None]:
    """The same instruction with another image, never the mirror; drawn from a fixed seed.

    An image that is asked the same in any case is taken, since its vector is needed anyway. Of the
    queries whose instruction no other image is asked, `MAX_OTHERS` are drawn; the rest have None,
    and the score says on how many it stands.
    """
    rng = np.random.default_rng(25)
    mirrors = {p.image_id: p.mirror for p in queries.benchmark.images}
    images = list(dict.fromkeys(query.image_id for query in queries.scored))
    asking: dict[str, list[str]] = defaultdict(list)
    for query in queries.scored:
        asking[query.instruction].append(query.image_id)
    keys: list[ItemKey | None] = [None] * len(queries.scored)

    def draw(number: int, candidates: Sequence[str]) -> bool:
        query = queries.scored[number]
        own = {query.image_id, mirrors[query.image_id]}
        others = [image for image in candidates if image not in own]
        if others:
            keys[number] = (others[int(rng.integers(len(others)))], query.instruction)
        return bool(others)

    alone = [n for n, q in enumerate(queries.scored) if not draw(n, asking[q.instruction])]
    for number in rng.permutation(alone)[:MAX_OTHERS]:
        draw(int(number), images)
    return keys
