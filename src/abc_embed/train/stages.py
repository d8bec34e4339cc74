"""What each of the two stages trains and freezes, and how a batch becomes gradients.

    stage 1  query: image alone         candidates: captions, embedded by the model in training
             trains: LoRA on both encoders, head, τ            (paper section 4)
    stage 2  query: image + instruction candidates: answers, embedded once by the frozen stage-1
             model trains: LoRA on the language model only     (paper section 5)

Does: attach and freeze, embed in chunks, bring the candidates of all processes together, call the
loss, end with a model ready to save. Does not: step an optimizer, count steps, or write anything
(``loop`` does).

Shapes: `Q` queries, `C` candidates, `D` width, `V` visual tokens of one image.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from abc_embed.adapters import (
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
from abc_embed.train.gather import GlobalBatch, gather_candidates, gather_rows
from abc_embed.train.gradcache import cached_backward, plain_backward
from abc_embed.train.losses import contrastive_loss
from abc_embed.train.processes import ProcessGroup
from abc_embed.train.sharding import outline, put_together, shard

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
        self.team = ProcessGroup(accelerator)
        self._attach()
        model.backbone.set_gradient_checkpointing(config.train.gradient_checkpointing)
        model.train()
        self._outline = outline(model) if self.team.sharded else None
        if self.team.sharded:
            shard(model, accelerator.device)
        model.to(accelerator.device)
        self.parameters = {
            name: value for name, value in model.named_parameters() if value.requires_grad
        }
        self.team.broadcast_parameters(self.parameters.values())

    @abstractmethod
    def _attach(self) -> None:
        """Put the stage's adapter on the model and freeze what the stage does not train."""

    @abstractmethod
    def backward(
        self, batch: TrainBatch, shares: GlobalBatch | None = None
    ) -> tuple[Tensor, Tensor]:
        """Add the gradients of a step to the parameters; loss and accuracy, both scalars.

        `batch` is what this process brings, `shares` what all do; None: there is no other. The
        gradients, the loss and the accuracy are those of all processes; under ZeRO the gradients
        are so once the optimizer has gathered them.
        """

    def after_update(self) -> None:  # noqa: B027  (most stages have nothing to do here)
        """Called after each step of the optimizer."""

    def finish(self) -> None:
        """Make of the model what is saved: whole, nothing half attached, in inference mode."""
        if self._outline is not None:
            self.model = put_together(self._outline, self.model)
        self._detach()
        self.model.backbone.set_gradient_checkpointing(False)
        self.model.requires_grad_(False)
        self.model.zero_grad(set_to_none=True)
        self.model.eval()

    def _detach(self) -> None:  # noqa: B027  (stage 2 has nothing to do here)
        """Take off what is not saved as an adapter."""

    @property
    def memory(self) -> dict[str, Tensor]:
        """Vectors that a resumed run must find again, by text; none unless a stage keeps some."""
        return {}

    def remember(self, memory: Mapping[str, Tensor]) -> None:
        """Take `memory` of a checkpoint back."""
        if memory:
            raise TrainingError("the checkpoint holds cached vectors, but this stage keeps none")

    def _batch(self, features: Sequence[Features], *, pixels: bool = True) -> Batch:
        return self._processor.collate(features, pixels=pixels).to(self._accelerator.device)

    def _loss(
        self, query: Tensor, candidates: Tensor, batch: TrainBatch, shares: GlobalBatch
    ) -> tuple[Tensor, Tensor]:
        """This process's part of the loss: its queries among the candidates of all `(C, D)`."""
        loss, accuracy = contrastive_loss(
            query,
            candidates,
            shares.positives(batch).to(query.device),
            self.model.temperature.temp,
            self._config.train.label_smoothing,
        )
        if self.team.count == 1:
            return loss, accuracy
        part = self.team.share_of(len(query), shares.queries)
        return loss * part, accuracy * part

    def _level(
        self,
        chunks: Sequence[tuple[Features, ...]],
        counts: Sequence[int],
        spare: tuple[Features, ...] = (),
    ) -> list[tuple[Features, ...]]:
        """The chunks, and where weights are split as many idle ones as it takes to make equally
        many passes on every process; `counts` has the number of chunks of each."""
        missing = max(counts) - len(chunks) if self.team.sharded else 0
        return [*chunks, *([spare or chunks[-1][:1]] * missing)]

    def _through(
        self,
        chunks: Sequence[T],
        encode: Callable[[T], Tensor],
        loss_of: Callable[[Tensor], tuple[Tensor, Tensor]],
    ) -> tuple[Tensor, Tensor]:
        """Plain or cached, as `train.chunk_size` says; then the mean over the processes."""
        run = cached_backward if self._config.train.chunk_size else plain_backward
        found = run(chunks, encode, loss_of, self._accelerator.backward)
        self.team.average_gradients(self.parameters.values())
        loss, accuracy = self.team.mean(torch.stack(found)) if self.team.count > 1 else found
        return loss, accuracy


