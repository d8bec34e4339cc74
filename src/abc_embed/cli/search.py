"""`abc-embed search`: the images of a folder or an index that fit a text, an image, or both.

What is new in a folder is embedded, the rest remembered; an index is searched as it is.
"""

import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from abc_embed.cli import options
from abc_embed.cli.options import OnError
from abc_embed.cli.output import (
    Printer,
    check_plot,
    epilog,
    open_file,
    print_message,
    print_skipped,
)
from abc_embed.errors import ImageNotFoundError, InputError, OutputError, UsageError
from abc_embed.inputs import DECODE_LIMIT, Item, open_image, read_header
from abc_embed.progress import progress_bar
from abc_embed.search.hits import Hit
from abc_embed.search.queries import Query, as_query, embed_queries
from abc_embed.search.settings import is_index, read_settings
from abc_embed.storage.hashing import short_id

if TYPE_CHECKING:
    from PIL import Image

    from abc_embed.cli.remote import RemoteModel
    from abc_embed.embedder import Embedder
    from abc_embed.pipeline import Vector
    from abc_embed.search.folder import Bad, FolderIndex
    from abc_embed.storage.vector_cache import VectorCache

EXAMPLES = epilog("""
  abc-embed search photos "a dog" -k 3
  abc-embed search photos '"a dog" + 0.5*"snow" - "a cat"'
  abc-embed search photos --image photo.jpg
  abc-embed search photos --image photo.jpg --instruction "what is on the left?"
  abc-embed search photos "a dog" "a cat" --plot hits.png
  abc-embed search photos "a dog" --plot evidence.png --explain
  abc-embed search photos.index "a dog" --server http://127.0.0.1:8765
""")

HEEDED = (
    *("folder", "texts", "images", "instruction", "count", "show_all"),
    *("where", "ask", "budget"),
)
"""What a server can heed."""
NOTHING = "nothing more matches"
"""What a table says below the line."""


@dataclass(frozen=True, kw_only=True)
class HitSettings:
    """What is shown of the hits, and how."""

    count: Annotated[int, typer.Option("--count", "-k", min=1, help="How many to show.")] = 5
    show_all: Annotated[
        bool, typer.Option("--all", help="Show what is below the line of an index, too.")
    ] = False
    plot: Annotated[
        Path | None, typer.Option(help="Also draw the hits on a page: a .png file.")
    ] = None
    explain: Annotated[
        bool, typer.Option(help="Draw over each image of --plot what spoke for it.")
    ] = False
    open_best: Annotated[
        bool, typer.Option("--open", help="Open the page of --plot, or else the best hit.")
    ] = False


@dataclass(frozen=True, kw_only=True)
class IndexQuery:
    """What an index can be asked beyond a folder."""

    where: Annotated[
        str | None, typer.Option(help="A filter: \"width > 1000 and taken >= '2025-01-01'\".")
    ] = None
    ask: Annotated[
        str | None, typer.Option(help="Look again at the best images with this instruction.")
    ] = None
    budget: Annotated[
        float, typer.Option(help="The share of the images that --ask may look at; 1 is exact.")
    ] = 0.1
    keep_tokens: Annotated[
        bool, typer.Option(help="Keep what --ask saw, for the next instruction.")
    ] = False

    def check(self, queries: Sequence[Query]) -> None:
        """Find out before the work whether an index can be asked so."""
        if not 0 < self.budget <= 1:
            raise UsageError(f"--budget is {self.budget:g}; give a share above 0 and at most 1")
        if self.ask is not None and any(query.kind in ("image", "joint") for query in queries):
            raise UsageError("--ask says where to look for a text; give texts, and no --image")
        if self.keep_tokens and self.ask is None:
            raise UsageError(
                "--keep-tokens keeps what --ask looks at; give an instruction with --ask"
            )


@dataclass(frozen=True, kw_only=True)
class Found:
    """The hits of each query, and what they were found with."""

    results: list[list[Hit]]
    model: str
    embedder: "Embedder | None" = None
    """None of a server."""
    max_pixels: int | None = None
    bad: "list[Bad] | None" = None
    """Images of a folder that were left out; None of an index."""


