"""What each of the two stages trains and freezes, and how a batch becomes gradients.

    stage 1  query: image alone         candidates: captions, embedded by the model in training
             trains: LoRA on both encoders, head, τ            (paper section 4)
    stage 2  query: image + instruction candidates: answers, embedded once by the frozen stage-1
             model trains: LoRA on the language model only     (paper section 5)

Steps of the optimizer, counting and writing are left to `loop`.

Shapes: `Q` queries, `C` candidates, `D` width, `V` visual tokens of one image.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import torch
from peft.helpers import disable_input_dtype_casting
from torch import Tensor, nn

from abc_embed.adapters import (
    adapter_parameters,
    attach_stage1,
    attach_stage2,
    detach,
    merge_stage1,
    set_trainable,
)
from abc_embed.errors import ConfigError, DataError
from abc_embed.inputs import Kind
from abc_embed.model import INSTRUCT_ADAPTER, AbcModel
from abc_embed.processor import Batch, Features, Processor
from abc_embed.train.batches import split_chunks, split_queries
from abc_embed.train.config import TrainConfig
from abc_embed.train.gradcache import cached_backward, plain_backward
from abc_embed.train.losses import contrastive_loss
from abc_embed.train.processes import GlobalBatch, ProcessGroup, gather_candidates, gather_rows
from abc_embed.train.sharding import meta_copy, shard, unshard_into
from abc_embed.train.zero import Optimizer, make_optimizer

T = TypeVar("T")
Chunk = tuple[Features, ...]
Loss = tuple[Tensor, Tensor]
"""Loss and accuracy, both scalars."""


def attach_adapter(model: AbcModel, config: TrainConfig) -> None:
    """Put the stage's adapter on `model`, freeze what the stage does not train, and set τ.

    Stage 2 goes on with the adapter of a model that has passed it.

    Raises:
        ConfigError: that adapter has another rank or scale than the configuration.
    """
    stage, adapter = config.stage, config.adapter
    attach = attach_stage1 if stage == "pretrain" else attach_stage2
    earlier = _take_adapter(model, config) if model.has_instruct_adapter else {}
    attach(model, adapter.rank, adapter.alpha, adapter.dropout)
    set_trainable(model, stage)
    with torch.no_grad():
        for name, parameter in adapter_parameters(model, INSTRUCT_ADAPTER) if earlier else ():
            parameter.copy_(earlier[name])
    if stage == "pretrain":  # stage 2 keeps the τ of stage 1
        model.temperature.requires_grad_(config.temperature.learn)
        with torch.no_grad():
            model.temperature.temp.fill_(config.temperature.start)


def _take_adapter(model: AbcModel, config: TrainConfig) -> dict[str, Tensor]:
    """Take the stage-2 adapter off a model; its weights, for one with another dropout."""
    there = model.backbone.vlm.peft_config[INSTRUCT_ADAPTER]
    for name, value in (("rank", there.r), ("alpha", there.lora_alpha)):
        wanted = getattr(config.adapter, name)
        if value != wanted:
            raise ConfigError(
                f"adapter.{name} is {wanted}, and the stage-2 adapter of {config.model.base}, with "
                f"which this run would go on, has {value}; give {value}, or begin with a model "
                "that has passed stage 1 only"
            )
    weights = {name: value.detach() for name, value in adapter_parameters(model, INSTRUCT_ADAPTER)}
    detach(model)
    return weights


class Stage(ABC):
    """A model set up for one stage, with its optimizer. What does not train is frozen."""

    parameters: Mapping[str, nn.Parameter]
    """What trains, by its name in the model, in a fixed order; float32."""
    optimizer: Optimizer
    """Of the parameters, where gradients are left."""

    def __init__(
        self,
        config: TrainConfig,
        model: AbcModel,
        processor: Processor,
        process_group: ProcessGroup,
    ) -> None:
        self.model = model
        self.process_group = process_group
        self.config = config
        self._processor = processor
        self._accelerator = process_group.accelerator
        self.text_cache: dict[str, Tensor] = {}
        """Vectors that a resumed run must find again, by text; stage 1 keeps none."""
        attach_adapter(model, config)
        model.backbone.set_gradient_checkpointing(config.train.gradient_checkpointing)
        model.train()
        self._unsharded = meta_copy(model) if process_group.sharded else None
        if process_group.sharded:
            shard(model, self._accelerator.device)
        model.to(self._accelerator.device)
        self.parameters = {
            name: value for name, value in model.named_parameters() if value.requires_grad
        }
        process_group.broadcast_parameters(self.parameters.values())
        self.optimizer = make_optimizer(self.parameters, config.optim, process_group)

    @abstractmethod
    def backward(self, batch: GlobalBatch) -> Loss:
        """Add the gradients of a step to the parameters.

        Returns:
            Those of all processes. The gradients are this process's own until the optimizer's
            `grad_sync` ends.
        """

    @torch.no_grad()
    def embed(self, features: Sequence[Features]) -> Tensor:
        """`(N, D)` float32, as the model would embed them in use; nothing in it is changed."""
        self.model.eval()
        vectors = self._encode(features)
        self.model.train()
        return vectors.float()

    def _encode(self, features: Sequence[Features]) -> Tensor:
        """`(N, D)` with gradients, in the number format of training."""
        batch = self._collate(features)
        with self._accelerator.autocast():
            return self.model.embed(batch, self.model.encode_images(batch))

    def after_update(self) -> None:  # noqa: B027  (most stages have nothing to do here)
        """Called after each step of the optimizer."""

    def finish(self) -> None:
        """Make of the model what is saved: unsharded, nothing half attached, in inference mode.

        The optimizer can make no step after it.
        """
        self.optimizer.close()
        if self._unsharded is not None:
            self.model = unshard_into(self._unsharded, self.model)
        self._detach()
        self.model.backbone.set_gradient_checkpointing(False)
        self.model.requires_grad_(False)
        self.model.zero_grad(set_to_none=True)
        self.model.eval()

    def _detach(self) -> None:  # noqa: B027  (stage 2 has nothing to do here)
        """Take off what is not saved as an adapter."""

    def _collate(self, features: Sequence[Features], *, pixels: bool = True) -> Batch:
        return self._processor.collate(features, pixels=pixels).to(self._accelerator.device)

    def _loss(self, query: Tensor, candidates: Tensor, batch: GlobalBatch) -> Loss:
        """This process's part of the loss: its queries among the candidates of all `(C, D)`."""
        loss, accuracy = contrastive_loss(
            query,
            candidates,
            batch.positives().to(query.device),
            self.model.temperature.temp,
            self.config.train.label_smoothing,
            excluded=batch.excluded(),
            matryoshka=self.config.train.matryoshka,
            quantization=self.config.train.quantization,
        )
        return loss * batch.loss_weight, accuracy * batch.loss_weight

    def _query_chunks(self, batch: GlobalBatch) -> list[Chunk]:
        chunks = split_queries(batch.own, self.config.train)
        return self._pad_chunks(chunks, [info.query_chunks for info in batch.infos])

    def _text_chunks(self, batch: GlobalBatch, texts: Sequence[Sequence[str]]) -> list[Chunk]:
        """The chunks of this process's part of `texts`, which has those of each process."""
        tokens_of = batch.tokens.__getitem__
        chunks = [split_chunks(some, self.config.train, tokens_of) for some in texts]
        features = batch.own.texts
        own = [tuple(features[text] for text in chunk) for chunk in chunks[batch.rank]]
        return self._pad_chunks(own, list(map(len, chunks)), idle=tuple(features.values())[:1])

    def _pad_chunks(
        self, chunks: Sequence[Chunk], counts: Sequence[int], idle: Chunk = ()
    ) -> list[Chunk]:
        """The chunks, and where weights are split as many idle ones as it takes to make equally
        many passes on every process; `counts` has the number of chunks of each."""
        missing = max(counts) - len(chunks) if self.process_group.sharded else 0
        return [*chunks, *([chunks[-1][:1] if chunks else idle] * missing)]

    def _backward_chunks(
        self,
        chunks: Sequence[T],
        encode: Callable[[T], Tensor],
        loss_of: Callable[[Tensor], Loss],
    ) -> Loss:
        """Plain or cached, as the settings say; then the mean over the processes.

        LoRA's products run in the format of autocast: PEFT would first turn what goes into them
        to float32, the format of the weights, which autocast turns back.
        """
        backward = cached_backward if self.config.train.is_chunked else plain_backward
        with disable_input_dtype_casting(self.model.backbone.vlm):
            loss, accuracy = backward(chunks, encode, loss_of, self._accelerator.backward)
        loss, accuracy = self.process_group.mean(torch.stack([loss, accuracy]))
        return loss, accuracy


