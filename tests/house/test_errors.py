"""One exception tree, drawn as it is; and libraries are composed, not subclassed or patched."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import sources

ERRORS = sources.PACKAGE / "errors.py"
FILES = sources.python_files("src")
COMPOSED = {"transformers", "peft", "accelerate", "huggingface_hub", "tokenizers"}


def drawn() -> dict[str, str | None]:
    """Class -> parent, as the docstring of errors.py draws it."""
    above: list[tuple[int, str]] = []
    tree: dict[str, str | None] = {}
    for line in (ast.get_docstring(sources.tree(ERRORS)) or "").splitlines():
        match = re.match(r"([ │├└─]*)([A-Z]\w+Error)\b", line)
        if not match or (not above and match[2] != "AbcError"):
            continue
        depth = len(match[1])
        above = [(d, name) for d, name in above if d < depth]
        tree[match[2]] = above[-1][1] if above else None
        above.append((depth, match[2]))
    return tree


def defined() -> dict[str, str | None]:
    tree: dict[str, str | None] = {}
    for node in sources.tree(ERRORS).body:
        if isinstance(node, ast.ClassDef):
            base = ast.unparse(node.bases[0])
            tree[node.name] = None if base == "Exception" else base
    return tree


def test_the_tree_is_drawn_as_it_is() -> None:
    assert drawn() == defined()


@pytest.mark.parametrize("name", sorted(set(defined()) - {"AbcError"}))
def test_an_error_is_raised_or_groups_others(name: str) -> None:
    if name in defined().values():
        return
    users = [p for p in FILES if p != ERRORS and re.search(rf"\b{name}\b", p.read_text("utf-8"))]
    assert users, f"nothing raises {name}"


@pytest.mark.parametrize("path", [p for p in FILES if p != ERRORS], ids=sources.module_name)
def test_errors_are_defined_in_one_file(path: Path) -> None:
    bases = (
        (node.name, ast.unparse(base))
        for node in ast.walk(sources.tree(path))
        if isinstance(node, ast.ClassDef)
        for base in node.bases
    )
    assert not [name for name, base in bases if base.endswith(("Error", "Exception"))]


def patches(path: Path) -> Iterator[str]:
    """Classes that inherit from the composed libraries, and assignments into their modules."""
    borrowed = {
        (alias.asname or alias.name.split(".")[0])
        for node in ast.walk(sources.tree(path))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
        if (getattr(node, "module", None) or alias.name).split(".")[0] in COMPOSED
    }
    for node in ast.walk(sources.tree(path)):
        if isinstance(node, ast.ClassDef):
            for base in node.bases:
                if ast.unparse(base).split(".")[0].split("[")[0] in borrowed:
                    yield f"line {node.lineno}: {node.name} inherits from {ast.unparse(base)}"
        targets = node.targets if isinstance(node, ast.Assign) else []
        for target in targets:
            if isinstance(target, ast.Attribute) and ast.unparse(target).split(".")[0] in borrowed:
                yield f"line {node.lineno}: {ast.unparse(target)} is replaced"


@pytest.mark.parametrize("path", FILES, ids=sources.module_name)
def test_libraries_are_composed(path: Path) -> None:
    assert not list(patches(path))


def test_the_check_can_fail(tmp_path: Path) -> None:
    file = tmp_path / "patching.py"
    file.write_text(
        "import transformers\nfrom peft import PeftModel\n"
        "class Mine(PeftModel): ...\n"
        "def patch(f):\n    transformers.models.x.forward = f\n"
    )
    assert len(list(patches(file))) == 2
