"""`abc-embed train`: both stages and the mining model from a configuration, or without training a
dry run; pictures of runs; the bundled model from nothing.
"""

import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from abc_embed.cli.options import Overrides, PlanFile, judge_plan
from abc_embed.cli.output import AsJson, Printer, epilog, print_message, print_result
from abc_embed.errors import UsageError
from abc_embed.progress import progress_bar
from abc_embed.runtime import free_memory_bytes
from abc_embed.train.config import TrainConfig, load_config

if TYPE_CHECKING:
    from abc_embed.train.dry_run import DryRunReport
    from abc_embed.train.trials import LearningRates

EXAMPLES = epilog("\n  abc-embed train pretrain --config configs/pretrain-tiny.toml\n")
STAGES_EXAMPLES = epilog("""
  abc-embed scenes --count 400 --out data/scenes
  abc-embed train {stage} --config configs/{stage}-tiny.toml --set train.steps=20
  abc-embed train {stage} --config configs/{stage}-tiny.toml --find-lr rates
  abc-embed train {stage} --config configs/{stage}-tiny.toml --profile profile
  abc-embed train {stage} --config configs/{stage}-2b-24gb.toml --dry-run --gpu 24GB

A run that was broken off goes on when the same command is given again.
""")
MINING_EXAMPLES = epilog("""
  abc-embed scenes --count 400 --out data/scenes
  abc-embed train mining-model --config configs/mining-model-tiny.toml
  abc-embed mine data/scenes --model runs/mining-model-tiny/model --out data/scenes/mined.jsonl
""")
PLOT_EXAMPLES = epilog(
    "\n  abc-embed train plot runs/pretrain-tiny runs/instruct-tiny --out runs.png\n"
)
EXPORT_EXAMPLES = epilog("""
  abc-embed train export-checkpoint runs/pretrain-tiny --out runs/halfway
  abc-embed bench ctrlbench --model runs/pretrain-tiny/checkpoints/step-00000100
""")
BUNDLED_EXAMPLES = epilog("""
  abc-embed train bundled --out runs/bundled
  abc-embed train bundled --out runs/short --scale 0.01
""")

app = typer.Typer()

CHECKOUT = Path(__file__).parents[3]
"""What holds `src/abc_embed` and `experiments`, where this is run from a checkout."""


@dataclass(frozen=True, kw_only=True)
class StageSettings:
    """A configuration, and what is done with it."""

    config: Annotated[Path, typer.Option(help="A TOML file; configs/ has examples.")]
    overrides: Overrides = None
    resume: Annotated[
        bool,
        typer.Option(
            "--resume/--no-resume", help="Go on with a run, or refuse a folder that has one."
        ),
    ] = True
    moved: Annotated[
        bool, typer.Option(help="The base or the data of a broken run lie somewhere else now.")
    ] = False
    log_to: Annotated[
        str | None, typer.Option(help="none, tensorboard or wandb; short for --set train.log_to=…")
    ] = None
    dry_run: Annotated[
        bool, typer.Option(help="Load one batch, count, estimate memory, and change nothing.")
    ] = False
    find_lr: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Raise the learning rate over 100 steps instead, and draw the loss.",
        ),
    ] = None
    profile: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="Say where the time of a step goes instead; a trace in a folder."
        ),
    ] = None
    gpu: Annotated[
        str, typer.Option(help="For --dry-run: memory of the GPU, like 24GB, if not this one.")
    ] = ""
    plan: PlanFile = None
    as_json: AsJson = False

    def __post_init__(self) -> None:
        instead = {
            "--dry-run": self.dry_run,
            "--find-lr": self.find_lr is not None,
            "--profile": self.profile is not None,
        }
        chosen = [option for option, given in instead.items() if given]
        if len(chosen) > 1:
            raise UsageError(f"{' and '.join(chosen)} are two things; give one at a time")
        if self.gpu and not self.dry_run:
            raise UsageError("--gpu goes with --dry-run; add it")
        if self.as_json and not chosen:
            raise UsageError("--json goes with --dry-run, --find-lr or --profile; add one")

    @property
    def assignments(self) -> list[str]:
        """All overrides of the configuration's fields."""
        log_to = [] if self.log_to is None else [f'train.log_to="{self.log_to}"']
        return [*(self.overrides or []), *log_to]

    def load_config(self, stage: str) -> TrainConfig:
        """The configuration, which must be for that stage."""
        config = load_config(self.config, self.assignments)
        if config.stage != stage:
            raise UsageError(
                f"{self.config} is for stage {config.stage!r}; run: abc-embed train {config.stage}"
            )
        return config


