"""Ask a running server what no client should, and many things at once; count what it survives.

    python tools/stress_serve.py --out results/serving/stress.json

Rounds against `abc-embed serve` in a process of its own: mutated requests of every shape, 1,000
clients at the same moment, several times, and requests made from its own OpenAPI. Each has to be
answered, none with 5xx, and the memory has to stay where it was once its caches are full. The
record is written after every round, so that one that is broken off is there as far as it came.
"""

import argparse
import asyncio
import copy
import http.client
import json
import random
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

from serve_parts import data_url, png
from serve_process import resident_mb, serving
from serve_schema import ask_by_schema

from abc_embed import Embedder, runtime
from abc_embed.search import Index

THREADS = 8
SAMPLE_S = 2.0
POINTS = 60
"""Of a curve of memory, in the record."""
FLAT_MB = 5.0
"""More than this between the third and the last quarter of a round is no flat memory."""
PICTURE = data_url(png(3))
PART: dict[str, Any] = {"type": "image_url", "image_url": {"url": PICTURE}}
BODIES: list[tuple[str, dict[str, Any]]] = [
    ("/v1/embeddings", {"input": ["a dog", {"image": PICTURE, "instruction": "what is it?"}]}),
    ("/v1/embeddings", {"input": "a dog", "encoding_format": "base64", "dimensions": 16}),
    ("/v1/embeddings", {"messages": [{"role": "user", "content": [PART]}], "on_error": "skip"}),
    ("/v2/embed", {"input_type": "search_query", "texts": ["a"], "embedding_types": ["ubinary"]}),
    ("/v1/multimodalembeddings", {"inputs": [{"content": [{"type": "text", "text": "a"}]}]}),
    ("/v1/rank", {"image": PICTURE, "texts": ["a", "b"], "instructions": ["what is it?"]}),
    ("/v1/explain", {"image": PICTURE, "text": "a dog", "png": True}),
    ("/v1/search", {"text": "a dog", "k": 3, "filter": "width > 10 and height in (1, 56)"}),
    ("/v1/search", {"text": "a dog", "ask": "what is it?", "budget": 0.5, "weights": {"text": 1}}),
    ("/v1/map", {"texts": ["a", "b"], "sample": 3, "layout": "pca"}),
]
ODD: list[Any] = [
    *(None, True, 0, -1, 1e308, -1e-308, 2**70, "", " ", "\x00", "a" * 10_000, [], {}, [[]]),
    *([None], {"a": {}}, "data:image/png;base64,", "data:,", "http://127.0.0.1/", "\u202e", "🐈"),
    *({"id": "0" * 16}, {"index": "../..", "id": "x"}, "' OR 1=1 --", "(" * 300, ["a"] * 3000),
]


def mutated(rng: random.Random) -> tuple[str, bytes]:
    """A request with a picture of its own, one to three things changed; one in five is right."""
    path, body = rng.choice(BODIES)
    size = (28 * rng.randint(2, 5), 28 * rng.randint(2, 5))
    own = data_url(png(rng.randrange(251), size))
    value = json.loads(json.dumps(body).replace(PICTURE, own))
    if rng.random() < 0.2:
        return path, json.dumps(value).encode()
    for _ in range(rng.randint(1, 3)):
        change(rng, value)
    content = bytearray(json.dumps(value).encode())
    if rng.random() < 0.3:
        for _ in range(rng.randint(1, 5)):
            content[rng.randrange(len(content))] = rng.randrange(256)
    if rng.random() < 0.05:
        del content[rng.randrange(len(content)) :]
    return path, bytes(content)


def change(rng: random.Random, value: Any) -> None:
    """Somewhere within, another value, one less, or one more."""
    while True:
        keys: list[Any] = list(value) if isinstance(value, dict) else list(range(len(value)))
        if not keys:
            return
        key = rng.choice(keys)
        if isinstance(value[key], dict | list) and value[key] and rng.random() < 0.6:
            value = value[key]
            continue
        what = rng.random()
        if what < 0.7:
            value[key] = copy.deepcopy(rng.choice(ODD))
        elif what < 0.85:
            del value[key]
        elif isinstance(value, dict):
            value[rng.choice(["x", "model", "text", "image", "input", ""])] = copy.deepcopy(
                rng.choice(ODD)
            )
        return


