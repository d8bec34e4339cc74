"""The commands that README and the pages of docs/ print, and what is needed to run them.

A command stands in a block of `sh` (Python code in one of `python`). In a block, a comment that
begins with one of `MARKS` says of the lines below it, up to an empty one, what they need:

    # needs …   what not every machine has: a network, a GPU, an endpoint, another library's model
    # takes …   longer than a reader of a test would wait
    # runs until Ctrl-C
"""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import sources

MARKS = ("needs", "takes", "runs until Ctrl-C")
PAGES = (sources.ROOT / "README.md", *sorted((sources.ROOT / "docs").glob("*.md")))
_BLOCK = re.compile(r"^```([^\n]*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Step:
    """One command, or one block of Python, and the line of its page."""

    page: str
    line: int
    text: str
    is_python: bool = False
    mark: str | None = None
    """Which of `MARKS` is above it."""

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def words(self) -> list[str]:
        """The command as a shell would cut it."""
        return shlex.split(self.text, comments=True)


def steps(page: Path) -> Iterator[Step]:
    """What a page prints, in its order."""
    text = page.read_text(encoding="utf-8")
    for block in _BLOCK.finditer(text):
        line = text.count("\n", 0, block.start(2)) + 1
        if block[1] == "python":
            yield Step(page.name, line, block[2], is_python=True, mark=_mark(block[2]))
        elif block[1] in ("sh", "bash", "console"):
            yield from _commands(page.name, line, block[2])


def _commands(page: str, first: int, body: str) -> Iterator[Step]:
    mark, held = None, ""
    for number, line in enumerate(body.splitlines(), first):
        if line.startswith("#"):
            mark = _mark(line) or mark
        elif not line.strip():
            mark = None
        elif line.endswith("\\"):
            held += line[:-1]
        else:
            yield Step(page, number - held.count("\n"), held + line, mark=mark)
            held = ""


def _mark(line: str) -> str | None:
    return next((mark for mark in MARKS if line.startswith(f"# {mark}")), None)


def stray_commands(page: Path) -> list[str]:
    """Commands in blocks that no test would run."""
    text = page.read_text(encoding="utf-8")
    blocks = [m[2] for m in _BLOCK.finditer(text) if m[1] not in ("sh", "bash", "console")]
    return re.findall(r"^(?:abc-embed|torchrun|accelerate|pip) .*", "\n".join(blocks), re.MULTILINE)


def inline_commands(page: Path) -> list[list[str]]:
    """Whole commands in the running text, as words; names of commands alone are none."""
    text = _BLOCK.sub("", page.read_text(encoding="utf-8"))
    found = (shlex.split(m) for m in re.findall(r"`abc-embed ([^`]*)`", text))
    return [w for w in found if not {"…", "COMMAND"} & {*w} and any(word[0] == "-" for word in w)]
