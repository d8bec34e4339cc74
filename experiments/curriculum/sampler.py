"""Generated scenes as training groups for stages 1 and 2: nothing on disk, all from a seed."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from abc_embed.scenes.layout import Scene
from abc_embed.scenes.questions import all_answers, caption, hard_captions
from abc_embed.scenes.things import KIND_WORDS, THINGS
from abc_embed.train.batches import Group, LazyGroups, caption_group, instruction_group
from abc_embed.train.config import StageName
from experiments.curriculum.wide import (
    wide_picture,
    wide_question,
    wide_questions,
    wide_scene,
    wide_wording,
)
from experiments.curriculum.world import LARGE_GRIDS, sample_grid, single_thing

SINGLES = 0.3  # share of stage-1 pictures that show one thing, named by its phrase alone


@dataclass(frozen=True, slots=True)
class SceneSampler:
    """Groups of a stage, numbered on without end.

    Stage 1: a scene with its caption and `negatives` captions that are nearly right, or a single
    thing with its name. Stage 2: a scene with `instructions` questions, and `negatives` further
    answers as candidates.
    """

    stage: StageName
    negatives: int
    instructions: int = 4

    def groups(self, step: int, count: int, seed: int) -> Sequence[Group]:
        return LazyGroups(count, lambda i: self._group(step * count + i, seed))

    def _group(self, index: int, seed: int) -> Group:
        rng = np.random.default_rng((seed, index, 23))
        if self.stage == "pretrain":
            return self._captioned(rng, seed, index)
        scene = wide_scene(seed, index, smallest=2)
        pool, answers = wide_questions(scene), all_answers()
        asked = [wide_question(rng, pool) for _ in range(self.instructions)]
        return instruction_group(
            _picture(scene, rng),
            [(wide_wording(question, rng), question.answer) for question in asked],
            [answers[int(i)] for i in rng.integers(len(answers), size=self.negatives)],
        )

    def _captioned(self, rng: np.random.Generator, seed: int, index: int) -> Group:
        if rng.random() < SINGLES:
            scene = single_thing(seed, index)
            thing = scene.placed[0].thing
            similar = [
                t.phrase
                for t in THINGS
                if t is not thing and t.kind == thing.kind and t.kind in KIND_WORDS
            ]
            similar = similar or [t.phrase for t in THINGS if t is not thing]
            return caption_group(
                _picture(scene, rng),
                thing.phrase,
                [similar[int(i)] for i in rng.integers(len(similar), size=self.negatives)],
            )
        scene = wide_scene(seed, index, smallest=2)
        return caption_group(
            _picture(scene, rng), caption(scene), hard_captions(scene, rng, self.negatives)
        )


def _picture(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    return wide_picture(scene, *sample_grid(rng, LARGE_GRIDS), rng)
