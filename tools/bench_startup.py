"""What starting costs: `compare` with the bundled model against importing Qwen2-VL's class alone.

    python tools/bench_startup.py --against ../before/src --server \
        --out results/speed/startup-cpu.json

Each call is a process of its own on one thread; its processor time and its time by the clock are
counted. The calls of a round follow each other, so that what else the machine does hits all of them
nearly alike; a ratio is the median of those of the rounds. `--against` adds the same command of
another commit, `--server` what a server answers (with an index of ten pictures for `search`).
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

from serve_process import CODE, serving

from abc_embed import runtime

ROOT = Path(__file__).parents[1]
PICTURE = ROOT / "src/abc_embed/bundled/images/dog_and_cat.png"
IMPORT = ["-c", "from transformers import Qwen2VLModel"]
COMPARE = ["-c", CODE, "compare", str(PICTURE), "a dog", "a cat"]
HELP = ["-c", CODE, "--help"]


def measure(words: list[str], source: Path) -> tuple[float, float]:
    """One call of Python, on one thread: processor seconds, user and system, and by the clock.

    Raises:
        SystemExit: it failed.
    """
    environment = {**os.environ, "PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"}
    began = time.perf_counter()
    call = subprocess.Popen(
        [sys.executable, *words],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )

    _, status, usage = os.wait4(call.pid, 0)
    call.returncode = os.waitstatus_to_exitcode(status)
    if call.returncode:
        raise SystemExit(f"{call.args} failed")
    return usage.ru_utime + usage.ru_stime, time.perf_counter() - began


def make_index(folder: Path) -> Path:
    """An index of some drawn pictures."""
    scenes, index = folder / "scenes", folder / "photos.index"
    for words in (
        ["scenes", "--count", "10", "--out", str(scenes)],
        ["index", "build", str(index), str(scenes)],
    ):
        subprocess.run([sys.executable, "-c", CODE, *words], check=True, capture_output=True)
    return index


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--against", type=Path, help="the src of another commit")
    parser.add_argument("--server", action="store_true", help="also by a running server")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--calls", nargs="+", help="only these, like help; what a record has of others stays"
    )
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    now = ROOT / "src"
    calls: dict[str, tuple[list[str], Path]] = {
        "import": (IMPORT, now),
        "compare": (COMPARE, now),
        "help": (HELP, now),
    }
    if options.against:
        calls["compare before"] = (COMPARE, options.against)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        if options.server:
            index = make_index(folder)
            url, _ = stack.enter_context(serving(["--index", str(index)], folder / "log"))
            asked = ["--server", url]
            calls["compare by a server"] = ([*COMPARE, *asked], now)
            words = ["-c", CODE, "embed", "--text", "a dog", *asked]
            calls["embed by a server"] = ([*words, "-o", str(folder / "out.npy")], now)
            calls["search by a server"] = (["-c", CODE, "search", str(index), "a dog", *asked], now)
        if options.calls:
            calls = {name: call for name, call in calls.items() if name in options.calls}
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
        for turn in range(options.rounds + 1):
            for name, (words, source) in calls.items():
                took = measure(words, source)
                if turn:  # the first one fills the caches of the disk
                    times[name].append(took)
    earlier = json.loads(options.out.read_text()) if options.calls else {}
    record: dict[str, Any] = {"versions": runtime.versions(), "hardware": runtime.hardware()}
    for clock, place in (("processor_time_s", 0), ("clock_s", 1)):
        record[clock] = earlier.get(clock, {}) | {
            name: {
                "median": round(statistics.median(pair[place] for pair in pairs), 3),
                "least": round(min(pair[place] for pair in pairs), 3),
            }
            for name, pairs in times.items()
        }
    record["over_import"] = earlier.get("over_import", {}) | {
        name: round(
            statistics.median(a[0] / b[0] for a, b in zip(pairs, times["import"], strict=True)), 3
        )
        for name, pairs in times.items()
        if name.startswith("compare") and "import" in times
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
