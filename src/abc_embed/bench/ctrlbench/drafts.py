"""A benchmark of generated scenes before it has a pixel, and how it becomes a folder.

Does: hold scenes with what is asked of them, draw the pictures, write the folder. Does not: choose
scenes or questions (grid.py, binding.py and held_out.py do).

Pictures are BMP: their bytes depend on nothing but the pixels, so the folder's hash is the same on
every machine that draws the same pixels.
"""

import hashlib
import io
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from abc_embed.bench.ctrlbench.schema import Benchmark, Caption, Picture, Query, write_benchmark
from abc_embed.errors import UsageError
from abc_embed.scenes.dataset import SMALLEST_SIDE
from abc_embed.scenes.layout import Scene
from abc_embed.scenes.render import render
from abc_embed.storage.files import atomic_write, make_folder

Progress = Callable[[int, int], None]

SIDE = 112
"""Pixels a side of every picture."""
KNOWN, NOVEL = "pair seen in training", "pair unseen in training"


@dataclass(frozen=True, slots=True)
class Shown:
    """A scene, the number of its mirror among the drafted scenes if that is there, its group."""

    scene: Scene
    group: str
    answers: tuple[str, ...]
    """All captions that belong to it."""
    mirror: int | None = None


@dataclass(frozen=True, slots=True)
class Asked:
    """A question about the scene number `image`."""

    image: int
    tier: str
    aspect: str
    instruction: str
    answer: str
    paraphrases: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Draft:
    """A benchmark without a pixel. `how` is what the card says of it."""

    name: str
    seed: int
    shown: Sequence[Shown]
    asked: Sequence[Asked]
    how: str


def write_draft(
    draft: Draft,
    out: str | os.PathLike[str],
    *,
    side: int = SIDE,
    progress: Progress | None = None,
) -> Benchmark:
    """Draw the pictures and write the folder; equal drafts make equal bytes.

    Raises:
        UsageError: the pictures would be too small.
        OutputError: the folder cannot be written.
    """
    if side < SMALLEST_SIDE:
        raise UsageError(f"side is {side}; give at least {SMALLEST_SIDE} pixels")
    folder = make_folder(out)
    make_folder(folder / "images")
    digests = []
    for number, shown in enumerate(draft.shown):
        digests.append(_draw(shown.scene, side, folder / _file(number)))
        if progress is not None:
            progress(number + 1, len(draft.shown))
    texts = sorted({answer for shown in draft.shown for answer in shown.answers})
    cap_ids = {text: f"c{number:04}" for number, text in enumerate(texts)}
    return write_benchmark(
        folder,
        images=[
            Picture(
                image_id=_image_id(number),
                file=_file(number),
                sha256=digest,
                source=f"abc-embed scenes, world {draft.seed}",
                license="MIT",
                mirror=None if shown.mirror is None else _image_id(shown.mirror),
                group=shown.group,
            )
            for number, (shown, digest) in enumerate(zip(draft.shown, digests, strict=True))
        ],
        corpus=[Caption(cap_id=cap_ids[text], text=text) for text in texts],
        queries=[_query(number, asked, draft, cap_ids) for number, asked in enumerate(draft.asked)],
        card=_card(draft, side),
    )


def _draw(scene: Scene, side: int, path: Path) -> str:
    """Write the picture; SHA-256 of its bytes."""
    bytes_ = io.BytesIO()
    render(scene, side).save(bytes_, format="BMP")
    with atomic_write(path) as file:
        file.write(bytes_.getvalue())
    return hashlib.sha256(bytes_.getvalue()).hexdigest()


def _query(number: int, asked: Asked, draft: Draft, cap_ids: dict[str, str]) -> Query:
    return Query(
        query_id=f"q{number:05}",
        image_id=_image_id(asked.image),
        tier=asked.tier,
        aspect=asked.aspect,
        instruction=asked.instruction,
        paraphrases=asked.paraphrases,
        positives=(cap_ids[asked.answer],),
        same_image=tuple(cap_ids[answer] for answer in draft.shown[asked.image].answers),
    )


def _card(draft: Draft, side: int) -> dict[str, Any]:
    return {
        "name": draft.name,
        "how": draft.how,
        "seed": draft.seed,
        "side": side,
        "license": "MIT",
    }


def _image_id(number: int) -> str:
    return f"i{number:05}"


def _file(number: int) -> str:
    return f"images/{number:05}.bmp"
