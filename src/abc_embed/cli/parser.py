"""The parser: the command that is called is imported, the others are only listed."""

import importlib
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer

from abc_embed.cli.output import epilog

COMMANDS = {
    "quickstart": "Ask one picture two questions, and see the ranking swap.",
    "embed": "Images and texts -> vectors in a file.",
    "compare": "Rank texts for an image, alone or with instructions.",
    "search": "Find images in a folder or an index by a text or an image.",
    "index": "Keep an index of images that any search uses.",
    "scenes": "Draw a data set: images, captions, boxes, instructions.",
    "data": "Fetch, index, check and describe data sets.",
    "mine": "Find captions that nearly fit, and are wrong.",
    "train": "Train stage 1, stage 2, or the bundled model from nothing.",
    "bench": "Measure a model.",
    "serve": "Serve embeddings over HTTP, and a page to try them.",
    "export": "Write a model for sentence-transformers.",
    "doctor": "Say what works here, what is missing, how to get it.",
}
"""Each command, which is also its file, and what the list of commands says of it."""

EXAMPLES = epilog("""
  abc-embed quickstart
  abc-embed embed photo.jpg -o out.npy
  abc-embed COMMAND --help
""")


def command_line(arguments: Sequence[str]) -> Callable[..., Any]:
    """The parser: the command that is called with all its options, the others by name alone."""
    app = typer.Typer(
        help="One vector for an image and an instruction, and what to do with it.",
        epilog=EXAMPLES,
        add_completion=False,
        no_args_is_help=True,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
    )
    app.callback()(_root)
    called = next((word for word in arguments if not word.startswith("-")), None)
    for name, summary in COMMANDS.items():
        if name != called:
            app.command(name, help=summary)(_absent)
            continue
        module = importlib.import_module(f"abc_embed.cli.{name}")
        if hasattr(module, "app"):
            app.add_typer(
                module.app,
                name=name,
                short_help=summary,
                epilog=module.EXAMPLES,
                no_args_is_help=True,
            )
        else:
            register = app.command(name, short_help=summary, epilog=module.EXAMPLES)
            register(getattr(module, name))
    return typer.main.get_command(app)


def _print_version(wanted: bool) -> None:
    if wanted:
        from abc_embed import __version__

        typer.echo(__version__)
        raise typer.Exit


def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version.", is_eager=True, callback=_print_version
        ),
    ] = False,
) -> None:
    """What stands before the command; `_print_version` has seen to it."""


def _absent() -> None:
    """Stands for a command that is not called, in the list of commands."""
