"""Files are read in one sitting, functions do one thing, and no user meets a bare error."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
import sources

FILE_LINES = 350
FUNCTION_LINES = 60  # without its docstring
FUNCTION_LINES_ALL = 80  # with it

FILES = sources.python_files("src", "tests", "scripts", "tools")
PACKAGE_FILES = sources.python_files("src")
FAR_TOO_GENERAL = {"Exception", "BaseException", "RuntimeError", "SystemError"}


def short(path: Path) -> str:
    return str(path.relative_to(sources.ROOT))


def functions(tree: ast.AST) -> Iterator[tuple[ast.FunctionDef | ast.AsyncFunctionDef, int, int]]:
    """(function, its lines without docstring, all its lines)."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        lines = (node.end_lineno or node.lineno) - node.lineno + 1
        first = node.body[0]
        documented = ast.get_docstring(node) is not None
        doc = (first.end_lineno or first.lineno) - first.lineno + 1 if documented else 0
        yield node, lines - doc, lines


@pytest.mark.parametrize("path", FILES, ids=short)
def test_a_file_is_read_in_one_sitting(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= FILE_LINES


@pytest.mark.parametrize("path", FILES, ids=short)
def test_a_function_does_one_thing(path: Path) -> None:
    long = [
        f"{node.name} (line {node.lineno}): {code} lines, {whole} with docstring"
        for node, code, whole in functions(sources.tree(path))
        if code > FUNCTION_LINES or whole > FUNCTION_LINES_ALL
    ]
    assert not long


@pytest.mark.parametrize("path", PACKAGE_FILES, ids=short)
def test_a_module_says_what_it_does(path: Path) -> None:
    if sources.tree(path).body:
        assert ast.get_docstring(sources.tree(path)), "no module docstring"


def general_errors(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Assert):
            yield f"line {node.lineno}: assert (vanishes under -O, and tells a user nothing)"
        if isinstance(node, ast.Raise) and node.exc is not None:
            raised = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
            if isinstance(raised, ast.Name) and raised.id in FAR_TOO_GENERAL:
                yield f"line {node.lineno}: raise {raised.id} (errors.py has a class for it)"


@pytest.mark.parametrize("path", PACKAGE_FILES, ids=short)
def test_errors_have_a_class(path: Path) -> None:
    assert not list(general_errors(sources.tree(path)))


def test_the_checks_can_fail() -> None:
    assert (
        len(list(general_errors(ast.parse("assert x\nraise Exception('no')\nraise RuntimeError"))))
        == 3
    )
    body = "def f():\n    '''doc\n    more'''\n    a = 1\n    b = 2\n"
    assert [lines for _, *lines in functions(ast.parse(body))] == [[3, 5]]
