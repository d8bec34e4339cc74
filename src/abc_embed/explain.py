"""Evidence: which visual tokens of a picture made its cosine with a text.

Why the middle: the gradient at the picture itself says little, since a saturated model no longer
moves there. Halfway between the picture and its own mean token it does, so one forward and one
backward pass say nearly what hiding every token in turn says (results/evidence/).

Shapes: `V` visual tokens of the picture, `W` their width, `T` tokens of the item, `D` width of an
embedding.
"""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from abc_embed.errors import UsageError
from abc_embed.head import l2_normalize
from abc_embed.inputs import Item, open_image
from abc_embed.model import AbcModel
from abc_embed.pixels import to_patches
from abc_embed.pooling import mean_pool
from abc_embed.processor import Batch, Processor

Method = Literal["midpoint", "integrated", "input_x_gradient", "last_layer", "occlusion"]
"""`midpoint`: one gradient halfway between the mean token and the picture, times the way between
(integrated gradients by the midpoint rule with one step). `integrated`: the same in 8 steps.
`input_x_gradient`: the gradient at the picture. `last_layer`: what each last hidden state adds
through pooling and head, exact but late: attention has mixed the tokens by then. `occlusion`: the
cosine lost when one token is replaced by the mean, `V` passes: the slow reference."""

INTEGRATION_STEPS = 8
OCCLUSION_BATCH = 16
"""Pictures with one hidden token that go through the language model together."""

_FOR, _AGAINST = (214, 40, 40), (38, 110, 200)


@dataclass(frozen=True, slots=True, eq=False)
class Evidence:
    """What each place of a picture contributed to a cosine."""

    contributions: NDArray[np.float32]
    """`(rows, columns)`, in units of the cosine; negative where a place spoke against the text."""
    cosine: float
    """Of the item with the text."""
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
    method: Method = "midpoint",
) -> Evidence:
    """Which places of the item's picture made its cosine with the unit vector `text` `(D,)`.

    Weights, their gradients and the adapter's state are left as they were.

    Raises:
        UsageError: the item has no picture, or the method is not known.
        ImageError: the picture cannot be used.
    """
    if method not in get_args(Method):
        raise UsageError(f"method is {method!r}; use one of: {', '.join(get_args(Method))}")
    if item.image is None:
        raise UsageError("evidence is for an item with a picture; a text has none")
    budget = processor.image.limited(max_pixels)
    picture = open_image(item.image, decode_limit=processor.decode_limit)
    patches = to_patches(picture, budget)
    batch = processor.collate([processor.features(item, patches=patches)])
    batch = batch.to(model.device, model.dtype)
    was_training = model.training
    model.eval()
    adapter = model.adapter_off() if _without_adapter(model, batch) else nullcontext()
    try:
        with adapter:
            values, cosine = _contributions(model, batch, text.to(model.device), method)
    finally:
        model.train(was_training)
    numbers = values.float().cpu().numpy()
    size = budget.size_for(picture.height, picture.width)
    return Evidence(on_grid(numbers, patches.grid_thw, size, budget.factor), cosine, method)


def on_grid(
    values: NDArray[np.float32], grid_thw: tuple[int, int, int], size: tuple[int, int], factor: int
) -> NDArray[np.float32]:
    """One number per visual token `(V,)` -> `(rows, columns)` over the picture.

    Of a picture in tiles, the tiles are laid out as they were cut; the view of the whole, if there
    is one, is spread over them.

    Args:
        values: `(V,)`, view by view, each row by row.
        grid_thw: views, and rows and columns of patches in one view.
        size: `(height, width)` in pixels of all that the vision encoder sees side by side.
        factor: side of a visual token in pixels.
    """
    down, across = size[0] // factor, size[1] // factor
    views = grid_thw[0]
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


def _without_adapter(model: AbcModel, batch: Batch) -> bool:
    return model.has_instruct_adapter and not bool(batch.instructed.all())


