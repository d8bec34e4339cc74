"""The parser: the command that is called is imported, the others are only listed."""

import importlib
import os
from collections.abc import Callable, Sequence
from inspect import signature
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import typer
from typer.core import TyperGroup
from typer.main import get_command_name
from typer.models import ArgumentInfo, OptionInfo

from abc_embed.cli.output import epilog

COMMANDS = {
    "quickstart": "Ask one picture two questions, and see the ranking swap.",
    "embed": "Images and texts -> vectors in a file.",
    "compare": "Rank texts for an image, alone or with instructions.",
    "search": "Find images in a folder or an index by a text or an image.",
    "batch": "A whole data set -> a folder of vectors, on a Ray cluster too.",
    "index": "Keep an index of images that any search uses.",
    "scenes": "Draw a data set: images, captions, boxes, instructions.",
    "data": "Fetch, index, check and describe data sets.",
    "mine": "Find captions that nearly fit, and are wrong.",
    "train": "Train stage 1, stage 2, or the bundled model from nothing.",
    "bench": "Measure a model.",
    "plan": "Memory and time of a job before it starts.",
    "serve": "Serve embeddings over HTTP, and a page to try them.",
    "calibrate": "Measure the ranges that int8 vectors need, and keep them with a model.",
    "export": "Write a model for sentence-transformers.",
    "doctor": "Say what works here, what is missing, how to get it.",
}
"""Each command, which is also its file, and what the list of commands says of it."""

EXAMPLES = epilog("""
  abc-embed quickstart
  abc-embed embed photo.jpg -o out.npy
  abc-embed COMMAND --help
""")


METAVARS = {int: "N", float: "X", Path: "PATH", str: "TEXT"}
"""What stands for a value of each type in help, unless its option says more."""


class Group(TyperGroup):
    """A command of commands, whose list says of each the whole of its first sentence."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Sentences are broken where the line ends, not cut off."""
        rows = []
        for name in self.list_commands(ctx):
            command = self.get_command(ctx, name)
            if command is not None and not command.hidden:
                rows.append((name, command.get_short_help_str(limit=1000)))
        with formatter.section("Commands"):
            formatter.write_dl(rows)


def command_line(arguments: Sequence[str]) -> Callable[..., Any]:
    """The parser: the command that is called with all its options, the others by name alone."""
    app = typer.Typer(
        help="One vector for an image and an instruction, and what to do with it.",
        epilog=EXAMPLES,
        cls=Group,
        context_settings={"help_option_names": ["-h", "--help"]},
        no_args_is_help=True,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
    )
    app.callback()(_root)
    words = arguments or _words_to_complete()
    called = next((word for word in words if not word.startswith("-")), None)
    for name, summary in COMMANDS.items():
        if name != called:
            app.command(name, help=summary)(_absent)
            continue
        module = importlib.import_module(f"abc_embed.cli.{name}")
        if hasattr(module, "app"):
            for command in module.app.registered_commands:
                _name_values(command.callback)
                own = command.name or get_command_name(command.callback.__name__)
                command.epilog = _own_examples(command.epilog, f"{name} {own}")
            app.add_typer(
                module.app,
                name=name,
                cls=Group,
                short_help=summary,
                epilog=module.EXAMPLES,
                no_args_is_help=True,
            )
        else:
            register = app.command(name, short_help=summary, epilog=module.EXAMPLES)
            _name_values(getattr(module, name))
            register(getattr(module, name))
    return typer.main.get_command(app)


def _words_to_complete() -> list[str]:
    """The command line so far, where a shell asks how it may go on."""
    line = os.environ.get("COMP_WORDS") or os.environ.get("_TYPER_COMPLETE_ARGS") or ""
    return line.split()[1:]


def _name_values(function: Callable[..., Any]) -> None:
    """Give every value of a command that has none a plain name in its help."""
    for parameter in signature(function, eval_str=True).parameters.values():
        kind = parameter.annotation
        value, *about = get_args(kind) if get_origin(kind) is Annotated else (kind,)
        types = [METAVARS[t] for t in _types_in(value) if t in METAVARS]
        for info in about:
            if isinstance(info, OptionInfo) and info.metavar is None and types:
                info.metavar = types[0]
            if isinstance(info, ArgumentInfo) and info.metavar is None:
                info.metavar = parameter.name.upper()


def _own_examples(examples: str, words: str) -> str:
    """Of a group's examples those of one command, where it has any; other text stays."""
    start = f"  abc-embed {words} "
    lines = f"{examples}\n".splitlines()
    if not any(f"{line} ".startswith(start) for line in lines):
        return examples
    kept = (s for s in lines if not s.startswith("  abc-embed ") or f"{s} ".startswith(start))
    return "\n".join(kept)


def _types_in(kind: Any) -> tuple[Any, ...]:
    """A type, and those in its lists and unions."""
    return (kind, *(inner for part in get_args(kind) for inner in _types_in(part)))


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
