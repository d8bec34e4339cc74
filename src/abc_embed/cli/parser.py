"""The parser: the command that is called is imported, the others are only listed."""

import importlib
import os
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import fields, is_dataclass
from functools import wraps
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import typer
from typer.core import TyperGroup
from typer.main import get_command_name
from typer.models import ArgumentInfo

from abc_embed import __version__
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
    "train": "Train stage 1, stage 2, the mining model, or the bundled one from nothing.",
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

    def invoke(self, ctx: Any) -> Any:
        """A wrong value is refused in the words of who checked it, without pydantic's mark."""
        try:
            return super().invoke(ctx)
        except typer.BadParameter as wrong:
            wrong.message = wrong.message.removeprefix("Value error, ")
            raise

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
    app.callback()(_for_typer(_root))
    words = arguments or _words_to_complete()
    called = next((word for word in words if not word.startswith("-")), None)
    for name, summary in COMMANDS.items():
        if name != called:
            app.command(name, help=summary)(_absent)
            continue
        module = importlib.import_module(f"abc_embed.cli.{name}")
        if hasattr(module, "app"):
            group = typer.Typer(help=summary, rich_markup_mode=None)
            for command in module.app.registered_commands:
                own = command.name or get_command_name(command.callback.__name__)
                examples = _own_examples(command.epilog or module.EXAMPLES, f"{name} {own}")
                group.command(own, epilog=examples)(_for_typer(command.callback))
            app.add_typer(
                group,
                name=name,
                cls=Group,
                epilog=module.EXAMPLES,
                no_args_is_help=True,
            )
        else:
            register = app.command(name, short_help=summary, epilog=module.EXAMPLES)
            register(_for_typer(getattr(module, name)))
    return typer.main.get_command(app)


def _words_to_complete() -> list[str]:
    """The command line so far, where a shell asks how it may go on."""
    line = os.environ.get("COMP_WORDS") or os.environ.get("_TYPER_COMPLETE_ARGS") or ""
    return line.split()[1:]


def _for_typer(command: Callable[..., None]) -> Callable[..., None]:
    """The command with each dataclass that it takes spread out: its fields are options too."""
    options: list[Parameter] = []
    settings: dict[str, Any] = {}
    for parameter in signature(command, eval_str=True).parameters.values():
        kind = parameter.annotation
        if is_dataclass(kind):
            settings[parameter.name] = kind
            options += signature(settings[parameter.name], eval_str=True).parameters.values()
        else:
            options.append(parameter)
    options = [_completed(option) for option in options]

    @wraps(command)
    def run(**values: Any) -> None:
        made = {
            name: kind(**{field.name: values.pop(field.name) for field in fields(kind)})
            for name, kind in settings.items()
        }
        command(**values, **made)

    run.__signature__ = Signature(options)  # type: ignore[attr-defined]
    run.__annotations__ = {option.name: option.annotation for option in options}
    return run


def _completed(parameter: Parameter) -> Parameter:
    """A parameter with what goes without saying of an option: a plain name of its value in help,
    `-o` for `--out`, and no `--no-NAME` beside `--NAME`."""
    kind = parameter.annotation
    if get_origin(kind) is Annotated:
        value, info = get_args(kind)
        info = copy(info)  # several commands may share it
        if isinstance(info, ArgumentInfo):
            info.metavar = info.metavar or parameter.name.upper()
        else:
            types = [METAVARS[t] for t in _types_in(value) if t in METAVARS]
            info.metavar = info.metavar or next(iter(types), None)
            if info.default is ...:  # else that is the first of its names
                name = f"--{parameter.name.replace('_', '-')}"
                info.param_decls = {"out": (name, "-o")}.get(parameter.name, (name,))
        kind = Annotated[value, info]
    return parameter.replace(kind=Parameter.KEYWORD_ONLY, annotation=kind)


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
        typer.echo(__version__)
        raise typer.Exit


def _root(
    version: Annotated[
        bool, typer.Option(help="Print the version.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    """What stands before the command; `_print_version` has seen to it."""


def _absent() -> None:
    """Stands for a command that is not called, in the list of commands."""
