"""Evidence: which visual tokens of a picture made its cosine with a text.

Why the middle: the gradient at the picture itself says little, since a saturated model no longer
moves there. Halfway between the picture and its own mean token it does, so one forward and one
backward pass say nearly what hiding every token in turn says (results/evidence/).

Shapes: `V` visual tokens of the picture, `W` their width, `T` tokens of the item, `D` width of an
embedding.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from abc_embed.errors import UsageError
from abc_embed.head import l2_normalize
from abc_embed.inputs import Item, open_image
from abc_embed.model import AbcModel
from abc_embed.pixels import to_pixels
from abc_embed.pooling import mean_pool
from abc_embed.processor import Batch, Processor

Method = Literal[
    "midpoint", "two_point", "integrated", "input_x_gradient", "last_layer", "occlusion"
]
"""`midpoint`: one gradient halfway between the mean token and the picture, times the way between
(integrated gradients by the midpoint rule with one step). `two_point`: the same by the two
points of Gauss and Legendre, which go through the language model together. `integrated`: the same
in 8 steps. `input_x_gradient`: the gradient at the picture. `last_layer`: what each last hidden
state adds through pooling and head, exact but late: attention has mixed the tokens by then.
`occlusion`: the cosine lost when one token is replaced by the mean, `V` passes: the slow
reference."""

INTEGRATION_STEPS = 8
GAUSS_POINTS = (0.5 - 12**-0.5, 0.5 + 12**-0.5)
"""Where on the way from the mean token two gradients stand for the integral: exact for cubics."""
OCCLUSION_BATCH = 16
"""Pictures with one hidden token that go through the language model together."""

_FOR, _AGAINST = (214, 40, 40), (38, 110, 200)


@dataclass(frozen=True, slots=True, eq=False)
class Evidence:
    """What each place of a picture contributed to a cosine."""

    contributions: NDArray[np.float32]
    """`(rows, columns)`, in units of the cosine; negative where a place spoke against the text."""
    method: Method

    @property
    def map(self) -> NDArray[np.float32]:
        """`(rows, columns)` in [-1, 1]: the contributions over the largest of them."""
        largest = float(np.abs(self.contributions).max(initial=0.0))
        return self.contributions / np.float32(largest or 1.0)

    @property
    def peak(self) -> tuple[float, float]:
        """Where the evidence is strongest: `(x, y)` as fractions of the picture.

        The centre of what is positive in the 3 x 3 tokens around the strongest one, which is finer
        than the grid.
        """
        rows, columns = self.contributions.shape
        top, left = np.unravel_index(int(self.contributions.argmax()), (rows, columns))
        y, x = np.mgrid[max(0, top - 1) : top + 2, max(0, left - 1) : left + 2]
        inside = (y < rows) & (x < columns)
        y, x = y[inside], x[inside]
        weights = np.maximum(self.contributions[y, x], 0.0).astype(np.float64)
        if not weights.sum():
            return (int(left) + 0.5) / columns, (int(top) + 0.5) / rows
        share = weights / weights.sum()
        return float(share @ (x + 0.5)) / columns, float(share @ (y + 0.5)) / rows

    def overlay(self, picture: Image.Image) -> Image.Image:
        """The picture, pale and grey, under the map: red speaks for the text, blue against it."""
        size = picture.size
        grey = picture.convert("L").convert("RGB")
        shown = Image.blend(grey, Image.new("RGB", size, "white"), 0.3)
        for colour, values in ((_AGAINST, -self.map), (_FOR, self.map)):
            strength = Image.fromarray((np.maximum(values, 0.0) * 200).astype(np.uint8))
            mask = strength.resize(size, Image.Resampling.BICUBIC)
            shown = Image.composite(Image.new("RGB", size, colour), shown, mask)
        return shown


def explain(
    model: AbcModel,
    processor: Processor,
    item: Item,
    text: Tensor,
    *,
    max_pixels: int | None = None,
    method: Method = "two_point",
) -> Evidence:
    """Which places of the item's picture made its cosine with the unit vector `text` `(D,)`.

    Weights, their gradients and the adapter's state are left as they were.

    Raises:
        UsageError: the item has no picture, or the method is not known.
        ImageError: the picture cannot be used.
    """
    if method not in get_args(Method):
        raise UsageError(f"method is {method!r}; use one of: {', '.join(get_args(Method))}")
    with TokenProbe.of(model, processor, item, text, max_pixels=max_pixels) as probe:
        return Evidence(probe.on_grid(_contributions(probe, method)), method)


class TokenProbe:
    """An item and a text with the picture's visual tokens in hand, to be changed and tried."""

    def __init__(
        self, model: AbcModel, batch: Batch, text: Tensor, size: tuple[int, int], factor: int
    ) -> None:
        self._model, self._batch, self._size, self._factor = model, batch, size, factor
        self._text = text.to(model.device).float()
        with torch.no_grad():
            visual = model.encode_images(batch)
        if visual is None:
            raise UsageError("evidence is for an item with a picture; a text has none")
        self.visual = visual
        """`(V, W)`"""
        self.mean = visual.mean(dim=0, keepdim=True)
        """`(1, W)`: what stands for a token that is not shown."""

    @classmethod
    @contextmanager
    def of(
        cls,
        model: AbcModel,
        processor: Processor,
        item: Item,
        text: Tensor,
        *,
        max_pixels: int | None = None,
    ) -> "Iterator[TokenProbe]":
        """A probe, with dropout off and the stage-2 adapter as the item wants it, while it is used.

        Raises:
            UsageError: the item has no picture.
            ImageError: the picture cannot be used.
        """
        if item.image is None:
            raise UsageError("evidence is for an item with a picture; a text has none")
        budget = processor.image.limited(max_pixels)
        picture = open_image(item.image, decode_limit=processor.decode_limit)
        size = budget.size_for(picture.height, picture.width)
        features = processor.features(item, pixels=to_pixels(picture, budget))
        batch = processor.collate([features]).to(model.device, model.dtype)
        was_training = model.training
        model.eval()
        without = model.has_instruct_adapter and item.instruction is None
        try:
            with model.adapter_off() if without else nullcontext():
                yield cls(model, batch, text, size, budget.factor)
        finally:
            model.train(was_training)

    def hidden(self, visual: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens of `B` rows `(B * V, W)` -> last hidden states `(B, T, D)`, pooled `(B, D)`."""
        rows = len(visual) // len(self.visual)
        mask = self._batch.attention_mask.expand(rows, -1)
        ids, positions = self._batch.input_ids, self._batch.position_ids
        hidden = self._model.backbone.language(
            ids.expand(rows, -1), mask, positions.expand(-1, rows, -1), visual
        )
        return hidden, mean_pool(hidden, mask)

    def cosine_of_pooled(self, pooled: Tensor) -> Tensor:
        """Pooled states `(B, D)` -> cosines with the text `(B,)`."""
        return l2_normalize(self._model.head(pooled)) @ self._text

    def cosines(self, visual: Tensor) -> Tensor:
        """Tokens of `B` rows `(B * V, W)` -> cosines `(B,)`, without gradient."""
        with torch.no_grad():
            return self.cosine_of_pooled(self.hidden(visual)[1])

    def gradient(self, visual: Tensor) -> Tensor:
        """Gradients of the cosines at tokens of `B` rows `(B * V, W)`, each by its own tokens."""
        with torch.enable_grad():
            leaf = visual.detach().requires_grad_(True)
            cosine = self.cosine_of_pooled(self.hidden(leaf)[1]).sum()
            (gradient,) = torch.autograd.grad(cosine, [leaf])
        return gradient

    @property
    def language_model(self) -> Any:
        """The language model with its `layers` and `norm`, for those who look inside."""
        return self._model.backbone.vlm.language_model

    @property
    def is_visual(self) -> Tensor:
        """`(T,)`: which tokens of the item are those of the picture."""
        return self._batch.input_ids[0] == int(self._model.backbone.vlm.config.image_token_id)

    def on_grid(self, values: Tensor) -> NDArray[np.float32]:
        """One number per visual token `(V,)` -> `(rows, columns)` over the picture."""
        if self._batch.image_grid_thw is None:
            raise UsageError("evidence is for an item with a picture; a text has none")
        views = int(self._batch.image_grid_thw[0, 0])
        return on_grid(values.detach().float().cpu().numpy(), views, self._size, self._factor)


def on_grid(
    values: NDArray[np.float32], views: int, size: tuple[int, int], factor: int
) -> NDArray[np.float32]:
    """One number per visual token `(V,)` -> `(rows, columns)` over the picture.

    Of a picture in tiles, the tiles are laid out as they were cut; the view of the whole, if there
    is one, is spread over them.

    Args:
        values: `(V,)`, view by view, each row by row.
        views: pictures that the vision encoder sees, the one of the whole included.
        size: `(height, width)` in pixels of all that the vision encoder sees side by side.
        factor: side of a visual token in pixels.
    """
    down, across = size[0] // factor, size[1] // factor
    if views == 1:
        return values.reshape(down, across)
    grids = values.reshape(views, -1)
    side = round(grids.shape[1] ** 0.5)  # a tile is square
    tiles = grids[: (down // side) * (across // side)]
    blocks = tiles.reshape(down // side, across // side, side, side)
    laid_out = blocks.swapaxes(1, 2).reshape(down, across)
    if views > len(tiles):
        whole = Image.fromarray(grids[-1].reshape(side, side))
        spread = whole.resize((across, down), Image.Resampling.BILINEAR)
        laid_out = laid_out + np.asarray(spread, dtype=np.float32) / np.float32(len(tiles))
    return laid_out


def _contributions(probe: TokenProbe, method: Method) -> Tensor:
    """`(V,)`, in units of the cosine."""
    visual, mean = probe.visual, probe.mean
    if method == "occlusion":
        return _occlusion(probe)
    if method == "last_layer":
        return _last_layer(probe)
    if method == "input_x_gradient":
        return (probe.gradient(visual) * visual).sum(dim=-1)
    if method == "two_point":
        way = torch.cat([mean + (visual - mean) * share for share in GAUSS_POINTS])
        both = probe.gradient(way).reshape(len(GAUSS_POINTS), *visual.shape)
        return (both.mean(dim=0) * (visual - mean)).sum(dim=-1)
    steps = 1 if method == "midpoint" else INTEGRATION_STEPS
    shares = [(step + 0.5) / steps for step in range(steps)]
    gradients = [probe.gradient(mean + (visual - mean) * share) for share in shares]
    return (torch.stack(gradients).mean(dim=0) * (visual - mean)).sum(dim=-1)


def _last_layer(probe: TokenProbe) -> Tensor:
    """Each last hidden state times the gradient of pooling and head, for the visual tokens."""
    with torch.no_grad():
        hidden, pooled = probe.hidden(probe.visual)
    with torch.enable_grad():
        leaf = pooled.detach().requires_grad_(True)
        (gradient,) = torch.autograd.grad(probe.cosine_of_pooled(leaf).sum(), [leaf])
    return (hidden[0].float() @ gradient[0])[probe.is_visual] / len(hidden[0])


def _occlusion(probe: TokenProbe) -> Tensor:
    """The cosine lost when each token is replaced by the mean of all."""
    count, losses = len(probe.visual), []
    shown = probe.cosines(probe.visual)
    for first in range(0, count, OCCLUSION_BATCH):
        numbers = torch.arange(first, min(count, first + OCCLUSION_BATCH))
        rows = probe.visual.unsqueeze(0).repeat(len(numbers), 1, 1)
        rows[torch.arange(len(numbers)), numbers] = probe.mean
        losses.append(shown - probe.cosines(rows.flatten(0, 1)))
    return torch.cat(losses)