@dataclass(frozen=True, kw_only=True)
class FolderSettings:
    """How a folder is read; an index knows its images already."""

    on_error: options.OnBadImage = "skip"
    cache: Annotated[
        Path | None,
        typer.Option(
            help="Folder in which vectors are remembered.",
            show_default="ABC_EMBED_CACHE, or abc-embed in the user's cache folder",
        ),
    ] = None
    no_cache: Annotated[
        bool, typer.Option(help="Remember nothing, and embed every image anew.")
    ] = False


def search(
    context: typer.Context,
    folder: Annotated[
        Path, typer.Argument(help="A folder of images, with its subfolders; or an index.")
    ],
    texts: Annotated[
        list[str] | None,
        typer.Argument(metavar="TEXT", help="What to look for; each gets its own table."),
    ] = None,
    images: Annotated[
        list[str] | None,
        typer.Option("--image", help="An image to find others like; may be repeated."),
    ] = None,
    instruction: Annotated[str | None, typer.Option(help="What to look at in --image.")] = None,
    *,
    asked: IndexQuery,
    shown: HitSettings,
    reading: FolderSettings,
    settings: options.IndexSettings,
    remote: options.RemoteSettings,
    printer: Printer,
) -> None:
    """Show the images of a folder or an index that fit best.

    The first search of a folder embeds every image; later ones, with the same model, only those
    whose content is new. An index also knows what fits no image: only answers are shown.
    """
    queries = _queries(texts or [], images or [], instruction, settings.decode_limit)
    asked.check(queries)
    check_plot(shown.plot, shown.explain, (".png",))
    if served := remote.connect(context, settings.model, HEEDED):
        found = _search_remote(served, folder, queries, texts, shown.count, asked)
    elif is_index(folder):
        found = _search_index(folder, queries, shown.count, asked, settings.for_index(folder))
    elif asked.where is not None or asked.ask is not None:
        option = "--ask" if asked.where is None else "--where"
        raise UsageError(f"{option} needs an index; make one with: abc-embed index build")
    else:
        found = _search_folder(folder, queries, shown.count, reading, settings.for_index(folder))
    results = _show(queries, found, shown, printer)
    if shown.plot is not None:
        whole_and_asked = [None] if asked.ask is None else [None, asked.ask]
        instructions = whole_and_asked if shown.explain else []
        _draw(shown.plot, queries, results, found, instructions)
    if shown.open_best:
        files = [shown.plot] if shown.plot else [hits[0].path for hits in results if hits]
        for path in files[:1]:
            open_file(path)


def _show(
    queries: Sequence[Query], found: Found, shown: HitSettings, printer: Printer
) -> list[list[Hit]]:
    """Print the hits of each query, and for programs what of a folder was skipped; those that were
    shown."""
    results = found.results
    if not shown.show_all:
        results = [[hit for hit in hits if hit.is_answer is not False] for hits in results]
    none = "nothing matches" if shown.show_all else "nothing matches; --all shows the rest"
    named = []
    for query, hits in zip(queries, results, strict=True):
        ranked = [_as_json(rank, hit) for rank, hit in enumerate(hits, 1)]
        named.append({"query": str(query), "hits": ranked})
        rows: list[tuple[object, object, object]] = [
            ("-" if hit.is_answer is False else rank, _shorter(hit.path), hit.score)
            for rank, hit in enumerate(hits, 1)
        ]
        if len(hits) < shown.count and all(hit.is_answer for hit in hits):
            rows.append(("-", NOTHING if hits else none, ""))
        title = str(query) if len(queries) > 1 else None
        printer.table(("", "image", "cosine"), rows, title=title)
    facts = {"model": found.model, **({"queries": named} if len(named) > 1 else named[0])}
    if found.bad is not None:
        facts["skipped"] = [{"path": _shorter(b.path), "reason": str(b.error)} for b in found.bad]
    printer.json(facts)
    return results


