"""Where things stand: 2 to 4 different things, hardly overlapping.

A seed and a number make the same scene on every machine.

Coordinates are fractions of the picture: x to the right, y down, both of a thing's middle; `size`
is the longest side of its sprite, as a fraction of the picture's shorter side.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from abc_embed.scenes.things import BACKGROUNDS, THINGS, Thing, kept_apart

TRAINING_WORLDS = range(1, 21)
"""Seeds whose scenes training may see. Whatever is measured takes another."""

# The more things, the smaller: they must fit. (smallest, largest) by their number.
_SIZES = {2: (0.28, 0.52), 3: (0.27, 0.44), 4: (0.25, 0.38)}
_OVERLAP = 0.06  # how far two boxes may reach into each other, of the picture's side
_TRIES = 60  # places drawn for a thing before the whole scene is drawn anew


@dataclass(frozen=True, slots=True)
class Placed:
    """A thing at its place. `flip` mirrors its own picture, which changes no answer."""

    thing: Thing
    x: float
    y: float
    size: float
    flip: bool = False


@dataclass(frozen=True, slots=True)
class Scene:
    """Things on a background.

    `shade` in -1..1 (across, down) darkens or brightens one side, `grain` is the noise's strength
    in grey levels, `seed` the noise's seed.
    """

    placed: tuple[Placed, ...]
    background: str
    tint: tuple[int, int, int]
    shade: tuple[float, float] = (0.0, 0.0)
    grain: float = 0.0
    seed: int = 0

    def mirrored(self) -> "Scene":
        """The same things with left and right swapped; each picture itself stays as it was."""
        return replace(self, placed=tuple(replace(p, x=1.0 - p.x) for p in self.placed))


def make_scene(seed: int, index: int, *, held_out: bool = False) -> Scene:
    """Scene number `index` of the world `seed`.

    With `held_out` its first two things are a pair that is kept apart in training; without, no such
    pair appears in it.
    """
    rng = np.random.default_rng((seed, index, int(held_out)))
    count = int(rng.choice((2, 3, 4), p=(0.45, 0.35, 0.2)))
    things = choose_things(rng, count, held_out)
    background = list(BACKGROUNDS)[int(rng.integers(len(BACKGROUNDS)))]
    tint = tuple(int(c) for c in np.clip(BACKGROUNDS[background] + rng.normal(0, 7, 3), 0, 255))
    shade = (0.0, 0.0)
    if rng.random() >= 0.4:
        shade = (float(rng.uniform(-1, 1)), float(rng.uniform(-1, 1)))
    grain = float(rng.choice((0.0, 0.0, 3.0, 6.0)))
    placed = place(rng, things, _SIZES[len(things)])
    return Scene(placed, background, (tint[0], tint[1], tint[2]), shade, grain, index)


def choose_things(rng: np.random.Generator, count: int, held_out: bool = False) -> list[Thing]:
    """`count` different things, 2 at least; with `held_out` the first two are a pair kept apart."""
    while True:
        picked = [THINGS[int(i)] for i in rng.choice(len(THINGS), size=count, replace=False)]
        # Often a second thing of the first one's kind: place, not kind, must tell them apart.
        if rng.random() < 0.5:
            same = [t for t in THINGS if t.kind == picked[0].kind and t not in picked]
            picked[1] = same[int(rng.integers(len(same)))]
        if held_out:
            partners = [t for t in THINGS if kept_apart(picked[0], t) and t not in picked[1:]]
            if not partners:
                continue
            picked[1] = partners[int(rng.integers(len(partners)))]
            return picked
        if not any(kept_apart(a, b) for i, a in enumerate(picked) for b in picked[:i]):
            return picked


def place(
    rng: np.random.Generator, things: Sequence[Thing], size_range: tuple[float, float]
) -> tuple[Placed, ...]:
    """The things at random places, hardly overlapping, their sizes within the range."""
    while True:
        sizes = rng.uniform(*size_range, len(things))
        paired = len(things) == 2 and rng.random() < 0.6
        points = _pair(rng, sizes) if paired else _scatter(rng, sizes)
        if points is not None:
            flips = rng.random(len(things)) < 0.5
            return tuple(
                Placed(t, float(x), float(y), float(s), bool(f))
                for t, (x, y), s, f in zip(things, points, sizes, flips, strict=True)
            )


def _pair(rng: np.random.Generator, sizes: NDArray[np.float64]) -> list[tuple[float, float]]:
    """Two things side by side or one above the other, roughly centred on the other axis."""
    near = rng.uniform(sizes[0] / 2, max(sizes[0] / 2, 0.5 - sizes[0] / 2) + 0.01)
    far = 1.0 - rng.uniform(sizes[1] / 2, max(sizes[1] / 2, 0.5 - sizes[1] / 2) + 0.01)
    across = [float(np.clip(0.5 + rng.normal(0, 0.09), s / 2, 1 - s / 2)) for s in sizes]
    if rng.random() < 0.5:
        return [(near, across[0]), (far, across[1])]
    return [(across[0], near), (across[1], far)]


def _scatter(
    rng: np.random.Generator, sizes: NDArray[np.float64]
) -> list[tuple[float, float]] | None:
    """Anywhere, by rejection; None when the sizes drawn do not fit."""
    points: list[tuple[float, float]] = []
    for i, s in enumerate(sizes):
        for x, y in rng.uniform(s / 2, 1 - s / 2, (_TRIES, 2)):
            if all(
                max(abs(x - px), abs(y - py)) > (s + sizes[j]) / 2 - _OVERLAP
                for j, (px, py) in enumerate(points)
            ):
                points.append((float(x), float(y)))
                break
        if len(points) != i + 1:
            return None
    return points
