"""Several small vectors of one image: what its parts show, pooled after the model.

The vector of an image is the mean over all its tokens, in which a small thing is one voice of many.
Here the last hidden states of the visual tokens become `PARTS` parts of the image, those most alike
merged, and each goes through the head on its own, so that a text finds the part that shows it.

Shapes: `B` items, `C` parts of an image, `T` tokens, `D` width, `V` visual tokens of an image.
"""

import math
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from abc_embed.head import l2_normalize
from abc_embed.inputs import Item, Skipped
from abc_embed.pipeline import EmbeddingPipeline, Fetch, Vector, evaluating
from abc_embed.pooling import mean_pool
from abc_embed.processor import Features
from abc_embed.runtime import from_device
from abc_embed.search.cutoff import score
from abc_embed.search.settings import PARTS

if TYPE_CHECKING:
    from abc_embed.embedder import Embedder

CELLS = 64
"""Parts before those most alike are merged."""
SHAPES = ((2, 32), (4, 16), (8, 8), (16, 4), (32, 2))
"""Rows and columns of cells; an image is cut as comes closest to its own shape."""

TEMPERATURE = 0.1
"""At which parts and wholes are weighed against everyday things: higher than the model's, since an
image shows several things and a part may too (tools/bench_ask.py)."""

Detail = NDArray[np.int8]
"""`(C, D)`: directions, the largest number of each 127."""


def stream_detailed(
    embedder: "Embedder",
    items: Iterable[Item],
    *,
    max_pixels: int | None = None,
    batch_size: int | None = None,
) -> Iterator[tuple[Vector, Detail] | Skipped]:
    """As `Embedder.stream` of images without instruction and with `on_error="skip"`: `(D,)` and
    `(C, D)` of each, by one pass of the model."""
    pipeline = embedder.pipeline(max_pixels, batch_size, "skip", engine=DetailPipeline)
    for _, result in pipeline.run(enumerate(items)):
        if isinstance(result, Skipped):
            yield result
        else:
            rows = result.reshape(1 + PARTS, embedder.dim)
            yield rows[0], to_int8(rows[1:])


def to_int8(vectors: Vector) -> Detail:
    """Vectors `(..., D)` as directions in int8."""
    largest = np.abs(vectors).max(axis=-1, keepdims=True)
    directions: Detail = np.rint(vectors / np.maximum(largest, 1e-12) * 127).astype(np.int8)
    return directions


def best_part(detail: Detail, vector: Vector, bank: Vector | None = None) -> Vector:
    """Details `(B, C, D)` and a vector `(D,)` -> the best score of each image's parts `(B,)`.

    An image without detail is all zeros, and has none: -inf.

    Args:
        detail: as `stream_detailed` gives it.
        vector: that of a text.
        bank: `(N, D)` of other texts, against which each part is weighed (`cutoff.score`); None:
            the score is the cosine.
    """
    parts = detail.reshape(-1, detail.shape[-1]).astype(np.float32)
    lengths = np.sqrt(np.einsum("pd,pd->p", parts, parts))
    scores = score(vector, parts / np.maximum(lengths, 1e-9)[:, None], bank, TEMPERATURE)
    best: Vector = np.where(lengths > 0, scores, -np.inf).reshape(len(detail), -1).max(axis=1)
    return best


def by_turns(first: Vector, second: Vector) -> NDArray[np.int64]:
    """Two scores of `N` things -> their numbers, by turns the best of the one and of the other."""
    ranks = [np.argsort(np.argsort(-scores, kind="stable")) for scores in (first, second)]
    order: NDArray[np.int64] = np.lexsort((ranks[0] > ranks[1], np.minimum(*ranks)))
    return order


class DetailPipeline(EmbeddingPipeline):
    """The engine with rows `((1 + C) * D,)`: the vector of an image, then those of its parts."""

    def _launch(self, features: list[Features]) -> Fetch:
        model = self._model
        with self._lock, torch.no_grad(), evaluating(model):
            batch = self._processor.collate(features, pixels=False).to(model.device)
            visual = self._visual_tokens(features)
            with model.adapter_off() if model.has_instruct_adapter else nullcontext():
                hidden, mask = model.hidden(batch, visual)
            whole = l2_normalize(model.head(mean_pool(hidden, mask)))
            is_visual = batch.input_ids == self._processor.image_token_id
            pooled = torch.stack(
                [
                    pool_parts(states[place], item.grid_thw or (1, 1, 1), model.backbone.merge_size)
                    for states, place, item in zip(hidden, is_visual, features, strict=True)
                ]
            )
            parts = l2_normalize(model.head(pooled.flatten(0, 1))).unflatten(0, pooled.shape[:2])
            return from_device(torch.cat([whole.unsqueeze(1), parts], dim=1).flatten(1))


def pool_parts(states: Tensor, grid_thw: tuple[int, int, int], merge_size: int) -> Tensor:
    """Visual states `(V, D)` -> means over the parts of the image `(C, D)`.

    More than `CELLS` are pooled over a grid first; of an image in several views each is cut alike,
    into as many cells as there is room for.
    """
    views, rows, columns = grid_thw[0], grid_thw[1] // merge_size, grid_thw[2] // merge_size
    states = states.float()
    if views > CELLS:
        states = F.adaptive_avg_pool1d(states.T, CELLS).T
    elif len(states) > CELLS:
        side = int((CELLS // views) ** 0.5)
        shapes = SHAPES if views == 1 else ((side, side),)
        wanted = math.log(rows / columns)
        shape = min(shapes, key=lambda shape: abs(math.log(shape[0] / shape[1]) - wanted))
        grids = states.reshape(views, rows, columns, -1).movedim(-1, 1)
        states = F.adaptive_avg_pool2d(grids, shape).movedim(1, -1).flatten(0, 2)
    parts = merge_alike(states, PARTS)
    return torch.cat([parts, parts[-1:].expand(PARTS - len(parts), -1)])


def merge_alike(states: Tensor, count: int) -> Tensor:
    """States `(V, D)` -> `(count, D)` at most: the two most alike become one, again and again.

    So the ground is few parts, however much of the image it fills, and no thing is mixed with it
    (token merging, arXiv 2210.09461, all pairs at a time).
    """
    sizes = states.new_ones(len(states))
    while len(states) > count:
        unit = F.normalize(states, dim=-1)
        cosines = (unit @ unit.T).fill_diagonal_(-2.0)
        first, second = sorted(divmod(int(cosines.argmax()), len(states)))
        pair = [first, second]
        states = states.clone()
        states[first] = sizes[pair] @ states[pair] / sizes[pair].sum()
        sizes[first] = sizes[pair].sum()
        kept = torch.arange(len(states), device=states.device) != second
        states, sizes = states[kept], sizes[kept]
    return states