def _queries(
    texts: Sequence[str], images: Sequence[str], instruction: str | None, decode_limit: int | None
) -> list[Query]:
    if bool(texts) == bool(images):
        raise UsageError("give texts to look for, or an image with --image; one of the two")
    if instruction is not None and not images:
        raise UsageError("an instruction says what to look at in an image; give one with --image")
    for image in images:  # a bad one is found before the model is loaded
        read_header(image, decode_limit=decode_limit or DECODE_LIMIT)
    items = [Item(image=image, instruction=instruction) for image in images]
    return [*map(as_query, texts), *map(as_query, items)]


def _search_index(
    folder: Path,
    queries: Sequence[Query],
    count: int,
    asked: IndexQuery,
    settings: options.IndexSettings,
) -> Found:
    from abc_embed.search import Index
    from abc_embed.search.ask import ask

    embedder, max_pixels = settings.load_with_pixels()
    index = Index.open(folder, embedder, max_pixels=max_pixels)
    if asked.ask is None:
        results = index.search_many(queries, count, where=asked.where)
    else:
        results = []
        for query in queries:
            with progress_bar("looking") as on_progress:
                found = ask(
                    index,
                    query,
                    asked.ask,
                    count=count,
                    budget=asked.budget,
                    where=asked.where,
                    keep_tokens=asked.keep_tokens,
                    on_progress=on_progress,
                )
            _print_passes(found.passes, found.images, found.share, found.unreadable)
            results.append(found.hits)
    return Found(results=results, model=settings.model, embedder=embedder, max_pixels=max_pixels)


def _print_passes(passes: int, images: int, share: float | None, unreadable: int) -> None:
    """What an `ask` looked at."""
    part = "too few to estimate the share" if share is None else f"about {share:.0%}"
    print_message(f"looked at {passes} of {images} images again: {part} of the direct answer")
    if unreadable:
        print_message(f"{unreadable} of them are gone or damaged, and left out")


def _search_remote(
    served: "RemoteModel",
    folder: Path,
    queries: Sequence[Query],
    texts: Sequence[str] | None,
    count: int,
    asked: IndexQuery,
) -> Found:
    """The hits of a server's index of that name, for words as they were given, or for images."""
    path_of = _paths_here(folder)
    results = []
    for number, query in enumerate(queries):
        body: dict[str, Any] = {"index": folder.absolute().name, "k": count, "all": True}
        if texts:
            body["text"] = texts[number]
        else:
            item = query.parts[0][1]
            body |= {"image": served.image_data(str(item.image)), "instruction": item.instruction}
        body["filter"] = asked.where
        if asked.ask is not None:
            body |= {"ask": asked.ask, "budget": asked.budget}
        answer = served.ask("/v1/search", body)
        if asked.ask is not None:
            _print_passes(*(answer[name] for name in ("passes", "images", "share", "unreadable")))
        results.append([Hit(path_of(h), h["score"], h["is_answer"]) for h in answer["data"]])
    return Found(results=results, model=served.model)


def _paths_here(folder: Path) -> "Callable[[dict[str, Any]], Path]":
    """From a server's hit to the path of its image: the one here whose id it is, or its name."""
    folders = [Path(one) for one in read_settings(folder)["folders"]] if is_index(folder) else []

    def path_of(hit: dict[str, Any]) -> Path:
        name = Path(hit["name"])
        here = (one / name for one in folders)
        return next((path for path in here if f"{short_id(str(path)):016x}" == hit["id"]), name)

    return path_of


def _search_folder(
    folder: Path,
    queries: Sequence[Query],
    count: int,
    reading: FolderSettings,
    settings: options.IndexSettings,
) -> Found:
    from abc_embed.data.image_files import find_images
    from abc_embed.search.folder import Bad, index_images

    if folder.is_file():
        raise ImageNotFoundError(f"{str(folder)!r} is a file; give the folder that it lies in")
    unreadable: dict[Path, ImageNotFoundError] = {}
    files = find_images(folder, required=True, on_unreadable=unreadable.__setitem__)
    embedder, max_pixels = settings.load_with_pixels()
    vectors = embed_queries(queries, embedder, max_pixels)
    with ExitStack() as stack:
        known = None if reading.no_cache else _open_cache(reading.cache, embedder, max_pixels)
        if known is not None:
            stack.enter_context(known)
        on_progress = stack.enter_context(progress_bar("embedding", len(files)))
        index = index_images(
            files,
            embedder,
            known,
            max_pixels=max_pixels,
            batch_size=settings.batch_size,
            on_progress=on_progress,
        )
    index.bad.extend(Bad(path, error) for path, error in unreadable.items())
    _report(index, reading.on_error)
    results = [index.search(vector, count) for vector in vectors]
    return Found(
        results=results,
        model=settings.model,
        embedder=embedder,
        max_pixels=max_pixels,
        bad=index.bad,
    )