class Pretrain(Stage):
    """Stage 1: image to caption, among all captions of the batch."""

    def backward(self, batch: GlobalBatch) -> Loss:
        queries, own_texts = batch.own.queries, batch.own.texts
        if any(query.features.kind is not Kind.IMAGE for query in queries):
            raise DataError("stage 1 asks with the image alone; the sampler gave an instruction")
        images = self._query_chunks(batch)
        texts = self._text_chunks(batch, [list(info.tokens) for info in batch.infos])
        first_text = sum(map(len, images))  # behind idle passes if any

        def loss_of(vectors: Tensor) -> Loss:
            own = vectors[first_text : first_text + len(own_texts)]
            candidates = gather_candidates(own, batch, self.config.train.gather)
            return self._loss(vectors[: len(queries)], candidates, batch)

        return self._backward_chunks([*images, *texts], self._encode, loss_of)

    def after_update(self) -> None:
        self.model.temperature.floor_(self.config.temperature.floor)

    def _detach(self) -> None:
        merge_stage1(self.model)


class Instruct(Stage):
    """Stage 2: image and instruction to answer, against answers that the frozen model embedded.

    A text is embedded the first time it comes up on any process, with the adapter off, without
    gradient and without dropout, and its vector kept on all for the whole run: nothing that could
    change it trains. The vision encoder is frozen too and runs once per image and step, also with
    GradCache.
    """

    def backward(self, batch: GlobalBatch) -> Loss:
        queries = batch.own.queries
        if any(query.features.kind is not Kind.INSTRUCTED for query in queries):
            raise DataError("stage 2 needs an instruction with every image; the sampler gave none")
        candidates = self._candidates(batch)
        chunks = [self._see(chunk) for chunk in self._query_chunks(batch)]
        return self._backward_chunks(
            chunks, self._encode_seen, lambda v: self._loss(v[: len(queries)], candidates, batch)
        )

    @torch.no_grad()
    def _see(self, features: Chunk) -> tuple[Chunk, Tensor | None]:
        """A chunk and the visual tokens `(sum V, D)` of its images."""
        batch = self._collate(features)
        with self._accelerator.autocast():
            return features, self.model.encode_images(batch)

    def _encode_seen(self, chunk: tuple[Chunk, Tensor | None]) -> Tensor:
        # Collated again, without pixels: the batches of all chunks would wait for the last one.
        features, visual = chunk
        batch = self._collate(features, pixels=False)
        with self._accelerator.autocast():
            return self.model.embed(batch, visual)

    @torch.no_grad()
    def _candidates(self, batch: GlobalBatch) -> Tensor:
        """`(C, D)` float32: from the cache, after embedding what is new."""
        new = batch.new_texts(self.text_cache)
        if any(new):
            vectors = self._embed_texts(batch, new).cpu()
            for text, vector in zip((t for texts in new for t in texts), vectors, strict=True):
                self.text_cache[text] = vector.clone()
        return torch.stack([self.text_cache[text] for text in batch.numbers]).to(self.model.device)

    def _embed_texts(self, batch: GlobalBatch, new: Sequence[Sequence[str]]) -> Tensor:
        """Vectors `(C, D)` of the `new` texts of each process, one after the other."""
        vectors = [self.embed(chunk) for chunk in self._text_chunks(batch, new)]
        nothing = torch.empty(0, self.model.dim, device=self.model.device)
        counts = list(map(len, new))
        own = torch.cat([*vectors, nothing])[: counts[batch.rank]]
        return own if len(counts) == 1 else gather_rows(own, counts, "published")


STAGES: Mapping[str, type[Stage]] = {"pretrain": Pretrain, "instruct": Instruct}
"""By `stage` of a configuration."""
