"""README.md is true: its blocks run and print what it says, its commands, files and links exist."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import readme
import sources

TEXT = readme.README.read_text(encoding="utf-8")
MAKEFILE = (sources.ROOT / "Makefile").read_text()
LINES = [
    line
    for block in readme.blocks(TEXT)
    if block.language in ("sh", "bash", "console")
    for line in block.body.splitlines()
    if line.strip() and not line.startswith("#")
]
COMMANDS = [line for line in LINES if line.startswith("abc-embed ")]
EXAMPLE_IMAGES = sources.PACKAGE / "bundled" / "images"


def test_there_is_something_to_run() -> None:
    assert len(list(readme.examples(TEXT))) >= 1
    assert len(COMMANDS) >= 4


@pytest.mark.parametrize("code", [code.body for code, _ in readme.examples(TEXT)])
def test_python_blocks_run_and_print_what_is_shown(code: str, bundled_folder: Path) -> None:
    shown = {block.body: below for block, below in readme.examples(TEXT)}[code]
    printed = readme.run_python(code)
    if shown is not None:
        assert readme.same_output(printed, shown.body), f"scripts/readme.py writes it:\n{printed}"


@pytest.fixture
def folder_with_photos(tmp_path: Path) -> Path:
    """A folder such as the README's reader has: one photo, and a folder of several."""
    pictures = sorted(EXAMPLE_IMAGES.glob("*.png"))
    assert pictures, "no example images in the package"
    shutil.copytree(EXAMPLE_IMAGES, tmp_path / "photos")
    from PIL import Image

    with Image.open(pictures[0]) as picture:
        picture.convert("RGB").save(tmp_path / "photo.jpg", quality=95)
    return tmp_path


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_run(line: str, bundled_folder: Path, folder_with_photos: Path) -> None:
    start = [sys.executable, "-c", "from abc_embed.cli import main; main()"]
    paths = [str(sources.PACKAGE.parent), os.environ["PYTHONPATH"]]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run(
        [*start, *shlex.split(line)[1:]],
        cwd=folder_with_photos,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("line", [line for line in LINES if line not in COMMANDS])
def test_other_lines_are_make_with_targets_and_variables_that_exist(line: str) -> None:
    program, *words = shlex.split(line)
    assert program == "make", f"no test knows how to check: {line}"
    for word in words:
        name, is_variable, _ = word.partition("=")
        form = rf"^{name} \?=" if is_variable else rf"^{name}:"
        assert re.search(form, MAKEFILE, re.MULTILINE), f"the Makefile has no {word}"


def test_links_and_pictures_exist() -> None:
    for document in (p for p in sources.repository_files() if p.suffix == ".md"):
        if sources.ROOT / "tests" / "golden" in document.parents:
            continue
        for link in re.findall(r"\]\((?!https?:|#)([^)#]+)", document.read_text(encoding="utf-8")):
            assert (document.parent / link).exists(), f"{document.name} points to {link}"


def test_the_tour_names_what_is_there() -> None:
    named = set(re.findall(r"^[├└]── ([\w.]+)/? ", TEXT, re.MULTILINE))
    there = {
        p.name
        for p in sources.PACKAGE.iterdir()
        if p.name not in ("__init__.py", "__main__.py", "py.typed", "__pycache__")
        and p.name[0] != "."
    }
    assert named == there


def test_the_results_table_is_the_one_that_would_be_written() -> None:
    assert readme.with_results(TEXT) == TEXT
    full = readme.FULL.read_text(encoding="utf-8")
    assert readme.with_results(full, full=True) == full


SAMPLE = "# x\n```python\nprint(0.5)\n```\n\n```text\n0.50\n```\ntext\n```python\npass\n```\n"


def test_the_reader_of_blocks() -> None:
    (first, shown), (second, nothing) = readme.examples(SAMPLE)
    assert (first.body, second.body, nothing) == ("print(0.5)\n", "pass\n", None)
    assert shown is not None
    assert shown.body == "0.50\n"
    assert readme.with_outputs(SAMPLE, lambda _: "0.505\n") == SAMPLE
    assert "0.9\n" in readme.with_outputs(SAMPLE, lambda _: "0.9\n")


@pytest.mark.parametrize(
    ("printed", "same"),
    [("left: a dog 0.91", True), ("left: a dog 0.84", False), ("left: a cat 0.90", False)],
)
def test_what_counts_as_the_same_output(printed: str, same: bool) -> None:
    assert readme.same_output(printed, "left: a dog 0.90") is same