def _as_json(rank: int, hit: Hit) -> dict[str, Any]:
    fields = {"rank": rank, "path": _shorter(hit.path), "score": hit.score}
    return fields if hit.is_answer is None else {**fields, "is_answer": hit.is_answer}


def _shorter(path: Path) -> str:
    """The path as seen from here, if it lies below."""
    here = Path.cwd()
    return os.path.relpath(path) if path.is_relative_to(here) else str(path)


def _draw(
    out: Path,
    queries: Sequence[Query],
    results: Sequence[Sequence[Hit]],
    found: Found,
    instructions: Sequence[str | None],
) -> None:
    """A contact sheet of the hits; one whose file is gone is left out.

    With `instructions`, None being the image alone, of what spoke for each hit under each of them.
    """
    from abc_embed.data.contact_sheet import FAINT, INK, draw_cell, write_sheet

    vectors: Any = [None] * len(queries)
    if instructions and found.embedder is not None:
        vectors = embed_queries(queries, found.embedder, found.max_pixels)
    cells = []
    for query, vector, hits in zip(queries, vectors, results, strict=True):
        for rank, hit in enumerate(hits, 1):
            place = "below the line" if hit.is_answer is False else f"number {rank}"
            lines = [(str(query), INK), (f"{place}, cosine {hit.score:.3f}", FAINT)]
            try:
                pictures = _pictures(hit.path, found, vector, instructions)
            except InputError as error:
                print_message(f"not drawn: {error}")
                continue
            for picture, words in pictures:
                more = [(words, INK)] if words else []
                cells.append(draw_cell(picture, _shorter(hit.path), [*lines, *more]))
    if not cells:
        print_message(f"there is nothing to draw, so {out} is not written")
        return
    write_sheet(cells, out)
    print_message(f"drawn in {out}")


def _pictures(
    path: Path, found: Found, vector: "Vector | None", instructions: Sequence[str | None]
) -> "list[tuple[Image.Image, str]]":
    """What is drawn of a hit, and what it shows: the image, or over it the map of what spoke for a
    query's `vector` `(D,)`."""
    photo = open_image(path)
    if found.embedder is None or vector is None:
        return [(photo, "")]
    pictures = []
    for words in instructions:
        item = Item(image=path, instruction=words)
        evidence = found.embedder.explain(item, vector, max_pixels=found.max_pixels)
        pictures.append((evidence.overlay(photo), words or "the image alone"))
    return pictures


def _open_cache(
    folder: Path | None, embedder: "Embedder", max_pixels: int | None
) -> "VectorCache | None":
    """The cache; where none was asked for and the usual place cannot be written, none."""
    from abc_embed.storage.vector_cache import VectorCache, default_folder

    key = (embedder.fingerprint, max_pixels)
    if folder is not None:
        return VectorCache(folder, *key)
    try:
        return VectorCache(default_folder(), *key)
    except OutputError as error:
        print_message(f"nothing is remembered: {error}")
        return None


def _report(index: "FolderIndex", on_error: OnError) -> None:
    """What the folder held, and what was left out."""
    bad = index.bad
    if bad and (on_error == "raise" or not index.paths):
        raise bad[0].error
    print_message(f"{len(index.paths)} images, {index.from_cache} of them remembered")
    if index.cache_error is not None:
        print_message(f"not all of them are remembered for the next time: {index.cache_error}")
    lines = [f"{picture.path}: {picture.error}" for picture in bad]
    print_skipped(lines, len(bad) + len(index.paths))
