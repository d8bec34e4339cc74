"""Measure what the server adds to the engine: as ratios, on a machine that has other work too.

    OMP_NUM_THREADS=1 python tools/bench_serve.py --out results/serving/load.json

The server is a process of its own; this one asks it, and embeds the same offline, in turns. Each
ratio is that of the best rounds: what other processes take, they take from both.
"""

import argparse
import base64
import http.client
import json
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

from serve_parts import png
from serve_process import serving

from abc_embed import Embedder, Item

CLIENTS = 16


def timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def ask(client: http.client.HTTPConnection, inputs: Any) -> None:
    body = json.dumps({"input": inputs, "encoding_format": "base64"}).encode()
    client.request("POST", "/v1/embeddings", body, {"Content-Type": "application/json"})
    answer = client.getresponse()
    text = answer.read()
    if answer.status != 200:
        raise SystemExit(f"{answer.status}: {text[:300]!r}")


def by_clients(url: str, requests: Sequence[Any]) -> None:
    """All requests, through 16 clients at a time."""
    todo = iter(requests)
    lock = threading.Lock()

    def work() -> None:
        client = http.client.HTTPConnection(urlsplit(url).netloc, timeout=300)
        while True:
            with lock:
                request = next(todo, None)
            if request is None:
                client.close()
                return
            ask(client, request)

    threads = [threading.Thread(target=work) for _ in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def latency(url: str, embedder: Embedder, rounds: int) -> dict[str, Any]:
    """A single text: seconds of the request and of the engine, in turns."""
    client = http.client.HTTPConnection(urlsplit(url).netloc, timeout=300)
    pipeline = embedder.pipeline()
    item = Item(text="a dog on a mat")
    served, engine = [], []
    for _ in range(rounds):
        served.append(timed(lambda: ask(client, item.text)))
        engine.append(timed(lambda: pipeline.embed_one(item)))
    client.close()
    served.sort()
    engine.sort()
    tenth = rounds // 10
    return {
        "served_ms": {"best": served[0] * 1e3, "p10": served[tenth] * 1e3},
        "embed_one_ms": {"best": engine[0] * 1e3, "p10": engine[tenth] * 1e3},
        "ratio": served[0] / engine[0],
        "ratio_p10": served[tenth] / engine[tenth],
    }


def load(url: str, embedder: Embedder, items: list[Item], size: int, rounds: int) -> dict[str, Any]:
    """Items a second, offline and through 16 clients with `size` items a request, in turns."""
    inputs = [as_input(item) for item in items]
    requests = [inputs[at : at + size] for at in range(0, len(inputs), size)]
    offline, served = [], []
    for _ in range(rounds):
        offline.append(timed(lambda: embedder.embed(items)))
        served.append(timed(lambda: by_clients(url, requests)))
    return {
        "items": len(items),
        "items_a_request": size,
        "offline_a_second": len(items) / min(offline),
        "served_a_second": len(items) / min(served),
        "ratio": min(offline) / min(served),
    }


def as_input(item: Item) -> Any:
    if item.text is not None:
        return item.text
    image = base64.b64encode(item.image).decode()  # type: ignore[arg-type]
    return {"image": image, "instruction": item.instruction}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    embedder = Embedder.from_pretrained("bundled", device="cpu")
    texts = [Item(text=f"a photo of thing number {n}, seen from the side") for n in range(1024)]
    words = ("what is on the left?", "what is on the right?")
    photos = [Item(image=png(n, (112, 112)), instruction=words[n % 2]) for n in range(192)]
    with tempfile.TemporaryDirectory() as place, serving([], Path(place) / "log") as (url, _):
        record = {
            "single_text": latency(url, embedder, 100 * options.rounds),
            "texts": load(url, embedder, texts, 64, options.rounds),
            "photos_with_instructions": load(url, embedder, photos, 4, options.rounds),
            "texts_one_a_request": load(url, embedder, texts[:256], 1, options.rounds),
        }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
