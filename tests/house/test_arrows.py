"""Imports follow the way of one item: never back, never in a circle."""

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
import sources

# One line per step. A unit (a module or a package at the top level) may import units of earlier
# lines. Units of one line may use each other as long as no circle comes of it.
ARROW = (
    ("errors",),
    ("bundled", "progress", "runtime", "workers"),
    ("storage",),
    ("novelty",),
    ("vectors",),
    ("decoding",),
    ("inputs",),
    ("prompts",),
    ("chat_template",),
    ("chat", "pixels"),
    ("lean",),
    ("backbone",),
    ("families",),  # backbone.py has their names as strings and imports one when asked
    ("processor",),  # after them, as a family says what its files mean
    ("weights",),
    ("pooling",),
    ("head",),
    ("model",),
    ("adapters", "quantization"),
    ("card", "hub"),
    ("checkpoint",),
    ("figures",),
    ("pipeline", "explain"),
    ("devices",),
    ("embedder",),
    ("scenes", "data"),
    ("vlm", "search", "mining", "train", "bench"),
    ("interop",),
    ("scale", "speed"),
    ("serve", "cli"),
    ("__main__",),
)
RANK = {unit: rank for rank, units in enumerate(ARROW) for unit in units}
# Needed before any model is there: these draw and check data with numpy and Pillow alone.
LIGHT = ("scenes", "data.records")
LIGHT_LIBRARIES = {"numpy", "PIL", "pyarrow"}

FILES = sources.python_files("src/abc_embed")


def unit_of(name: str) -> str | None:
    """The unit that a full import name belongs to; None for other packages."""
    parts = name.split(".")
    if parts[0] != "abc_embed":
        return None
    if len(parts) == 1 or parts[1].startswith("__version"):
        return "errors"  # the bare package: importing it costs and needs nothing
    if parts[1] in RANK:
        return parts[1]
    return "embedder"  # a public name through the package's front door


def violations(unit: str, imported: list[tuple[int, str]]) -> list[str]:
    found = []
    for line, name in imported:
        target = unit_of(name)
        if target is None or target == unit:
            continue
        sideways = RANK[target] == RANK[unit]
        if RANK[target] > RANK[unit] or (sideways and len(ARROW[RANK[unit]]) == 1):
            found.append(f"line {line}: {unit} imports {name}, which comes later on the way")
    return found


def own_unit(path: Path) -> str:
    return sources.module_name(path).split(".")[1]


def test_imports_follow_the_arrow() -> None:
    against: dict[str, list[str]] = {}
    for path in FILES:
        if path == sources.PACKAGE / "__init__.py":
            continue  # the front door names everything, lazily: see test_import.py
        unit = own_unit(path)
        assert unit in RANK, (
            f"{unit} has no place on the way: give it one in ARROW, or put it into a unit that has"
        )
        if found := violations(unit, list(sources.imports(path))):
            against[str(path.relative_to(sources.PACKAGE))] = found
    assert not against


def test_units_of_one_step_form_no_circle() -> None:
    graph: dict[str, set[str]] = {}
    for path in FILES:
        if path.parent == sources.PACKAGE:
            continue
        unit = own_unit(path)
        targets = {unit_of(name) for _, name in sources.imports(path)}
        graph.setdefault(unit, set()).update(t for t in targets if t and t != unit)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"these import each other in a circle: {' -> '.join(error.args[1])}")


def is_light(path: Path) -> bool:
    inside = sources.module_name(path).removeprefix("abc_embed.")
    return any(inside == light or inside.startswith(light + ".") for light in LIGHT)


def test_drawing_and_records_need_no_torch() -> None:
    allowed = LIGHT_LIBRARIES | set(sys.stdlib_module_names) | {"abc_embed"}
    strangers = [
        (path.name, line, name)
        for path in FILES
        if is_light(path)
        for line, name in sources.imports(path)
        if name.split(".")[0] not in allowed
    ]
    assert not strangers


def test_drawing_and_records_load_no_torch() -> None:
    names = [sources.module_name(path) for path in FILES if is_light(path)]
    if not names:
        pytest.skip("scenes and data.records are not there yet")
    code = "import importlib, sys\n"
    code += f"for name in {names!r}: importlib.import_module(name)\n"
    code += "sys.exit('torch' in sys.modules and 'torch was loaded')"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_check_can_fail() -> None:
    assert violations("pooling", [(3, "abc_embed.embedder.Embedder")])
    assert violations("pooling", [(3, "abc_embed.Embedder")])
    assert violations("serve", [(1, "abc_embed.cli.main")]) == []
    assert not violations("pooling", [(3, "abc_embed.errors.AbcError"), (4, "torch.nn")])
    call = ast.parse("def f():\n    import_module('abc_embed.cli')").body[0]
    assert any(sources._is_import_call(n.func) for n in ast.walk(call) if isinstance(n, ast.Call))


def test_no_files_import_each_other() -> None:
    """Imports for types alone count: who reads one file of a circle must read them all."""
    modules = {sources.module_name(path): path for path in FILES}
    graph: dict[str, set[str]] = {}
    for name, path in modules.items():
        if path == sources.PACKAGE / "__init__.py":
            continue  # the front door names everything, lazily
        for _, target in sources.imports(path):
            module = target if target in modules else target.rpartition(".")[0]
            if module in modules and module not in (name, "abc_embed"):
                graph.setdefault(name, set()).add(module)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"these files import each other: {' -> '.join(error.args[1])}")
