"""`abc-embed index`: an index of images that lasts: made, brought up to date, checked."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from abc_embed import search  # its `Index` brings lancedb, seconds: named where it is used
from abc_embed.cli import options
from abc_embed.cli.output import Printer, counted, epilog, print_first, print_message
from abc_embed.errors import DataError, ImageNotFoundError, UsageError
from abc_embed.progress import progress_bar
from abc_embed.search.metadata import read_captions
from abc_embed.search.settings import is_index, read_settings
from abc_embed.storage.vector_folder import VectorFolder, is_vector_folder

SHOWN = 10
"""Bad images that are named in a message; --json has them all."""

EXAMPLES = epilog("""
  abc-embed index build photos.index photos
  abc-embed index build large.index photos --where "width > 1000 or height > 1000"
  abc-embed index build small.index photos --dim 64 --output int8
  abc-embed index add photos.index
  abc-embed index info photos.index
  abc-embed search photos.index "a dog"
  abc-embed search photos.index "a dog" --ask "what is on the left?" --budget 0.1
""")

app = typer.Typer()

Place = Annotated[Path, typer.Argument(metavar="INDEX", help="The folder of the index.")]


@dataclass(frozen=True, kw_only=True)
class Intake:
    """What goes in, and what is known of it."""

    caption_file: Annotated[
        Path | None, typer.Option(help="A .csv or .jsonl with a row an image, for filters.")
    ] = None
    where: Annotated[
        str | None,
        typer.Option(help='Which images go in, from now on: "width > 1000"; "true" for all.'),
    ] = None
    on_error: options.OnBadImage = "skip"


@app.command()
def build(
    index: Place,
    sources: Annotated[
        list[Path],
        typer.Argument(
            metavar="FOLDER", help="Folders, images, .npy files of `embed`, folders of `batch`."
        ),
    ],
    vectors: Annotated[
        Literal["float32", "float16", "int8"],
        typer.Option("--output", "--vectors", help="How they are kept; int8 searches exactly."),
    ] = "float16",
    dim: Annotated[
        int | None,
        typer.Option(min=1, help="Numbers of a vector that are kept.", show_default="all of them"),
    ] = None,
    detail: Annotated[
        bool, typer.Option(help="Also keep vectors of each image's parts, for --ask.")
    ] = False,
    *,
    intake: Intake,
    settings: options.IndexSettings,
    printer: Printer,
) -> None:
    """Make an index of folders; given again, goes on where it was broken off."""
    if missing := [source for source in sources if not source.exists()]:
        raise ImageNotFoundError(f"there is no folder {str(missing[0])!r}; check the path")
    if is_index(index):
        _update(index, sources, intake, settings, printer)
        return
    settings = settings.for_index(index)
    embedder, max_pixels = settings.load_with_pixels()
    made = search.Index.create(
        index,
        embedder,
        max_pixels=max_pixels,
        dim=dim,
        dtype=vectors,
        detail=detail,
        model=settings.model,
    )
    _fill(made, sources, intake, settings.batch_size, printer)


@app.command()
def add(
    index: Place,
    sources: Annotated[
        list[Path] | None,
        typer.Argument(metavar="FOLDER", help="Without any, the folders that it has."),
    ] = None,
    *,
    intake: Intake,
    settings: options.IndexSettings,
    printer: Printer,
) -> None:
    """Bring an index up to date: only new and changed images go through the model."""
    _update(index, sources or [], intake, settings, printer)


@app.command()
def remove(
    index: Place,
    paths: Annotated[list[Path], typer.Argument(help="Images, or folders with all in them.")],
    *,
    printer: Printer,
) -> None:
    """Take images out of an index; the files stay."""
    removed = search.Index.open(index).remove(paths)
    if not removed:
        raise DataError(f"{str(index)!r} holds none of them; give paths as they are on disk")
    printer.json({"removed": removed})
    printer.line(f"removed {counted(removed, 'image')}")


@app.command()
def info(index: Place, *, printer: Printer) -> None:
    """Say what an index is and holds."""
    facts = search.Index.open(index).info()
    printer.json(facts)
    facts["max_pixels"] = facts["max_pixels"] or "as the model says"
    facts["bytes"] = f"{facts['bytes'] / 1e6:,.1f} MB"
    kept = facts["kept_tokens"]
    facts["kept_tokens"] = (
        f"of {kept['images']} images, {kept['bytes'] / 1e6:,.1f} MB of at most "
        f"{kept['at_most'] / 1e6:,.0f} MB; those unused longest go first, all of them by "
        "index compact --drop-tokens"
    )
    printer.table(("index", ""), [(key.replace("_", " "), _cell(v)) for key, v in facts.items()])


@app.command()
def check(index: Place, *, printer: Printer) -> None:
    """Read all of an index, and compare it with the files; exits with 1 if it is damaged."""
    opened = search.Index.open(index)
    problems, changed = opened.check(), opened.stale_paths()
    printer.json({"images": len(opened), "problems": problems, "stale": changed})
    for problem in problems:
        printer.line(problem)
    if changed:
        printer.line(
            f"{counted(len(changed), 'file')} changed or vanished since; bring it up to date"
        )
    if problems:
        raise typer.Exit(1)
    printer.line(f"{counted(len(opened), 'image')}, all of them whole")


@app.command()
def compact(
    index: Place,
    tokens: Annotated[
        bool, typer.Option("--drop-tokens", help="Also the visual tokens that --ask kept.")
    ] = False,
    *,
    printer: Printer,
) -> None:
    """Drop vanished images and old states; a search that is under way may fail."""
    dropped = search.Index.open(index).compact(drop_tokens=tokens)
    printer.json({"dropped": dropped})
    printer.line(f"dropped {counted(dropped, 'vanished image')}")


def _update(
    place: Path,
    sources: list[Path],
    intake: Intake,
    settings: options.IndexSettings,
    printer: Printer,
) -> None:
    read_settings(place)  # what is no index is refused before a model is loaded
    settings = settings.for_index(place)
    embedder, max_pixels = settings.load_with_pixels()
    index = search.Index.open(place, embedder, max_pixels=max_pixels)
    _fill(index, sources, intake, settings.batch_size, printer)


def _fill(
    index: "search.Index",
    sources: list[Path],
    intake: Intake,
    batch_size: int | None,
    printer: Printer,
) -> None:
    """Add vectors that are ready, then images, and say what was done."""
    captions = None if intake.caption_file is None else read_captions(intake.caption_file)
    ready = [s for s in sources if s.suffix == ".npy" or is_vector_folder(s)]
    if ready and intake.where is not None:
        raise UsageError(f"--where is for images; {str(ready[0])!r} holds vectors alone")
    for file in ready:
        (_add_npy if file.suffix == ".npy" else _add_folder)(index, file)
    images = [source for source in sources if source not in ready]
    facts: dict[str, Any] = {"images": len(index)}
    if images or not ready:
        with progress_bar("embedding") as on_progress:
            report = index.add(
                images,
                captions=captions,
                where=intake.where,
                batch_size=batch_size,
                raise_errors=intake.on_error == "raise",
                on_progress=on_progress,
            )
        names = ("added", "changed", "found", "vanished", "unchanged", "left_out")
        facts = {"images": len(index), **{name: getattr(report, name) for name in names}}
        facts["bad"] = [{"path": str(bad.path), "error": str(bad.error)} for bad in report.bad]
    if kept := index.settings.get("stored_recall"):
        facts["stored_recall"] = kept
    printer.json(facts)
    if kept:
        print_message(
            f"{index.dim} numbers in {index.settings['dtype']} find {kept['recall']:.3f} of what "
            f"the model's own find (recall@10 of {kept['images']:,} images)"
        )
    names = ("images", "added", "changed", "found", "vanished", "unchanged")
    printer.line(", ".join(f"{facts[name]} {name}" for name in names if name in facts))
    if facts.get("left_out"):
        print_message(f"the filter left out {counted(facts['left_out'], 'image')}")
    if bad := facts.get("bad"):
        print_message(f"left out {counted(len(bad), 'bad image')}:")
        print_first([f"  {image['path']}: {image['error']}" for image in bad], SHOWN, "")
        if not facts["images"]:
            raise DataError("none of the images can be used")


def _add_npy(index: "search.Index", file: Path) -> None:
    """Vectors that `abc-embed embed -o NAME.npy` wrote, under the names beside them."""
    import numpy as np

    names = file.with_suffix(".ids.json")
    try:
        vectors = np.load(file, mmap_mode="r")
        paths = json.loads(names.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{file} or {names} cannot be read: {error}") from error
    index.add_vectors(paths, vectors)


def _add_folder(index: "search.Index", folder: Path) -> None:
    """Vectors that `abc-embed batch` wrote, under their ids."""
    made = VectorFolder(folder)
    made.check(index.settings["fingerprint"], index.max_pixels)
    for ids, vectors, _ in made.vectors():
        index.add_vectors(ids, vectors)


def _cell(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_cell(item)}" for key, item in value.items()) or "none"
    if isinstance(value, float):
        return f"{value:.3f}"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