def _contributions(
    model: AbcModel, batch: Batch, text: Tensor, method: Method
) -> tuple[Tensor, float]:
    """`(V,)` contributions and the cosine, with the adapter as it is now."""
    with torch.no_grad():
        visual = model.encode_images(batch)
        if visual is None:
            raise UsageError("evidence is for an item with a picture; a text has none")
        cosine = float(_cosines(model, batch, visual, text)[0])
    mean = visual.mean(dim=0, keepdim=True)

    def towards(share: float) -> Tensor:
        """Integrand of integrated gradients, `share` of the way from the mean to the picture."""
        return _gradient(model, batch, mean + (visual - mean) * share, text)

    if method == "occlusion":
        with torch.no_grad():
            return occlusion(visual, lambda rows: _cosines(model, batch, rows, text)), cosine
    if method == "last_layer":
        return _last_layer(model, batch, visual, text), cosine
    if method == "input_x_gradient":
        return (towards(1.0) * visual).sum(dim=-1), cosine
    steps = 1 if method == "midpoint" else INTEGRATION_STEPS
    gradient = torch.stack([towards((step + 0.5) / steps) for step in range(steps)]).mean(dim=0)
    return (gradient * (visual - mean)).sum(dim=-1), cosine


def _pooled(model: AbcModel, batch: Batch, visual: Tensor) -> tuple[Tensor, Tensor]:
    """Visual tokens of `B` rows `(B * V, W)` -> last hidden states `(B, T, D)`, pooled `(B, D)`."""
    count = len(visual) // int(model.backbone.visual_lengths(_grid(batch))[0])
    mask = batch.attention_mask.expand(count, -1)
    hidden = model.backbone.language(
        batch.input_ids.expand(count, -1), mask, batch.position_ids.expand(-1, count, -1), visual
    )
    return hidden, mean_pool(hidden, mask)


def _grid(batch: Batch) -> Tensor:
    if batch.image_grid_thw is None:
        raise UsageError("evidence is for an item with a picture; a text has none")
    return batch.image_grid_thw


def _cosines(model: AbcModel, batch: Batch, visual: Tensor, text: Tensor) -> Tensor:
    """`(B,)` cosines of the rows with the text."""
    return l2_normalize(model.head(_pooled(model, batch, visual)[1])) @ text.float()


def _gradient(model: AbcModel, batch: Batch, visual: Tensor, text: Tensor) -> Tensor:
    """Gradient `(V, W)` of the cosine with respect to the visual tokens."""
    with torch.enable_grad():
        leaf = visual.detach().requires_grad_(True)
        (gradient,) = torch.autograd.grad(_cosines(model, batch, leaf, text).sum(), [leaf])
    return gradient


def _last_layer(model: AbcModel, batch: Batch, visual: Tensor, text: Tensor) -> Tensor:
    """Each last hidden state times the gradient of pooling and head, for the visual tokens."""
    with torch.no_grad():
        hidden, pooled = _pooled(model, batch, visual)
    with torch.enable_grad():
        leaf = pooled.detach().requires_grad_(True)
        cosine = (l2_normalize(model.head(leaf)) @ text.float()).sum()
        (gradient,) = torch.autograd.grad(cosine, [leaf])
    shares = (hidden[0].float() @ gradient[0]) / batch.attention_mask[0].sum()
    return shares[batch.input_ids[0] == int(model.backbone.vlm.config.image_token_id)]


def occlusion(visual: Tensor, cosines: Callable[[Tensor], Tensor]) -> Tensor:
    """`(V,)`: the cosine lost when each token is replaced by the mean of all."""
    count, mean = len(visual), visual.mean(dim=0)
    losses, shown = [], cosines(visual)
    for first in range(0, count, OCCLUSION_BATCH):
        numbers = torch.arange(first, min(count, first + OCCLUSION_BATCH))
        rows = visual.unsqueeze(0).repeat(len(numbers), 1, 1)
        rows[torch.arange(len(numbers)), numbers] = mean
        losses.append(shown - cosines(rows.flatten(0, 1)))
    return torch.cat(losses)
