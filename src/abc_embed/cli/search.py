"""`abc-embed search`: the images of a folder that fit a text, an image, or both at once.

What is new in the folder is embedded, the rest remembered; the folder itself stays as it is.
"""

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from abc_embed.cli import options
from abc_embed.cli.options import OnError
from abc_embed.cli.output import print_json, print_message, print_table
from abc_embed.errors import ImageNotFoundError, OutputError, UsageError
from abc_embed.progress import progress_bar

if TYPE_CHECKING:
    from abc_embed.embedder import Embedder
    from abc_embed.inputs import Item
    from abc_embed.search.folder import FolderIndex
    from abc_embed.storage.vector_cache import VectorCache

EXAMPLES = """\
Examples:

\b
  abc-embed search photos "a dog" -k 3
  abc-embed search photos --image photo.jpg
  abc-embed search photos --image photo.jpg --instruction "what is on the left?"
"""


@options.with_settings
def search(
    folder: Annotated[Path, typer.Argument(help="A folder of images; its subfolders count too.")],
    text: Annotated[str | None, typer.Argument(help="What the images are to show.")] = None,
    image: Annotated[str | None, typer.Option(help="An image to find others like.")] = None,
    instruction: Annotated[str | None, typer.Option(help="What to look at in --image.")] = None,
    count: Annotated[int, typer.Option("--count", "-k", min=1, help="How many to show.")] = 5,
    on_error: Annotated[
        OnError, typer.Option(help="A bad image is left out and listed, or ends the work.")
    ] = OnError.SKIP,
    cache: Annotated[
        Path | None,
        typer.Option(
            help="Folder in which vectors are remembered.",
            show_default="ABC_EMBED_CACHE, or abc-embed in the user's cache folder",
        ),
    ] = None,
    no_cache: Annotated[
        bool, typer.Option("--no-cache", help="Remember nothing, and embed every image anew.")
    ] = False,
    *,
    settings: options.BatchSettings,
    as_json: options.AsJson = False,
) -> None:
    """Show the images of a folder that fit best.

    The first search embeds every image; later ones, with the same model, only those whose content
    is new.
    """
    from abc_embed.search.folder import index_images

    query = _query(text, image, instruction)
    files = _files(folder)
    embedder, max_pixels = settings.load_with_pixels()
    query_vector = embedder.embed(query, max_pixels=max_pixels)
    with ExitStack() as stack:
        vectors = None if no_cache else _open_cache(cache, embedder, max_pixels)
        if vectors is not None:
            stack.enter_context(vectors)
        on_progress = stack.enter_context(progress_bar("embedding", len(files)))
        index = index_images(
            files,
            embedder,
            vectors,
            max_pixels=max_pixels,
            batch_size=settings.batch_size,
            on_progress=on_progress,
        )
    _report(index, on_error)
    hits = index.search(query_vector, count)
    rows = [(rank, str(hit.path), hit.score) for rank, hit in enumerate(hits, 1)]
    if as_json:
        keys = ("rank", "path", "score")
        listed = [dict(zip(keys, row, strict=True)) for row in rows]
        print_json({"model": settings.model, "hits": listed})
    else:
        print_table(("", "image", "cosine"), rows)


def _query(text: str | None, image: str | None, instruction: str | None) -> "Item":
    from abc_embed.inputs import Item

    if (text is None) == (image is None):
        raise UsageError("give a text to look for, or an image with --image; one of the two")
    if instruction is not None and image is None:
        raise UsageError("an instruction says what to look at in an image; give one with --image")
    return Item(text=text, image=image, instruction=instruction)


def _files(folder: Path) -> list[Path]:
    from abc_embed.data.image_files import find_images

    if folder.is_file():
        raise ImageNotFoundError(f"{str(folder)!r} is a file; give the folder that it lies in")
    pictures = find_images(folder)
    if not pictures.files:
        raise ImageNotFoundError(f"there is no image in the folder {str(folder)!r}")
    return pictures.files


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
    """What the folder held, and what was left out.

    Raises:
        InputError: an image is bad, and that is to end the work; or all of them are.
    """
    bad = index.bad
    if bad and (on_error is OnError.RAISE or not index.paths):
        raise bad[0].error
    print_message(f"{len(index.paths)} images, {index.from_cache} of them remembered")
    if index.cache_error is not None:
        print_message(f"not all of them are remembered for the next time: {index.cache_error}")
    if bad:
        print_message(f"skipped {len(bad)} of {len(bad) + len(index.paths)}:")
    for picture in bad:
        print_message(f"  {picture.path}: {picture.error}")
