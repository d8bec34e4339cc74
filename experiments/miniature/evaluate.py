"""Unseen scenes: an image against captions, both ways, and image + instruction against answers.

Scenes come in mirrored pairs, so whoever
ignores left and right finds one of two captions by chance.

Shapes: `N` images with their captions.
"""

import numpy as np

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


def evaluate(model: Embedder, sizes: Sizes) -> dict[str, float]:
    """R@1 by the names of `SCORES`."""
    return {**_captions(model, sizes), **_instructions(model, sizes)}


def _captions(model: Embedder, sizes: Sizes) -> dict[str, float]:
    pictures, texts = unseen_scenes(sizes)
    images, captions = model.embed(pictures), model.embed(texts)
    right = np.arange(len(texts))
    return {
        "image_to_text": metrics.recall_at(1, metrics.ranks(images @ captions.T, right)),
        "text_to_image": metrics.recall_at(1, metrics.ranks(captions @ images.T, right)),
    }


def unseen_scenes(sizes: Sizes) -> tuple[list[Item], list[str]]:
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


def _instructions(model: Embedder, sizes: Sizes) -> dict[str, float]:
    spec = generate(sizes.queries, 1, sizes.measured_world)
    images, queries = split_mirrors(spec)
    pictures = [render(image.scene, sizes.side) for image in images]
    number = {text: i for i, text in enumerate(spec.candidates)}
    right = [number[query.answer] for query in queries]
    answers = model.embed(spec.candidates)
    both = model.embed([Item(image=pictures[q.image], instruction=q.instruction) for q in queries])
    alone = model.embed([Item(image=picture) for picture in pictures])
    of_query = alone[[query.image for query in queries]]
    scores = both @ answers.T
    own_answers = [[number[q.answer] for q in questions(image.scene)] for image in images]
    within = np.full_like(scores, -2.0)  # below any cosine
    for row, query in enumerate(queries):
        own = own_answers[query.image]
        within[row, own] = scores[row, own]
    return {
        "instructed": metrics.recall_at(1, metrics.ranks(scores, right)),
        "within_image": metrics.recall_at(1, metrics.ranks(within, right)),
        "image_only": metrics.recall_at(1, metrics.ranks(of_query @ answers.T, right)),
    }
