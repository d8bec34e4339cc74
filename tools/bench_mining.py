"""Mining at size: memory under its ceiling, time per query beside plain faiss, growth by doubling.

    python tools/bench_mining.py --out results/mining/search.json [--counts 100000] [--widths 64]
    python tools/bench_mining.py --out results/speed/mining-cpu.json --before OLD_CHECKOUT

Random clustered vectors lie in shards on disk, as after embedding; each case runs in a process of
its own, whose resident memory is read before and watched during the search. Plain faiss
(IndexFlatIP with all captions in memory) is timed in a process of its own on a part of the queries.
With `--before` each case also runs with the code of another checkout, in turns, `--repeats` times,
and the least of each counts. Times are those of the processor, so that other work on the machine
counts little. Prints one line per case, and writes one JSON with all and the plan for the published
data set.
"""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from abc_embed import runtime
from abc_embed.mining.mine import SAMPLED
from abc_embed.mining.plan import plan_mining
from abc_embed.mining.pools import Pools, Truth, recall
from abc_embed.mining.search import search
from abc_embed.mining.settings import Method, MiningSettings
from abc_embed.mining.shards import SHARD, Shards, VectorSpace

PAGE = 4096
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
    space = VectorSpace(folder=folder, model=f"random-{width}", width=width)
    made = []
    centres = np.random.default_rng(0).standard_normal((CLUSTERS, width), dtype=np.float32)
    for kind in (0, 1):
        shards = Shards(space, [f"{kind} {count} {n}" for n in range(count)])
        for number in shards.missing():
            span = shards.span(number)
            size = len(range(span.start, span.stop))
            texts = np.random.default_rng([1, number])
            vectors = centres[texts.integers(0, CLUSTERS, size)] / width**0.5
            vectors += 0.7 * texts.standard_normal((size, width), dtype=np.float32) / width**0.5
            if kind:
                noise = np.random.default_rng([2, number])
                vectors += 0.7 * noise.standard_normal((size, width), dtype=np.float32) / width**0.5
            vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
            shards.write(number, vectors, {})
        made.append(shards)
    return made[0], made[1]


def search_seconds_of(options: argparse.Namespace) -> dict[str, Any]:
    """Search everything once, and a sample of it exactly."""
    captions, images = write_vectors(options.folder, options.count, options.width)
    settings = MiningSettings(method=Method(options.method), memory_bytes=options.memory, pool=POOL)
    plain = dataclasses.replace(settings, method=Method.PLAIN)
    dtype = getattr(torch, options.dtype) if options.dtype else None
    for how in (settings, plain):
        list(search(images[:32], captions[:2048], Truth(np.arange(32)), how))  # loaded once
    asked = min(options.queries, options.count)
    truth, start = Truth(np.arange(options.count)), options.count - asked
    sample = start + np.sort(np.random.default_rng(0).permutation(asked)[:SAMPLED])
    before, begin, spent = resident(), time.perf_counter(), time.process_time()
    pooled = 0

    def counted(found: Iterable[Pools]) -> Iterator[Pools]:
        nonlocal pooled
        for pools in found:
            pooled += int(pools.sizes.sum())
            yield pools

    with watched() as peak:
        exact = list(search(images[sample], captions, truth[sample], plain))
        found = search(images, captions, truth, settings, start=start, product_dtype=dtype)
        share = recall(counted(found), exact, sample)
    seconds, cpu_s = time.perf_counter() - begin, time.process_time() - spent
    return {
        "seconds": seconds,
        "cpu_ms_a_query": cpu_s / asked * 1000,
        "peak_more_bytes": peak[0] - before,
        "in_pools": pooled,
        "recall": share,
    }


