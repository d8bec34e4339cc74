"""`plan` against what jobs then take: three that embed, three that train; a record.

    python tools/bench_plan.py [--out results/speed/plan.json] [--only embed] [--work FOLDER]

Each job is planned and then done with `--plan`, in processes of their own on one thread; what it
says at its end is kept. Time is the processor's, memory the peak of the process.
"""

import argparse
import io
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from abc_embed import runtime
from abc_embed.storage.json_files import atomic_write_json

ROOT = Path(__file__).parent.parent
LINE = re.compile(
    r"planned ([\d,.]+) s.*?, took ([\d,.]+).*?; planned ([\d,.]+) MiB, took ([\d,.]+)"
)
TRAIN = {
    "stage 1": ("pretrain", "configs/pretrain-tiny.toml", ()),
    "stage 2": (
        "instruct",
        "configs/instruct-tiny.toml",
        ("model.base=bundled", "adapter.rank=16", "adapter.alpha=32"),
    ),
    "stage 1, whole batches": (
        "pretrain",
        "configs/pretrain-tiny.toml",
        ("train.chunk_size=0", "data.negatives=1", "adapter.rank=32", "adapter.alpha=64"),
    ),
}


def jobs(work: Path) -> dict[str, tuple[list[str], list[str]]]:
    """By name the arguments of `plan`, and of the job."""
    scenes, photos = str(work / "scenes"), str(work / "photos")
    asked = ["--instruction", "what is on the left?"]
    embed = {
        "embed 400 scenes": [f"{scenes}/images"],
        "embed 400 scenes with an instruction": [f"{scenes}/images", *asked],
        "embed 300 photos of 640 x 480": [photos],
    }
    found = {
        name: (["plan", "embed", *args], ["embed", *args, "-o", str(work / f"{len(name)}.npy")])
        for name, args in embed.items()
    }
    for name, (stage, recipe, changes) in TRAIN.items():
        sets = [f"data.records={scenes}", "train.steps=15", *changes]
        options = ["--config", str(ROOT / recipe), *(x for one in sets for x in ("--set", one))]
        out = ["--set", f"out={work / name.replace(' ', '-')}"]
        found[f"train {name}"] = (
            ["plan", "train", *options],
            ["train", stage, *options, *out],
        )
    return found


def prepare(work: Path) -> None:
    """Scenes with records, and pictures of the size of photos."""
    from PIL import Image

    from abc_embed.speed.workloads import draw_photos

    run(["scenes", "--count", "400", "--out", str(work / "scenes")])
    (work / "photos").mkdir()
    drawn = draw_photos(10, 640, 480)
    for number in range(300):
        picture = Image.open(io.BytesIO(drawn[number % 10]))
        picture.paste((number % 256, number // 256, 0), (0, 0, 32, 32))  # no two alike
        picture.save(work / "photos" / f"{number:03}.jpg", quality=90)


def run(arguments: list[str]) -> str:
    """A command of ours in a process of its own, on one thread; what it says on stderr."""
    done = subprocess.run(
        [sys.executable, "-m", "abc_embed", *arguments],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        cwd=ROOT,
    )
    if done.returncode:
        raise SystemExit(f"{arguments} ended with {done.returncode}: {done.stderr}")
    return done.stderr


def compare(work: Path, name: str, plan: list[str], job: list[str]) -> dict[str, Any]:
    """Plan a job, do it, and tell how far off the plan was."""
    file = work / "plan.json"
    run([*plan, "--out", str(file)])
    said = run([*job, "--plan", str(file)])
    match = LINE.search(said)
    if match is None:
        raise SystemExit(f"{name}: no comparison in {said!r}")
    planned_s, took_s, planned_mib, took_mib = (float(x.replace(",", "")) for x in match.groups())
    found = {
        "job": name,
        "planned_s": planned_s,
        "took_s": took_s,
        "off_s": round(took_s / planned_s - 1, 3),
        "planned_mib": planned_mib,
        "took_mib": took_mib,
        "off_mib": round(took_mib / planned_mib - 1, 3),
        "plan": json.loads(file.read_text()),
        "load": os.getloadavg()[0],
    }
    print({key: value for key, value in found.items() if key != "plan"}, flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "speed" / "plan.json")
    parser.add_argument("--only", default="", help="jobs whose name has this in it")
    parser.add_argument("--work", type=Path, help="folder with the pictures of an earlier run")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        work = options.work or Path(scratch)
        if not (work / "photos").exists():
            work.mkdir(parents=True, exist_ok=True)
            prepare(work)
        about = {"versions": runtime.versions(), "hardware": runtime.hardware()}
        found: list[dict[str, Any]] = []
        for name, arguments in jobs(work).items():
            if options.only in name:
                found.append(compare(work, name, *arguments))
                atomic_write_json(options.out, {"jobs": found, **about})
    print(options.out)


if __name__ == "__main__":
    main()
