"""Every configuration field does something, and every configuration that ships can be loaded.

A field counts as read where its name is taken from an object outside the checks of its own class.
This looks at names, not types, so a field named like another attribute can slip through.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
import sources

CONFIGS = [path for path in sources.python_files("src/abc_embed") if path.name == "config.py"]
SHIPPED = [
    path
    for path in sources.repository_files()
    if path.suffix == ".toml" and path.name != "pyproject.toml"
]
CHECKS = ("__post_init__", "_check", "_require", "validate")


def is_dataclass(node: ast.ClassDef) -> bool:
    names = (d.func if isinstance(d, ast.Call) else d for d in node.decorator_list)
    return any(getattr(name, "attr", getattr(name, "id", "")) == "dataclass" for name in names)


def fields(tree: ast.Module) -> Iterator[tuple[str, str, bool]]:
    """(class, field, whether a docstring stands under it)."""
    for node in tree.body:
        if not isinstance(node, ast.ClassDef) or not is_dataclass(node):
            continue
        for item, below in zip(node.body, [*node.body[1:], None], strict=True):
            if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
                text = below.value if isinstance(below, ast.Expr) else None
                documented = isinstance(text, ast.Constant) and isinstance(text.value, str)
                yield node.name, item.target.id, documented


def reads(tree: ast.AST) -> Iterator[str]:
    """Names of the attributes taken from objects, apart from what a check does."""
    if isinstance(tree, ast.FunctionDef) and tree.name.startswith(CHECKS):
        return
    if isinstance(tree, ast.Attribute) and isinstance(tree.ctx, ast.Load):
        yield tree.attr
    for child in ast.iter_child_nodes(tree):
        yield from reads(child)


def readers(config: Path) -> list[Path]:
    """Where a field of this file has to be read: its own package and the command line."""
    return [*config.parent.rglob("*.py"), *(sources.PACKAGE / "cli").rglob("*.py")]


@pytest.mark.parametrize("config", CONFIGS, ids=sources.module_name)
def test_every_field_is_read(config: Path) -> None:
    if not any(p.stem == "loop" for p in config.parent.glob("*.py")):
        pytest.skip("the loop that reads the configuration is not written yet")
    used = {name for path in readers(config) for name in reads(sources.tree(path))}
    unread = [
        f"{owner}.{name}" for owner, name, _ in fields(sources.tree(config)) if name not in used
    ]
    assert not unread


@pytest.mark.parametrize("config", CONFIGS, ids=sources.module_name)
def test_every_field_has_its_meaning_under_it(config: Path) -> None:
    sections = {node.name for node in sources.tree(config).body if isinstance(node, ast.ClassDef)}
    annotations = {
        (owner.name, item.target.id): ast.unparse(item.annotation)
        for owner in sources.tree(config).body
        if isinstance(owner, ast.ClassDef)
        for item in owner.body
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)
    }
    silent = [
        f"{owner}.{name}"
        for owner, name, documented in fields(sources.tree(config))
        if not documented and annotations[owner, name] not in sections
    ]
    assert not silent


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: str(p.relative_to(sources.ROOT)))
def test_shipped_configurations_parse(path: Path) -> None:
    from abc_embed.train.config import load_config

    load_config(path)


def test_the_check_can_fail() -> None:
    source = (
        "@dataclass\nclass C:\n    a: int\n    b: int = 0\n    def __post_init__(self): self.a\n"
    )
    tree = ast.parse(source + "def f(c): return c.b\n")
    assert [name for _, name, _ in fields(tree)] == ["a", "b"]
    assert set(reads(tree)) == {"b"}
