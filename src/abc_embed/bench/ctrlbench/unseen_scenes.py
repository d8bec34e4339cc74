"""Tier S: unseen scenes, with questions of every kind in words drawn from all wordings.

Neither the picture alone nor the words alone can answer them. Half of the scenes are built around
two things that never shared a scene in training. Each thing of a scene is the answer of at most one
question, and so is its background; so whoever ignores the instruction has at most one of a
picture's questions right. Kinds of questions come as evenly as the scenes allow.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from abc_embed.bench.ctrlbench.scene_benchmark import (
    KNOWN,
    NOVEL,
    SceneBenchmark,
    SceneImage,
    mirrored_questions,
)
from abc_embed.bench.ctrlbench.schema import PAIR_TIER, TextQuery
from abc_embed.errors import UsageError
from abc_embed.scenes.layout import TRAINING_WORLDS, Scene, make_scene
from abc_embed.scenes.questions import KINDS, Question, questions

TIER = "S"
SEED = 7001
"""The world that is measured; training may use `TRAINING_WORLDS`."""


def generate(count: int = 2000, pairs: int = 500, seed: int = SEED) -> SceneBenchmark:
    """At least `count` queries, and below them at most `pairs` mirrored pairs of queries.

    The mirrors stand below the scenes and are there for their pairs only.

    Raises:
        UsageError: the seed is one of training's, or a number is out of range.
    """
    if seed in TRAINING_WORLDS or seed < 0:
        raise UsageError(
            f"seed is {seed}; give one above {TRAINING_WORLDS.stop - 1}, "
            "since the scenes below it are for training"
        )
    if count < 1 or pairs < 1:
        raise UsageError("queries and pairs must be at least 1")
    rng = np.random.default_rng((seed, 20))
    used = Counter[str]()
    scenes: list[Scene] = []
    queries: list[TextQuery] = []
    mirrored: list[tuple[TextQuery, str]] = []
    while len(queries) < count or len(scenes) % 2:
        scene = make_scene(seed, len(scenes) // 2, held_out=bool(len(scenes) % 2))
        pool = questions(scene)
        for question in _choose(rng, scene, pool, used):
            words = _wording(rng, question)
            queries.append(TextQuery(len(scenes), TIER, question.kind, words, question.answer))
        mirrored += _mirror_pair(rng, scene, len(scenes))
        scenes.append(scene)
    mirrored = mirrored[:pairs]
    mirrors = {query.image: len(scenes) + n for n, (query, _) in enumerate(mirrored)}
    images = [
        SceneImage(scene, NOVEL if n % 2 else KNOWN, _answers(scene), mirrors.get(n))
        for n, scene in enumerate(scenes)
    ]
    for number in mirrors:
        image = images[number]
        images.append(SceneImage(image.scene.mirrored(), image.group, image.captions, number))
    for query, answer in mirrored:
        twin = TextQuery(mirrors[query.image], PAIR_TIER, "pair", query.instruction, answer)
        queries += [query, twin]
    description = (
        f"{len(scenes)} scenes of two to four things, every second one around two things that "
        "no training scene has together; questions of every kind, in words drawn from all wordings"
    )
    return SceneBenchmark("ctrlbench-S", seed, images, queries, description)


def split_mirrors(spec: SceneBenchmark) -> tuple[list[SceneImage], list[TextQuery]]:
    """Scenes and queries without the mirrored pairs."""
    queries = [query for query in spec.queries if query.tier == TIER]
    count = 1 + max(query.image for query in queries)
    return list(spec.images[:count]), queries


def _answers(scene: Scene) -> tuple[str, ...]:
    """Every answer that a question of the scene has, each once."""
    return tuple(dict.fromkeys(question.answer for question in questions(scene)))


def _choose(
    rng: np.random.Generator, scene: Scene, pool: Sequence[Question], used: Counter[str]
) -> list[Question]:
    """At most one question for each thing, and one for the ground while its kind is behind.

    `used` counts the questions of each kind so far; the kind that came least is preferred.
    """
    chosen = []
    for region in rng.permutation(len(scene.placed)):
        about = [q for q in pool if q.region == region]
        if about:
            kinds = sorted({q.kind for q in about}, key=lambda kind: (used[kind], kind))
            same = [q for q in about if q.kind == kinds[0]]
            chosen.append(same[int(rng.integers(len(same)))])
            used[kinds[0]] += 1
    if used["background"] * len(KINDS) < used.total():
        chosen += [q for q in pool if q.region is None]
        used["background"] += 1
    return chosen


def _wording(rng: np.random.Generator, question: Question) -> str:
    """The question in one of its wordings."""
    wordings = (question.instruction, *question.paraphrases)
    return wordings[int(rng.integers(len(wordings)))]


def _mirror_pair(rng: np.random.Generator, scene: Scene, image: int) -> list[tuple[TextQuery, str]]:
    """One question with its answer in the mirror, which is another; none where there is none."""
    changing = [(q, twin) for q, twin in mirrored_questions(scene) if q.answer != twin.answer]
    if not changing:
        return []
    question, twin = changing[int(rng.integers(len(changing)))]
    query = TextQuery(image, PAIR_TIER, "pair", _wording(rng, question), question.answer)
    return [(query, twin.answer)]
