"""Which questions of a tier are asked, and which of them belong together."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from abc_embed.bench.ctrlbench.schema import PAIR_TIER, Benchmark, Query
from abc_embed.errors import DataError


@dataclass(frozen=True, slots=True)
class TierQueries:
    """The questions of a tier whose pictures are there."""

    benchmark: Benchmark
    tier: str
    scored: tuple[Query, ...]
    """Those that count in every score."""
    pairs_only: tuple[Query, ...]
    """Those that are asked for their mirrored pair only."""
    left_out: int
    """Questions of the tier whose picture is missing."""

    @property
    def all(self) -> tuple[Query, ...]:
        """Those that are scored, then the others."""
        return self.scored + self.pairs_only

    def caption_numbers(self, captions: Sequence[tuple[str, ...]]) -> list[list[int]]:
        """Ids of captions -> their places in the corpus."""
        places = {c.cap_id: number for number, c in enumerate(self.benchmark.corpus)}
        return [[places[cap_id] for cap_id in cap_ids] for cap_ids in captions]

    def clusters(self) -> NDArray[np.int64]:
        """For each of `all` the number of its picture; a picture and its mirror have one."""
        numbers: dict[str, int] = {}
        for picture in self.benchmark.images:
            known = numbers.get(picture.mirror or "")
            numbers[picture.image_id] = len(numbers) if known is None else known
        return np.array([numbers[query.image_id] for query in self.all])

    def mirrored_pairs(self) -> list[tuple[int, int]]:
        """Places in `all` of one question that is asked of a picture and of its mirror, and has
        another answer there. Where questions are asked for their pair only, these are the pairs."""
        tier = PAIR_TIER if self.pairs_only else self.tier
        mirrors = {p.image_id: p.mirror for p in self.benchmark.images}
        queries = self.all
        places = {
            (query.image_id, query.instruction): number
            for number, query in enumerate(queries)
            if query.tier == tier
        }
        pairs = []
        for (image, instruction), number in places.items():
            twin = places.get((mirrors[image] or "", instruction), -1)
            if twin > number and set(queries[number].positives) != set(queries[twin].positives):
                pairs.append((number, twin))
        return pairs


def select_queries(benchmark: Benchmark, tier: str, limit: int | None = None) -> TierQueries:
    """The questions of a tier whose pictures are there; of the first `limit` pictures, if given.

    Raises:
        DataError: none is left.
    """
    missing = set(benchmark.missing)
    present = {p.image_id: p.mirror for p in benchmark.images if p.file not in missing}
    of_tier = [q for q in benchmark.queries if q.tier == tier]
    asked = {q.image_id for q in of_tier}
    chosen = [image for image in present if image in asked][:limit]
    scored = tuple(q for q in of_tier if q.image_id in set(chosen))
    if not scored:
        first = f", {benchmark.missing[0]} for one" if missing else ""
        raise DataError(
            f"{benchmark.folder}: no picture of tier {tier} is there{first}; copy its pictures"
        )
    paired = {*chosen, *(present[image] for image in chosen)} & set(present)
    pairs_only = tuple(q for q in benchmark.queries if q.tier == PAIR_TIER and q.image_id in paired)
    left_out = sum(q.image_id not in present for q in of_tier)
    return TierQueries(benchmark, tier, scored, pairs_only, left_out)
