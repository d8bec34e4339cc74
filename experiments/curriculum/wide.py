"""A wider world than the benchmarks': what lesson five sees, so that users' pictures surprise less.

Things of every size, grounds of any colour, pictures that are darker, blurred, turned a little or
compressed; instructions in more words than `scenes.questions` has, and questions about things that
are not there. Pairs of things that are kept apart stay apart.
"""

import io
from dataclasses import replace

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter

from abc_embed.scenes.layout import Scene, choose_things, make_scene, place
from abc_embed.scenes.questions import Question, questions
from abc_embed.scenes.render import render
from abc_embed.scenes.things import BACKGROUNDS
from experiments.curriculum.language import sample_wording
from experiments.curriculum.world import CELL

COUNTS = {1: 0.04, 2: 0.32, 3: 0.26, 4: 0.38}
SIZES = {1: (0.3, 0.9), 2: (0.2, 0.56), 3: (0.2, 0.47), 4: (0.19, 0.4)}
ALIKE = 0.6  # share of scenes whose things are nearly of one size, so that comparing is hard
KIND_SHARES = {"place": 0.16, "relation": 0.1, "kind": 0.17, "size": 0.52, "background": 0.05}
ANY_COLOUR = 0.4  # share of scenes on a ground of any RGB colour
CHANGED = 0.6  # share of pictures that are not left as they are drawn
REWORDED = 0.5  # share of instructions in other words than the scenes have
ZOOMS = (0.8, 0.8, 0.8, 1.0, 1.6, 2.3, 3.5)  # below 1: a picture too small, drawn larger

# What an instruction may say instead, and what may stand around it.
SYNONYMS = (
    ("what is the", "what's the"),
    ("what is", "what's"),
    ("what is", "tell me what is"),
    ("what is", "what do you see"),
    ("what is the", "name the"),
    ("which", "what"),
    ("which", "tell me which"),
    ("name the", "find the"),
    ("name the", "show me the"),
    ("thing", "item"),
    ("object", "item"),
    ("picture", "image"),
    ("picture", "photo"),
    ("on the left", "on the left of the picture"),
    ("on the right", "on the right of the picture"),
    ("on the left", "in the left half"),
    ("on the right", "in the right half"),
    ("on the left", "furthest to the left"),
    ("on the right", "furthest to the right"),
    ("at the top", "in the top half"),
    ("at the bottom", "in the bottom half"),
    ("at the top", "up there"),
    ("at the bottom", "down there"),
    ("largest", "largest of all"),
    ("smallest", "smallest of all"),
    ("above", "right above"),
    ("below", "underneath"),
    ("left of", "next to, on the left of"),
    ("right of", "next to, on the right of"),
    ("background", "backdrop"),
    ("colour", "color"),
    ("largest", "biggest"),
    ("largest", "most sizeable"),
    ("smallest", "littlest"),
    ("smallest", "tiniest"),
)
WRAPPERS = (
    "{} please",
    "look: {}",
    "in this picture, {}",
    "in the image, {}",
    "can you say {}",
    "I want to know: {}",
    "the question is: {}",
    "give the name: {}",
    "answer this: {}",
    "here is a photo, {}",
)
# Said before or after an instruction in any order and number: it must not move the answer.
FILLERS = (
    "well so now then just really simply maybe perhaps hello thanks quickly again today friend "
    "we they he she one would should must might want need think say see hear get take make "
    "help guess decide explain try bring choose write hold keep call read point at of to for "
    "with by as if or and but because that this it its here there who how why when sure exactly "
    "kindly honest good nice little moment time page word line view scene shot frame drawing"
)


def wide_scene(seed: int, index: int, smallest: int = 1) -> Scene:
    """Scene number `index` of the wide world `seed`, of `smallest` things at least."""
    rng = np.random.default_rng((seed, index, 31))
    count = max(smallest, int(rng.choice(list(COUNTS), p=list(COUNTS.values()))))
    things = choose_things(rng, max(count, 2))[:count]
    low, high = SIZES[count]
    if rng.random() < ALIKE:
        low = rng.uniform(low, high / 1.4)
        high = min(high, low * rng.uniform(1.3, 1.9))
    scene = replace(make_scene(seed, index), placed=place(rng, things, (low, high)))
    if rng.random() >= ANY_COLOUR:
        return scene
    red, green, blue = (int(c) for c in rng.integers(0, 256, 3))
    return replace(scene, background=_names((red, green, blue))[0], tint=(red, green, blue))


