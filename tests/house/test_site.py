"""The documentation as a site: built strictly, loads nothing from elsewhere; its new pages run."""

import contextlib
import importlib.util
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import readme
import sources
import yaml
from mkdocs.exceptions import PluginError

DOCS = sources.ROOT / "docs"
LOADS = re.compile(
    r"<(?:script|link|img|iframe|source|video|audio|object|embed)\b[^>]*"
    r"(?:src|href|srcset|data)=[\"']?((?:https?:)?//[^\"' >]+)"
)
STYLE_LOADS = re.compile(r"(?:url\([\"']?|@import\s+[\"'])((?:https?:)?//[^\"')]+)")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site; a link or a name that leads nowhere fails the build."""
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)],
        cwd=sources.ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_every_page_is_on_the_site(site: Path) -> None:
    pages = {path.relative_to(DOCS).with_suffix(".html") for path in DOCS.rglob("*.md")}
    built = {path.relative_to(site) for path in site.rglob("*.html")}
    assert pages <= built
    assert {Path("CHANGELOG.html"), Path("CONTRIBUTING.html")} <= built


def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    loads = [LOADS.findall(path.read_text(encoding="utf-8")) for path in site.rglob("*.html")]
    styles = [
        STYLE_LOADS.findall(path.read_text(encoding="utf-8"))
        for suffix in ("*.css", "*.html")
        for path in site.rglob(suffix)
    ]
    assert not any(loads) and not any(styles)
    # The theme's script would fetch these two for a diagram or a very old browser only.
    assert not [path for path in site.rglob("*.html") if "mermaid" in path.read_text()]


def test_the_check_of_loads_finds_one() -> None:
    assert LOADS.findall('<link rel="x" href="https://fonts.example/a.css">')
    assert LOADS.findall('<script src="//cdn.example/a.js">')
    assert not LOADS.findall('<a href="https://example.org">')
    assert STYLE_LOADS.findall("@font-face{src:url(https://fonts.example/a.woff2)}")


def test_the_reference_has_names_their_words_and_examples_as_code(site: Path) -> None:
    page = (site / "reference" / "embedder.html").read_text(encoding="utf-8")
    assert 'id="abc_embed.embedder.Embedder.embed"' in page
    assert "One item -&gt;" in page
    assert "<blockquote>" not in page, "a doctest became a quotation"


def test_it_can_be_searched_and_read_in_the_dark(site: Path) -> None:
    index = json.loads((site / "search" / "search_index.json").read_text(encoding="utf-8"))
    assert any(entry["location"].startswith("mining.html") for entry in index["docs"])
    assert 'data-md-color-scheme="slate"' in (site / "index.html").read_text(encoding="utf-8")


def test_the_hook_refuses_a_link_to_a_file_that_is_not_there() -> None:
    spec = importlib.util.spec_from_file_location("hook", sources.ROOT / "tools" / "docs_hook.py")
    assert spec and spec.loader
    hook = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hook)
    page = SimpleNamespace(file=SimpleNamespace(src_path="speed.md"))
    with pytest.raises(PluginError, match="no such file"):
        hook.on_page_markdown("[a](../nowhere.json)", page)
    assert hook.on_page_markdown("[a](../CHANGELOG.md#x)", page) == "[a](CHANGELOG.md#x)"
    assert hook.on_page_markdown("[a](../Makefile)", page) == "a (`Makefile`)"
    page.file.src_path = "reference/data.md"
    assert hook.on_page_markdown("[a](../records.md)", page) == "[a](../records.md)"


def test_the_navigation_has_the_four_kinds_of_page() -> None:
    text = (sources.ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    kinds = [next(iter(entry)) for entry in yaml.safe_load(text)["nav"]]
    assert kinds == ["Home", "Tutorial", "How-to", "Reference", "Explanation"]


@pytest.mark.parametrize("name", ["tour", "coming-from"])
def test_blocks_run_one_after_the_other_and_print_what_is_shown(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bundled_folder: Path
) -> None:
    picture = sources.PACKAGE / "bundled" / "images" / "dog_and_cat.png"
    shutil.copy(picture, tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "__main__"}
    blocks = list(readme.examples((DOCS / f"{name}.md").read_text(encoding="utf-8")))
    assert len(blocks) >= 4
    for code, shown in blocks:
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(compile(code.body, f"{name}.md", "exec"), names)
        if shown is not None:
            assert readme.same_output(printed.getvalue(), shown.body), printed.getvalue()
