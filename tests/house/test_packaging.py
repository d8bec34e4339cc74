"""What is written about the package agrees with itself: versions, dependencies, licences."""

import ast
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import sources

PYPROJECT = tomllib.loads((sources.ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
CORE: list[str] = PROJECT["dependencies"]
OPTIONAL = [requirement for extra in EXTRAS.values() for requirement in extra]
# Import name -> distribution, where they differ.
DISTRIBUTION = {
    "PIL": "pillow",
    "yaml": "pyyaml",
    "faiss": "faiss-cpu",
    "open_clip": "open-clip-torch",
    "indexed_gzip": "indexed-gzip",
    "pillow_heif": "pillow-heif",
    "umap": "umap-learn",
    "llama_index": "llama-index-core",
    "haystack": "haystack-ai",
}
NOTHING_WITHOUT_EXTRA = ("serve",)
"""Packages of ours that have an extra of their own name and are imported only with it."""
PROMISED_EXTRAS = {
    *(
        "mine",
        "data",
        "instruct",
        "log",
        "bench",
        "index",
        "heif",
        "quant",
        "open-clip",
        "deepspeed",
        "scale",
        "serve",
        "umap",
        "langchain",
        "llama-index",
        "chroma",
        "haystack",
    ),
    "dev",
}


def name_of(requirement: str) -> str:
    match = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert match, requirement
    return re.sub(r"[-_.]+", "-", match.group()).lower()


def text(name: str) -> str:
    return (sources.ROOT / name).read_text(encoding="utf-8")


def test_one_version() -> None:
    version = PROJECT["version"]
    assert f"\nversion: {version}\n" in text("CITATION.cff")
    assert re.search(rf"^## {re.escape(version)}\b", text("CHANGELOG.md"), re.MULTILINE)
    if (sources.PACKAGE / "__init__.py").is_file():
        import abc_embed

        assert getattr(abc_embed, "__version__", version) == version


def test_python_of_the_readme_is_the_one_required() -> None:
    wanted = PROJECT["requires-python"].removeprefix(">=")
    assert f"Python {wanted}" in text("README.md")
    assert PYPROJECT["tool"]["ruff"]["target-version"] == "py" + wanted.replace(".", "")
    assert PYPROJECT["tool"]["mypy"]["python_version"] == wanted


def test_every_dependency_is_pinned() -> None:
    lines = [line for line in text("constraints.txt").splitlines() if line and line[0] != "#"]
    pinned = {name_of(line) for line in lines}
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines)
    assert {name_of(r) for r in CORE + EXTRAS["dev"]} <= pinned
    assert "torch==2.13.0" in lines


def test_every_dependency_has_its_reason() -> None:
    reasons = text("docs/dependencies.md")
    missing = {name_of(r) for r in CORE + OPTIONAL} - set(
        re.findall(r"^\| `([a-z0-9-]+)`", reasons, re.MULTILINE)
    )
    assert not missing


def test_extras_are_those_promised() -> None:
    assert set(EXTRAS) == PROMISED_EXTRAS
    assert not {name_of(r) for r in CORE + OPTIONAL} & {"torchvision", "torchaudio"}


def third_party() -> dict[str, set[str]]:
    """Distribution -> the package's files that import it."""
    found: dict[str, set[str]] = {}
    for path in sources.python_files("src"):
        for _, name in sources.imports(path):
            top = name.split(".")[0]
            if top not in {*sys.stdlib_module_names, "abc_embed", "experiments", "_typeshed"}:
                found.setdefault(name_of(DISTRIBUTION.get(top, top)), set()).add(path.name)
    return found


def test_everything_imported_is_declared() -> None:
    declared = {name_of(r) for r in CORE + OPTIONAL}
    assert not {name: files for name, files in third_party().items() if name not in declared}
    assert "torchvision" not in third_party()


def named_in_code() -> set[str]:
    """Distributions that the package imports, or asks for by name as `find_spec` does."""
    names = set(third_party())
    for path in sources.python_files("src"):
        for node in ast.walk(sources.tree(path)):
            if isinstance(node, ast.Call):
                strings = [a.value for a in node.args if isinstance(a, ast.Constant)]
                names |= {name_of(DISTRIBUTION.get(s, s)) for s in strings if is_name(s)}
    return names


def is_name(value: object) -> bool:
    return isinstance(value, str) and value.isidentifier()


def test_an_error_names_an_extra_that_exists() -> None:
    named = {
        node.args[0].value
        for path in sources.python_files("src")
        for node in ast.walk(sources.tree(path))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "MissingExtraError.of"
        if isinstance(node.args[0], ast.Constant)
    }
    assert named
    assert named <= set(EXTRAS)


def test_every_extra_is_imported_by_some_code() -> None:
    """A promise without code would be a pip line that changes nothing."""
    named = named_in_code()
    idle = {
        extra: sorted({name_of(r) for r in packages} - named)
        for extra, packages in EXTRAS.items()
        if extra != "dev"
    }
    assert not {extra: names for extra, names in idle.items() if names}


def modules_imported_at_the_top(path: Path) -> set[str]:
    tops = set()
    for node in sources.tree(path).body:
        if isinstance(node, ast.Import):
            tops |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            tops.add(node.module.split(".")[0])
    return {name_of(DISTRIBUTION.get(top, top)) for top in tops}


def test_extras_are_imported_only_where_they_are_used() -> None:
    """In functions; but a package that is nothing without its extra may import it at the top."""
    optional = {name_of(r) for r in OPTIONAL} - {name_of(r) for r in CORE}
    early = {}
    for path in sources.python_files("src"):
        room = path.relative_to(sources.PACKAGE).parts[0]
        allowed = {name_of(r) for r in EXTRAS[room]} if room in NOTHING_WITHOUT_EXTRA else set()
        early[path] = (modules_imported_at_the_top(path) & optional) - allowed
    assert not {path.name: names for path, names in early.items() if names}


def test_a_package_with_an_extra_of_its_own_is_imported_only_when_used() -> None:
    rooms = tuple(f"from abc_embed.{room}" for room in NOTHING_WITHOUT_EXTRA)
    for path in sources.python_files("src"):
        if path.relative_to(sources.PACKAGE).parts[0] not in NOTHING_WITHOUT_EXTRA:
            at_top = [ast.unparse(node) for node in sources.tree(path).body]
            assert not [line for line in at_top if line.startswith(rooms)]


def test_licences_are_there() -> None:
    assert "Permission is hereby granted, free of charge" in text("LICENSE")
    assert PROJECT["license"] == "MIT"
    bundled = sources.PACKAGE / "bundled"
    if (bundled / "sprites").is_dir():
        licences = [p for p in bundled.rglob("*") if "licen" in p.name.lower() and p.is_file()]
        assert licences, "the sprites are not ours and their licence does not lie next to them"
        assert any("MIT" in p.read_text(encoding="utf-8") for p in licences)


def test_citation_names_the_paper() -> None:
    citation = text("CITATION.cff")
    for part in ("2503.00329", "Schneider", "Kerschbaum", "Chen", "preferred-citation"):
        assert part in citation


@pytest.mark.skipif(shutil.which("git") is None, reason="git says what is ignored")
def test_no_file_of_the_package_is_ignored() -> None:
    """What git ignores, the wheel leaves out without a word."""
    made = re.compile(r"/(__pycache__|\.\w+_cache)/")
    files = [p for p in sources.PACKAGE.rglob("*") if p.is_file() and not made.search(str(p))]
    ask = ["git", "check-ignore", "--stdin", "-z"]
    names = "\0".join(map(str, files))
    done = subprocess.run(
        ask, cwd=sources.ROOT, input=names, capture_output=True, text=True, check=False
    )
    assert done.returncode in (1, 128), f"ignored: {done.stdout.split(chr(0))}"


def test_the_package_is_marked_as_typed() -> None:
    assert (sources.PACKAGE / "py.typed").is_file()


def test_ci_runs_what_the_readme_says() -> None:
    assert "make test" in text("README.md")
    assert "make test" in text(".ci/run").splitlines()
    recipe = text("Makefile")
    assert "scripts/check" in recipe
    assert "scripts/test" in recipe
