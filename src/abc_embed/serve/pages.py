"""The pages, all in one frame, and the other files that come with the package."""

import html
from dataclasses import dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable
from string import Template

from fastapi import Response
from starlette.exceptions import HTTPException

EXAMPLES = (
    files("abc_embed") / "bundled" / "images",
    files("abc_embed") / "serve" / "examples",
)
STATIC = files("abc_embed") / "serve" / "static"
_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".png": "image/png"}


@dataclass(frozen=True, slots=True)
class Page:
    """A page: `static/NAME.html` in the frame of `static/page.html`, and its script."""

    address: str
    name: str
    title: str
    link: str
    """What the others call it."""
    script: str

    def __call__(self) -> Response:
        """The page as a browser gets it."""
        links = "\n".join(
            f'  <a href="{page.address}"{CURRENT if page is self else ""}>{page.link}</a>'
            for page in PAGES
        )
        frame = Template((STATIC / "page.html").read_text(encoding="utf-8"))
        body = (STATIC / f"{self.name}.html").read_text(encoding="utf-8")
        whole = frame.substitute(
            title=html.escape(self.title), script=self.script, links=links, body=body
        )
        return Response(whole, media_type=_TYPES[".html"])


CURRENT = ' aria-current="page"'
PAGES = (
    Page("./", "index", "Ask a photo", "Ask a photo", "app.js"),
    Page("search", "search", "Search", "Search", "search.js"),
    Page("map", "map", "Map", "Map", "map.js"),
    Page("docs", "docs", "The interface", "For programs", "docs.js"),
)


def names(folder: Traversable) -> set[str]:
    """What a folder holds."""
    return {file.name for file in folder.iterdir() if file.is_file()}


def shipped(folder: Traversable, name: str) -> Response:
    """A file that comes with the package, by its bare name."""
    kind = _TYPES.get("." + name.rpartition(".")[2])
    if name not in names(folder) or kind in (None, _TYPES[".html"]):  # a page is more than its file
        raise HTTPException(404)
    return Response((folder / name).read_bytes(), media_type=kind)


def example_names() -> list[str]:
    """The pictures to begin with, the one of the quickstart first."""
    return sorted(name for folder in EXAMPLES for name in names(folder) if name.endswith(".png"))


def example(name: str) -> Response:
    """One of them."""
    folder = next((folder for folder in EXAMPLES if name in names(folder)), EXAMPLES[0])
    return shipped(folder, name)