@app.command(epilog=STAGES_EXAMPLES.format(stage="pretrain"))
def pretrain(settings: StageSettings) -> None:
    """Stage 1: from an image to its caption."""
    _train(settings, settings.load_config("pretrain"))


@app.command(epilog=STAGES_EXAMPLES.format(stage="instruct"))
def instruct(settings: StageSettings) -> None:
    """Stage 2: from an image and an instruction to the answer."""
    _train(settings, settings.load_config("instruct"))


@app.command(epilog=MINING_EXAMPLES)
def mining_model(settings: StageSettings) -> None:
    """Stage 0: the model that finds hard negatives; stage 1 with in-batch negatives alone."""
    config = settings.load_config("pretrain")
    if config.data.negatives:
        raise UsageError(
            f"{settings.config} has data.negatives {config.data.negatives}, but the mining model "
            "learns from the batch alone; add --set data.negatives=0"
        )
    _train(settings, config)


def _train(settings: StageSettings, config: TrainConfig) -> None:
    from accelerate import PartialState

    from abc_embed.train.dry_run import dry_run
    from abc_embed.train.run import check_complete, train_from_config

    printer = Printer(as_json=settings.as_json)
    if settings.dry_run or settings.find_lr or settings.profile:
        check_complete(config, str(settings.config))
    if settings.dry_run:
        plan = dry_run(config, settings.gpu)
        printer.json(asdict(plan) | {"fits": plan.fits, "total_bytes": plan.memory.total})
        if not printer.as_json:
            _print_plan(plan, config, printer)
    elif settings.profile:
        _profile(config, settings.profile, printer)
    elif settings.find_lr:
        _find_learning_rate(config, settings.find_lr, printer)
    else:
        judged = settings.plan and judge_plan(settings.plan, "train", config.model.base)
        folder = train_from_config(
            settings.config, settings.assignments, resume=settings.resume, moved=settings.moved
        )
        if PartialState().is_main_process:  # of several, one speaks
            print_result(f"the model is in {folder}")
            if judged:
                device = "cpu" if config.model.device == "cpu" else "auto"
                print_message(judged(device, config.train.steps))


def _profile(config: TrainConfig, out: Path, printer: Printer) -> None:
    from abc_embed.train.trials import profile_steps

    with progress_bar("steps") as on_progress:
        found = profile_steps(config, out, on_progress)
    printer.json(asdict(found))
    total = sum(found.parts.values())
    parts = [(name, f"{ms:.1f}", f"{ms / total:.1%}") for name, ms in found.parts.items()]
    printer.table(("one step", "ms", "share"), parts)
    slowest = found.operations[:12]
    rows = [(row["operation"], row["calls"], f"{row['ms']:.1f}") for row in slowest]
    printer.table(("operation", "calls", "ms, its own"), rows)
    print_message(f"{out} has trace.json (for chrome://tracing) and all operations")


def _find_learning_rate(config: TrainConfig, out: Path, printer: Printer) -> None:
    from abc_embed.train.trials import find_learning_rate

    with progress_bar("learning rates") as on_progress:
        rates = find_learning_rate(config, out, on_progress)
    printer.json(asdict(rates))
    columns = ("learning_rate", "loss", "smoothed")
    lines = [[f"{row[name]:.3g}" for name in columns] for row in rates.rows[::10]]
    printer.table(("learning rate", "loss", "running mean"), lines)
    printer.line(_advice(rates, config))
    print_message(f"all of it is in {out}, drawn")


def _advice(rates: "LearningRates", config: TrainConfig) -> str:
    if rates.suggestion is None:
        return "the loss fell at no learning rate: look at the data, or at the rank of the adapter"
    end = "" if rates.diverged else "; it had not diverged at the highest one tried"
    return (
        f"suggested: --set optim.learning_rate={rates.suggestion:.1e} (a tenth of where the loss "
        f"was lowest{end}); the recipe has {config.optim.learning_rate:.1e}"
    )