def _names(colour: tuple[int, int, int]) -> list[str]:
    """The backgrounds' names, the nearest colour first and left alone if no other comes near."""
    named = np.array(list(BACKGROUNDS.values()), dtype=np.float64)
    distance = np.linalg.norm((named - colour) * (0.9, 1.2, 0.9), axis=1)
    near = [n for n in np.argsort(distance) if distance[n] < 1.6 * distance.min() + 10]
    return [list(BACKGROUNDS)[n] for n in near]


def wide_question(rng: np.random.Generator, pool: list[Question]) -> Question:
    """One of the questions in `pool`, kinds drawn by `KIND_SHARES` whatever their number."""
    kinds = sorted({q.kind for q in pool})
    weight = np.array([KIND_SHARES[k] for k in kinds])
    kind = kinds[int(rng.choice(len(kinds), p=weight / weight.sum()))]
    of_kind = [q for q in pool if q.kind == kind]
    return of_kind[int(rng.integers(len(of_kind)))]


def wide_questions(scene: Scene) -> list[Question]:
    """What can be asked: no ground's colour that has two names, no place of a lone thing."""
    sure, lone = len(_names(scene.tint)) == 1, len(scene.placed) == 1
    pool = [q for q in questions(scene) if sure or q.kind != "background"]
    return [q for q in pool if q.kind != "place"] if lone else pool


def wide_wording(question: Question, rng: np.random.Generator) -> str:
    """The question in words that the scenes have, or in others."""
    text = sample_wording(question, rng)
    if rng.random() >= REWORDED:
        return text
    fitting = [(old, new) for old, new in SYNONYMS if old in text]
    for i in rng.permutation(len(fitting))[: int(rng.integers(1, 3))]:
        text = text.replace(*fitting[int(i)], 1)
    form = rng.random()
    if form < 0.35:
        text = WRAPPERS[int(rng.integers(len(WRAPPERS)))].format(text)
    elif form < 0.65:
        before, after = (
            " ".join(rng.choice(FILLERS.split(), n)) for n in rng.integers((1, 0), (6, 4))
        )
        text = f"{before} {text} {after}".strip()
    return text


def wide_picture(scene: Scene, rows: int, columns: int, rng: np.random.Generator) -> np.ndarray:
    """The scene as `(H, W, 3)` uint8 of whole visual tokens, drawn in other sizes and changed."""
    size = (columns * CELL, rows * CELL)
    zoom = ZOOMS[int(rng.integers(len(ZOOMS)))]
    picture = render(scene, round(size[0] * zoom), round(size[1] * zoom))
    if rng.random() < CHANGED:
        picture = _changed(picture, scene.tint, rng)
    if picture.size != size:
        picture = picture.resize(size, Image.Resampling.BICUBIC)
    return np.asarray(picture)


def _changed(
    picture: Image.Image, tint: tuple[int, int, int], rng: np.random.Generator
) -> Image.Image:
    """Light, turn, blur, shadows and JPEG artefacts, each in one of three."""
    chosen = rng.random(6) < 1 / 3
    if chosen[0]:
        picture = ImageEnhance.Brightness(picture).enhance(float(rng.uniform(0.5, 1.6)))
    if chosen[1]:
        picture = ImageEnhance.Contrast(picture).enhance(float(rng.uniform(0.6, 1.4)))
    if chosen[2]:
        angle = float(rng.uniform(-7, 7))
        picture = picture.rotate(angle, Image.Resampling.BILINEAR, fillcolor=tint)
    if chosen[3]:
        radius = float(rng.uniform(0.2, 0.8)) * picture.width / 112
        picture = picture.filter(ImageFilter.GaussianBlur(radius))
    if chosen[4]:
        light = Image.fromarray(rng.integers(110, 256, (3, 3), dtype=np.uint8))
        light = light.resize(picture.size, Image.Resampling.BICUBIC)
        pixels = np.asarray(picture) * (np.asarray(light)[:, :, None] / np.float32(220))
        picture = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    if chosen[5]:
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=int(rng.integers(25, 96)))
        picture = Image.open(buffer).convert("RGB")
    return picture
