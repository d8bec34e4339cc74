"""Mining at size: memory under its ceiling, time per query beside plain faiss, growth by doubling.

    python tools/bench_mining.py --out results/mining [--counts 100000 200000] [--widths 64 256]

Random clustered vectors lie in shards on disk, as after embedding; each case runs in a process of
its own, whose resident memory is read before and watched during the search. Plain faiss
(IndexFlatIP with all captions in memory) is timed in the same process on a part of the queries.
Times are those of the processor, so that other work on the machine does not count.
Prints one line per case, writes one JSON with all, and the plan for the published data set.
"""

import argparse
import dataclasses
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from abc_embed import runtime
from abc_embed.mining.engines import Method
from abc_embed.mining.plan import Settings, plan
from abc_embed.mining.search import How, search
from abc_embed.mining.shards import SHARD, Shards, Space, write_shard

PAGE = 4096
FAISS_QUERIES = 4096
POOL = 100
CLUSTERS = 2000


def resident() -> int:
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


@contextmanager
def watched() -> Iterator[list[int]]:
    """The highest resident memory within the block, looked at every 5 ms."""
    peak, done = [resident()], threading.Event()

    def look() -> None:
        while not done.wait(0.005):
            peak[0] = max(peak[0], resident())

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield peak
    finally:
        done.set()
        thread.join()


def write_vectors(folder: Path, count: int, width: int) -> tuple[Shards, Shards]:
    """Captions around centres, and images around their captions, `count` of each."""
    space = Space(folder=folder, model=f"random-{width}", width=width)
    made = []
    centres = np.random.default_rng(0).standard_normal((CLUSTERS, width), dtype=np.float32)
    for kind in (0, 1):
        shards = Shards(space, [f"{kind} {count} {n}" for n in range(count)])
        for number, path in enumerate(shards.paths):
            span = shards.span(number)
            size = len(range(span.start, span.stop))
            texts = np.random.default_rng([1, number])
            vectors = centres[texts.integers(0, CLUSTERS, size)] / width**0.5
            vectors += 0.7 * texts.standard_normal((size, width), dtype=np.float32) / width**0.5
            if kind:
                noise = np.random.default_rng([2, number])
                vectors += 0.7 * noise.standard_normal((size, width), dtype=np.float32) / width**0.5
            vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
            if not path.exists():
                write_shard(path, vectors, {})
        made.append(shards)
    return made[0], made[1]


def one_case(told: argparse.Namespace) -> dict[str, Any]:
    """Search everything once; a JSON line on stdout."""
    import faiss

    captions, images = write_vectors(told.folder, told.count, told.width)
    method = Method(told.method)
    how = How(method=method, memory_bytes=told.memory)
    few = np.arange(32)
    list(search(images[:32], captions[:2048], few, how=how))  # what is loaded once
    asked = min(told.queries, told.count)
    before, begun, spent = resident(), time.perf_counter(), time.process_time()
    pooled, hits, of = 0, 0, 0
    with watched() as peak:
        own = np.arange(told.count)
        for pools in search(images, captions, own, pool=POOL, how=how, start=told.count - asked):
            pooled += int(pools.sizes.sum())
            hits, of = hits + pools.recalled[0], of + pools.recalled[1]
    took, spent = time.perf_counter() - begun, time.process_time() - spent
    found: dict[str, Any] = {
        "count": told.count,
        "width": told.width,
        "method": told.method,
        "threads": faiss.omp_get_max_threads(),
        "queries": asked,
        "seconds": took,
        "cpu_seconds": spent,
        "cpu_ms_a_query": spent / asked * 1000,
        "ceiling_bytes": told.memory,
        "resident_before_bytes": before,
        "peak_more_bytes": peak[0] - before,
        "in_pools": pooled,
    }
    if of:
        found["recall"] = hits / of
    if method is Method.FLAT:
        index = faiss.IndexFlatIP(told.width)
        index.add(captions[0 : told.count])
        some = images[0:FAISS_QUERIES]
        spent = time.process_time()
        index.search(some, POOL)
        found["faiss_cpu_ms_a_query"] = (time.process_time() - spent) / len(some) * 1000
        found["times_faiss"] = found["cpu_ms_a_query"] / found["faiss_cpu_ms_a_query"]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="folder of the record")
    parser.add_argument("--counts", type=int, nargs="+", default=[100_000, 200_000])
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--memory", type=int, default=200_000_000)
    parser.add_argument(
        "--queries", type=int, default=10**9, help="search only the last so many of all queries"
    )
    parser.add_argument("--methods", nargs="+", default=["flat", "ivf"])
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--case", nargs=3, help=argparse.SUPPRESS)
    told = parser.parse_args()
    if told.case:
        told.count, told.width, told.method = int(told.case[0]), int(told.case[1]), told.case[2]
        print(json.dumps(one_case(told)))
        return
    cases = []
    with tempfile.TemporaryDirectory() as folder:
        for width in told.widths:
            for count in told.counts:
                for method in told.methods:
                    words = ["--folder", folder, "--memory", str(told.memory)]
                    words += ["--queries", str(told.queries)]
                    words += ["--case", str(count), str(width), method]
                    done = subprocess.run(
                        [sys.executable, __file__, *words], check=True, capture_output=True
                    )
                    cases.append(json.loads(done.stdout))
                    print(json.dumps(cases[-1]), flush=True)
    published = plan(2_250_000, 2_250_000, 3584, Settings(store="float16"))
    record = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "what": f"random clustered vectors, {CLUSTERS} centres, pool {POOL}, shards of {SHARD}",
        "cases": cases,
        "plan_of_the_published_set": dataclasses.asdict(published),
        "versions": runtime.versions() | {"faiss": __import__("faiss").__version__},
        "hardware": runtime.hardware(),
    }
    if told.out:
        told.out.mkdir(parents=True, exist_ok=True)
        (told.out / "search.json").write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record["plan_of_the_published_set"], indent=1))


if __name__ == "__main__":
    main()
