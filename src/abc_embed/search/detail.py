"""Several small vectors of one image: what its parts show, pooled after the model.

The vector of an image is the mean over all its tokens, in which a small thing is one voice of many.
Here the last hidden states of the visual tokens become `PARTS` parts of the image, those most alike
merged, and each goes through the head on its own, so that a text finds the part that shows it.

Shapes: `B` items, `C` parts of an image, `T` tokens, `D` width, `V` visual tokens of an image.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

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

PADDING, GONE = 2.0, -2.0
"""In the place of a cosine while parts are merged: more and less alike than any two."""

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
            merge_size = model.backbone.merge_size
            cells = [
                pool_cells(states[place], item.grid_thw or (1, 1, 1), merge_size)
                for states, place, item in zip(hidden, is_visual, features, strict=True)
            ]
            pooled = merge_alike(cells, PARTS)
            parts = l2_normalize(model.head(pooled.flatten(0, 1))).unflatten(0, pooled.shape[:2])
            return from_device(torch.cat([whole.unsqueeze(1), parts], dim=1).flatten(1))


def pool_cells(states: Tensor, grid_thw: tuple[int, int, int], merge_size: int) -> Tensor:
    """Visual states `(V, D)` -> themselves, or where they are more than `CELLS` means over a grid.

    Of an image in several views each is cut alike, into as many cells as there is room for.
    """
    views, rows, columns = grid_thw[0], grid_thw[1] // merge_size, grid_thw[2] // merge_size
    states = states.float()
    if len(states) <= CELLS:
        return states
    if views > CELLS:
        return F.adaptive_avg_pool1d(states.T, CELLS).T
    side = int((CELLS // views) ** 0.5)
    shapes = SHAPES if views == 1 else ((side, side),)
    wanted = math.log(rows / columns)
    shape = min(shapes, key=lambda shape: abs(math.log(shape[0] / shape[1]) - wanted))
    grids = states.reshape(views, rows, columns, -1).movedim(-1, 1)
    return F.adaptive_avg_pool2d(grids, shape).movedim(1, -1).flatten(0, 2)


def merge_alike(images: Sequence[Tensor], count: int) -> Tensor:
    """States `(V, D)` of each of `B` images -> `(B, count, D)`, the most alike merged.

    So the ground is few parts, however much of the image it fills, and no thing is mixed with it
    (token merging, arXiv 2210.09461, all pairs at a time). An image with fewer states has the last
    one several times. No number is read from the device on the way.
    """
    states = pad_sequence(list(images), batch_first=True)
    most, device = states.shape[1], states.device
    lengths = torch.tensor([len(image) for image in images], device=device).unsqueeze(1)
    places, image = torch.arange(most, device=device), torch.arange(len(images), device=device)
    sizes = (places < lengths).to(states.dtype)  # how many states went into each
    gone = torch.zeros_like(sizes, dtype=torch.bool)
    unit = F.normalize(states, dim=-1)
    # Padding is most like everything, so that it goes first, and weighs nothing.
    cosines = (unit @ unit.mT).masked_fill_((sizes == 0).unsqueeze(1), PADDING)
    cosines.diagonal(dim1=1, dim2=2).fill_(GONE)
    for _ in range(most - count):
        pair = cosines.flatten(1).argmax(dim=1)
        first, second = torch.stack([pair // most, pair % most]).sort(dim=0).values
        weights = torch.stack([sizes[image, first], sizes[image, second]], dim=1)
        both = torch.stack([states[image, first], states[image, second]], dim=1)
        states[image, first] = (weights.unsqueeze(1) @ both).squeeze(1) / weights.sum(1, True)
        sizes[image, first] = weights.sum(1)
        gone[image, second] = True
        unit[image, first] = F.normalize(states[image, first], dim=-1)
        alike = (unit @ unit[image, first].unsqueeze(2)).squeeze(2)
        alike = alike.masked_fill(sizes == 0, PADDING).masked_fill(gone, GONE)
        alike[image, first] = GONE
        cosines[image, first], cosines[image, :, first] = alike, alike
        cosines[image, second], cosines[image, :, second] = GONE, GONE
    left = gone.to(torch.uint8).argsort(dim=1, stable=True)
    order = left.gather(1, torch.minimum(torch.arange(count, device=device), lengths - 1))
    return states.gather(1, order.unsqueeze(2).expand(-1, -1, states.shape[2]))