def _print_plan(plan: "DryRunReport", config: TrainConfig, printer: Printer) -> None:
    rows: list[tuple[object, ...]] = [(g.name, g.tensors, f"{g.parameters:,}") for g in plan.groups]
    total = sum(g.parameters for g in plan.groups)
    rows.append(("all of it", sum(g.tensors for g in plan.groups), f"{total:,}"))
    printer.table(("trains", "tensors", "parameters"), rows)
    load = {name: f"{number:,}" for name, number in asdict(plan.load).items()}
    share = plan.load.tokens / plan.load.padded if plan.load.padded else 1.0
    load["padded"] = f"{1 - share:.1%}"
    names = {"padded": "padding besides"}
    printer.table(("one step", "number"), [(names.get(n, n), text) for n, text in load.items()])
    memory = plan.memory
    parts = [
        (f"frozen weights ({plan.frozen:,}, {plan.number_format})", memory.frozen),
        ("trained weights (float32)", memory.trained),
        ("their gradients", memory.gradients),
        ("AdamW's means", memory.optimizer),
        ("activations of the largest chunk", memory.activations),
        ("vectors and scores of the step", memory.vectors),
        ("reserve for CUDA and its allocator (a guess)", memory.reserve),
    ]
    if memory.process:
        parts[-1] = ("kernels, and what the allocator loses (measured elsewhere)", memory.reserve)
        parts.append(("the process itself, with its libraries", memory.process))
    parts.append(("all of it", memory.total))
    printer.table(("memory, estimated", "GiB"), [(name, f"{n / 2**30:.2f}") for name, n in parts])
    print_message(_verdict(plan, config))


def _verdict(plan: "DryRunReport", config: TrainConfig) -> str:
    if not plan.gpu_bytes:
        import torch

        free = free_memory_bytes(torch.device("cpu"))
        there = f"; {free / 2**30:.1f} GiB are free here" if free else ""
        return (
            f"On the CPU it takes {plan.memory.total / 2**30:.1f} GiB of main memory at its peak "
            f"by this estimate{there}. For a GPU give --gpu 24GB."
        )
    if plan.fits:
        spare = (plan.gpu_bytes - plan.memory.total) / 2**30
        return f"It fits a GPU of {plan.gpu}, with {spare:.1f} GiB to spare by this estimate."
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


@app.command(epilog=EXPORT_EXAMPLES)
def export_checkpoint(
    checkpoint: Annotated[
        Path, typer.Argument(help="One of a run's checkpoints/, or a run: its newest one.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for the model.")],
) -> None:
    """Save what a run had reached at a checkpoint as a model of its own."""
    no_checkpoint = UsageError(
        f"{checkpoint} is no checkpoint of a run; name one of its checkpoints/"
    )
    if not checkpoint.is_dir():  # found before torch is imported
        raise no_checkpoint
    from abc_embed import checkpoint as models
    from abc_embed.train.checkpoints import list_checkpoints

    found = list_checkpoints(checkpoint / "checkpoints") or [checkpoint]
    if not (found[-1] / models.RUN_STATE).is_file():
        raise no_checkpoint
    models.save(*models.load(str(found[-1])), out)
    print_result(f"the model of {found[-1].name} is in {out}")


@app.command(epilog=PLOT_EXAMPLES)
def plot(
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs, or their metrics.jsonl.")],
    out: Annotated[Path, typer.Option(help="The picture: .png, .svg or .pdf.")] = Path("runs.png"),
) -> None:
    """Loss, accuracy, temperature and gradient norm of several runs in one picture."""
    from abc_embed.train.plot import draw_runs

    print_result(f"drawn: {draw_runs(runs, out)}")


@app.command(epilog=BUNDLED_EXAMPLES)
def bundled(
    out: Annotated[Path, typer.Option(help="Folder of the run; the model is in it.")],
    scale: Annotated[
        float, typer.Option(min=0.0001, help="Longer or shorter than the shipped model's run.")
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
