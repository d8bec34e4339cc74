"""The model in the package: it loads offline, gives the vectors it gave, and follows instructions.

What it reaches on 2,000 questions is in `results/`; here are small questions that it must not miss.
"""

import json
from importlib.resources import files

import numpy as np
import pytest

from abc_embed import Embedder, Item
from abc_embed.scenes.layout import Placed, Scene
from abc_embed.scenes.render import render
from abc_embed.scenes.things import BACKGROUNDS, BY_NAME

BUNDLED = files("abc_embed") / "bundled"
PICTURE = str(BUNDLED / "images" / "dog_and_cat.png")


@pytest.fixture(scope="module")
def model() -> Embedder:
    return Embedder.from_pretrained("bundled", device="cpu", dtype="float32")


def test_golden_vectors(model: Embedder) -> None:
    """Saved with the weights; 2e-4 leaves room for another CPU's rounding, not for a change."""
    golden = json.loads((BUNDLED / "golden.json").read_text(encoding="utf-8"))
    items = [
        "a dog",
        "a cat",
        Item(image=PICTURE),
        Item(image=PICTURE, instruction="what is the animal on the left?"),
        Item(image=PICTURE, instruction="what is the animal on the right?"),
    ]
    assert np.abs(model.embed(items) - np.array(golden["vectors"])).max() <= 2e-4


@pytest.mark.parametrize("side", [112, 224, 448])
@pytest.mark.parametrize(
    ("one", "two"), [("dog", "cat"), ("banana", "bus"), ("guitar", "penguin"), ("rose", "hammer")]
)
def test_left_and_right_above_and_below(model: Embedder, one: str, two: str, side: int) -> None:
    names = model.embed([BY_NAME[one].phrase, BY_NAME[two].phrase])
    for places, words in (
        (((0.27, 0.5), (0.73, 0.5)), ("on the left", "on the right")),
        (((0.5, 0.27), (0.5, 0.73)), ("at the top", "at the bottom")),
    ):
        placed = [
            Placed(BY_NAME[name], x, y, 0.4)
            for name, (x, y) in zip((one, two), places, strict=True)
        ]
        picture = render(Scene(tuple(placed), "white", BACKGROUNDS["white"]), side)
        asked = [Item(image=picture, instruction=f"what is {where}?") for where in words]
        scores = model.similarity(model.embed(asked), names)
        assert scores[0, 0] > scores[0, 1]
        assert scores[1, 1] > scores[1, 0]


def test_it_is_small() -> None:
    """At most 20 MB, so that the wheel stays quick to fetch."""
    sizes = [len(part.read_bytes()) for part in (BUNDLED / "model").iterdir() if part.is_file()]
    adapter = BUNDLED / "model" / "instruct_adapter" / "adapter_model.safetensors"
    assert sum(sizes) + len(adapter.read_bytes()) < 20_000_000
