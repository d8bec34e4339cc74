"""What each of the two stages trains and freezes, and how a batch becomes gradients.

    stage 1  query: image alone         candidates: captions, embedded by the model in training
             trains: LoRA on both encoders, head, τ            (paper section 4)
    stage 2  query: image + instruction candidates: answers, embedded once by the frozen stage-1
             model trains: LoRA on the language model only     (paper section 5)

Does: attach and freeze, embed in chunks, call the loss, end with a model ready to save.
Does not: step an optimizer, count steps, or write anything (``loop`` does).

Shapes: `Q` queries, `C` candidates, `D` width, `V` visual tokens of one image.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from abc_embed.adapters import (
    adapter_off,
    attach_stage1,
    attach_stage2,
    merge_stage1,
    set_trainable,
)
from abc_embed.errors import DataError, TrainingError
from abc_embed.inputs import Kind
from abc_embed.model import AbcModel
from abc_embed.processor import Batch, Features, Processor
from abc_embed.train.batches import TrainBatch, split_queries, split_texts
from abc_embed.train.config import TrainConfig
from abc_embed.train.gradcache import cached_backward, plain_backward
from abc_embed.train.losses import contrastive_loss

T = TypeVar("T")


class Stage(ABC):
    """A model set up for one stage. Gradients are left in `parameters`; the rest is frozen."""

    parameters: Mapping[str, nn.Parameter]
    """What trains, by its name in the model, in a fixed order; float32."""

    def __init__(
        self, config: TrainConfig, model: AbcModel, processor: Processor, accelerator: Accelerator
    ) -> None:
        self.model = model
        self._config = config
        self._processor = processor
        self._accelerator = accelerator
        self._attach()
        model.to(accelerator.device)
        model.backbone.set_gradient_checkpointing(config.train.gradient_checkpointing)
        model.train()
        self.parameters = {
            name: value for name, value in model.named_parameters() if value.requires_grad
        }

    @abstractmethod
    def _attach(self) -> None:
        """Put the stage's adapter on the model and freeze what the stage does not train."""

    @abstractmethod
    def backward(self, batch: TrainBatch) -> tuple[Tensor, Tensor]:
        """Add the gradients of a batch to the parameters; loss and accuracy, both scalars."""

    def after_update(self) -> None:  # noqa: B027  (most stages have nothing to do here)
        """Called after each step of the optimizer."""

    @abstractmethod
    def finish(self) -> None:
        """Make of the model what is saved: nothing half attached, everything in inference mode."""

    @property
    def memory(self) -> dict[str, Tensor]:
        """Vectors that a resumed run must find again, by text; none unless a stage keeps some."""
        return {}

    def remember(self, memory: Mapping[str, Tensor]) -> None:
        """Take `memory` of a checkpoint back."""
        if memory:
            raise TrainingError("the checkpoint holds cached vectors, but this stage keeps none")

    def _batch(self, features: Sequence[Features]) -> Batch:
        return self._processor.collate(features).to(self._accelerator.device)

    def _loss(self, query: Tensor, candidates: Tensor, batch: TrainBatch) -> tuple[Tensor, Tensor]:
        return contrastive_loss(
            query,
            candidates,
            batch.positives.to(query.device),
            self.model.temperature.temp,
            self._config.train.label_smoothing,
        )

    def _through(
        self,
        chunks: Sequence[T],
        encode: Callable[[T], Tensor],
        loss_of: Callable[[Tensor], tuple[Tensor, Tensor]],
    ) -> tuple[Tensor, Tensor]:
        """Plain or cached, as `train.chunk_size` says."""
        run = cached_backward if self._config.train.chunk_size else plain_backward
        return run(chunks, encode, loss_of, self._accelerator.backward)


