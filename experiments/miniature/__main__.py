"""`python -m experiments.miniature`: run what is missing, then write table and figure."""

import argparse
import sys
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from abc_embed.errors import AbcError
from experiments.miniature.plan import Sizes
from experiments.miniature.report import write_report
from experiments.miniature.run import LINES, Told, read_lines, run, write_lines

PLAIN_EVERY_S = 30.0


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
    chosen = parser.parse_args()
    console = Console(stderr=True)
    try:
        work(chosen, console)
    except AbcError as problem:
        console.print(f"error: {problem}", highlight=False, soft_wrap=True)
        return 1
    except KeyboardInterrupt:
        console.print("stopped; the same command goes on from here", highlight=False)
        return 130
    return 0


def work(chosen: argparse.Namespace, console: Console) -> None:
    """Run, then report."""
    into: Path = chosen.into or chosen.out
    results = into / "results" / LINES
    if chosen.report:
        lines = list(read_lines(results).values())
    else:
        sizes = Sizes(
            seeds=(1, 2, 3)[: chosen.seeds],
            precision="float32" if chosen.float32 else "bfloat16",
        )
        with _bar(console) as bar:
            lines = run(chosen.out, sizes, max(1, chosen.workers), _teller(bar, console))
        results.parent.mkdir(parents=True, exist_ok=True)
        write_lines(results, lines)
    for path in write_report(lines, into / "docs"):
        console.print(f"written: {path}", highlight=False)


def _bar(console: Console) -> Progress:
    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
    )
    return Progress(*columns, console=console, disable=not console.is_terminal)


def _teller(bar: Progress, console: Console) -> Told:
    """A bar on a terminal; elsewhere a line whenever a run is done."""
    task = bar.add_task("")
    told = [-1]

    def tell(done: int, of: int, left_s: float | None, what: str) -> None:
        left = "" if left_s is None else f"about {left_s / 60:.0f} min left, "
        bar.update(task, completed=done, total=of, description=f"{left}{what}")
        if bar.disable and told[0] != done:
            told[0] = done
            console.print(f"{done}/{of} runs, {left}now {what}", highlight=False, soft_wrap=True)

    return tell


if __name__ == "__main__":
    sys.exit(main())
