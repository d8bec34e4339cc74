"""A file holds one idea, a function does one thing, and no user meets a bare error."""

import ast
from collections.abc import Iterator
from pathlib import Path

import sources

FILE_LINES = 600
FUNCTION_LINES = 60  # without its docstring
FUNCTION_LINES_ALL = 80  # with it

FILES = sources.python_files("src", "experiments", "tests", "scripts", "tools")
PACKAGE_FILES = sources.python_files("src", "experiments")
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


def test_a_file_holds_one_idea() -> None:
    lengths = {short(path): len(path.read_text(encoding="utf-8").splitlines()) for path in FILES}
    assert not {name: lines for name, lines in lengths.items() if lines > FILE_LINES}


def test_a_function_does_one_thing() -> None:
    long = [
        f"{short(path)}:{node.lineno} {node.name}: {code} lines, {whole} with docstring"
        for path in FILES
        for node, code, whole in functions(sources.tree(path))
        if code > FUNCTION_LINES or whole > FUNCTION_LINES_ALL
    ]
    assert not long


def test_a_module_says_what_it_is_for() -> None:
    silent = [short(p) for p in PACKAGE_FILES if not ast.get_docstring(sources.tree(p))]
    assert not [name for name in silent if (sources.ROOT / name).read_text().strip()]


def general_errors(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Assert):
            yield f"line {node.lineno}: assert (vanishes under -O, and tells a user nothing)"
        if isinstance(node, ast.Raise) and node.exc is not None:
            raised = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
            if isinstance(raised, ast.Name) and raised.id in FAR_TOO_GENERAL:
                yield f"line {node.lineno}: raise {raised.id} (errors.py has a class for it)"


def test_errors_have_a_class() -> None:
    found = {short(path): list(general_errors(sources.tree(path))) for path in PACKAGE_FILES}
    assert not {name: errors for name, errors in found.items() if errors}


def test_the_checks_can_fail() -> None:
    assert (
        len(list(general_errors(ast.parse("assert x\nraise Exception('no')\nraise RuntimeError"))))
        == 3
    )
    body = "def f():\n    '''doc\n    more'''\n    a = 1\n    b = 2\n"
    assert [lines for _, *lines in functions(ast.parse(body))] == [[3, 5]]
