"""`abc-embed batch` under kills, and its processor time against `stream`: a record.

    python tools/bench_batch.py [--pictures 20000] [--out results/scale/batch.json]

Pictures of a few boxes are drawn, embedded by a job on two workers whose processes are killed at
random (by a seed: 20 workers, 5 drivers), and every vector is compared with that of
`Embedder.stream`. Then a job without kills and `stream` take turns over the same pictures. What is
compared is processor time a picture, of all processes that the job started, Ray's own with them,
and, on a machine with nothing else to do, pictures a second. What starting costs is measured on 8
pictures and told apart.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT / "tests" / "support")]

import psutil  # noqa: E402
from batch_parts import (  # noqa: E402
    Killer,
    cpu_seconds,
    draw_boxes,
    largest_difference,
    read_vectors,
    run_with_kills,
    start_batch,
    stream_vectors,
)

from abc_embed.storage.json_files import read_json  # noqa: E402

WORKERS = ("--workers", "2", "--json")
FEW = 8
"""Pictures of a job that only starts."""


def kills(scenes: str, out: Path, pictures: int, workers: int, drivers: int) -> dict[str, Any]:
    """The job with kills, to its end."""
    killer = Killer.planned(pictures, workers, drivers)
    began, restarts = time.monotonic(), list[int]()

    def say(rows: int) -> None:
        restarts.append(rows)
        print(f"driver killed at {rows} of {pictures} rows, {killer.done}", flush=True)

    last = run_with_kills(lambda: start_batch(scenes, out, *WORKERS), out, killer, say)
    printed, problem = last.communicate()
    if last.returncode:
        raise SystemExit(f"the job ended with {last.returncode}: {problem}")
    seconds = time.monotonic() - began
    print(f"done in {seconds:.0f} s; comparing with stream", flush=True)
    found = read_vectors(out)
    difference = largest_difference(found, stream_vectors(scenes))
    return {
        "pictures": pictures,
        "killed": killer.done,
        "not_killed": len(killer.events),
        "rows_at_driver_kills": restarts,
        "memory_mb_by_tenth": by_tenth(killer.memory, pictures),
        "ids": len(found),
        "ids_twice": 0,
        "largest_difference_to_stream": difference,
        "seconds": round(seconds, 1),
        "last_run": {key: value for key, value in json.loads(printed).items() if key != "out"},
    }


def by_tenth(memory: list[tuple[int, int]], rows: int) -> list[int]:
    """The most memory in MB while each tenth of the rows was done; the start is left out."""
    tenths = [[size for done, size in memory if done > 0 and done * 10 // rows == n]
              for n in range(10)]  # fmt: skip
    return [max(sizes, default=0) // 10**6 for sizes in tenths]


def measured(command: list[str]) -> tuple[float, float, str]:
    """Processor and wall seconds of a command with all its processes, and what it printed."""
    began, known = time.monotonic(), dict[int, float]()
    with tempfile.TemporaryFile("w+") as printed:
        process = subprocess.Popen(command, stdout=printed, stderr=subprocess.DEVNULL)
        while process.poll() is None:
            cpu = cpu_seconds(psutil.Process(process.pid), known)
            time.sleep(0.3)
        if process.returncode:
            raise SystemExit(f"{command} ended with {process.returncode}")
        printed.seek(0)
        return cpu, time.monotonic() - began, printed.read()


def time_stream(scenes: str) -> None:
    """What a child does: embed all, and print processor and wall seconds of that alone."""
    from abc_embed import Embedder, Item
    from abc_embed.data import open_dataset

    model = Embedder.from_pretrained("bundled", device="cpu")
    items = [Item(image=row.image) for row in open_dataset(scenes)]
    list(model.stream(items[:64]))
    before, began = resource.getrusage(resource.RUSAGE_SELF), time.monotonic()
    list(model.stream(items))
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(json.dumps([cpu, time.monotonic() - began]))


def speed(scenes: str, small: str, folder: Path, pictures: int, rounds: int) -> dict[str, Any]:
    """Job and stream in turn."""
    found: list[dict[str, float]] = []

    def batch(source: str, name: str) -> list[str]:
        out = str(folder / name)
        return [sys.executable, "-m", "abc_embed", "batch", source, "--out", out, *WORKERS]

    for number in range(rounds):
        start_cpu, start_s, _ = measured(batch(small, f"few-{number}"))
        cpu, wall, text = measured(batch(scenes, f"some-{number}"))
        _, _, line = measured([sys.executable, __file__, "--stream", scenes])
        stream_cpu, stream_wall = json.loads(line)
        report = json.loads(text)
        found.append(
            {
                "start_cpu_s": start_cpu,
                "start_wall_s": start_s,
                "batch_cpu_ms": (cpu - start_cpu) / pictures * 1e3,
                "stream_cpu_ms": stream_cpu / pictures * 1e3,
                "cpu_ratio": (cpu - start_cpu) / stream_cpu,
                "batch_wall_s": wall,
                "batch_items_per_s": report["items_per_s"],
                "batch_items_per_s_beyond_start": (pictures - FEW) / (wall - start_s),
                "stream_items_per_s": pictures / stream_wall,
                "waiting_share": report["waiting_share"],
                "load": os.getloadavg()[0],
            }
        )
        print(found[-1], flush=True)
    return {"pictures": pictures, "rounds": found}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pictures", type=int, default=20_000)
    parser.add_argument("--worker-kills", type=int, default=20)
    parser.add_argument("--driver-kills", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--speed-pictures", type=int, default=4_000)
    parser.add_argument("--work", type=Path, help="folder that stays, to look at")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "scale" / "batch.json")
    parser.add_argument("--only", choices=("kills", "speed"), help="one part; the other is kept")
    parser.add_argument("--stream", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.stream:
        time_stream(options.stream)
        return
    with tempfile.TemporaryDirectory() as scratch:
        work = options.work or Path(scratch)
        options.out.parent.mkdir(parents=True, exist_ok=True)
        record: dict[str, Any] = read_json(options.out) if options.out.exists() else {}
        record |= {"cores": os.cpu_count(), "python": platform.python_version()}
        if options.only != "speed":
            scenes = draw_boxes(options.pictures, work / "scenes")
            record["kills"] = kills(
                scenes, work / "out", options.pictures, options.worker_kills, options.driver_kills
            )
            print(record["kills"], flush=True)
            options.out.write_text(json.dumps(record, indent=1) + "\n")
        if options.only != "kills":
            some = draw_boxes(options.speed_pictures, work / "some")
            few = draw_boxes(FEW, work / "few")
            record["speed"] = speed(some, few, work, options.speed_pictures, options.rounds)
            options.out.write_text(json.dumps(record, indent=1) + "\n")
    print(options.out)


if __name__ == "__main__":
    main()
