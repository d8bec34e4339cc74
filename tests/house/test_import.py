"""Importing the package only makes its names available, and they are exactly those listed."""

import json
import subprocess
import sys

import pytest
import sources

# The public face. A name that comes or goes is a decision: it changes this list and CHANGELOG.md.
PUBLIC = ["Embedder", "Item"]

INSPECT = """
import json, logging, os, random, signal, sys, threading, warnings

def state():
    return {
        "environment": dict(os.environ),
        "argv": list(sys.argv),
        "path": list(sys.path),
        "warnings": list(warnings.filters),
        "random": random.getstate(),
        "hooks": (sys.excepthook, sys.displayhook, signal.getsignal(signal.SIGINT)),
        "logging": list(logging.getLogger().handlers),
        "threads": threading.active_count(),
    }

before = state()
import abc_embed
after = state()
heavy = {"torch", "numpy", "transformers", "PIL", "peft", "typer", "rich"}
report = {
    "changed": [name for name in before if before[name] != after[name]],
    "heavy": sorted(heavy & set(sys.modules)),
    "all": list(abc_embed.__all__),
    "dir": [name for name in dir(abc_embed) if not name.startswith("_")],
}
sys.__stdout__.write("REPORT" + json.dumps(report))
"""


@pytest.fixture(scope="module")
def fresh_import() -> tuple[dict[str, object], str, str]:
    if not (sources.PACKAGE / "__init__.py").is_file():
        pytest.skip("the package has no __init__.py yet")
    done = subprocess.run(
        [sys.executable, "-c", INSPECT], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    printed, _, report = done.stdout.partition("REPORT")
    return json.loads(report), printed, done.stderr


def test_import_loads_nothing_heavy(fresh_import: tuple[dict[str, object], str, str]) -> None:
    assert fresh_import[0]["heavy"] == []


def test_import_prints_nothing(fresh_import: tuple[dict[str, object], str, str]) -> None:
    assert fresh_import[1:] == ("", "")


def test_import_changes_nothing(fresh_import: tuple[dict[str, object], str, str]) -> None:
    assert fresh_import[0]["changed"] == []


def test_public_names_are_exactly_those_listed(
    fresh_import: tuple[dict[str, object], str, str],
) -> None:
    report = fresh_import[0]
    assert sorted(report["all"]) == sorted(PUBLIC)  # type: ignore[call-overload]
    assert set(PUBLIC) <= set(report["dir"])  # type: ignore[call-overload]


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_is_there(name: str, fresh_import: object) -> None:
    import abc_embed

    thing = getattr(abc_embed, name)
    if callable(thing):
        assert thing.__doc__, f"{name} is public and has no docstring"


def test_an_unknown_name_is_an_attribute_error(fresh_import: object) -> None:
    import abc_embed

    with pytest.raises(AttributeError, match="no_such_name"):
        _ = abc_embed.no_such_name
