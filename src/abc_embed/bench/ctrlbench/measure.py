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
from collections.abc import Iterable, Sequence
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
from abc_embed.bench.encoders.base import Encoder, Parts, item_key
from abc_embed.bench.metrics import DRAWS
from abc_embed.errors import UsageError
from abc_embed.inputs import Item, Kind

Shown = tuple[str, str]
"""(image_id, instruction)."""

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
    limit: int | None = None,
    conditions: Sequence[str] = CONDITIONS,
    unanswerable: Sequence[Shown] = (),
) -> dict[str, Any]:
    """Everything that is reported of a model on a tier, as JSON values.

    `records.make_record` adds by whom.

    Args:
        encoder: of conditions that it does not support, nothing is reported.
        benchmark: validated first.
        limit: only the first so many pictures; the candidates stay all.
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
    asked = {name: condition_parts(queries, name) for name in supported if name != "random"}
    present = {query.image_id for query in queries.scored}
    nothing = [key for key in unanswerable if key[0] in present and "joint" in asked]
    captions: list[Parts] = [(Item(text=caption.text),) for caption in benchmark.corpus]
    groups = {**asked, "captions": captions, "unanswerable": _shown(benchmark, nothing)}
    vectors = encoder.embed_sums(groups)
    embedding_s = time.perf_counter() - began
    scores = compute_scores(
        queries,
        {name: vectors[name] for name in asked},
        vectors["captions"],
        unanswerable=dict(
            zip((image for image, _ in nothing), vectors["unanswerable"], strict=True)
        ),
        random="random" in supported,
    )
    return {
        **_identity(encoder, benchmark, tier, conditions, unanswerable, limit=limit),
        "sizes": queries.sizes(),
        "missing": list(benchmark.missing),
        **scores,
        "bounds": bounds,
        "cost": {
            "items": _count_items(*groups.values()),
            "items_of_joint_alone": _count_items(captions, asked.get("joint", ())),
            "embedding_s": round(embedding_s, 2),
        },
        "seconds": round(time.perf_counter() - began, 1),
    }


def _count_items(*groups: Sequence[Parts]) -> int:
    """How many different items are embedded."""
    return len({item_key(i) for group in groups for parts in group for i in parts})


def measure_once(
    encoder: Encoder,
    benchmark: Benchmark,
    tier: str,
    folder: Path,
    *,
    again: bool = False,
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
    findings = measure(encoder, benchmark, tier, **settings)
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
    unanswerable: Sequence[Shown] = (),
    *,
    limit: int | None = None,
) -> dict[str, Any]:
    """What is measured, and how; older records asked nothing that has no answer."""
    name = benchmark.name
    return {
        "benchmark": name if name.endswith(f"-{tier}") else f"{name}-{tier}",
        "benchmark_hash": benchmark.content_hash(),
        "settings": {
            "tier": tier,
            "max_pixels": encoder.max_pixels,
            "limit": limit,
            "draws": DRAWS,
            **({"unanswerable": len(unanswerable)} if unanswerable else {}),
            "generic": GENERIC,
            "ways": list(supported_conditions(encoder, conditions)),
        },
    }


# -- what is embedded ------------------------------------------------------------------------------


def condition_parts(queries: TierQueries, condition: str) -> list[Parts]:
    """What is embedded for each query in a condition; joint has the mirrored pairs too."""
    benchmark, scored = queries.benchmark, queries.scored
    if condition == "joint":
        return _shown(benchmark, [(q.image_id, q.instruction) for q in queries.all])
    if condition == "generic":
        return _shown(benchmark, [(q.image_id, GENERIC) for q in scored])
    if condition == "shuffled":
        return _shown(benchmark, _shuffled(queries))
    if condition == "other":
        return _shown(benchmark, _other_images(queries))
    images = _shown(benchmark, [(q.image_id, None) for q in scored])
    words: list[Parts] = [(Item(text=q.instruction),) for q in scored]
    late = [image + text for image, text in zip(images, words, strict=True)]
    return {"image": images, "text": words, "late": late}[condition]


def _shown(benchmark: Benchmark, keys: Iterable[tuple[str, str | None] | None]) -> list[Parts]:
    """(image_id, instruction, if any) -> the item that shows and says it; none of None."""
    files = {picture.image_id: benchmark.folder / picture.file for picture in benchmark.images}
    return [() if key is None else (Item(image=files[key[0]], instruction=key[1]),) for key in keys]


def _shuffled(queries: TierQueries) -> list[Shown | None]:
    """The next instruction of the same image that has another answer; None where there is none."""
    keys: dict[str, Shown | None] = {}
    for image, group in questions_by_image(queries.scored).items():
        for number, query in enumerate(group):
            following = [*group[number + 1 :], *group[:number]]
            others = [q for q in following if not set(q.positives) & set(query.positives)]
            keys[query.query_id] = (image, others[0].instruction) if others else None
    return [keys[query.query_id] for query in queries.scored]


def _other_images(queries: TierQueries) -> list[Shown | None]:
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
    keys: list[Shown | None] = [None] * len(queries.scored)

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
