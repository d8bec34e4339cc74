"""`abc-embed plan`: memory and time of a job before it starts."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from abc_embed import runtime
from abc_embed.cli import items, options
from abc_embed.cli.output import Printer, duration, epilog, print_message
from abc_embed.errors import UsageError
from abc_embed.inputs import Item, as_item
from abc_embed.storage.json_files import atomic_write_json

if TYPE_CHECKING:
    from abc_embed.speed.plan import Plan

EXAMPLES = epilog("""
  abc-embed plan embed photos
  abc-embed plan embed photos --out plan.json
  abc-embed embed photos -o out.npy --plan plan.json
  abc-embed plan embed --images 1000000 --instructions 4 --shape tiny --gpus 8
  abc-embed plan train --config configs/pretrain-tiny.toml --out plan.json
  abc-embed train pretrain --config configs/pretrain-tiny.toml --plan plan.json
""")

app = typer.Typer()

Devices = Annotated[
    int, typer.Option("--devices", "--gpus", min=1, help="Devices like this one that share it.")
]
Out = Annotated[
    Path | None,
    typer.Option("--out", "-o", help="File for the plan, which the job's --plan takes."),
]


@dataclass(frozen=True, kw_only=True)
class PlanSettings(options.BatchSettings):
    """A model, or a shape with random weights."""

    shape: options.Shape = None

    def __post_init__(self) -> None:
        if self.weights or self.compile:
            option = "--weights" if self.weights else "--compile"
            raise UsageError(f"a plan is of plain weights; leave out {option}")
        if self.shape and self.model != options.MODEL:
            raise UsageError("--shape stands for a model; leave out --model")


@app.command()
def embed(
    inputs: Annotated[
        list[str] | None, typer.Argument(help="Image files and folders of images.")
    ] = None,
    instruction: options.Instruction = None,
    images: Annotated[int, typer.Option(min=0, help="So many images instead of a source.")] = 0,
    texts: Annotated[int, typer.Option(min=0, help="So many texts besides.")] = 0,
    instructions: Annotated[
        int, typer.Option(min=0, help="Instructions asked of each of --images.")
    ] = 0,
    size: options.PictureSize = "784x512",
    devices: Devices = 1,
    out: Out = None,
    *,
    settings: PlanSettings,
    printer: Printer,
) -> None:
    """What `embed` will take: a sample is prepared, some batches are computed with random weights.

    Nothing is written but the plan, no weights are read, and nothing is fetched.
    """
    if bool(inputs) == bool(images or texts):
        raise UsageError("give a source of images, or --images and --texts with their numbers")
    settings.check()
    area = options.area_in_pixels(settings.max_pixels)
    sides = options.parse_sides(size)
    if inputs:
        sample, count = _from_source(inputs, instruction)
    else:
        sample, count = _drawn(images, texts, instructions, sides)
    from abc_embed.speed import plan as planning

    device = runtime.resolve_device(settings.device)
    shape = None
    if settings.shape:
        from abc_embed.speed.shapes import meta_model

        shape = partial(meta_model, settings.shape)
    with options.announced("trying a sample"):
        plan = planning.plan_embedding(
            settings.shape or settings.model,
            sample,
            count,
            device=device,
            dtype=runtime.resolve_dtype(settings.dtype, device),
            max_pixels=area,
            batch_size=settings.batch_size,
            devices=devices,
            shape=shape,
        )
    _report(plan, out, printer)


@app.command()
def train(
    config: Annotated[Path, typer.Option(help="The recipe: a TOML file; configs/ has examples.")],
    overrides: options.Overrides = None,
    devices: Devices = 1,
    out: Out = None,
    *,
    printer: Printer,
) -> None:
    """What a training run will take: its dry run, and a few steps with random weights."""
    from abc_embed.speed.plan import plan_training
    from abc_embed.train.run import read_run_config

    recipe = read_run_config(config, overrides or ())
    with options.announced("trying a step"):
        plan = plan_training(recipe, devices=devices)
    _report(plan, out, printer)


def _from_source(paths: list[str], instruction: str | None) -> tuple[list[Item], int]:
    named = items.from_arguments(paths, [], instruction)
    good = [each.item for each in named if each.item is not None]
    if not good:
        raise UsageError(f"there is no image in {', '.join(paths)}")
    return good, len(named)


def _drawn(
    images: int, texts: int, instructions: int, sides: tuple[int, int]
) -> tuple[list[Item], int]:
    """A sample with the proportions of the job, and the number of its items."""
    from abc_embed.speed import workloads

    asked = images * max(1, instructions)
    total = asked + texts
    photos = workloads.draw_photos(min(images, 6), *sides)
    seen = workloads.instructed(photos, instructions) if instructions else workloads.images(photos)
    words = round(len(seen.items) * texts / asked) if asked else 24
    written = workloads.texts(max(words, 1)).items if texts else []
    return [as_item(item) for item in (*seen.items, *written)], total


def _report(plan: "Plan", out: Path | None, printer: Printer) -> None:
    if out is not None:
        atomic_write_json(out, plan.as_json())
    printer.json(plan.as_json())
    unit = "items" if plan.job == "embed" else "steps"
    printer.table(
        (f"{plan.units:,} {unit}", "time"),
        [
            ("start: libraries and the model", duration(plan.start_s)),
            ("preparing, on one thread", duration(plan.prepare_s)),
            ("computing, on one device", duration(plan.compute_s)),
            (f"all of it, on {plan.devices} x {plan.device}", duration(plan.wall_s)),
            ("processor time", duration(plan.processor_s)),
        ],
    )
    rows = [(name, f"{size / 2**30:.2f}") for name, size in plan.memory.items()]
    printer.table(
        ("memory at its peak", "GiB"), [*rows, ("all of it", f"{plan.total_bytes / 2**30:.2f}")]
    )
    per_hour = plan.units / max(plan.wall_s, 1e-9) * 3600
    printer.line(
        f"{plan.units:,} {unit} with {plan.model} in {plan.dtype} take about "
        f"{duration(plan.wall_s)} ({per_hour:,.0f} {unit} an hour) and "
        f"{plan.total_bytes / 2**30:.1f} GiB"
    )
    if plan.layers_tried != "all":
        print_message("The model was tried with a layer or two of each encoder; the rest is added.")
    if out is not None:
        print_message(f"the plan is {out}")
