"""Backbone, pooling and head composed: a batch in, unit vectors out.

The routing past the adapters is here, since which adapter is on is part of what a vector *means*
(paper section 2). With image + instruction the stage-2 adapter is on; with an image alone or a text
alone it is off. Nobody above this file has to remember that.

Shapes: B rows, T tokens, D width, U unique images, V visual tokens of one image.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from abc_embed.backbone import Backbone
from abc_embed.errors import TrainingError
from abc_embed.head import HIDDEN_WIDTH, START_TEMPERATURE, Head, Temperature, l2_normalize
from abc_embed.pooling import mean_pool
from abc_embed.processor import Batch

INSTRUCT_ADAPTER = "instruct"
"""Name of the stage-2 adapter inside PEFT's layers."""


class AbcModel(nn.Module):
    """`Batch` -> `(B, D)` float32 of unit length."""

    def __init__(
        self,
        backbone: Backbone,
        *,
        head_width: int = HIDDEN_WIDTH,
        temperature: float = START_TEMPERATURE,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = Head(backbone.hidden_size, head_width)
        self.temperature = Temperature(temperature)
        self.source: dict[str, str] = {"base": "self"}
        """Where the weights came from: base, revisions and adapters, as ids or folder names."""

    @property
    def dim(self) -> int:
        """D, the length of an embedding."""
        return self.backbone.hidden_size

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.head.linear1.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Number format of the backbone; head, temperature and output are float32 in any case."""
        return next(p.dtype for p in self.backbone.parameters())

    def forward(self, batch: Batch) -> Tensor:
        """`(B, D)` float32 unit vectors; see `embed`."""
        return self.embed(batch, self.encode_images(batch))

    def encode_images(self, batch: Batch) -> Tensor | None:
        """Visual tokens `(sum V, D)` of the U unique images, or None if the batch shows none.

        No instruction and no stage-2 adapter touches them, so a caller may keep them.
        """
        if batch.pixel_values is None or batch.image_grid_thw is None:
            return None
        return self.backbone.encode_images(batch.pixel_values, batch.image_grid_thw)

    def embed(self, batch: Batch, visual_tokens: Tensor | None) -> Tensor:
        """`batch` and the visual tokens `(sum V, D)` of its unique images -> `(B, D)`.

        Rows with the stage-2 adapter and rows without it go through the language model in two
        calls; the order comes back. Rows without it run first, so that after the forward pass the
        adapter is on, as the rows with it need when gradient checkpointing recomputes them.

        Raises:
            TrainingError: if gradients through rows without the adapter would be wrong.
        """
        if not self.has_instruct_adapter or bool(batch.instructed.all()):
            return self._embed_rows(batch, visual_tokens, None)
        plain = torch.nonzero(~batch.instructed).flatten()
        with self.adapter_off(), torch.set_grad_enabled(self._needs_gradient_without_adapter()):
            vectors = self._embed_rows(batch, visual_tokens, plain)
        if len(plain) == len(batch.instructed):
            return vectors
        instructed = torch.nonzero(batch.instructed).flatten()
        both = torch.cat([vectors, self._embed_rows(batch, visual_tokens, instructed)])
        return both[torch.argsort(torch.cat([plain, instructed]))]

    def _embed_rows(
        self, batch: Batch, visual_tokens: Tensor | None, rows: Tensor | None
    ) -> Tensor:
        """Embed the rows numbered `rows`, all of them if None, with the adapter as it is now."""
        ids, mask = batch.input_ids, batch.attention_mask
        positions, images = batch.position_ids, batch.image_index
        if rows is not None:
            longest = int(mask[rows].sum(dim=1).max())
            ids, mask = ids[rows, :longest], mask[rows, :longest]
            positions, images = positions[:, rows, :longest], images[rows]
        repeated = self._visual_of_rows(batch, visual_tokens, images)
        hidden = self.backbone.language(ids, mask, positions, repeated)
        return l2_normalize(self.head(mean_pool(hidden, mask)))

    def _visual_of_rows(
        self, batch: Batch, visual_tokens: Tensor | None, images: Tensor
    ) -> Tensor | None:
        """Visual tokens of the images that rows show, row by row; an image may be shown twice."""
        shown = images[images >= 0]
        if visual_tokens is None or batch.image_grid_thw is None or len(shown) == 0:
            return None
        lengths = self.backbone.visual_lengths(batch.image_grid_thw)
        parts = torch.split(visual_tokens, lengths.tolist())
        return torch.cat([parts[u] for u in shown.tolist()])

    # -- the stage-2 adapter ---------------------------------------------------------------------

    def instruct_layers(self) -> list[LoraLayer]:
        """PEFT's layers that hold the stage-2 adapter."""
        return [
            module
            for module in self.backbone.modules()
            if isinstance(module, LoraLayer) and INSTRUCT_ADAPTER in module.lora_A
        ]

    @property
    def has_instruct_adapter(self) -> bool:
        """Whether a stage-2 adapter is attached (on or off)."""
        return bool(self.instruct_layers())

    @contextmanager
    def adapter_off(self) -> Iterator[None]:
        """Inside, the stage-2 adapter does nothing; after, it is as it was.

        It is no substitute for `torch.no_grad()`: with gradient checkpointing, gradients of what
        ran inside would be recomputed with the adapter on.
        """
        layers = self.instruct_layers()
        was_on = [not layer.disable_adapters for layer in layers]
        # PEFT's switch also sets `requires_grad` of the adapter: keep what the caller chose.
        parameters = [
            parameter
            for name, parameter in self.backbone.named_parameters()
            if f".{INSTRUCT_ADAPTER}." in name
        ]
        needed_gradient = [p.requires_grad for p in parameters]
        try:
            for layer in layers:
                layer.enable_adapters(False)
            yield
        finally:
            for layer, on in zip(layers, was_on, strict=True):
                layer.enable_adapters(on)
            for parameter, needs_gradient in zip(parameters, needed_gradient, strict=True):
                parameter.requires_grad_(needs_gradient)

    def _needs_gradient_without_adapter(self) -> bool:
        """Called with the adapter off: does anything but the adapter train?

        If not (stage 2), rows without the adapter need no gradient at all. If so, gradient
        checkpointing would recompute those rows with the adapter back on: wrong, without a word.
        """
        if not torch.is_grad_enabled() or not any(p.requires_grad for p in self.parameters()):
            return False
        if self.training and self.backbone.gradient_checkpointing:
            raise TrainingError(
                "rows without the stage-2 adapter cannot be trained under gradient checkpointing;"
                " freeze all but the adapter, or switch gradient checkpointing off"
            )
        return True