def faiss_seconds_of(options: argparse.Namespace) -> dict[str, Any]:
    """Plain faiss, with all captions in memory: read, added, and searched once."""
    import faiss

    captions, images = write_vectors(options.folder, options.count, options.width)
    asked = min(options.queries, options.count)
    begin, spent = time.perf_counter(), time.process_time()
    index = faiss.IndexFlatIP(options.width)
    index.add(captions[0 : options.count])
    index.search(images[options.count - asked : options.count], POOL)
    seconds, cpu_s = time.perf_counter() - begin, time.process_time() - spent
    return {"seconds": seconds, "cpu_ms_a_query": cpu_s / asked * 1000}


def run_case(options: argparse.Namespace, folder: str, count: int, width: int) -> dict[str, Any]:
    """Every engine in turns; of each the fastest run."""
    numbers = [str(n) for n in (options.memory, options.queries, count, width)]
    names = ["--folder", "--memory", "--queries", "--count", "--width"]
    shared = [word for pair in zip(names, [folder, *numbers], strict=True) for word in pair]
    own = [__file__, *shared]
    commands = {name: [*own, "--method", name] for name in options.methods}
    commands["faiss IndexFlatIP"] = [*own, "--method", "faiss"]
    for dtype in options.dtypes:
        commands[f"flat in {dtype}"] = [*own, "--method", "flat", "--dtype", dtype]
    if options.before:  # with the tool of that checkout, which knows its names
        before = options.before / "tools" / Path(__file__).name
        commands["flat before"] = [str(before), *shared, "--method", "flat"]
    best: dict[str, dict[str, Any]] = {}
    for _ in range(options.repeats):
        for name, command in commands.items():
            source = options.before / "src" if name == "flat before" else None
            environment = os.environ | ({"PYTHONPATH": str(source)} if source else {})
            done = subprocess.run(
                [sys.executable, *command], check=True, stdout=subprocess.PIPE, env=environment
            )
            found = json.loads(done.stdout)
            if name not in best or found["cpu_ms_a_query"] < best[name]["cpu_ms_a_query"]:
                best[name] = found
    case: dict[str, Any] = {"count": count, "width": width, "queries": min(options.queries, count)}
    case["engines"] = best
    for name in ("faiss IndexFlatIP", "flat before"):
        if name in best and "flat" in best:
            least = best[name]["cpu_ms_a_query"]
            case[f"flat / {name}"] = best["flat"]["cpu_ms_a_query"] / least
    return case


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="the record")
    parser.add_argument("--counts", type=int, nargs="+", default=[100_000, 200_000])
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--memory", type=int, default=200_000_000)
    parser.add_argument(
        "--queries", type=int, default=10**9, help="search only the last so many of all queries"
    )
    parser.add_argument("--methods", nargs="+", default=["flat", "ivf"])
    parser.add_argument("--dtypes", nargs="*", default=[], help="formats of the products as well")
    parser.add_argument("--before", type=Path, help="a checkout of the code to compare with")
    parser.add_argument("--repeats", type=int, default=1)
    for name, kind in (("folder", Path), ("count", int), ("width", int), ("method", str)):
        parser.add_argument(f"--{name}", type=kind, help=argparse.SUPPRESS)
    parser.add_argument("--dtype", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.method:
        measure = faiss_seconds_of if options.method == "faiss" else search_seconds_of
        print(json.dumps(measure(options)))
        return
    cases = []
    with tempfile.TemporaryDirectory() as folder:
        for width in options.widths:
            for count in options.counts:
                write_vectors(Path(folder), count, width)
                cases.append(run_case(options, folder, count, width))
                print(json.dumps(cases[-1]), flush=True)
    published = plan_mining(2_250_000, 2_250_000, 3584, MiningSettings(store="float16"))
    record = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "what": f"random clustered vectors, {CLUSTERS} centres, pool {POOL}, shards of {SHARD}",
        "ceiling_bytes": options.memory,
        "repeats": options.repeats,
        "load_average": os.getloadavg(),
        "cases": cases,
        "plan_of_the_published_set": dataclasses.asdict(published),
        "versions": runtime.versions() | {"faiss": version("faiss-cpu")},
        "hardware": runtime.hardware(),
    }
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record["plan_of_the_published_set"], indent=1))


if __name__ == "__main__":
    main()
