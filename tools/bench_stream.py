"""Memory of a long stream: pictures from files through `Embedder.stream`, above what loading took.

    python tools/bench_stream.py --count 20000 --out results/speed/stream-cpu.json

Resident memory is read every tenth of a second. The pictures are drawn first, JPEGs of 448 x 336
with a number in them, so that each is another one; the goal is 450 MB above the start.
"""

import argparse
import io
import json
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from abc_embed import Embedder, Item, runtime

GOAL_BYTES = 450_000_000


def resident_bytes() -> int:
    """What of this process lies in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


class Watch(threading.Thread):
    """The highest resident memory, and its course."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak = 0
        self.course: list[int] = []
        self.done = threading.Event()

    def run(self) -> None:
        """Until `done` is set."""
        turn = 0
        while not self.done.wait(0.1):
            now = resident_bytes()
            self.peak = max(self.peak, now)
            if turn % 100 == 0:
                self.course.append(now)
            turn += 1


def draw(folder: Path, count: int) -> list[Path]:
    """Different JPEGs: a few grounds, each with blocks of its own."""
    rng = np.random.default_rng(0)
    files = []
    for number in range(count):
        small = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
        picture = Image.fromarray(small).resize((448, 336), Image.Resampling.BILINEAR)
        stream = io.BytesIO()
        picture.save(stream, "JPEG", quality=85)
        file = folder / f"{number // 1000:03d}" / f"{number:06d}.jpg"
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(stream.getvalue())
        files.append(file)
    return files


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as name:
        files = draw(Path(name), options.count)
        model = Embedder.from_pretrained(options.model, device="cpu")
        model.embed("a dog")
        start = resident_bytes()
        watch = Watch()
        watch.start()
        began, processor = time.perf_counter(), time.process_time()
        count = sum(1 for _ in model.stream(Item(image=file) for file in files))
        took, processor = time.perf_counter() - began, time.process_time() - processor
        watch.done.set()
        watch.join()
    record = {
        "what": "resident memory above that of the loaded model, files streamed from a disk",
        "pictures": count,
        "size": [448, 336],
        "start_bytes": start,
        "peak_above_start_bytes": watch.peak - start,
        "goal_bytes": GOAL_BYTES,
        "every_ten_seconds_above_start_bytes": [at - start for at in watch.course],
        "processor_s": round(processor, 1),
        "clock_s": round(took, 1),
        "hardware": runtime.hardware(),
        "versions": runtime.versions(),
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps({key: record[key] for key in list(record)[:6]}, indent=1))


if __name__ == "__main__":
    main()
