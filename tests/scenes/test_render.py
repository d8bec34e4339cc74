"""What a scene looks like: the same pixels, boxes that hold their things, mirrors in place."""

import numpy as np
import pytest

from abc_embed.scenes.layout import Placed, Scene, make_scene
from abc_embed.scenes.render import box, render, which_thing
from abc_embed.scenes.things import BY_NAME

SCENES = [make_scene(99, index, held_out=held) for index in range(12) for held in (False, True)]
SIZES = [(112, 112), (33, 33), (140, 84), (84, 140), (448, 448)]


def pixels(scene: Scene, *size: int) -> np.ndarray:
    return np.asarray(render(scene, *size))


def test_the_same_scene_has_the_same_pixels() -> None:
    for scene in SCENES[:6]:
        assert np.array_equal(pixels(scene), pixels(scene))
    grainy = next(s for s in SCENES if s.grain)
    assert pixels(grainy).shape == (112, 112, 3) and pixels(grainy).dtype == np.uint8


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_boxes_are_inside_and_hold_their_things(width: int, height: int) -> None:
    for scene in SCENES:
        shown = which_thing(scene, width, height)
        assert shown.shape == (height, width)
        for number, placed in enumerate(scene.placed, start=1):
            x, y, w, h = box(placed, width, height)
            assert min(x, y) >= 0 and x + w <= width and y + h <= height
            rows, columns = np.nonzero(shown == number)
            assert len(rows) > 0.15 * w * h, "a thing is hidden"
            assert x <= columns.min() and columns.max() < x + w
            assert y <= rows.min() and rows.max() < y + h
            assert abs(x + w / 2 - placed.x * width) <= 1
            assert abs(y + h / 2 - placed.y * height) <= 1


def test_where_no_thing_is_the_background_is() -> None:
    plain = next(s for s in SCENES if s.shade == (0.0, 0.0) and not s.grain)
    ground = pixels(plain)[which_thing(plain, 112, 112) == 0]
    # the soft edge of a sprite is ground by that count, hence not all
    assert (ground == plain.tint).all(axis=1).mean() > 0.85


def test_shade_and_grain_stay_around_the_tint() -> None:
    empty = Scene((), "grey", (150, 150, 150), shade=(1.0, 0.0), grain=3.0, seed=4)
    image = pixels(empty).astype(float)
    assert image[:, :10].mean() < 130 < 170 < image[:, -10:].mean()
    assert 1 < (image[:, :, 0] - image[:, :, 0].mean(axis=0)).std() < 5


def test_a_mirror_shows_each_picture_as_it_was_on_the_other_side() -> None:
    dog, cat = Placed(BY_NAME["dog"], 0.25, 0.5, 0.4), Placed(BY_NAME["cat"], 0.75, 0.5, 0.4)
    scene = Scene((dog, cat), "white", (255, 255, 255))
    straight, mirrored = pixels(scene), pixels(scene.mirrored())
    for placed, twin in zip(scene.placed, scene.mirrored().placed, strict=True):
        (x, y, w, h), (x2, y2, w2, h2) = box(placed, 112, 112), box(twin, 112, 112)
        assert (y2, w2, h2) == (y, w, h)
        assert abs(x2 - (112 - x - w)) <= 1
        assert np.array_equal(straight[y : y + h, x : x + w], mirrored[y : y + h, x2 : x2 + w])


def test_a_flip_turns_the_picture_and_moves_nothing() -> None:
    dog = Placed(BY_NAME["dog"], 0.5, 0.5, 0.5)
    flipped = Placed(BY_NAME["dog"], 0.5, 0.5, 0.5, flip=True)
    one, other = (Scene((p,), "white", (255, 255, 255)) for p in (dog, flipped))
    assert box(dog, 112, 112) == box(flipped, 112, 112)
    x, y, w, h = box(dog, 112, 112)
    cut = (slice(y, y + h), slice(x, x + w))
    assert np.array_equal(pixels(one)[cut], pixels(other)[cut][:, ::-1])
    assert not np.array_equal(pixels(one), pixels(other))
