"""A folder of scenes: images and `records.jsonl`.

Does: write a data set in the records format, the same bytes for the same seed; go on where it was
broken off. Does not: decide what a scene is (layout.py) or what a record is (data/records.py).

Images come in pairs: every second one is the image before it with left and right swapped, and the
two name each other in `meta`. `records.jsonl` is written last: without it the set is not finished.
"""

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from abc_embed.data.records import (
    RECORDS_FILE,
    Instruction,
    Record,
    Region,
    write_records,
)
from abc_embed.errors import OutputError, UsageError
from abc_embed.scenes.layout import Scene, make_scene
from abc_embed.scenes.questions import caption, hard_captions, questions, same_meaning
from abc_embed.scenes.render import box, render
from abc_embed.storage.files import atomic_write, make_folder

PLAN_FILE = "scenes.json"
"""Says which scenes a folder is to hold; written first."""
NEGATIVES = 7
"""Captions drawn that are almost right; the mirror's caption comes on top, if it is another."""
SMALLEST_SIDE = 32
"""Below it, in pixels, things do not keep their place: none is drawn smaller than 8."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Plan:
    """Which scenes: `count` images of `side` × `side` pixels from the world `seed`."""

    count: int
    seed: int
    side: int = 112
    held_out: bool = False

    def __post_init__(self) -> None:
        least = {"count": 1, "seed": 0, "side": SMALLEST_SIDE}
        for name, value in least.items():
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
    progress: Progress | None = None,
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
        progress: called with the number of images done and `count`.

    Raises:
        UsageError: an argument is out of range.
        OutputError: the folder holds something else, or cannot be written.
    """
    plan = Plan(count, seed, side, held_out)
    folder = make_folder(out)
    _begin(folder, plan)
    make_folder(folder / "images")
    return _write(folder, plan, progress or (lambda done, of: None))


def _begin(folder: Path, plan: Plan) -> None:
    """Leave the plan in an empty folder; in another, find this plan."""
    text = json.dumps({name: getattr(plan, name) for name in Plan.__slots__}, indent=2) + "\n"
    there = folder / PLAN_FILE
    try:
        if there.is_file():
            if there.read_text(encoding="utf-8") != text:
                raise OutputError(
                    f"{folder} holds other scenes; give another folder, or the arguments that "
                    f"its {PLAN_FILE} names"
                )
            return
        if any(not path.name.endswith(".part") for path in folder.iterdir()):
            raise OutputError(f"{folder} holds other files; give a new or an empty folder")
    except OSError as problem:
        raise OutputError(f"{folder} cannot be used: {problem.strerror}") from problem
    with atomic_write(there) as file:
        file.write(text.encode())


def _write(folder: Path, plan: Plan, progress: Progress) -> Path:
    def records() -> Iterator[Record]:
        for number in range(plan.count):
            record = make_record(plan, number)
            path = folder / record.image
            if not path.exists():  # whole if it is there, since it was renamed into place
                with atomic_write(path) as file:
                    render(plan.scene(number), plan.side).save(file, format="PNG")
            progress(number + 1, plan.count)
            yield record

    path = folder / RECORDS_FILE
    write_records(path, records())
    return path


def make_record(plan: Plan, number: int) -> Record:
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
        instructions=tuple(
            Instruction(
                instruction=q.instruction,
                answer=q.answer,
                kind=q.kind,
                paraphrases=q.paraphrases,
                region=q.region,
            )
            for q in questions(scene)
        ),
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
    true = caption(scene)
    found = [caption(scene.mirrored())]
    if same_meaning(found[0], true):  # one above the other: a mirror changes nothing
        found.clear()
    wanted = len(found) + NEGATIVES
    while len(found) < wanted:
        (text,) = hard_captions(scene, rng, 1)
        if not any(same_meaning(text, other) for other in (true, *found)):
            found.append(text)
    return tuple(found)
