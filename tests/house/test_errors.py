"""One exception tree, drawn as it is; and libraries are composed, not subclassed or patched."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

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


def test_every_error_is_raised_or_groups_others() -> None:
    groups = set(defined().values())
    text = "\n".join(path.read_text("utf-8") for path in FILES if path != ERRORS)
    names = set(defined()) - {"AbcError"} - groups
    assert not [name for name in names if not re.search(rf"\b{name}\b", text)]


def test_errors_are_defined_in_one_file() -> None:
    elsewhere = [
        f"{sources.module_name(path)}.{node.name}"
        for path in FILES
        if path != ERRORS
        for node in ast.walk(sources.tree(path))
        if isinstance(node, ast.ClassDef)
        if any(ast.unparse(base).endswith(("Error", "Exception")) for base in node.bases)
    ]
    assert not elsewhere


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


def test_libraries_are_composed() -> None:
    found = {sources.module_name(path): list(patches(path)) for path in FILES}
    assert not {name: lines for name, lines in found.items() if lines}


def test_the_check_can_fail(tmp_path: Path) -> None:
    file = tmp_path / "patching.py"
    file.write_text(
        "import transformers\nfrom peft import PeftModel\n"
        "class Mine(PeftModel): ...\n"
        "def patch(f):\n    transformers.models.x.forward = f\n"
    )
    assert len(list(patches(file))) == 2
