"""Draw the quickstart's picture: a dog on the left, a cat on the right, drawn as every scene is.

    python tools/make_example.py src/abc_embed/bundled/images/dog_and_cat.png

The same picture each time, on every machine that has the same Pillow: nothing in it is random.
"""

import sys
from pathlib import Path

from PIL import Image

from abc_embed.scenes.layout import Placed, Scene
from abc_embed.scenes.render import render
from abc_embed.scenes.things import BACKGROUNDS, BY_NAME

SIDE = 448  # pixels


def draw() -> Image.Image:
    """The picture: RGB, `SIDE` pixels a side."""
    dog = Placed(BY_NAME["dog"], x=0.27, y=0.54, size=0.42)
    cat = Placed(BY_NAME["cat"], x=0.73, y=0.54, size=0.42)
    scene = Scene((dog, cat), "turquoise", BACKGROUNDS["turquoise"], shade=(0.2, -0.6))
    return render(scene, SIDE)


def main(path: str) -> None:
    draw().save(Path(path), optimize=True)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