class Pretrain(Stage):
    """Stage 1: image to caption, among all captions of the batch."""

    def _attach(self) -> None:
        adapter, temperature = self._config.adapter, self._config.temperature
        attach_stage1(self.model, adapter.rank, adapter.alpha, adapter.dropout)
        set_trainable(self.model, "pretrain")
        self.model.temperature.requires_grad_(temperature.learn)
        with torch.no_grad():
            self.model.temperature.temp.fill_(temperature.start)

    def backward(self, batch: TrainBatch) -> tuple[Tensor, Tensor]:
        if any(features.kind is not Kind.IMAGE for features in batch.queries):
            raise DataError("stage 1 asks with the image alone; the source gave an instruction")
        size = self._config.train.chunk_size
        queries = len(batch.queries)
        chunks = [*split_queries(batch, size), *split_texts(batch.candidates, size)]
        return self._through(
            chunks, self._encode, lambda v: self._loss(v[:queries], v[queries:], batch)
        )

    def _encode(self, features: Sequence[Features]) -> Tensor:
        with self._accelerator.autocast():
            vectors: Tensor = self.model(self._batch(features))
        return vectors

    def after_update(self) -> None:
        self.model.temperature.floor_(self._config.temperature.floor)

    def finish(self) -> None:
        merge_stage1(self.model)
        _rest(self.model)


class Instruct(Stage):
    """Stage 2: image and instruction to answer, against answers that the frozen model embedded.

    A text is embedded the first time it comes up, with the adapter off, without gradient and
    without dropout, and its vector kept for the whole run: nothing that could change it trains.
    The vision encoder is frozen too and runs once per image and step, also with GradCache.
    """

    def _attach(self) -> None:
        adapter = self._config.adapter
        attach_stage2(self.model, adapter.rank, adapter.alpha, adapter.dropout)
        set_trainable(self.model, "instruct")
        self._vectors: dict[str, Tensor] = {}

    def backward(self, batch: TrainBatch) -> tuple[Tensor, Tensor]:
        if any(features.kind is not Kind.INSTRUCTED for features in batch.queries):
            raise DataError("stage 2 needs an instruction with every image; the source gave none")
        candidates = self._candidates(batch)
        chunks = [self._see(part) for part in split_queries(batch, self._config.train.chunk_size)]
        return self._through(chunks, self._encode, lambda v: self._loss(v, candidates, batch))

    @torch.no_grad()
    def _see(self, features: Sequence[Features]) -> tuple[Batch, Tensor | None]:
        """A chunk and the visual tokens `(sum V, D)` of its images."""
        batch = self._batch(features)
        with self._accelerator.autocast():
            return batch, self.model.encode_images(batch)

    def _encode(self, chunk: tuple[Batch, Tensor | None]) -> Tensor:
        with self._accelerator.autocast():
            return self.model.embed(*chunk)

    @torch.no_grad()
    def _candidates(self, batch: TrainBatch) -> Tensor:
        """`(C, D)` float32: from memory, after embedding what is new."""
        new = [i for i, text in enumerate(batch.texts) if text not in self._vectors]
        self.model.eval()
        with adapter_off(self.model), self._accelerator.autocast():
            for part in split_texts(new, self._config.train.chunk_size):
                vectors = self.model(self._batch([batch.candidates[i] for i in part]))
                for i, vector in zip(part, vectors.cpu(), strict=True):
                    self._vectors[batch.texts[i]] = vector.clone()
        self.model.train()
        return torch.stack([self._vectors[text] for text in batch.texts]).to(self.model.device)

    @property
    def memory(self) -> dict[str, Tensor]:
        return self._vectors

    def remember(self, memory: Mapping[str, Tensor]) -> None:
        self._vectors = dict(memory)

    def finish(self) -> None:
        _rest(self.model)


def _rest(model: AbcModel) -> None:
    """Inference mode, nothing trainable, no gradients kept."""
    model.backbone.set_gradient_checkpointing(False)
    model.requires_grad_(False)
    model.zero_grad(set_to_none=True)
    model.eval()
