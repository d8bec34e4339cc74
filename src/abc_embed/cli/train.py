"""`abc-embed train`: stages 1 and 2 and the mining model from a configuration, trying a recipe out,
drawing runs, and the bundled model from nothing.

Does: hand over to `abc_embed.train`, where all of it happens; show what a dry run found.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from abc_embed.cli.options import AsJson
from abc_embed.cli.output import print_json, print_message, print_result, print_table
from abc_embed.errors import UsageError

if TYPE_CHECKING:
    from abc_embed.train.config import TrainConfig
    from abc_embed.train.dry_run import DryRunReport

STAGES_EXAMPLES = """\
Examples:

\b
  abc-embed scenes --count 400 --out data/scenes
  abc-embed train {stage} --config configs/{stage}-tiny.toml --set train.steps=20
  abc-embed train {stage} --config configs/{stage}-2b-24gb.toml --dry-run --gpu 24GB

A run that was broken off goes on when the same command is given again.
"""
MINING_EXAMPLES = """\
Examples:

\b
  abc-embed scenes --count 400 --out data/scenes
  abc-embed train mining-model --config configs/mining-model-tiny.toml
  abc-embed mine data/scenes --model runs/mining-model-tiny/model --out data/scenes/mined.jsonl
"""
PLOT_EXAMPLES = """\
Example:

\b
  abc-embed train plot runs/pretrain-tiny runs/instruct-tiny --out runs.png
"""
BUNDLED_EXAMPLES = """\
Examples:

\b
  abc-embed train bundled --out runs/bundled
  abc-embed train bundled --out runs/short --scale 0.01
