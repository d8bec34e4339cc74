"""`python -m experiments.miniature`: run what is missing, then write table and figure."""

import argparse
import sys
from pathlib import Path

from abc_embed.errors import AbcError
from abc_embed.progress import progress_bar
from experiments.miniature.plan import Sizes
from experiments.miniature.report import write_report
from experiments.miniature.run import RESULTS_FILE, read_results, run, write_results


def main() -> int:
    """Exit 0 when all is written, 1 with one sentence otherwise."""
    parser = argparse.ArgumentParser(prog="python -m experiments.miniature", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/miniature"), help="where it works")
    parser.add_argument("--into", type=Path, help="folder that has docs/ and results/ to write to")
    parser.add_argument("--workers", type=int, default=2, help="processes, of one core each")
    parser.add_argument("--seeds", type=int, default=3, choices=(1, 2, 3), help="runs of each row")
    parser.add_argument("--report", action="store_true", help="only write table and figure anew")
    parser.add_argument(
        "--float32", action="store_true", help="for a processor without bfloat16 units"
    )
    try:
        for path in run_and_report(parser.parse_args()):
            print(f"written: {path}", file=sys.stderr)
    except AbcError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130
    return 0


def run_and_report(args: argparse.Namespace) -> list[Path]:
    """What is missing, then the page and its figure."""
    into: Path = args.into or args.out
    path = into / "results" / RESULTS_FILE
    if args.report:
        results = list(read_results(path).values())
    else:
        precision = "float32" if args.float32 else "bfloat16"
        sizes = Sizes(seeds=(1, 2, 3)[: args.seeds], precision=precision)  # type: ignore[arg-type]
        with progress_bar("runs", transient=False) as on_progress:
            results = run(args.out, sizes, max(1, args.workers), on_progress)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_results(path, results)
    return write_report(results, into / "docs")


if __name__ == "__main__":
    sys.exit(main())
