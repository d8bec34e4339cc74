"""A folder of scenes, images and `records.jsonl`: the same bytes for the same seed.

Images come in pairs: every second one is the image before it with left and right swapped, and the
two name each other in `meta`. `records.jsonl` is written last: without it the set is not finished.
"""

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from abc_embed.data.records import RECORDS_FILE, Instruction, Record, Region, write_records
from abc_embed.errors import OutputError, UsageError
from abc_embed.scenes.layout import Scene, make_scene
from abc_embed.scenes.questions import caption, hard_captions, questions, same_meaning
from abc_embed.scenes.render import box, render
from abc_embed.storage.files import atomic_write, is_partial, make_folder

PLAN_FILE = "scenes.json"
"""Says which scenes a folder is to hold; written first."""
NEGATIVES = 7
"""Captions drawn that are almost right; the mirror's caption comes on top, if it is another."""
MIN_SIDE = 32
"""Below it, in pixels, things do not keep their place: none is drawn smaller than 8."""


@dataclass(frozen=True, slots=True)
class ScenesPlan:
    """Which scenes: `count` images of `side` × `side` pixels from the world `seed`."""

    count: int
    seed: int
    side: int = 112
    held_out: bool = False

    def __post_init__(self) -> None:
        smallest = {"count": 1, "seed": 0, "side": MIN_SIDE}
        for name, value in smallest.items():
            if getattr(self, name) < value:
                raise UsageError(f"{name} is {getattr(self, name)}; give at least {value}")

    def scene(self, number: int) -> Scene:
        """The scene of image `number`, counted from 0; odd ones are mirrors."""
        scene = make_scene(self.seed, number // 2, held_out=self.held_out)
        return scene.mirrored() if number % 2 else scene

    def id(self, number: int) -> str:
        """The record's id, unlike those of other worlds."""
        return f"scene-{self.seed}{'h' if self.held_out else ''}-{number:06}"


def write_dataset(
    out: str | os.PathLike[str],
    count: int,
    seed: int,
    side: int = 112,
    held_out: bool = False,
    on_progress: Callable[[int], None] = lambda done: None,
) -> Path:
    """Write `count` images and their records into the folder `out`; returns the records file.

    Equal arguments make equal bytes. Called again after it was broken off, it keeps the images that
    are there. An odd `count` leaves the last image without its mirror.

    Args:
        out: a new or empty folder, or one in which this very set was begun.
        count: images, mirrors included.
        seed: of the world; 0 or more. Worlds of `TRAINING_WORLDS` are for training.
        side: of the square images, in pixels.
        held_out: scenes around pairs of things that never share a scene without it.
        on_progress: called with the number of images done.

    Raises:
        UsageError: an argument is out of range.
        OutputError: the folder holds something else, or cannot be written.
    """
    plan = ScenesPlan(count, seed, side, held_out)
    folder = make_folder(out)
    _claim(folder, plan)
    make_folder(folder / "images")

    def records() -> Iterator[Record]:
        for number in range(count):
            record = make_record(plan, number)
            path = folder / record.image
            if not path.exists():  # whole if it is there, since it was renamed into place
                with atomic_write(path) as file:
                    render(plan.scene(number), side).save(file, format="PNG")
            on_progress(number + 1)
            yield record

    write_records(folder / RECORDS_FILE, records())
    return folder / RECORDS_FILE


def _claim(folder: Path, plan: ScenesPlan) -> None:
    """Leave the plan in an empty folder; in another, find this plan."""
    text = json.dumps(asdict(plan), indent=2) + "\n"
    path = folder / PLAN_FILE
    try:
        if path.is_file():
            if path.read_text(encoding="utf-8") != text:
                raise OutputError(
                    f"{folder} holds other scenes; give another folder, or the arguments that "
                    f"its {PLAN_FILE} names"
                )
            return
        if any(not is_partial(file) for file in folder.iterdir()):
            raise OutputError(f"{folder} holds other files; give a new or an empty folder")
    except OSError as problem:
        raise OutputError(f"{folder} cannot be used: {problem.strerror}") from problem
    with atomic_write(path) as file:
        file.write(text.encode())


def make_record(plan: ScenesPlan, number: int) -> Record:
    """What is said about image `number` of a plan."""
    scene = plan.scene(number)
    twin = number ^ 1  # 0 and 1, 2 and 3, …
    return Record(
        id=plan.id(number),
        image=f"images/{number:06}.png",
        caption=caption(scene),
        width=plan.side,
        height=plan.side,
        regions=tuple(
            Region(phrase=p.thing.phrase, box=box(p, plan.side, plan.side)) for p in scene.placed
        ),
        instructions=tuple(Instruction(**asdict(question)) for question in questions(scene)),
        negatives=negatives(scene, np.random.default_rng((plan.seed, number, 3))),
        source="abc-embed scenes",
        license="MIT",
        meta={
            "world": plan.seed,
            "scene": number // 2,
            "held_out": plan.held_out,
            "mirrored": bool(number % 2),
            "mirror": plan.id(twin) if twin < plan.count else None,
            "background": scene.background,
        },
    )


def negatives(scene: Scene, rng: np.random.Generator) -> tuple[str, ...]:
    """Different captions, none of which is true of the scene; the mirror's own comes first."""
    right = caption(scene)
    wrong = [caption(scene.mirrored())]
    if same_meaning(wrong[0], right):  # one above the other: a mirror changes nothing
        wrong.clear()
    wanted = len(wrong) + NEGATIVES
    while len(wrong) < wanted:
        (text,) = hard_captions(scene, rng, 1)
        if not any(same_meaning(text, other) for other in (right, *wrong)):
            wrong.append(text)
    return tuple(wrong)
