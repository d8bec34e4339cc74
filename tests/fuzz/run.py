"""`make fuzz`: damaged pictures, record sets and model folders, kills and full disks.

Prints one line a kind and writes results/fuzz/fuzz.json; leaves with 1 if there is a fault.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "support")]

import torch  # noqa: E402
from fuzz_kills import fuzz_disks, fuzz_kills  # noqa: E402
from fuzz_models import fuzz_models  # noqa: E402
from fuzz_pictures import fuzz_pictures  # noqa: E402
from fuzz_records import fuzz_records  # noqa: E402
from fuzzing import Report  # noqa: E402

from abc_embed import runtime  # noqa: E402


def main() -> int:
    """Run what is asked for; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, count in (
        *(("pictures", 10_000), ("records", 2_000), ("models", 1_000)),
        *(("kills", 100), ("disks", 40)),
    ):
        parser.add_argument(f"--{name}", type=int, default=count)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("results/fuzz/fuzz.json"))
    asked = parser.parse_args()
    torch.set_num_threads(1)  # children are forked
    reports: list[Report] = []
    for name, fuzz in (
        ("pictures", lambda count, seed, _: fuzz_pictures(count, seed)),
        ("records", fuzz_records),
        ("models", fuzz_models),
        ("kills", fuzz_kills),
        ("disks", fuzz_disks),
    ):
        if count := getattr(asked, name):
            with tempfile.TemporaryDirectory(prefix="abc-embed-fuzz-") as scratch:
                reports.append(fuzz(count, asked.seed, Path(scratch)))
            print(json.dumps(reports[-1].as_json() | {"faults": len(reports[-1].faults)}))
            for fault in reports[-1].faults[:20]:
                print(f"  {fault}", file=sys.stderr)
    record = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime()),
        "seed": asked.seed,
        "versions": runtime.versions(),
        "reports": [report.as_json() for report in reports],
    }
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    asked.out.write_text(json.dumps(record, indent=1) + "\n")
    return int(any(report.faults for report in reports))


if __name__ == "__main__":
    sys.exit(main())
