"""`make fuzz`: damaged pictures, record sets and model folders, kills and full disks.

The cases of a kind are run in parts, each in a process of its own, and the record is written after
each part: a run that is broken off goes on where it was, if the code is the same. Leaves with 1 if
there is a fault.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SOURCES = (HERE.parent.parent / "src", HERE)
sys.path[:0] = [str(HERE), str(HERE.parent / "support")]

KINDS = {
    "pictures": (10_000, 1_000),
    "records": (2_000, 200),
    "models": (1_000, 100),
    "kills": (100, 20),
    "disks": (40, 10),
}
"""Cases of each kind, and how many make a part."""


def main() -> int:
    """Run the parts that are not in the record; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, (count, _) in KINDS.items():
        parser.add_argument(f"--{name}", type=int, default=count)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("results/fuzz/fuzz.json"))
    parser.add_argument("--part", nargs=3, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.part:
        kind, count, seed = asked.part
        print(json.dumps(run_part(kind, int(count), int(seed))))
        return 0
    code = _hash_of_sources()
    parts = _parts_so_far(asked.out, code)
    plan = [
        (first / total, kind, min(size, total - first), asked.seed * 1_000_000 + first)
        for kind, (_, size) in KINDS.items()
        for total in [getattr(asked, kind)]
        for first in range(0, total, size)
    ]
    for _, kind, count, seed in sorted(plan):  # some of each kind, then more of each
        if not any((part["name"], part["seed"]) == (kind, seed) for part in parts):
            parts.append(_in_its_own_process(kind, count, seed))
            _write(asked.out, code, parts)
            _say(parts[-1])
    return int(any(part["faults"] for part in parts))


def run_part(kind: str, count: int, seed: int) -> dict[str, Any]:
    """The cases of one part; what became of them."""
    import torch
    from fuzz_kills import fuzz_disks, fuzz_kills
    from fuzz_models import fuzz_models
    from fuzz_pictures import fuzz_pictures
    from fuzz_records import fuzz_records

    from abc_embed import runtime

    torch.set_num_threads(1)  # children are forked
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="abc-embed-fuzz-") as folder:
        scratch = Path(folder)
        if kind == "pictures":
            report = fuzz_pictures(count, seed)
        else:
            fuzz = {
                "records": fuzz_records,
                "models": fuzz_models,
                "kills": fuzz_kills,
                "disks": fuzz_disks,
            }[kind]
            report = fuzz(count, seed, scratch)
    part = {"name": kind, "seed": seed, **report.as_json()}
    return part | {"seconds": round(time.monotonic() - start), "versions": runtime.versions()}


def _in_its_own_process(kind: str, count: int, seed: int) -> dict[str, Any]:
    """A part whose process ends otherwise than it should is a fault of its own."""
    command = [sys.executable, __file__, "--part", kind, str(count), str(seed)]
    done = subprocess.run(command, capture_output=True, text=True)
    lines = done.stdout.splitlines()
    if done.returncode == 0 and lines:
        part: dict[str, Any] = json.loads(lines[-1])
        if done.stderr.strip() and kind == "pictures":  # no library may write what it thinks
            part["faults"].append(f"on stderr: {done.stderr.strip()[:200]}")
        return part
    why = f"the process ended with {done.returncode}: {done.stderr[-300:]}"
    return {"name": kind, "seed": seed, "kind": kind, "cases": 0, "read": 0, "faults": [why]}


def _hash_of_sources() -> str:
    from abc_embed.hub import files_of, hash_files

    root = HERE.parent.parent
    return hash_files(root, [f for place in SOURCES for f in files_of(place, ("*.py",))])[:16]


def _parts_so_far(record: Path, code: str) -> list[dict[str, Any]]:
    if not record.exists():
        return []
    found = json.loads(record.read_text())
    parts: list[dict[str, Any]] = found["parts"] if found.get("code") == code else []
    return parts


def _write(record: Path, code: str, parts: list[dict[str, Any]]) -> None:
    totals = {}
    for kind in dict.fromkeys(part["name"] for part in parts):
        of_kind = [part for part in parts if part["name"] == kind]
        totals[kind] = {
            "cases": sum(part["cases"] for part in of_kind),
            "faults": sum(len(part["faults"]) for part in of_kind),
            "most_above_start_mb": max(
                part.get("peak_mb", 0) - part.get("start_mb", 0) for part in of_kind
            ),
        }
    now = time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime())
    content = {"time": now, "code": code, "totals": totals, "parts": parts}
    record.parent.mkdir(parents=True, exist_ok=True)
    beside = record.with_name(f".{record.name}.part")
    beside.write_text(json.dumps(content, indent=1) + "\n")
    os.replace(beside, record)


def _say(part: dict[str, Any]) -> None:
    shown = {key: value for key, value in part.items() if key not in ("versions", "faults")}
    print(json.dumps(shown | {"faults": len(part["faults"])}), flush=True)
    for fault in part["faults"][:20]:
        print(f"  {fault}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