"""

app = typer.Typer(
    help="Train a model: stage 1, stage 2, the mining model, or the bundled one from nothing.",
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
LogTo = Annotated[
    str | None,
    typer.Option("--log-to", help="none, tensorboard or wandb; short for --set train.log_to=…"),
]
DryRun = Annotated[
    bool,
    typer.Option("--dry-run", help="Load one batch, count, estimate memory, and change nothing."),
]
Gpu = Annotated[
    str, typer.Option("--gpu", help="For --dry-run: memory of the GPU, like 24GB, if not this one.")
]


MINING_MODEL = "mining-model"
CHECKOUT = Path(__file__).parents[3]
"""What holds `src/abc_embed` and `experiments`, where this is run from a checkout."""


def _add_stage(name: str, stage: str, help: str, epilog: str) -> None:
    """One command for each: they differ in nothing but what they accept and say."""

    @app.command(name, help=help, epilog=epilog)
    def command(
        config: Config,
        overrides: Overrides = None,
        resume: Resume = True,
        log_to: LogTo = None,
        dry_run: DryRun = False,
        gpu: Gpu = "",
        as_json: AsJson = False,
    ) -> None:
        _check_options(dry_run, gpu, as_json)
        assignments = _all(overrides, log_to)
        told = _recipe(config, assignments, stage)
        if name == MINING_MODEL and told.data.negatives:
            raise UsageError(
                f"{config} has data.negatives {told.data.negatives}, but the mining model learns "
                "from the batch alone; add --set data.negatives=0"
            )
        _stage(config, assignments, told, resume, dry_run, gpu, as_json)


for _name, _help in (
    ("pretrain", "Stage 1: from an image to its caption."),
    ("instruct", "Stage 2: from an image and an instruction to the answer."),
):
    _add_stage(_name, _name, _help, STAGES_EXAMPLES.format(stage=_name))
_add_stage(
    MINING_MODEL,
    "pretrain",
    "Stage 0: the model that finds hard negatives; stage 1 with in-batch negatives alone.",
    MINING_EXAMPLES,
)


def _all(overrides: list[str] | None, log_to: str | None) -> list[str]:
    return (overrides or []) + ([f'train.log_to="{log_to}"'] if log_to is not None else [])


def _check_options(dry_run: bool, gpu: str, as_json: bool) -> None:
    if not dry_run and (gpu or as_json):
        raise UsageError(f"{'--gpu' if gpu else '--json'} goes with --dry-run; add it")


def _recipe(config: Path, overrides: list[str], stage: str) -> "TrainConfig":
    from abc_embed.train.config import load_config

    told = load_config(config, overrides)
    if told.stage != stage:
        raise UsageError(f"{config} is for stage {told.stage!r}; run: abc-embed train {told.stage}")
    return told


def _stage(
    path: Path,
    overrides: list[str],
    config: "TrainConfig",
    resume: bool,
    dry: bool,
    gpu: str,
    as_json: bool,
) -> None:
    from accelerate import PartialState

    from abc_embed.train.run import read_run_config, train_from_config

    if not dry:
        folder = train_from_config(path, overrides, resume=resume)
        if PartialState().is_main_process:  # of several, one speaks
            print_result(f"the model is in {folder}")
        return
    from abc_embed.train.dry_run import dry_run

    read_run_config(path, overrides)
    plan = dry_run(config, gpu)
    if as_json:
        from dataclasses import asdict

        print_json(asdict(plan) | {"fits": plan.fits, "total_bytes": plan.memory.total})
    else:
        _show_plan(plan, config)


def _show_plan(plan: "DryRunReport", config: "TrainConfig") -> None:
    rows: list[tuple[object, ...]] = [(g.name, g.tensors, f"{g.parameters:,}") for g in plan.groups]
    total = sum(g.parameters for g in plan.groups)
    rows.append(("all of it", sum(g.tensors for g in plan.groups), f"{total:,}"))
    print_table(("trains", "tensors", "parameters"), rows)
    load = plan.load
    padding = 1 - load.tokens / load.padded if load.padded else 0.0
    print_table(
        ("one step", "number"),
        [
            ("images", f"{load.images:,}"),
            ("queries", f"{load.queries:,}"),
            ("candidates", f"{load.candidates:,}"),
            ("tokens", f"{load.tokens:,}"),
            ("padding besides", f"{padding:.1%}"),
            ("patches", f"{load.patches:,}"),
            ("chunks", f"{load.chunks:,}"),
        ],
    )
    found = plan.memory
    parts = [
        (f"frozen weights ({plan.frozen:,}, {plan.number_format})", found.frozen),
        ("trained weights (float32)", found.trained),
        ("their gradients", found.gradients),
        ("AdamW's means", found.optimizer),
        ("activations of the largest chunk", found.activations),
        ("vectors and scores of the step", found.vectors),
        ("reserve for CUDA and its allocator (a guess)", found.reserve),
        ("all of it", found.total),
    ]
    print_table(("memory, estimated", "GiB"), [(name, f"{n / 2**30:.2f}") for name, n in parts])
    print_message(_verdict(plan, config))


def _verdict(plan: "DryRunReport", config: "TrainConfig") -> str:
    if not plan.gpu_bytes:
        return "No GPU here and none named: give --gpu 24GB to see whether it fits."
    if plan.fits:
        free = (plan.gpu_bytes - plan.memory.total) / 2**30
        return f"It fits a GPU of {plan.gpu}, with {free:.1f} GiB to spare by this estimate."
    size = config.train.chunk_size
    if plan.fitting_chunk and plan.fitting_chunk != size:
        return (
            f"It does not fit a GPU of {plan.gpu} by this estimate; "
            f"--set train.chunk_size={plan.fitting_chunk} would."
        )
    mend = "" if config.train.gradient_checkpointing else "train.gradient_checkpointing=true, "
    return (
        f"It does not fit a GPU of {plan.gpu} by this estimate, whatever train.chunk_size is; try "
        f"{mend}a smaller data.max_pixels, a smaller model or a larger GPU."
    )


@app.command(epilog=PLOT_EXAMPLES)
def plot(
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs, or their metrics.jsonl.")],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="The picture: .png, .svg or .pdf.")
    ] = Path("runs.png"),
) -> None:
    """Loss, accuracy, temperature and gradient norm of several runs in one picture."""
    from abc_embed.train.plot import draw_runs

    print_result(f"drawn: {draw_runs(runs, out)}")


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
    if not (CHECKOUT / "experiments" / "curriculum").is_dir():
        raise UsageError(
            "the bundled model's curriculum is not part of the installed package; in a checkout of "
            "the repository run: make bundled"
        )
    sys.path.insert(0, str(CHECKOUT))
    from experiments.curriculum.run import Lengths, run

    print_result(f"the model is in {run(out, lengths=Lengths().scaled(scale))}")
