"""Scenes as tensors: pictures cut into patches, and what each merged visual token should say.

Vision and language are trained apart at first and meet in a `Codebook`: fixed random vectors for
every thing, every background and six numbers of place. Vision learns to produce the code of what a
token shows; the language model learns to answer from exact codes. They fit without an adapter.

Shapes: `N` scenes, `P` patches of one scene, `V` = P / 4 merged visual tokens, `D` width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from abc_embed.pixels import ImageBudget
from abc_embed.scenes.layout import Placed, Scene, make_scene
from abc_embed.scenes.render import box, render, which_thing
from abc_embed.scenes.things import BACKGROUNDS, THINGS

_QWEN = ImageBudget()  # patch, merge and normalisation as in Qwen2-VL
PATCH, MERGE = _QWEN.patch_size, _QWEN.merge_size
CELL = PATCH * MERGE  # pixels of one merged visual token
PLACE_NUMBERS = 6  # the token's own x, y; its thing's x, y, width, height
COVERED = 0.12  # a token shows a thing when the thing covers this share of it
MEAN, STD = torch.tensor(_QWEN.mean), torch.tensor(_QWEN.std)

# Shares of token grids (rows, columns): squares mostly, and what other shapes are resized to.
Grids = Mapping[tuple[int, int], float]
SMALL_GRIDS: Grids = {(4, 4): 0.7} | dict.fromkeys(
    [(5, 4), (4, 5), (3, 5), (5, 3), (3, 6), (6, 3)], 0.05
)
LARGE_GRIDS: Grids = {(5, 5): 0.6} | dict.fromkeys(
    [(6, 5), (5, 6), (4, 7), (7, 4), (5, 7), (7, 5), (4, 8), (8, 4)], 0.05
)

_THING_CODES = {thing.name: i for i, thing in enumerate(THINGS)}
_BACKGROUND_CODES = {name: len(THINGS) + i for i, name in enumerate(BACKGROUNDS)}
CODES = len(THINGS) + len(BACKGROUNDS)


class Codebook:
    """`codes` `(CODES, D)` unit vectors; `places` `(6, D)`. The same for the same width."""

    def __init__(self, width: int, device: str = "cpu") -> None:
        generator = torch.Generator().manual_seed(20250301)
        rows = torch.randn(CODES + PLACE_NUMBERS, width, generator=generator)
        rows = torch.nn.functional.normalize(rows, dim=-1).to(device)
        self.codes, self.places = rows[:CODES], 0.6 * rows[CODES:]

    def tokens(self, labels: Tensor, places: Tensor) -> Tensor:
        """The exact visual tokens: labels `(…,)` and places `(…, 6)` in -1..1 -> `(…, D)`."""
        return self.codes[labels] + places @ self.places


@dataclass(frozen=True, slots=True)
class Pictures:
    """`pixels` `(N, H, W, 3)` uint8 of scenes, with `labels` `(N, V)` and `places` `(N, V, 6)`."""

    pixels: Tensor
    labels: Tensor
    places: Tensor
    grid: tuple[int, int]


def annotate(scene: Scene, rows: int, columns: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels `(V,)`, places `(V, 6)` and shown `(V,)` of the tokens of a picture, row by row.

    `shown` is the number of the thing that the token shows, counted from 1, and 0 for the ground.
    """
    width, height = columns * CELL, rows * CELL
    cells = which_thing(scene, width, height).reshape(rows, CELL, columns, CELL)
    counts = [(cells == n).sum((1, 3)) for n in range(1, len(scene.placed) + 1)]
    cover = np.stack(counts).reshape(len(counts), -1) / CELL**2
    shown = np.where(cover.max(0) >= COVERED, cover.argmax(0) + 1, 0)
    codes = np.array(
        [_BACKGROUND_CODES[scene.background], *(_THING_CODES[p.thing.name] for p in scene.placed)]
    )
    y, x = np.divmod(np.arange(rows * columns), columns)
    own = np.stack([(x + 0.5) / columns, (y + 0.5) / rows], 1)
    boxes = np.array([_relative_box(p, width, height) for p in scene.placed], dtype=np.float32)
    of_thing = np.concatenate([np.zeros((1, 4), np.float32), boxes])[shown]
    of_thing[shown == 0, :2] = own[shown == 0]
    places = np.concatenate([own, of_thing], 1).astype(np.float32) * 2 - 1
    return codes[shown], places, shown


def _relative_box(placed: Placed, width: int, height: int) -> tuple[float, float, float, float]:
    _, _, w, h = box(placed, width, height)
    return placed.x, placed.y, w / width, h / height


def draw(scene: Scene, rows: int, columns: int, zoom: float = 1.0) -> np.ndarray:
    """The scene as `(H, W, 3)`, drawn `zoom` times too large and shrunk, as users' pictures are."""
    width, height = columns * CELL, rows * CELL
    if zoom == 1.0:
        picture = render(scene, width, height)
    else:
        picture = render(scene, round(width * zoom), round(height * zoom)).resize(
            (width, height), 3
        )
    return np.asarray(picture)


def single_thing(seed: int, index: int) -> Scene:
    """One thing filling most of a small picture, on any background: the first lesson."""
    rng = np.random.default_rng((seed, index, 7))
    base = make_scene(seed, index)
    thing = THINGS[int(rng.integers(len(THINGS)))]
    size = float(rng.uniform(0.5, 0.95))
    x, y = rng.uniform(0.42, 0.58, 2)
    placed = Placed(thing, float(x), float(y), size, bool(rng.random() < 0.5))
    return Scene((placed,), base.background, base.tint, base.shade, base.grain, index)


def patches(pixels: Tensor) -> Tensor:
    """`(N, H, W, 3)` uint8 -> `(N · P, 3 · 14 · 14)` float32, in Qwen2-VL's merging order.

    One frame only: the second frame of Qwen2-VL's temporal patch is a copy of it.
    """
    n, height, width, _ = pixels.shape
    x = (pixels.float() / 255.0 - MEAN.to(pixels.device)) / STD.to(pixels.device)
    x = x.view(n, height // CELL, MERGE, PATCH, width // CELL, MERGE, PATCH, 3)
    return x.permute(0, 1, 4, 2, 5, 7, 3, 6).reshape(-1, 3 * PATCH * PATCH)


class SceneStream:
    """`Pictures` by step number: of single things, or of whole scenes."""

    def __init__(self, seed: int, batch: int, *, singles: bool) -> None:
        self.seed, self.batch, self.singles = seed, batch, singles

    def make(self, step: int) -> Pictures:
        rng = np.random.default_rng((self.seed, step, 11))
        grid = (2, 2) if self.singles else sample_grid(rng)
        make = single_thing if self.singles else make_scene
        scenes = [make(self.seed, step * self.batch + i) for i in range(self.batch)]
        pixels = [draw(s, *grid, zoom=float(rng.choice((1.0, 1.0, 1.0, 1.6, 2.3)))) for s in scenes]
        labels, places, _ = zip(*(annotate(scene, *grid) for scene in scenes), strict=True)
        return Pictures(stack(pixels), stack(labels), stack(places), grid)


def stack(arrays: Sequence[np.ndarray]) -> Tensor:
    """Arrays of one shape as one tensor."""
    return torch.from_numpy(np.stack(arrays))


def sample_grid(rng: np.random.Generator, grids: Grids = SMALL_GRIDS) -> tuple[int, int]:
    """One of the grids, by their shares."""
    return list(grids)[int(rng.choice(len(grids), p=list(grids.values())))]