class Pretrain(Stage):
    """Stage 1: image to caption, among all captions of the batch."""

    def _attach(self) -> None:
        adapter, temperature = self._config.adapter, self._config.temperature
        attach_stage1(self.model, adapter.rank, adapter.alpha, adapter.dropout)
        set_trainable(self.model, "pretrain")
        self.model.temperature.requires_grad_(temperature.learn)
        with torch.no_grad():
            self.model.temperature.temp.fill_(temperature.start)

    def backward(
        self, batch: TrainBatch, shares: GlobalBatch | None = None
    ) -> tuple[Tensor, Tensor]:
        if any(features.kind is not Kind.IMAGE for features in batch.queries):
            raise DataError("stage 1 asks with the image alone; the source gave an instruction")
        shares = shares or GlobalBatch.of_one(batch)
        size = self._config.train.chunk_size
        images = self._level(split_queries(batch, size), shares.query_chunks)
        texts = self._level(
            split_texts(batch.candidates, size),
            [len(split_texts(texts, size)) for texts in shares.texts],
        )
        first = sum(map(len, images))  # where the texts begin, behind idle passes if any

        def loss_of(vectors: Tensor) -> tuple[Tensor, Tensor]:
            own = vectors[first : first + len(batch.candidates)]
            candidates = gather_candidates(own, shares, self._config.train.gather)
            return self._loss(vectors[: len(batch.queries)], candidates, batch, shares)

        return self._through([*images, *texts], self._encode, loss_of)

    def _encode(self, features: Sequence[Features]) -> Tensor:
        batch = self._batch(features)
        with self._accelerator.autocast():
            return self.model.embed(batch, self.model.encode_images(batch))

    def after_update(self) -> None:
        self.model.temperature.floor_(self._config.temperature.floor)

    def _detach(self) -> None:
        merge_stage1(self.model)


class Instruct(Stage):
    """Stage 2: image and instruction to answer, against answers that the frozen model embedded.

    A text is embedded the first time it comes up on any process, with the adapter off, without
    gradient and without dropout, and its vector kept on all for the whole run: nothing that could
    change it trains. The vision encoder is frozen too and runs once per image and step, also with
    GradCache.
    """

    def _attach(self) -> None:
        adapter = self._config.adapter
        attach_stage2(self.model, adapter.rank, adapter.alpha, adapter.dropout)
        set_trainable(self.model, "instruct")
        self._vectors: dict[str, Tensor] = {}

    def backward(
        self, batch: TrainBatch, shares: GlobalBatch | None = None
    ) -> tuple[Tensor, Tensor]:
        if any(features.kind is not Kind.INSTRUCTED for features in batch.queries):
            raise DataError("stage 2 needs an instruction with every image; the source gave none")
        known = shares or GlobalBatch.of_one(batch)
        candidates = self._candidates(batch, known)
        parts = split_queries(batch, self._config.train.chunk_size)
        chunks = [self._see(part) for part in self._level(parts, known.query_chunks)]
        queries = len(batch.queries)
        return self._through(
            chunks, self._encode, lambda v: self._loss(v[:queries], candidates, batch, known)
        )

    @torch.no_grad()
    def _see(self, features: Sequence[Features]) -> tuple[Sequence[Features], Tensor | None]:
        """A chunk and the visual tokens `(sum V, D)` of its images."""
        batch = self._batch(features)
        with self._accelerator.autocast():
            return features, self.model.encode_images(batch)

    def _encode(self, chunk: tuple[Sequence[Features], Tensor | None]) -> Tensor:
        # Collated again, without pixels: the batches of all chunks would wait for the last one.
        features, seen = chunk
        batch = self._batch(features, pixels=False)
        with self._accelerator.autocast():
            return self.model.embed(batch, seen)

    @torch.no_grad()
    def _candidates(self, batch: TrainBatch, shares: GlobalBatch) -> Tensor:
        """`(C, D)` float32: from memory, after embedding what is new."""
        new = shares.new_texts(self._vectors)
        if any(new):
            found = self._embed_texts(batch, new[shares.rank], [len(texts) for texts in new])
            for text, vector in zip((t for texts in new for t in texts), found.cpu(), strict=True):
                self._vectors[text] = vector.clone()
        texts = shares.numbers()
        return torch.stack([self._vectors[text] for text in texts]).to(self.model.device)

    def _embed_texts(
        self, batch: TrainBatch, texts: Sequence[str], counts: Sequence[int]
    ) -> Tensor:
        """Vectors of `texts` of this process, and of the `counts` of all: `(sum of counts, D)`."""
        size = self._config.train.chunk_size
        features = dict(zip(batch.texts, batch.candidates, strict=True))
        parts = self._level(
            split_texts([features[text] for text in texts], size),
            [len(split_texts(range(count), size)) for count in counts],
            spare=batch.candidates[:1],
        )
        self.model.eval()
        with self.model.adapter_off(), self._accelerator.autocast():
            made = [self.model.embed(self._batch(part), None) for part in parts]
        self.model.train()
        own = torch.cat(made) if made else torch.empty(0, self.model.dim, device=self.model.device)
        own = own[: len(texts)]
        return own if len(counts) == 1 else gather_rows(own, counts, "published")

    @property
    def memory(self) -> dict[str, Tensor]:
        return self._vectors

    def remember(self, memory: Mapping[str, Tensor]) -> None:
        self._vectors = dict(memory)
