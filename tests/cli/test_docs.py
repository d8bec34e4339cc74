"""The commands of a page of the documentation run, in their order."""

import re
import shlex
from pathlib import Path

import sources
from cli_parts import Cli


def test_the_commands_of_search_run(cli: Cli, tiny: Path, here: Path) -> None:
    """With a small model in the place of the bundled one."""
    page = (sources.ROOT / "docs" / "search.md").read_text(encoding="utf-8")
    commands = "".join(re.findall(r"^```sh\n(.*?)^```", page, re.MULTILINE | re.DOTALL))
    lines = commands.splitlines()
    assert len(lines) > 8
    for line in lines:
        words = shlex.split(line)[1:]
        words += ["--model", str(tiny)] if words[:2] == ["index", "build"] else []
        words = ["4" if word == "30" else word for word in words]
        done = cli(*words)
        assert done.code == 0, (line, done.err)
    assert Path("hits.png").exists()
