"""What starting costs: `compare` with the bundled model against importing Qwen2-VL's class alone.

    python tools/bench_startup.py --against ../before/src --server \
        --out results/speed/startup-cpu.json

Each call is a process of its own on one thread, and its processor time is counted. The calls of a
round run side by side, so that what else the machine does hits all of them alike; a ratio is the
median of those of the rounds. `--against` adds the same command of another commit, `--server` what
a server answers.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
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


def start(words: list[str], source: Path) -> subprocess.Popen[bytes]:
    """One call of Python, on one thread."""
    environment = {**os.environ, "PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, *words],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def processor_time_s(call: subprocess.Popen[bytes]) -> float:
    """Of a call, user and system, once it has ended.

    Raises:
        SystemExit: it failed.
    """
    _, status, usage = os.wait4(call.pid, 0)
    call.returncode = os.waitstatus_to_exitcode(status)
    if call.returncode:
        raise SystemExit(f"{call.args} failed")
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--against", type=Path, help="the src of another commit")
    parser.add_argument("--server", action="store_true", help="also by a running server")
    parser.add_argument("--rounds", type=int, default=5)
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
            url, _ = stack.enter_context(serving([], folder / "log"))
            asked = ["--server", url]
            calls["compare by a server"] = ([*COMPARE, *asked], now)
            words = ["-c", CODE, "embed", "--text", "a dog", *asked]
            calls["embed by a server"] = (words, now)
        times: dict[str, list[float]] = {name: [] for name in calls}
        for turn in range(options.rounds + 1):
            running = {name: start(words, source) for name, (words, source) in calls.items()}
            for name, call in running.items():
                seconds = processor_time_s(call)
                if turn or options.rounds == 1:  # the first one fills the caches of the disk
                    times[name].append(seconds)
    record: dict[str, Any] = {"versions": runtime.versions(), "hardware": runtime.hardware()}
    record["processor_time_s"] = {
        name: {"median": round(statistics.median(all_of), 3), "least": round(min(all_of), 3)}
        for name, all_of in times.items()
    }
    record["over_import"] = {
        name: round(
            statistics.median(a / b for a, b in zip(all_of, times["import"], strict=True)), 3
        )
        for name, all_of in times.items()
        if name.startswith("compare")
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
