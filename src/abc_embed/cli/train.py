"""`abc-embed train`: both stages from a configuration, and the bundled model from nothing.

Does: hand over to `abc_embed.train`, where all of it happens.
"""

from pathlib import Path
from typing import Annotated

import typer

from abc_embed.cli.output import show
from abc_embed.errors import UsageError

STAGES_EXAMPLES = """\
Example:

\b
  abc-embed scenes --count 400 --out data/scenes
  abc-embed train {stage} --config configs/{stage}-tiny.toml --set train.steps=20

A run that was broken off goes on when the same command is given again.
"""
BUNDLED_EXAMPLES = """\
Examples:

\b
  abc-embed train bundled --out runs/bundled
  abc-embed train bundled --out runs/short --scale 0.01
"""

app = typer.Typer(
    help="Train a model: stage 1, stage 2, or the bundled one from nothing.",
    no_args_is_help=True,
    rich_markup_mode=None,
    epilog="Example:\n\n\b\n  abc-embed train pretrain --config configs/pretrain-tiny.toml\n",
)

Config = Annotated[Path, typer.Option("--config", help="A TOML file; configs/ has examples.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", help="section.field=value instead of the file's; may be repeated."),
]
Resume = Annotated[
    bool,
    typer.Option("--resume/--no-resume", help="Go on with a run, or refuse a folder that has one."),
]


@app.command(epilog=STAGES_EXAMPLES.format(stage="pretrain"))
def pretrain(config: Config, overrides: Overrides = None, resume: Resume = True) -> None:
    """Stage 1: from an image to its caption."""
    _stage("pretrain", config, overrides or [], resume)


@app.command(epilog=STAGES_EXAMPLES.format(stage="instruct"))
def instruct(config: Config, overrides: Overrides = None, resume: Resume = True) -> None:
    """Stage 2: from an image and an instruction to the answer."""
    _stage("instruct", config, overrides or [], resume)


def _stage(stage: str, config: Path, overrides: list[str], resume: bool) -> None:
    from abc_embed.train.config import load_config

    told = load_config(config, overrides).stage
    if told != stage:
        raise UsageError(f"{config} is for stage {told!r}; run: abc-embed train {told}")
    from abc_embed.train.recipe import train_from_config

    show(f"the model is in {train_from_config(config, overrides, resume=resume)}")


@app.command(epilog=BUNDLED_EXAMPLES)
def bundled(
    out: Annotated[Path, typer.Option("--out", help="Folder of the run; the model is in it.")],
    scale: Annotated[
        float,
        typer.Option("--scale", min=0.0001, help="Longer or shorter than the shipped model's run."),
    ] = 1.0,
) -> None:
    """The bundled model from nothing: its lessons, then stages 1 and 2.

    A run that was broken off goes on when the same command is given again.
    """
    from abc_embed.train.curriculum.run import Lengths, run

    show(f"the model is in {run(out, lengths=Lengths().scaled(scale))}")
