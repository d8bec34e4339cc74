"""The bundled model on pictures that the scene generator did not make: two things, any ground.

    python tools/bench_composed.py [--grounds soft|any] [--pictures 150] [--model bundled]

Prints the share of questions whose answer comes first among all names, and the share in which
the right one of the two things beats the other. Sides are 112 to 448 pixels, things 0.3 to 0.5 of
the width.
"""

import argparse

import numpy as np
from PIL import Image

from abc_embed import Embedder, Item
from abc_embed.scenes.things import THINGS, Thing, sprite

SOFT = (
    (255, 255, 255),
    (240, 240, 240),
    (200, 220, 255),
    (255, 240, 200),
    (120, 180, 120),
    (180, 180, 190),
)
SIDES = (112, 160, 224, 336, 448)


def compose(
    rng: np.random.Generator, first: Thing, second: Thing, *, across: bool, soft: bool
) -> Image.Image:
    """`first` on the left or at the top, `second` on the other side."""
    width = int(rng.choice(SIDES))
    height = width if rng.random() < 0.7 else int(width * rng.uniform(0.6, 1.4))
    colour = SOFT[int(rng.integers(len(SOFT)))] if soft else tuple(rng.integers(0, 256, 3))
    ground = np.ones((height, width, 3)) * np.array(colour)
    if rng.random() < 0.5:
        ground += np.linspace(-25, 25, height)[:, None, None]
    picture = Image.fromarray(ground.clip(0, 255).astype(np.uint8))
    for thing, place in ((first, 0.27), (second, 0.73)):
        longest = min(rng.uniform(0.3, 0.5) * width, height if across else 0.48 * height)
        shape = sprite(thing)
        scale = longest / max(shape.size)
        w, h = (max(1, int(s * scale)) for s in shape.size)
        shape = shape.resize((w, h), Image.Resampling.LANCZOS)
        x, y = (place * width, height / 2) if across else (width / 2, place * height)
        picture.paste(shape, (int(x - w / 2), int(y - h / 2)), shape)
    return picture


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--grounds", choices=("soft", "any"), default="soft")
    parser.add_argument("--pictures", type=int, default=150)
    parser.add_argument("--model", default="bundled")
    told = parser.parse_args()
    rng = np.random.default_rng(4)
    items, right, other = [], [], []
    for _ in range(told.pictures):
        a, b = (int(i) for i in rng.choice(len(THINGS), 2, replace=False))
        across = bool(rng.random() < 0.5)
        picture = compose(rng, THINGS[a], THINGS[b], across=across, soft=told.grounds == "soft")
        places = ("on the left", "on the right") if across else ("at the top", "at the bottom")
        for place, gold, rest in zip(places, (a, b), (b, a), strict=True):
            items.append(Item(image=picture, instruction=f"what is {place}?"))
            right.append(gold)
            other.append(rest)
    model = Embedder.from_pretrained(told.model)
    scores = model.similarity(model.embed(items), model.embed([t.phrase for t in THINGS]))
    rows, gold = np.arange(len(items)), np.array(right)
    first = (scores.argmax(1) == gold).mean()
    beats = (scores[rows, gold] > scores[rows, np.array(other)]).mean()
    print(
        f"{len(items)} questions, grounds {told.grounds}: first of {len(THINGS)} {first:.3f}, "
        f"the right one of the two {beats:.3f}"
    )


if __name__ == "__main__":
    main()
