"""The examples that every --help shows do what they say."""

import importlib
import logging
import shlex
from contextlib import ExitStack
from pathlib import Path

import pytest
from cli_parts import Cli
from serve_parts import running

from abc_embed import Embedder

MODULES = ("embed", "compare", "search", "scenes", "mine", "export", "doctor")
FOLDERS = {"runs/mine"}  # where a user's own model would lie


def examples(module: str) -> list[str]:
    shown = importlib.import_module(f"abc_embed.cli.{module}").EXAMPLES
    return [line.strip() for line in shown.splitlines() if line.startswith("  abc-embed ")]


LINES = [line for module in MODULES for line in examples(module)]


def test_there_are_some() -> None:
    assert all(examples(module) for module in MODULES)


@pytest.mark.parametrize("line", LINES)
def test_an_example_works(
    cli: Cli,
    tiny: Path,
    embedder: Embedder,
    here: Path,
    line: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With a small model in the place of the one it names, or of the bundled one."""
    (here / "items.jsonl").write_text('{"image": "photo.jpg"}\n"a dog"\n{"image": "gone.jpg"}\n')
    words = shlex.split(line)[1:]
    stdin = b""
    if "<" in words:
        at = words.index("<")
        stdin = Path(words[at + 1]).read_bytes()
        words = words[:at]
    words = [str(tiny) if word in FOLDERS else word for word in words]
    if "--model" not in words and words[0] != "scenes" and "--server" not in words:
        words += ["--model", str(tiny)]
    if "--count" in words:
        words[words.index("--count") + 1] = "2"
    if words[0] == "mine":
        assert cli("scenes", "-n", "4", "--out", words[1], "--side", "56").code == 0
    with ExitStack() as stack:
        if "--server" in words:  # one is started in the place of the one it names
            monkeypatch.setattr(logging.getLogger("abc_embed.serve"), "propagate", False)
            indexes = tuple(Path(word) for word in words if word.endswith(".index"))
            for index in indexes:
                assert cli("index", "build", index, "photos", "--model", tiny).code == 0
            url, _ = stack.enter_context(running(embedder, indexes=indexes))
            words[words.index("--server") + 1] = url
        done = cli(*words, stdin=stdin)
    assert done.code == 0, done.err
    for option in ("-o", "--plot", "--out"):
        if option in words:
            assert Path(words[words.index(option) + 1]).exists()