class Memory:
    """The memory of a process over time; a thread looks at it while the context lasts."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._started = time.monotonic()
        self.points: list[tuple[float, float]] = []
        """Seconds and megabytes."""

    @contextmanager
    def watched(self) -> Iterator[None]:
        done = threading.Event()

        def look() -> None:
            while True:
                seconds = time.monotonic() - self._started
                self.points.append((round(seconds, 1), round(resident_mb(self._pid), 1)))
                if done.wait(SAMPLE_S):
                    return

        thread = threading.Thread(target=look)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def summary(self) -> dict[str, Any]:
        """The curve, and what the last quarter has more than the third: medians of both."""
        size = [mb for _, mb in self.points]
        quarter = max(1, len(size) // 4)
        last, third = size[-quarter:], size[-2 * quarter : -quarter] or size[-quarter:]
        growth = statistics.median(last) - statistics.median(third)
        step = -(-len(size) // POINTS)
        return {
            "seconds": [seconds for seconds, _ in self.points[::step]],
            "mb": size[::step],
            "last_quarter_over_third_mb": round(growth, 1),
            "flat": growth <= FLAT_MB,
        }


def fill_caches(url: str) -> None:
    """Pictures enough that what the server keeps of pictures is as large as it gets."""
    client = http.client.HTTPConnection(urlsplit(url).netloc, timeout=120)
    for shade in range(0, 250, 5):
        shades = range(shade, shade + 5)
        pictures = [data_url(png(one, (84, 28 * n))) for one in shades for n in range(2, 12)]
        content = json.dumps({"input": [{"image": picture} for picture in pictures]})
        client.request("POST", "/v1/embeddings", content, {"Content-Type": "application/json"})
        client.getresponse().read()
    client.close()


def ask_mutated(url: str, pid: int, count: int) -> dict[str, Any]:
    """`count` mutated requests over a few connections."""
    statuses: Counter[int] = Counter()
    faults: list[str] = []
    numbers = iter(range(count))
    lock = threading.Lock()
    memory = Memory(pid)

    def work() -> None:
        client = http.client.HTTPConnection(urlsplit(url).netloc, timeout=120)
        while True:
            with lock:
                number = next(numbers, None)
            if number is None:
                client.close()
                return
            path, content = mutated(random.Random(number))
            try:
                client.request("POST", path, content, {"Content-Type": "application/json"})
                answer = client.getresponse()
                text = answer.read()
            except (OSError, http.client.HTTPException) as error:
                faults.append(f"{number} {path}: {error!r}")
                client.close()
                continue
            with lock:
                statuses[answer.status] += 1
            if answer.status >= 500 or b"Traceback" in text:
                faults.append(f"{number} {path} {answer.status}: {text[:200]!r}")

    threads = [threading.Thread(target=work) for _ in range(THREADS)]
    with memory.watched():
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    answered = sum(statuses.values())
    return {
        "requests": count,
        "unanswered": count - answered,
        "server_errors": sum(n for status, n in statuses.items() if status >= 500),
        "statuses": {str(status): n for status, n in sorted(statuses.items())},
        "memory": memory.summary(),
        "faults": faults[:20],
    }


def ask_at_once(url: str, clients: int) -> dict[str, Any]:
    """So many connections at the same moment, each with one text."""
    host, port = urlsplit(url).hostname, urlsplit(url).port
    statuses: Counter[str] = Counter()

    async def one(number: int) -> None:
        body = json.dumps({"input": f"photo number {number}", "encoding_format": "base64"})
        head = f"POST /v1/embeddings HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n"
        try:
            reader, writer = await asyncio.open_connection(host, port)
            writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
            answer = await asyncio.wait_for(reader.read(), 300)
            statuses[answer[9:12].decode() or "none"] += 1
            writer.close()
        except (OSError, TimeoutError) as error:
            statuses[type(error).__name__] += 1

    async def all_of_them() -> None:
        await asyncio.gather(*(one(number) for number in range(clients)))

    asyncio.run(all_of_them())
    return {"clients": clients, "statuses": dict(sorted(statuses.items()))}


def make_index(folder: Path) -> Path:
    """A few pictures to search."""
    photos = folder / "photos"
    photos.mkdir()
    for shade in range(12):
        (photos / f"{shade}.png").write_bytes(png(shade))
    made = Index.create(folder / "photos.index", Embedder.from_pretrained("bundled"))
    made.add([photos])
    return made.folder


def crowds(url: str, pid: int, clients: int, times: int) -> dict[str, Any]:
    """The crowd again and again, and the memory after each."""
    rounds, memory = [], []
    for _ in range(times):
        rounds.append(ask_at_once(url, clients)["statuses"])
        memory.append(round(resident_mb(pid), 1))
    return {"clients": clients, "statuses": rounds, "memory_mb": memory}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--clients", type=int, default=1_000)
    parser.add_argument("--times", type=int, default=5, help="that the clients come")
    parser.add_argument("--examples", type=int, default=200, help="of each path and kind")
    options = parser.parse_args()
    record: dict[str, Any] = {"versions": runtime.versions(), "hardware": runtime.hardware()}

    def keep(name: str, value: Any) -> None:
        record[name] = value
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(record, indent=1) + "\n")
        print(name, json.dumps(value), file=sys.stderr)

    with tempfile.TemporaryDirectory() as place:
        words = ["--index", str(make_index(Path(place)))]
        with serving(words, Path(place) / "log") as (url, pid):
            fill_caches(url)
            keep("warm_up", ask_mutated(url, pid, options.requests // 20))
            keep("mutated", ask_mutated(url, pid, options.requests))
            keep("at_once", crowds(url, pid, options.clients, options.times))
            asked, faults = ask_by_schema(url, options.examples)
            keep("by_schema", {"requests": asked, "faults": faults[:20]})
            keep("memory_mb_at_the_end", round(resident_mb(pid), 1))
        log = (Path(place) / "log").read_text().splitlines()
        sys.stderr.writelines(f"{line}\n" for line in log if not line.startswith("{"))
    mutated_round, statuses = record["mutated"], record["at_once"]["statuses"]
    survived = not (
        mutated_round["unanswered"]
        or mutated_round["faults"]
        or faults
        or any(set(one) - {"200", "429"} for one in statuses)
    )
    return 0 if survived and mutated_round["memory"]["flat"] else 1


if __name__ == "__main__":
    sys.exit(main())
