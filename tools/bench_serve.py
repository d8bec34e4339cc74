"""Measure what the server adds to the engine: latency of one text, and the rate of 16 clients.

    python tools/bench_serve.py --out results/serving/load.json [--models bundled 55m]

A quarter of an hour on an idle machine of two cores; `make serve-load`. The server is a process of
its own; this one asks it, and embeds the same offline, in turns. A ratio of the clock is that of
the best rounds, and means what it says on an idle machine alone. Processor time is counted as well:
what the server's process spends on a request beyond what `embed_one` spends is its own overhead.

Models: `bundled` (8 M parameters), and `55m` of `bench_engine.py`, random, 256 visual tokens a
picture: HTTP and clients cost as much beside either.
"""

import argparse
import base64
import http.client
import io
import json
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

import numpy as np
from bench_engine import BUNDLED, middle_model
from PIL import Image
from serve_process import serving

from abc_embed import Embedder, Item, runtime

CLIENTS = 16
BLOCK, WARM = 25, 5
"""Single texts in a row, and those of them that are not counted."""
PAUSE_S = 0.001
"""Between two calls of a paced `embed_one`: about as long as the model rests between two requests.
Its weights are no longer in the processor's caches then, wherever it is called from."""
GOALS = {"single_text": 1.3, "load": 0.9}
"""A single text takes at most so much of `embed_one`; the clients get at least so much of the rate
offline."""
COUNTS = {"bundled": (8192, 512, 1024), "55m": (1024, 64, 256)}
"""Items of a round: texts, pictures with an instruction, texts that come one a request. Seconds of
work each, or the first and the last batch would count for much."""


def timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def processor_time_s(pid: int) -> float:
    """What a process has taken so far, as Linux counts it."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


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


def latency(url: str, pid: int, embedder: Embedder, rounds: int) -> dict[str, Any]:
    """A single text: seconds of the request and of the engine, in turns of `BLOCK`.

    Not one by one: threads of torch spin for some ms after their work, and those of this process
    would take a core from the server, as no client's do.
    """
    client = http.client.HTTPConnection(urlsplit(url).netloc, timeout=300)
    pipeline = embedder.pipeline()
    item = Item(text="a dog on a mat")
    served, engine, paced, offline_s, online_s = [], [], list[float](), 0.0, 0.0
    for _ in range(rounds):
        before = processor_time_s(pid)
        served += [timed(lambda: ask(client, item.text)) for _ in range(BLOCK)][WARM:]
        online_s += processor_time_s(pid) - before
        begun = time.process_time()
        engine += [timed(lambda: pipeline.embed_one(item)) for _ in range(BLOCK)][WARM:]
        offline_s += time.process_time() - begun
        for _ in range(BLOCK):
            time.sleep(PAUSE_S)
            paced.append(timed(lambda: pipeline.embed_one(item)))
    client.close()
    tenth = len(served) // 10
    return {
        "requests": len(served),
        "served_ms": spread(served),
        "embed_one_ms": spread(engine),
        "embed_one_paced_ms": spread(paced),
        "ratio": min(served) / min(engine),
        "ratio_p10": sorted(served)[tenth] / sorted(engine)[tenth],
        "ratio_median": statistics.median(served) / statistics.median(engine),
        "ratio_paced_median": statistics.median(served) / statistics.median(paced),
        "processor_time_ms": {
            "server_a_request": online_s / (rounds * BLOCK) * 1e3,
            "embed_one": offline_s / (rounds * BLOCK) * 1e3,
        },
    }


def spread(seconds: list[float]) -> dict[str, float]:
    """In milliseconds."""
    tenth = statistics.quantiles(seconds, n=10)
    return {"best": min(seconds) * 1e3, "p10": tenth[0] * 1e3, "median": tenth[4] * 1e3}


def load(
    url: str,
    pid: int,
    embedder: Embedder,
    make: Callable[[int], Item],
    count: int,
    size: int,
    rounds: int,
) -> dict[str, Any]:
    """Items a second, offline and through 16 clients with `size` items a request, in turns.

    Every round has items that the server has not seen, so that nothing it keeps can help it.
    """
    offline, served, cost = [], [], 0.0
    for number in range(rounds + 1):
        items = [make(number * count + n) for n in range(count)]
        inputs = [as_input(item) for item in items]
        requests = [inputs[at : at + size] for at in range(0, count, size)]
        offline.append(timed(partial(embedder.embed, items)))
        before = processor_time_s(pid)
        served.append(timed(partial(by_clients, url, requests)))
        cost += processor_time_s(pid) - before
    offline, served = offline[1:], served[1:]  # the first warms both up
    return {
        "items": count,
        "items_a_request": size,
        "offline_a_second": count / min(offline),
        "served_a_second": count / min(served),
        "ratio": min(offline) / min(served),
        "ratio_median": statistics.median(offline) / statistics.median(served),
        "server_processor_time_ms_an_item": cost / (rounds + 1) / count * 1e3,
    }


def measure(
    url: str, pid: int, embedder: Embedder, counts: tuple[int, int, int], rounds: int
) -> dict[str, Any]:
    """A single text, then 16 clients, and which goals are met."""
    both = url, pid, embedder
    texts, photos, short = counts
    record = {
        "single_text": latency(*both, 4 * rounds),
        "texts": load(*both, text, texts, 32, rounds),
        "photos_with_instructions": load(*both, photo, photos, 4, rounds),
        "texts_one_a_request": load(*both, text, short, 1, rounds),
    }
    record["met"] = {
        name: found["ratio_median"] <= GOALS["single_text"]
        if name == "single_text"
        else found["ratio"] >= GOALS["load"]
        for name, found in record.items()
    }
    return record


def text(number: int) -> Item:
    return Item(text=f"a photo of thing number {number}, seen from the side")


def photo(number: int) -> Item:
    """A picture of soft colours as JPEG, and one of two questions."""
    colours = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(colours).resize((112, 112), Image.Resampling.BICUBIC).save(stream, "JPEG")
    words = ("what is on the left?", "what is on the right?")[number % 2]
    return Item(image=stream.getvalue(), instruction=words)


def as_input(item: Item) -> Any:
    if item.text is not None:
        return item.text
    image = base64.b64encode(item.image).decode()  # type: ignore[arg-type]
    return {"image": image, "instruction": item.instruction}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--models", nargs="+", choices=COUNTS, default=list(COUNTS))
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    record: dict[str, Any] = {
        "versions": runtime.versions(),
        "hardware": runtime.hardware(),
        "load_average_before": os.getloadavg()[0],
        "goals": GOALS,
    }
    bundled = Embedder.from_pretrained(BUNDLED, device="cpu")
    for name in options.models:
        with tempfile.TemporaryDirectory() as place:
            folder, embedder = str(BUNDLED), bundled
            if name != "bundled":
                folder = str(Path(place) / name)
                middle_model(bundled).save(folder)
                embedder = Embedder.from_pretrained(folder, device="cpu")
            with serving(["--model", folder], Path(place) / "log") as (url, pid):
                record[name] = measure(url, pid, embedder, COUNTS[name], options.rounds)
        print(name, json.dumps(record[name], indent=1), flush=True)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
