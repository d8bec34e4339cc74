"""Tier G, the grid: A aspects of every picture, asked with instructions from one shared bank.

A scene holds four things of four kinds; each kind is asked for, and the background. Answers are
balanced: of each aspect all things come as evenly as they can, so an instruction alone says little;
every aspect of a picture has an answer of its own, so the picture alone is right for one of `A` at
most. A caption shows its aspect ("a dog" is an animal), so adding an image vector and a text vector
may solve this tier; tier B is the one where it cannot.
"""

from collections import Counter
from dataclasses import replace

import numpy as np

from abc_embed.bench.ctrlbench.scene_benchmark import (
    KNOWN,
    NOVEL,
    SceneBenchmark,
    SceneImage,
)
from abc_embed.bench.ctrlbench.schema import TextQuery
from abc_embed.scenes.layout import Scene, make_scene
from abc_embed.scenes.questions import questions
from abc_embed.scenes.things import BACKGROUNDS, KIND_WORDS, THINGS, Thing, kept_apart

SEED = 7002
ASPECTS = 5
"""`A`: four kinds of thing, and the background."""
KINDS = ("animal", "food", "tool", "clothing", "vehicle", "device")
"""Kinds with things enough that none is a good guess."""
_STRICT_TRIES = 60  # with the least used things alone, before others are looked at too


def generate(count: int = 500, seed: int = SEED) -> SceneBenchmark:
    """`count` scenes and `ASPECTS` questions of each; every second one around an unseen pair."""
    rng = np.random.default_rng((seed, 22))
    kinds, things, grounds = Counter(KINDS), Counter(t.name for t in THINGS), Counter[str]()
    images: list[SceneImage] = []
    queries: list[TextQuery] = []
    index = 0
    while len(images) < count:
        layout = make_scene(seed, index)
        index += 1
        if len(layout.placed) != ASPECTS - 1:
            continue
        if grounds[layout.background] > min(grounds[name] for name in BACKGROUNDS):
            continue
        novel = bool(len(images) % 2)
        chosen = sorted(KINDS, key=lambda kind: (kinds[kind], rng.random()))[: ASPECTS - 1]
        picked = least_used(rng, [of_kind(kind) for kind in chosen], things, novel=novel)
        scene = with_things(layout, picked)
        grounds[layout.background] += 1
        kinds.update(chosen)
        things.update(thing.name for thing in picked)
        asked = [q for q in questions(scene) if q.kind in ("kind", "background")]
        for question in asked:
            thing = None if question.region is None else scene.placed[question.region].thing
            aspect = "background" if thing is None else thing.kind
            words = (question.instruction, question.answer, question.paraphrases)
            queries.append(TextQuery(len(images), "G", aspect, *words))
        captions = tuple(question.answer for question in asked)
        images.append(SceneImage(scene, NOVEL if novel else KNOWN, captions))
    description = (
        f"{count} scenes of four things of four kinds on a ground; the kinds are "
        f"{', '.join(KIND_WORDS[kind] for kind in KINDS)}; one question for each thing's kind and "
        "one for the ground; every second scene holds two things that no training scene has "
        "together"
    )
    return SceneBenchmark("ctrlbench-G", seed, images, queries, description)


def of_kind(kind: str) -> list[Thing]:
    """All things of a kind."""
    return [thing for thing in THINGS if thing.kind == kind]


def least_used(
    rng: np.random.Generator, pools: list[list[Thing]], used: Counter[str], *, novel: bool
) -> list[Thing]:
    """One different thing of each pool, those that came least so far before others.

    With `novel` two of them are a pair kept apart in training; without, no two are.
    """
    tries = 0
    while True:
        slack = tries // _STRICT_TRIES
        tries += 1
        picked: list[Thing] = []
        for pool in pools:
            free = [thing for thing in pool if thing not in picked]
            least = min(used[thing.name] for thing in free)
            near = [thing for thing in free if used[thing.name] <= least + slack]
            picked.append(near[int(rng.integers(len(near)))])
        apart = any(kept_apart(a, b) for i, a in enumerate(picked) for b in picked[:i])
        if apart is novel:
            return picked


def with_things(layout: Scene, things: list[Thing]) -> Scene:
    """The scene with other things in its places."""
    placed = zip(layout.placed, things, strict=True)
    return replace(layout, placed=tuple(replace(place, thing=thing) for place, thing in placed))
