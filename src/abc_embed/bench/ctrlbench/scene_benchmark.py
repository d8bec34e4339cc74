"""A benchmark of generated scenes: what is asked of them, and how it becomes a folder.

`grid.py`, `binding.py` and `unseen_scenes.py` choose the scenes and questions. Pictures are BMP:
their bytes depend on nothing but the pixels, so the folder's hash is the same on every machine that
draws the same pixels.
"""

import io
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from abc_embed.bench.ctrlbench.schema import (
    Benchmark,
    Caption,
    TextQuery,
    image_id,
    query_rows,
    write_benchmark,
    write_picture,
)
from abc_embed.errors import UsageError
from abc_embed.scenes.dataset import MIN_SIDE
from abc_embed.scenes.layout import Scene
from abc_embed.scenes.questions import Question, questions, unanswerable
from abc_embed.scenes.render import render
from abc_embed.storage.files import make_folder

SIDE = 112
"""Pixels a side of every picture."""
KNOWN, NOVEL = "pair seen in training", "pair unseen in training"


MirroredQuestion = tuple[Question, Question]
"""A question of a scene, and the same of its mirror."""


def mirrored_questions(scene: Scene) -> list[MirroredQuestion]:
    """The questions that can be asked of a scene and of its mirror, in the scene's order."""
    twins = {question.instruction: question for question in questions(scene.mirrored())}
    return [(q, twins[q.instruction]) for q in questions(scene) if q.instruction in twins]


@dataclass(frozen=True, slots=True)
class SceneImage:
    """A scene, and the number of its mirror among the benchmark's images if that is there."""

    scene: Scene
    group: str
    captions: tuple[str, ...]
    """All that belong to it."""
    mirror: int | None = None


@dataclass(frozen=True, slots=True)
class SceneBenchmark:
    """A benchmark without a pixel. `description` is what the card says of it."""

    name: str
    seed: int
    images: Sequence[SceneImage]
    queries: Sequence[TextQuery]
    description: str

    @property
    def candidates(self) -> list[str]:
        """The captions of all images, each once."""
        return sorted({caption for image in self.images for caption in image.captions})


def write_scene_benchmark(
    spec: SceneBenchmark,
    out: str | os.PathLike[str],
    *,
    side: int = SIDE,
    on_progress: Callable[[int, int], None] | None = None,
) -> Benchmark:
    """Draw the pictures and write the folder; equal benchmarks make equal bytes.

    Raises:
        UsageError: the pictures would be too small.
        OutputError: the folder cannot be written.
    """
    if side < MIN_SIDE:
        raise UsageError(f"side is {side}; give at least {MIN_SIDE} pixels")
    folder = make_folder(out)
    pictures = []
    for number, image in enumerate(spec.images):
        bmp = io.BytesIO()
        render(image.scene, side).save(bmp, format="BMP")
        pictures.append(
            write_picture(
                *(folder, image_id(number), f"images/{number:05}.bmp", bmp.getvalue()),
                source=f"abc-embed scenes, world {spec.seed}",
                license="MIT",
                mirror=None if image.mirror is None else image_id(image.mirror),
                group=image.group,
            )
        )
        if on_progress is not None:
            on_progress(number + 1, len(spec.images))
    corpus = [Caption(cap_id=f"c{n:04}", text=text) for n, text in enumerate(spec.candidates)]
    return write_benchmark(
        folder,
        images=pictures,
        corpus=corpus,
        queries=query_rows(spec.queries, (i.captions for i in spec.images), corpus),
        card={
            "name": spec.name,
            "how": spec.description,
            "seed": spec.seed,
            "side": side,
            "license": "MIT",
        },
    )


def unanswerable_queries(spec: SceneBenchmark) -> list[tuple[str, str]]:
    """(image_id, instruction) of one question an image about something that it does not show.

    They are no rows of the folder, so that its hash stays; the seed draws them.
    """
    return [
        (image_id(n), unanswerable(image.scene, np.random.default_rng((spec.seed, n))).instruction)
        for n, image in enumerate(spec.images)
    ]
