"""Every command that README and docs/ print runs as printed, in a fresh folder, in their order.

The folder holds what a reader has: the checkout's `configs`, and `photo.jpg` and `photos` of his
own. What a page says to need a network, a GPU or an endpoint is parsed with all its options, which
is as far as it can be tried here. So is what takes long, unless `make docs-walk` sets
ABC_EMBED_DOCS_WALK; that also draws as many scenes as are printed, and walks all pages in one
folder, one after the other.
"""

import glob
import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from unittest import mock

import httpx
import pytest
import sources
from cli_parts import Cli
from doc_pages import MARKS, PAGES, Step, inline_commands, steps, stray_commands
from PIL import Image

from abc_embed.bench.metrics import RANK_METRICS
from abc_embed.cli.doctor import extras
from abc_embed.cli.parser import command_line

WHOLE_WALK = bool(os.environ.get("ABC_EMBED_DOCS_WALK"))
FEW = 24
"""Scenes that a page draws where only a part is walked."""
MAKEFILE = (sources.ROOT / "Makefile").read_text()
STEPS = {page.name: list(steps(page)) for page in PAGES}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What a reader has before he begins."""
    folder = tmp_path / "reader"
    folder.mkdir()
    shutil.copytree(sources.ROOT / "configs", folder / "configs")
    shutil.copytree(sources.PACKAGE / "bundled" / "images", folder / "photos")
    with Image.open(folder / "photos" / "dog_and_cat.png") as picture:
        picture.convert("RGB").save(folder / "photo.jpg", quality=95)
    monkeypatch.chdir(folder)
    return folder


def parse(words: Sequence[str]) -> None:
    """Fail as the command line would, before anything is done."""
    command = command_line(words)
    context = command.make_context("abc-embed", list(words))
    while hasattr(command, "resolve_command"):
        rest = [*context._protected_args, *context.args]
        name, command, rest = command.resolve_command(context, rest)
        context = command.make_context(name, rest, parent=context)


def check_program(step: Step) -> None:
    """A command that is not ours: what can be said of it without running it."""
    program, *words = step.words
    if "abc_embed" in words:  # behind a launcher
        parse(words[words.index("abc_embed") + 1 :])
    elif program == "make":
        for word in words:
            name, is_variable, _ = word.partition("=")
            form = rf"^{name} \?=" if is_variable else rf"^{name}:"
            assert re.search(form, MAKEFILE, re.MULTILINE), f"the Makefile has no {word}"
    elif "pip" in words or program == "pip":
        names = [name for word in words for name in re.findall(r"\[([\w,-]+)\]", word)]
        known = {*extras(), "dev"}
        assert {extra for name in names for extra in name.split(",")} <= known
    else:
        assert step.mark is not None or program in ("git", "cd", "python3", ".", "export"), step


def walk(cli: Cli, page: str) -> None:
    """Run the steps of a page."""
    names: dict[str, object] = {"__name__": "__main__"}  # blocks of a page go on from each other
    with ExitStack() as stack:
        serves = False
        for step in STEPS[page]:
            runs = step.mark is None or (WHOLE_WALK and step.mark == "takes")
            if "--server" in step.text and not WHOLE_WALK:  # tests/cli/test_remote.py has one
                runs = False
            if step.is_python:
                run_python(step, names, only_compile=not runs or (serves and not WHOLE_WALK))
            elif step.words[0] != "abc-embed":
                check_program(step)
            elif runs:
                run_command(cli, step)
            else:
                parse(step.words[1:])
                serves = serves or step.mark == "runs until Ctrl-C"
                if serves and WHOLE_WALK:
                    stack.enter_context(started(step.words[1:]))


def run_python(step: Step, names: dict[str, object], *, only_compile: bool) -> None:
    code = compile(step.text, str(step), "exec")
    if not only_compile:
        with mock.patch.dict(RANK_METRICS):  # which one block adds to
            exec(code, names)


def run_command(cli: Cli, step: Step) -> None:
    """As a shell would: with its globs, and its file on stdin."""
    words, stdin = step.words[1:], b""
    if "<" in words:
        words, stdin = words[: words.index("<")], Path(words[-1]).read_bytes()
    if not WHOLE_WALK and "--count" in words:
        at = words.index("--count") + 1
        words[at] = str(min(FEW, int(words[at])))
    files = [
        sorted(glob.glob(word)) if "*" in word and " " not in word else [word] for word in words
    ]
    done = cli(*itertools.chain.from_iterable(files), stdin=stdin)
    assert done.code == 0, (str(step), step.text, done.err)


@contextmanager
def started(words: Sequence[str]) -> Iterator[None]:
    """A server at work, ended with Ctrl-C."""
    paths = [str(sources.PACKAGE.parent), os.environ["PYTHONPATH"]]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    child = subprocess.Popen([sys.executable, "-m", "abc_embed", *words], env=environment)
    try:
        while not is_ready():
            assert child.poll() is None, "the server did not start"
            time.sleep(0.5)
        yield
    finally:
        child.send_signal(signal.SIGINT)
        child.wait(60)


def is_ready() -> bool:
    try:
        return httpx.get("http://127.0.0.1:8765/health").json()["ready"] is True
    except httpx.HTTPError:
        return False


@pytest.mark.parametrize("page", [page for page in STEPS if STEPS[page]])
def test_a_page_runs(cli: Cli, folder: Path, bundled_folder: Path, page: str) -> None:
    walk(cli, page)


@pytest.mark.skipif(not WHOLE_WALK, reason="make docs-walk does it")
def test_all_pages_run_one_after_the_other(cli: Cli, folder: Path, bundled_folder: Path) -> None:
    for page in STEPS:
        walk(cli, page)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_command_escapes_the_walk(page: Path) -> None:
    """In blocks of another language nothing is tried; in the text, options are looked at."""
    assert not stray_commands(page)
    for words in inline_commands(page):
        parse(words)


def test_there_is_something_to_run() -> None:
    ran = [step for found in STEPS.values() for step in found if step.mark is None]
    assert len([step for step in ran if not step.is_python]) >= 35
    assert {step.mark for found in STEPS.values() for step in found} == {None, *MARKS}


def test_the_walk_can_fail() -> None:
    for words in (
        ["embed", "--bogus"],
        ["bench", "nothing"],
        ["search"],
        ["search", "x", "-k", "a"],
    ):
        with pytest.raises(Exception, match=r"(?i)no such|missing|invalid|integer"):
            parse(words)
