"""What `make docs` does beside mkdocs: pages of the root on the site, and links out of docs/.

Links are written so that they work in the repository. On the site a link to another file of the
repository leads to that page if it is one, and is plain words with the file's path if it is code.
"""

import re
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
PAGES = ("CHANGELOG.md", "CONTRIBUTING.md")
LINK = re.compile(r"\[([^\]]*)\]\(((?:\.\./|docs/)[^)#\s]*)(#[^)\s]*)?\)")


def on_files(files: Files, config: Any, **_: Any) -> Files:
    """Add the pages of the repository's root."""
    for name in PAGES:
        text = (ROOT / name).read_text(encoding="utf-8")
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Lead links that leave docs/ to the site's own pages; name what is not on it.

    Raises:
        PluginError: a link to a file that the repository does not have.
    """
    name = page.file.src_path
    folder = ROOT if name in PAGES else (ROOT / "docs" / name).parent

    def mend(match: re.Match[str]) -> str:
        words, link, anchor = match.groups()
        target = (folder / link).resolve()
        if not target.exists():
            raise PluginError(f"{name} links to {link}, and there is no such file")
        path = target.relative_to(ROOT).as_posix()
        if path.startswith("docs/") or path in PAGES:
            up = "../" * name.count("/")
            return f"[{words}]({up}{path.removeprefix('docs/')}{anchor or ''})"
        named = path.endswith(words.strip("`")) or path == "README.md"
        return words if named else f"{words} (`{path}`)"

    return LINK.sub(mend, markdown)
