"""One measurement with its record: done once, then answered from the record.

Does: say what a record's numbers hang on (its key), find the record of a key, else measure and
write. Does not: measure (ctrlbench.py) or print.
"""

from pathlib import Path
from typing import Any

from abc_embed.bench.ctrlbench.measure import GENERIC, WAYS, Progress, measure, record_name, ways_of
from abc_embed.bench.ctrlbench.schema import Benchmark
from abc_embed.bench.encoders.registry import Encoder
from abc_embed.bench.records import key_of, make_record, read_records, write_record


def measured(
    encoder: Encoder,
    benchmark: Benchmark,
    tier: str,
    folder: Path,
    *,
    max_pixels: int | None = None,
    limit: int | None = None,
    draws: int = 2000,
    again: bool = False,
    progress: Progress | None = None,
) -> tuple[dict[str, Any], Path | None]:
    """The record, and where it was written; no path where it was there already in `folder`.

    The arguments are those of `ctrlbench.measure`; `again` measures even so.

    Raises:
        DataError: a file of the folder is no record, or as `measure`.
        OutputError: the record cannot be written.
    """
    described = encoder.describe()
    settings = {
        "tier": tier,
        "max_pixels": max_pixels,
        "limit": limit,
        "draws": draws,
        "generic": GENERIC,
        "ways": list(ways_of(encoder, WAYS)),
    }
    key = {
        "fingerprint": encoder.fingerprint,
        "dtype": described.get("dtype"),
        "prompt_hash": described.get("prompt_hash"),
        "benchmark": record_name(benchmark, tier),
        "benchmark_hash": benchmark.content_hash(),
        "missing": list(benchmark.missing),
        "settings": settings,
    }
    if not again:
        for record in read_records(folder):
            if key_of(record) == key:
                return record, None
    findings = measure(
        encoder,
        benchmark,
        tier,
        max_pixels=max_pixels,
        limit=limit,
        draws=draws,
        progress=progress,
    )
    record = make_record(encoder, findings, encoder.name)
    return record, write_record(record, folder)
