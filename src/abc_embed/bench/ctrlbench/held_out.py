"""Unseen scenes, what is asked of them, and the candidates to choose from.

Does: draw the questions of the scene benchmark from a seed, so that neither the picture alone nor
the words alone can answer them. Does not: know a model.

Half of the scenes are built around two things that never shared a scene in training. Each thing of
a scene is the answer of at most one question, and so is its background; so whoever ignores the
instruction has at most one of a picture's questions right (`image_bound`). Kinds of questions come
as evenly as the scenes allow, and each is put in words drawn from all its wordings.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from abc_embed.bench.ctrlbench.drafts import KNOWN, NOVEL, Asked, Draft, Shown
from abc_embed.bench.ctrlbench.schema import PAIR_TIER
from abc_embed.errors import UsageError
from abc_embed.scenes.layout import TRAINING_WORLDS, Scene, make_scene
from abc_embed.scenes.questions import KINDS, Question, questions

SEED = 7001
"""The world that is measured; training may use `TRAINING_WORLDS`."""


@dataclass(frozen=True, slots=True)
class Query:
    """One question of the picture number `image`, in the words asked; `answer` is right."""

    image: int
    instruction: str
    answer: str
    kind: str


@dataclass(frozen=True, slots=True)
class MirrorPair:
    """One question of the picture number `image` and of its mirror, with their two answers."""

    image: int
    instruction: str
    answer: str
    mirrored_answer: str


@dataclass(frozen=True, slots=True)
class HeldOut:
    """The whole benchmark, without a pixel."""

    seed: int
    scenes: tuple[Scene, ...]
    novel: tuple[bool, ...]
    """For each scene, whether it is built around a pair unseen in training."""
    queries: tuple[Query, ...]
    pairs: tuple[MirrorPair, ...]
    candidates: tuple[str, ...]
    """Every answer that any question of these scenes has, each once."""

    @property
    def image_bound(self) -> float:
        """The most R@1 that the picture alone can have: one right answer per picture."""
        answers = Counter((q.image, q.answer) for q in self.queries)
        best = Counter[int]()
        for (image, _), count in answers.items():
            best[image] = max(best[image], count)
        return best.total() / len(self.queries)


def build(queries: int = 2000, pairs: int = 500, seed: int = SEED) -> HeldOut:
    """The benchmark of a seed: at least `queries` queries, at most `pairs` mirrored pairs.

    Raises:
        UsageError: the seed is one of training's, or a number is out of range.
    """
    if seed in TRAINING_WORLDS or seed < 0:
        raise UsageError(
            f"seed is {seed}; give one above {TRAINING_WORLDS.stop - 1}, "
            "since the scenes below it are for training"
        )
    if queries < 1 or pairs < 1:
        raise UsageError("queries and pairs must be at least 1")
    rng = np.random.default_rng((seed, 20))
    used = Counter[str]()
    scenes: list[Scene] = []
    asked: list[Query] = []
    mirrored: list[MirrorPair] = []
    answers: set[str] = set()
    while len(asked) < queries or len(scenes) % 2:
        scene = make_scene(seed, len(scenes) // 2, held_out=bool(len(scenes) % 2))
        all_questions = questions(scene)
        answers.update(q.answer for q in all_questions)
        for question in _choose(rng, scene, all_questions, used):
            words = _worded(rng, question)
            asked.append(Query(len(scenes), words, question.answer, question.kind))
        mirrored += _mirror_pair(rng, scene, all_questions, len(scenes))
        scenes.append(scene)
    return HeldOut(
        seed=seed,
        scenes=tuple(scenes),
        novel=tuple(bool(number % 2) for number in range(len(scenes))),
        queries=tuple(asked),
        pairs=tuple(mirrored[:pairs]),
        candidates=tuple(sorted(answers)),
    )


def draft(queries: int = 2000, pairs: int = 500, seed: int = SEED) -> Draft:
    """Tier S: the benchmark of `build`; the mirrors are there for their pairs only.

    Raises:
        UsageError: as `build`.
    """
    held = build(queries, pairs, seed)
    mirrored = {pair.image: len(held.scenes) + n for n, pair in enumerate(held.pairs)}
    shown = [
        Shown(scene, NOVEL if novel else KNOWN, _answers(scene), mirror=mirrored.get(number))
        for number, (scene, novel) in enumerate(zip(held.scenes, held.novel, strict=True))
    ]
    for number in mirrored:
        of = shown[number]
        shown.append(Shown(of.scene.mirrored(), of.group, of.answers, mirror=number))
    asked = [Asked(q.image, "S", q.kind, q.instruction, q.answer) for q in held.queries]
    for pair in held.pairs:
        asked.append(Asked(pair.image, PAIR_TIER, "pair", pair.instruction, pair.answer))
        twin = mirrored[pair.image]
        asked.append(Asked(twin, PAIR_TIER, "pair", pair.instruction, pair.mirrored_answer))
    how = (
        f"{len(held.scenes)} scenes of two to four things, every second one around two things that "
        "no training scene has together; questions of every kind, in words drawn from all wordings"
    )
    return Draft("ctrlbench-S", seed, shown, asked, how)


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


def _worded(rng: np.random.Generator, question: Question) -> str:
    """The question in one of its wordings."""
    wordings = (question.instruction, *question.paraphrases)
    return wordings[int(rng.integers(len(wordings)))]


def _mirror_pair(
    rng: np.random.Generator, scene: Scene, pool: Sequence[Question], image: int
) -> list[MirrorPair]:
    """One question that has another answer in the mirror; none where no such question is."""
    after = {q.instruction: q for q in questions(scene.mirrored())}
    changing = [
        q for q in pool if q.instruction in after and after[q.instruction].answer != q.answer
    ]
    if not changing:
        return []
    question = changing[int(rng.integers(len(changing)))]
    words = _worded(rng, question)
    return [MirrorPair(image, words, question.answer, after[question.instruction].answer)]
