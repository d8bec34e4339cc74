"""Unseen scenes: an image against captions, both ways, and image + instruction against answers.

Does: the numbers of a run. Does not: keep vectors. Scenes come in mirrored pairs, so whoever
ignores left and right finds one of two captions by chance.

Shapes: `N` images with their captions.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from abc_embed.bench import metrics
from abc_embed.bench.ctrlbench.unseen_scenes import generate, split_mirrors
from abc_embed.embedder import Embedder
from abc_embed.inputs import Item
from abc_embed.scenes.dataset import ScenesPlan
from abc_embed.scenes.questions import caption, questions, same_meaning
from abc_embed.scenes.render import render
from experiments.miniature.plan import Sizes

SCORES = ("image_to_text", "text_to_image", "instructed", "within_image", "image_only")
"""R@1 of image -> caption, caption -> image, image + instruction -> answer among all answers, the
same among the answers that the image itself has, and of the image alone among all answers."""

Embed = Callable[[Sequence[str | Item]], NDArray[np.float32]]


def measure(model: Embedder, sizes: Sizes) -> dict[str, float]:
    """R@1 by the names of `SCORES`."""

    def embed(items: Sequence[str | Item]) -> NDArray[np.float32]:
        return model.embed(items)

    return {**_captions(embed, sizes), **_instructions(embed, sizes)}


def _captions(embed: Embed, sizes: Sizes) -> dict[str, float]:
    pictures, texts = unseen(sizes)
    images, captions = embed(pictures), embed(texts)
    right = np.arange(len(texts))
    return {
        "image_to_text": metrics.recall_at(1, metrics.ranks(images @ captions.T, right)),
        "text_to_image": metrics.recall_at(1, metrics.ranks(captions @ images.T, right)),
    }


def unseen(sizes: Sizes) -> tuple[list[Item], list[str]]:
    """`N` images and their captions; no mirror whose caption means the same as the other's."""
    plan = ScenesPlan(sizes.captions, sizes.measured_world, sizes.side)
    pictures, texts = [], list[str]()
    for number in range(plan.count):
        scene = plan.scene(number)
        text = caption(scene)
        if number % 2 and same_meaning(text, caption(scene.mirrored())):
            continue
        pictures.append(Item(image=render(scene, sizes.side)))
        texts.append(text)
    return pictures, texts


def _instructions(embed: Embed, sizes: Sizes) -> dict[str, float]:
    spec = generate(sizes.queries, 1, sizes.measured_world)
    images, queries = split_mirrors(spec)
    pictures = [render(image.scene, sizes.side) for image in images]
    number = {text: place for place, text in enumerate(spec.candidates)}
    right = [number[query.answer] for query in queries]
    answers = embed(spec.candidates)
    both = embed([Item(image=pictures[q.image], instruction=q.instruction) for q in queries])
    alone = embed([Item(image=picture) for picture in pictures])
    of_query = alone[[query.image for query in queries]]
    scores = both @ answers.T
    own_answers = [[number[q.answer] for q in questions(image.scene)] for image in images]
    others = np.full(scores.shape, -np.inf, dtype=np.float32)
    for row, query in enumerate(queries):
        others[row, own_answers[query.image]] = 0.0
    own = np.nan_to_num(scores + others, neginf=-2.0)  # below any cosine
    return {
        "instructed": metrics.recall_at(1, metrics.ranks(scores, right)),
        "within_image": metrics.recall_at(1, metrics.ranks(own, right)),
        "image_only": metrics.recall_at(1, metrics.ranks(of_query @ answers.T, right)),
    }
