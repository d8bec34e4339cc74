"""README.md is true: its blocks run and print what it says, its files and links exist.

Its commands are walked with those of docs/, in tests/cli/test_docs.py.
"""

import re
from pathlib import Path

import pytest
import readme
import sources

TEXT = readme.README.read_text(encoding="utf-8")


def test_there_is_something_to_run() -> None:
    assert len(list(readme.examples(TEXT))) >= 1


@pytest.mark.parametrize("code", [code.body for code, _ in readme.examples(TEXT)])
def test_python_blocks_run_and_print_what_is_shown(code: str, bundled_folder: Path) -> None:
    shown = {block.body: below for block, below in readme.examples(TEXT)}[code]
    printed = readme.run_python(code)
    if shown is not None:
        assert readme.same_output(printed, shown.body), f"scripts/readme.py writes it:\n{printed}"


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
