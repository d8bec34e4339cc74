"""Keeps README.md true: runs its Python blocks, writes what they print, writes the results tables.

    .venv/bin/python scripts/readme.py            write
    .venv/bin/python scripts/readme.py --check    exit 1 when README.md is not what would be written

A ```text block right under a ```python block is that block's output. What stands between the
lines `<!-- results:begin -->` and `<!-- results:end -->` comes from `results/*.json`: in README.md
in brief, in docs/ctrlbench.md in full. Nothing else is touched.
"""

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
FULL = ROOT / "docs" / "ctrlbench.md"
NUMBER = re.compile(r"-?\d+\.\d+")


@dataclass(frozen=True, slots=True)
class Block:
    """One fenced block: its language, its lines, and where in the text they begin and end."""

    language: str
    body: str
    start: int
    end: int


def blocks(text: str) -> list[Block]:
    pattern = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    return [Block(m[1], m[2], m.start(2), m.end(2)) for m in pattern.finditer(text)]


def examples(text: str) -> Iterator[tuple[Block, Block | None]]:
    """Each Python block with the block of its output, if one follows at once."""
    found = blocks(text)
    for block, below in zip(found, [*found[1:], None], strict=True):
        if block.language == "python":
            gap = text[block.end : below.start] if below else ""
            follows = below is not None and re.fullmatch(r"```\s*```text\n", gap)
            yield block, below if follows else None


def run_python(code: str) -> str:
    """What the code prints, in a fresh interpreter and an empty folder."""
    paths = [str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-c", code]
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
    if done.returncode:
        raise SystemExit(f"a Python block of README.md fails:\n{code}\n{done.stderr}")
    return done.stdout


def same_output(left: str, right: str, tolerance: float = 0.011) -> bool:
    """Equal texts, but decimals may differ by what another processor's rounding can do."""
    if NUMBER.sub("#", left).split() != NUMBER.sub("#", right).split():
        return False
    pairs = zip(NUMBER.findall(left), NUMBER.findall(right), strict=True)
    return all(abs(float(a) - float(b)) <= tolerance for a, b in pairs)


def with_outputs(text: str, run: Callable[[str], str] = run_python) -> str:
    """The text with every output block as it should be; one that is close enough stays as it is."""
    for code, shown in reversed(list(examples(text))):
        if shown is not None:
            printed = run(code.body)
            if not same_output(printed, shown.body):
                text = text[: shown.start] + printed + text[shown.end :]
    return text


def with_results(text: str, *, full: bool = False) -> str:
    """The text with the results table as the records have it."""
    from abc_embed.bench import records, tables

    measured = records.read_records(ROOT / "results")
    block = tables.markdown(measured) if full else tables.brief(measured)
    return records.with_results(text, block)


def main(arguments: list[str]) -> int:
    stale = []
    for path in (README, FULL):
        old = path.read_text(encoding="utf-8")
        new = with_results(old, full=True) if path == FULL else with_outputs(with_results(old))
        if old != new:
            stale.append(path)
            if "--check" not in arguments:
                path.write_text(new, encoding="utf-8")
    names = ", ".join(path.name for path in stale)
    if stale and "--check" in arguments:
        print(f"{names}: not up to date; run scripts/readme.py", file=sys.stderr)
        return 1
    if stale:
        print(f"{names} written", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
