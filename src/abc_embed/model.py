"""Backbone, pooling and head composed: a batch in, unit vectors out.

The routing past the adapters is here, since which adapter is on is part of what a vector *means*
(paper section 2). With image + instruction the stage-2 adapter is on; with an image alone or a text
alone it is off. Nobody above this file has to remember that.

Shapes: B rows, T tokens, D width, U unique images, V visual tokens of one image.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from abc_embed.backbone import Backbone
from abc_embed.errors import TrainingError
from abc_embed.head import HIDDEN_WIDTH, START_TEMPERATURE, Head, Temperature, l2_normalize
from abc_embed.novelty import NoveltyNotice
from abc_embed.pooling import mean_pool
from abc_embed.processor import Batch
from abc_embed.runtime import free_memory_bytes
from abc_embed.vectors import VectorFacts

INSTRUCT_ADAPTER = "instruct"
"""Name of the stage-2 adapter inside PEFT's layers."""
MERGE_SHARE = 0.25
"""Share of the free memory that weights with the adapter merged in may take."""


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
        self.provenance: list[dict[str, Any]] = []
        """What was trained since, run by run, as JSON values; see `train/provenance.py`."""
        self.vector_facts = VectorFacts()
        """Widths that were trained and ranges of values, for vectors that are stored small."""
        self.novelty = NoveltyNotice()
        self._instruct_layers: list[LoraLayer] | None = None
        self._for_inference: tuple[list[tuple[int, int]], list[Tensor], bool] | None = None

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
        weight: Tensor = self.backbone.vlm.get_input_embeddings().weight
        return weight.dtype

    def forward(self, batch: Batch) -> Tensor:
        """`(B, D)` float32 unit vectors; see `embed`."""
        return self.embed(batch, self.encode_images(batch))

    def encode_images(self, batch: Batch) -> Tensor | None:
        """Visual tokens `(sum V, D)` of the U unique images, or None if the batch shows none.

        No instruction and no stage-2 adapter touches them, so a caller may keep them.
        """
        if batch.pixels is None or batch.image_grid_thw is None:
            return None
        return self.backbone.encode_images(batch.pixels.patches(), batch.image_grid_thw)

    def embed(self, batch: Batch, visual_tokens: Tensor | None) -> Tensor:
        """`batch` and the visual tokens `(sum V, D)` of its unique images -> `(B, D)`.

        Rows with the stage-2 adapter and rows without it go through the language model in two
        calls; the order comes back. Rows without it run first, so that after the forward pass the
        adapter is on, as the rows with it need when gradient checkpointing recomputes them.

        Raises:
            TrainingError: if gradients through rows without the adapter would be wrong.
        """
        if not self.has_instruct_adapter:
            return self._embed_rows(batch, visual_tokens, None)
        if bool(batch.instructed.all()):
            return self._embed_instructed(batch, visual_tokens, None)
        plain = torch.nonzero(~batch.instructed).flatten()
        with self.adapter_off(), torch.set_grad_enabled(self._needs_gradient_without_adapter()):
            every_row = len(plain) == len(batch.instructed)
            vectors = self._embed_rows(batch, visual_tokens, None if every_row else plain)
        if every_row:
            return vectors
        instructed = torch.nonzero(batch.instructed).flatten()
        both = torch.cat([vectors, self._embed_instructed(batch, visual_tokens, instructed)])
        return both[torch.argsort(torch.cat([plain, instructed]))]

    def _embed_instructed(
        self, batch: Batch, visual_tokens: Tensor | None, rows: Tensor | None
    ) -> Tensor:
        """As `_embed_rows`; in inference with merged weights, where there is memory for them, and
        else with the adapter in the number format of the backbone."""
        layers: list[Any] = list(self.instruct_layers())
        if self.training or torch.is_grad_enabled() or layers[0].disable_adapters:
            return self._embed_rows(batch, visual_tokens, rows)
        weights, others, is_merged = self._inference_weights()
        own = [weight.data for weight in weights]
        try:
            for weight, other in zip(weights, others, strict=True):
                weight.data = other
            with self.adapter_off() if is_merged else nullcontext():
                return self._embed_rows(batch, visual_tokens, rows)
        finally:
            for weight, data in zip(weights, own, strict=True):
                weight.data = data

    def _embed_rows(
        self, batch: Batch, visual_tokens: Tensor | None, rows: Tensor | None
    ) -> Tensor:
        """Embed the rows numbered `rows`, all of them if None, with the adapter as it is now."""
        return l2_normalize(self.head(mean_pool(*self.hidden(batch, visual_tokens, rows))))

    def hidden(
        self, batch: Batch, visual_tokens: Tensor | None, rows: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Last hidden states `(B, T, D)` and their mask `(B, T)`, of all rows or those numbered.

        With the stage-2 adapter as it is now.
        """
        ids, mask = batch.input_ids, batch.attention_mask
        positions, images = batch.position_ids, batch.image_index
        if rows is not None:
            longest = int(mask[rows].sum(dim=1).max())
            ids, mask = ids[rows, :longest], mask[rows, :longest]
            positions, images = positions[:, rows, :longest], images[rows]
        repeated = self._visual_of_rows(batch, visual_tokens, images)
        return self.backbone.language(ids, mask, positions, repeated), mask

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
        """PEFT's layers that hold the stage-2 adapter; found once, see `forget_layers`."""
        if self._instruct_layers is None:
            self._instruct_layers = [
                module
                for module in self.backbone.modules()
                if isinstance(module, LoraLayer) and INSTRUCT_ADAPTER in module.lora_A
            ]
        return self._instruct_layers

    def forget_layers(self) -> None:
        """To be called when adapters are attached or taken away."""
        self._instruct_layers = None
        self._for_inference = None

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
        # Not PEFT's `enable_adapters`: it also sets `requires_grad` of all that the layers hold.
        on = [layer for layer in self.instruct_layers() if not layer.disable_adapters]
        try:
            for layer in on:
                layer._disable_adapters = True
            yield
        finally:
            for layer in on:
                layer._disable_adapters = False

    def _inference_weights(self) -> tuple[list[Tensor], list[Tensor], bool]:
        """Weights, what to put in their place in inference, and whether the adapter is in it.

        Merged: the adapter is added into the layers' own weights, which are kept beside the plain
        ones, so that these stay as they are to the last bit. Where there is no memory for that, the
        adapter's weights in the format of the backbone: PEFT would turn all that goes into them to
        float32 otherwise. None of both while the adapter trains. What of these is decided once;
        they are made anew when a weight has changed.
        """
        layers: list[Any] = list(self.instruct_layers())
        parts = [part for layer in layers for part in (layer.lora_A, layer.lora_B)]
        lora: list[Tensor] = [part[INSTRUCT_ADAPTER].weight for part in parts]
        if any(parameter.requires_grad for parameter in lora):
            return [], [], False
        plain: list[Tensor] = [layer.get_base_layer().weight for layer in layers]
        state = [(tensor.data_ptr(), tensor._version) for tensor in (*plain, *lora)]
        if self._for_inference is None or self._for_inference[0] != state:
            needed = sum(weight.numel() * weight.element_size() for weight in plain)
            is_merged = needed < free_memory_bytes(self.device) * MERGE_SHARE
            is_merged = is_merged and not self.backbone.weights
            others = [weight.to(self.dtype) for weight in lora]
            if is_merged:
                others = [
                    (weight.float() + layer.get_delta_weight(INSTRUCT_ADAPTER).float()).to(weight)
                    for weight, layer in zip(plain, layers, strict=True)
                ]
            self._for_inference = (state, others, is_merged)
        _, others, is_merged = self._for_inference
        return (plain if is_merged else lora), others, is_merged

    def _needs_gradient_without_adapter(self) -> bool:
        """Whether anything but the adapter trains.

        If not (stage 2), rows without the adapter need no gradient at all. If so, gradient
        checkpointing would recompute those rows with the adapter back on: wrong, without a word.
        """
        if not torch.is_grad_enabled():
            return False
        own = f".{INSTRUCT_ADAPTER}."
        if not any(p.requires_grad for name, p in self.named_parameters() if own not in name):
            return False
        if self.training and self.backbone.gradient_checkpointing:
            raise TrainingError(
                "rows without the stage-2 adapter cannot be trained under gradient checkpointing;"
                " freeze all but the adapter, or switch gradient checkpointing off"
            )
        return True
