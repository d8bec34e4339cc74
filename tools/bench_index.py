"""Measure an index of a million vectors: build, memory, filtered queries, recall.

    nice -n 15 python tools/bench_index.py --out results/search/million.json

The vectors are random around 2,000 centres, at width 256, read from a .npy file as
`abc-embed index build INDEX vectors.npy` does. Queries are rows with a little noise. Recall@10 is
against the exact ranking, computed with NumPy from the file.
"""

import argparse
import json
import os
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from abc_embed import runtime
from abc_embed.search import Index

WIDTHS = 4000
FILTERS = {"none": None, "a quarter of the rows": "width >= 3000", "250 rows": "width = 7"}


class MemoryPeak:
    """The largest memory of this process while the block ran, its own and with mapped files."""

    def __enter__(self) -> "MemoryPeak":
        self.own = self.all = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(0.2):
            status = Path("/proc/self/status").read_text()
            kilobytes = {
                key: int(value.split()[0])
                for key, _, value in (line.partition(":") for line in status.splitlines())
                if key in ("RssAnon", "VmRSS")
            }
            self.own = max(self.own, kilobytes["RssAnon"] // 1024)
            self.all = max(self.all, kilobytes["VmRSS"] // 1024)


def write_vectors(path: Path, count: int, dim: int) -> None:
    """Unit vectors around 2,000 centres."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((2000, dim), dtype=np.float32)
    out = np.lib.format.open_memmap(path, "w+", np.float32, (count, dim))
    for start in range(0, count, 50_000):
        size = min(50_000, count - start)
        vectors = centres[rng.integers(0, len(centres), size)]
        vectors = vectors + 0.9 * rng.standard_normal((size, dim), dtype=np.float32)
        out[start : start + size] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    out.flush()


def exact(vectors: Any, queries: Any, passes: Any) -> list[set[int]]:
    """Row numbers of the ten closest that pass, by brute force."""
    scores, rows = np.zeros((len(queries), 0), np.float32), np.zeros((len(queries), 0), int)
    for start in range(0, len(vectors), 50_000):
        new = queries @ np.asarray(vectors[start : start + 50_000]).T
        new[:, ~passes[start : start + 50_000]] = -2
        best = np.argsort(-new, axis=1)[:, :10]
        scores = np.hstack([scores, np.take_along_axis(new, best, 1)])
        rows = np.hstack([rows, best + start])
    order = np.argsort(-scores, axis=1)[:, :10]
    return [set(row.tolist()) for row in np.take_along_axis(rows, order, 1)]


def ask(index: Index, queries: Any) -> dict[str, Any]:
    """Latency, time of the processors, and the rows found, for each filter."""
    results: dict[str, Any] = {}
    for name, where in FILTERS.items():
        index.nearest(queries[:1], 10, where)  # the first opens files
        seconds, cpu_seconds, found = [], [], []
        for query in queries:
            started, cpu_started = time.perf_counter(), time.process_time()
            paths, _ = index.nearest(query[None], 10, where)[0]
            seconds.append(time.perf_counter() - started)
            cpu_seconds.append(time.process_time() - cpu_started)
            found.append({int(path[:-4]) for path in paths})
        p50, p95 = np.percentile(seconds, [50, 95]) * 1000
        cpu_p95 = np.percentile(cpu_seconds, 95) * 1000
        results[name] = {
            "p50_ms": round(float(p50), 1),
            "p95_ms": round(float(p95), 1),
            "processor_p95_ms": round(float(cpu_p95), 1),
            "found": found,
        }
    return results


def add_recall(searches: dict[str, Any], vectors: Any, queries: Any, widths: Any) -> None:
    """Recall@10 in the place of the rows found."""
    masks = {"none": widths >= 0, "a quarter of the rows": widths >= 3000, "250 rows": widths == 7}
    for name, result in searches.items():
        best = exact(vectors, queries, masks[name])
        pairs = zip(result.pop("found"), best, strict=True)
        result["recall_at_10"] = sum(len(a & b) for a, b in pairs) / (10 * len(queries))


def main() -> None:
    """Build, ask, write the record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--queries", type=int, default=200)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "vectors.npy")
        write_vectors(file, options.count, options.dim)
        vectors = np.load(file, mmap_mode="r")
        widths = (np.arange(options.count) * 7919 % WIDTHS).astype(np.int32)
        paths = [f"{row}.png" for row in range(options.count)]
        with MemoryPeak() as building:
            started = time.perf_counter()
            index = Index.create(Path(folder, "index"), dim=options.dim)
            index.add_vectors(paths, vectors, {"width": widths})
            build_s = time.perf_counter() - started
        del paths
        rng = np.random.default_rng(1)
        rows = np.sort(rng.integers(0, options.count, options.queries))
        queries = vectors[rows] + 0.02 * rng.standard_normal((len(rows), options.dim))
        queries = (queries / np.linalg.norm(queries, axis=1, keepdims=True)).astype(np.float32)
        del index
        index = Index.open(Path(folder, "index"))
        load = os.getloadavg()[0]
        with MemoryPeak() as asking:
            searches = ask(index, queries)
        add_recall(searches, vectors, queries, widths)
        facts = index.info()
    record = {
        "count": options.count,
        "dim": options.dim,
        "dtype": facts["dtype"],
        "build_s": round(build_s, 1),
        "build_memory_mb": {"own": building.own, "with_mapped_files": building.all},
        "search_memory_mb": {"own": asking.own, "with_mapped_files": asking.all},
        "disk_mb": facts["bytes"] // 10**6,
        "ann": facts["search"],
        "searches": searches,
        "queries": options.queries,
        "load_before_searches": round(load, 1),
        "cpus": os.cpu_count(),
        "versions": runtime.versions(),
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(record, indent=2))


if __name__ == "__main__":
    main()
