"""START HERE. Texts, images and images with an instruction -> vectors of one space.

Each step of the way has its own file:
inputs -> prompts -> chat, pixels -> processor -> backbone -> pooling -> head -> model -> here.
checkpoint.py loads the model, and pipeline.py takes many items through it.

Shapes: `D` width of an embedding, `N` and `M` numbers of items.
"""

import os
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import closing
from dataclasses import replace
from functools import partial
from numbers import Integral
from os import PathLike
from pathlib import Path
from typing import (
    Any,
    Literal,
    Self,
    TypeAlias,
    TypedDict,
    Unpack,
    cast,
    overload,
)

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from abc_embed import checkpoint, hub, runtime
from abc_embed.card import CardFacts, model_card, sentence_transformers_files
from abc_embed.devices import Stream, resolve_devices, stream_in_processes
from abc_embed.errors import UsageError
from abc_embed.explain import Evidence, Method, explain
from abc_embed.inputs import Item, Skipped, as_item, is_single, warn_of_paths
from abc_embed.model import AbcModel
from abc_embed.pipeline import (
    EmbeddingPipeline,
    OnError,
    Results,
    Vector,
)
from abc_embed.processor import Processor
from abc_embed.progress import track
from abc_embed.quantization import check_weights, quantize_weights
from abc_embed.vectors import VectorFormat, ranges_at, unit_rows
from abc_embed.weights import fingerprint

__all__ = ["Embedder", "Evidence", "Skipped"]

Items: TypeAlias = Iterable[str | Item]


class Options(TypedDict, total=False):
    """What `Embedder.embed` and `Embedder.stream` take alike; the meaning is at `embed`."""

    max_pixels: int | None
    batch_size: int | None
    dim: int | None
    output: str
    devices: Sequence[str | torch.device] | None
    progress: bool


class Embedder:
    """A loaded model that turns items into unit vectors.

    >>> from abc_embed import Embedder, Item
    >>> model = Embedder.from_pretrained(folder, device="cpu")
    >>> names = model.embed(["a dog", "a cat"])
    >>> left = model.embed(Item(image=photo, instruction="what is the animal on the left?"))
    >>> left.shape == (model.dim,), names.shape == (2, model.dim), names.dtype.name
    (True, True, 'float32')
    >>> model.similarity(left, names).shape
    (2,)
    >>> sum(1 for vector in model.stream(f"photo {n}" for n in range(100)))
    100

    Make one with `from_pretrained` or `from_adapters`; the constructor takes parts that are already
    loaded. Calls from several threads are safe, and take turns on the model. The largest picture
    that is unpacked is `processor.decode_limit`, in pixels, and may be set.
    """

    def __init__(
        self, model: AbcModel, processor: Processor, truncate_dim: int | None = None
    ) -> None:
        self.model, self.processor, self.truncate_dim = model, processor, truncate_dim
        self._fingerprint: str | None = None
        self._thread_lock, self._process = threading.Lock(), os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        """For pickle, `copy.deepcopy` and spawned processes: the lock stays behind."""
        return {name: getattr(self, name) for name in ("model", "processor", "truncate_dim")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        Embedder.__init__(self, **state)

    def __repr__(self) -> str:
        config, dtype = self.config, str(self.model.dtype).removeprefix("torch.")
        source = ", ".join(f"{part}={name!r}" for part, name in config["source"].items())
        count = sum(parameter.numel() for parameter in self.model.parameters())
        adapter = ", with a stage-2 adapter" if config["instruct_adapter"] else ""
        return (
            f"{type(self).__name__}({source}: {config['model_type']} of {count:,} parameters"
            f"{adapter}, {self.dim} wide, {dtype} on {self.device})"
        )

    @property
    def _lock(self) -> threading.Lock:
        """Held while the model computes.

        Raises:
            UsageError: this process was forked from one that computes, or from one with a GPU.
        """
        if self._process != os.getpid():
            if self._thread_lock.locked() or self.device.type != "cpu":
                raise UsageError(
                    "this process was forked from one whose model is at work, and has half of it; "
                    "start processes with multiprocessing's 'spawn', or load the model in each"
                )
            # The threads of torch stay in the parent: a child that asks for them waits for ever.
            torch.set_num_threads(1)
            self._thread_lock, self._process = threading.Lock(), os.getpid()
        return self._thread_lock

    @classmethod
    def from_pretrained(
        cls,
        name: str | PathLike[str],
        *,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "auto",
        attn: str = "sdpa",
        weights: str | None = None,
        compile: bool = False,
        truncate_dim: int | None = None,
    ) -> Self:
        """Load a model by name: `"bundled"`, a folder that `save` wrote, or a published name.

        `device` is auto, cpu, cuda, cuda:N or mps; `dtype` auto (float32 on a CPU, bfloat16
        elsewhere), float32, bfloat16 or float16; `attn` sdpa or eager. `weights` int8 or int4 holds
        the layers' weights in that (see quantization.py); `compile` is `Embedder.compile`;
        `truncate_dim` is what `encode` takes where it is given none.

        Raises:
            UnknownModelError: no such name.
            OfflineError: the files must be fetched and there is no network.
            CheckpointError: the files are damaged or do not fit.
            DeviceError: this machine has no such device, number format or compiler.
            MissingExtraError: `weights` needs an optional package.
        """
        load = partial(checkpoint.load, str(name))
        embedder = cls._load(load, device, dtype, attn, weights, compile)
        embedder.truncate_dim = truncate_dim
        return embedder

    @classmethod
    def from_adapters(
        cls,
        base: str | PathLike[str],
        pretrain: str | PathLike[str],
        instruct: str | PathLike[str] | None = None,
        *,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "auto",
        attn: str = "sdpa",
        weights: str | None = None,
        compile: bool = False,
    ) -> Self:
        """Load a base with adapters in the published layout: folders, or names on the hub.

        `pretrain` (stage 1) is merged into the base; `instruct` (stage 2) stays an adapter that
        is on for an image with an instruction (paper, section 2).

        Raises:
            CheckpointError, DeviceError: as `from_pretrained`.
        """
        parts = (str(base), str(pretrain), None if instruct is None else str(instruct))
        load = partial(checkpoint.load_published, *parts)
        return cls._load(load, device, dtype, attn, weights, compile)

    @classmethod
    def _load(
        cls,
        load: Callable[..., checkpoint.Loaded],
        device: str | torch.device,
        dtype: str | torch.dtype,
        attn: str,
        weights: str | None,
        compile: bool,
    ) -> Self:
        device = runtime.resolve_device(device)
        dtype = runtime.resolve_dtype(dtype, device)
        if weights is not None:
            check_weights(weights)
        # Of what is quantized the device never holds more than a layer as it was.
        model, processor = load(device="cpu" if weights else device, dtype=dtype, attn=attn)
        if weights is not None:
            quantize_weights(model, weights, device)
        embedder = cls(model, processor)
        if compile:
            embedder.compile()
        return embedder

    def compile(self) -> None:
        """Have torch compile the layers: faster, after seconds to minutes at the first items.

        Vectors differ from the plain ones by rounding alone (1e-5 in float32).

        Raises:
            DeviceError: this machine has no compiler for the device.
        """
        runtime.check_compiler(self.device)
        with self._lock:
            self.model.backbone.compile_layers()

    # -- embedding -------------------------------------------------------------------------------

    @overload
    def embed(
        self,
        items: str | Item | Items,
        *,
        on_error: Literal["raise"] = "raise",
        **options: Unpack[Options],
    ) -> Vector: ...

    @overload
    def embed(
        self, items: Items, *, on_error: Literal["skip"], **options: Unpack[Options]
    ) -> tuple[Vector, list[Skipped]]: ...

    def embed(
        self,
        items: str | Item | Items,
        *,
        max_pixels: int | None = None,
        batch_size: int | None = None,
        dim: int | None = None,
        output: str = "float32",
        devices: Sequence[str | torch.device] | None = None,
        progress: bool = False,
        on_error: OnError = "raise",
    ) -> Vector | tuple[Vector, list[Skipped]]:
        """One item -> `(D,)`; a list of `N`, of any kinds, -> `(N, D)` in the same order.

        Vectors are of unit length (before `output`), and none depends on its company in the call. A
        picture that several items show is opened and encoded once.

        Args:
            items: a text, an `Item`, a picture as in `inputs.as_item`, or many of them.
            max_pixels: the largest area at which a picture is seen, in pixels; more shows more
                detail and costs more (28 x 28 pixels are one token). None: as the model says.
            batch_size: the most items that go through the model together. None: as many as fill
                the budget of tokens that suits the device.
            dim: the width to which vectors are cut, at unit length again (`vectors.truncate`); how
                much that costs depends on the training. None: all of `D`.
            output: number format, one of `vectors.OUTPUTS`; int8 and uint8 need `calibrate`.
            devices: that share many items, like `["cuda:0", "cuda:1"]`: a process each, with a copy
                of the model from a temporary folder; the script must be importable (`if __name__ ==
                "__main__":`). None: the model's own, in this process.
            progress: draw a bar on stderr.
            on_error: with "skip" a bad item costs only itself: the result is a pair, the vectors of
                the good items and the list of those skipped, by index.

        Raises:
            InputError: an item cannot be embedded, and `on_error` is "raise".
            UsageError: an argument is out of range.
            OutOfMemoryError, NotFiniteError: the model could not compute a batch.
        """
        stored = VectorFormat(self.dim, self.model.vector_facts, dim, output)
        pipeline = self.pipeline(max_pixels, batch_size, on_error)
        if is_single(items):
            item = next(warn_of_paths([as_item(items)]))
            if on_error == "skip":
                raise UsageError("on_error='skip' is for lists; a single item is embedded or fails")
            return stored(pipeline.embed_one(item))
        values: list[object] = list(warn_of_paths(cast(Items, items)))
        vectors = np.zeros((len(values), self.dim), dtype=np.float32)
        skipped: list[Skipped] = []
        pairs = ((index, values[index]) for index in pipeline.group(values))
        results = self._run(pipeline, pairs, devices, len(values))
        with closing(results):
            for index, result in track(results, len(values), progress):
                if isinstance(result, Skipped):
                    skipped.append(result)
                else:
                    vectors[index] = result
        if on_error == "raise":
            return stored(vectors)
        skipped.sort(key=lambda bad: bad.index)
        return stored(np.delete(vectors, [bad.index for bad in skipped], axis=0)), skipped

    @overload
    def stream(
        self, items: Items, *, on_error: Literal["raise"] = "raise", **options: Unpack[Options]
    ) -> Iterator[Vector]: ...

    @overload
    def stream(
        self, items: Items, *, on_error: Literal["skip"], **options: Unpack[Options]
    ) -> Iterator[Vector | Skipped]: ...

    def stream(
        self,
        items: Items,
        *,
        max_pixels: int | None = None,
        batch_size: int | None = None,
        dim: int | None = None,
        output: str = "float32",
        devices: Sequence[str | torch.device] | None = None,
        progress: bool = False,
        on_error: OnError = "raise",
    ) -> Iterator[Vector] | Iterator[Vector | Skipped]:
        """Any iterable of any length -> its vectors `(D,)` one by one, in order.

        Memory stays flat: at most two windows of items are held (16 batches of a `batch_size`, or
        2,048 items), since pictures are prepared while the model computes. An item must not change
        after it was handed over. A picture that comes again within that distance is encoded once.

        The arguments are those of `embed`. With `on_error="skip"` a `Skipped` stands in the place
        of a vector, so that the stream still runs level with its items.

        Raises:
            InputError: an item cannot be embedded and `on_error` is "raise"; the vectors of all
                items before it have been handed out.
            UsageError: an argument is out of range.
        """
        if is_single(items):
            if not isinstance(items, str | bytes | PathLike):
                as_item(items)  # a table, say: names what cannot be an item at all
            raise UsageError("stream takes an iterable of items; for a single one use embed")
        stored = VectorFormat(self.dim, self.model.vector_facts, dim, output)
        pipeline = self.pipeline(max_pixels, batch_size, on_error)
        total = len(items) if isinstance(items, Sized) else None
        results = self._run(pipeline, enumerate(warn_of_paths(items)), devices, total)
        return (
            result if isinstance(result, Skipped) else stored(result)
            for _, result in track(results, total, progress)
        )

    def _run(
        self,
        pipeline: EmbeddingPipeline,
        pairs: Iterable[tuple[int, object]],
        devices: Sequence[str | torch.device] | None,
        total: int | None,
    ) -> Results:
        """Results of (index, item) pairs, in their order, of this model or of copies of it."""
        if devices is None:
            return pipeline.run(pairs)
        return self._run_on(resolve_devices(devices), pipeline, pairs, total)

    def _run_on(
        self,
        devices: list[torch.device],
        pipeline: EmbeddingPipeline,
        pairs: Iterable[tuple[int, object]],
        total: int | None,
    ) -> Results:
        options = Options(max_pixels=pipeline.max_pixels, batch_size=pipeline.batch_size)
        with tempfile.TemporaryDirectory(prefix="abc-embed-") as folder:
            self.save(Path(folder) / "model")
            load = partial(
                _load_copy,
                Path(folder) / "model",
                devices,
                {
                    "dtype": self.model.dtype,
                    "attn": self.model.backbone.attn,
                    "compile": self.model.backbone.is_compiled,
                },
                self.processor.decode_limit,
                options,
            )
            yield from stream_in_processes(
                load, pairs, len(devices), on_error=pipeline.on_error, total=total
            )

    def encode(
        self,
        inputs: str | Item | Items,
        *,
        batch_size: int | None = None,
        show_progress_bar: bool = False,
        precision: str = "float32",
        truncate_dim: int | None = None,
    ) -> NDArray[Any]:
        """`embed` under the names of sentence-transformers; the same for queries and documents.

        `precision` is `embed`'s `output`, `truncate_dim` its `dim`. Raises as `embed`.
        """
        return self.embed(
            inputs,
            batch_size=batch_size,
            progress=show_progress_bar,
            dim=self.truncate_dim if truncate_dim is None else truncate_dim,
            output=precision,
        )

    encode_query = encode
    encode_document = encode

    def calibrate(self, items: Items, dims: Sequence[int] = ()) -> None:
        """Take the ranges that int8 and uint8 need from items like those that will be stored.

        They are saved with the model. `dims` are further widths, besides `D` and the trained ones.
        Raises as `embed`; also where there are fewer than two items.
        """
        vectors = self.embed(items)
        if vectors.ndim < 2 or len(vectors) < 2:
            raise UsageError("ranges need many vectors; give a list of typical items")
        facts = self.model.vector_facts
        widths = (self.dim, *facts.matryoshka, *dims)
        self.model.vector_facts = replace(facts, ranges=ranges_at(vectors, widths))

    def pipeline(
        self,
        max_pixels: int | None = None,
        batch_size: int | None = None,
        on_error: OnError = "raise",
        *,
        batch_tokens: int | None = None,
        engine: Callable[..., EmbeddingPipeline] = EmbeddingPipeline,
    ) -> EmbeddingPipeline:
        """The engine under `embed` and `stream`, for those who prepare and pack items themselves,
        or one derived from it.

        `batch_tokens` is the budget of tokens of a batch; None: what suits the device.

        Raises:
            UsageError: an argument is out of range.
        """
        for name, value in dict[str, object](max_pixels=max_pixels, batch_size=batch_size).items():
            if value is not None and not isinstance(value, Integral):
                raise UsageError(f"{name} is {value!r}; give a whole number")
        return engine(
            self.model,
            self.processor,
            max_pixels=max_pixels,
            batch_size=batch_size,
            on_error=on_error,
            batch_tokens=batch_tokens,
            lock=self._lock,
        )

    @staticmethod
    def similarity(a: ArrayLike, b: ArrayLike) -> NDArray[np.float32]:
        """Cosine of every vector of `a` with every vector of `b`, as float32.

        `(D,)` and `(M, D)` give `(M,)`; `(N, D)` and `(M, D)` give `(N, M)`; two single
        vectors give a scalar array of shape `()`.

        >>> Embedder.similarity([1.0, 0.0], [[2.0, 0.0], [0.0, 1.0]])
        array([1., 0.], dtype=float32)

        Raises:
            UsageError: widths differ, a vector is zero or not finite, or there are too many axes.
        """
        first, second = unit_rows(a, "first"), unit_rows(b, "second")
        if first.shape[-1] != second.shape[-1]:
            raise UsageError(
                f"the vectors have different widths, {first.shape[-1]} and {second.shape[-1]}; "
                "compare vectors of one model"
            )
        return np.asarray(first @ second.T, dtype=np.float32)

    def explain(
        self,
        item: str | Item,
        text: "str | Item | Vector",
        *,
        max_pixels: int | None = None,
        method: Method = "two_point",
    ) -> Evidence:
        """Which places of a picture made its cosine with a text: a `(rows, columns)` map.

        Args:
            item: an image, alone or with an instruction.
            text: what it is compared with; anything `embed` takes, or a vector `(D,)`.
            max_pixels: as in `embed`.
            method: see `explain.Method`; the default takes about two passes.

        Raises:
            InputError, UsageError: as `embed`; also for an item without a picture.
        """
        vector = text if isinstance(text, np.ndarray) else self.embed(text, max_pixels=max_pixels)
        target = torch.from_numpy(unit_rows(vector, "text's")).float()
        if target.shape != (self.dim,):
            shape = tuple(target.shape)
            raise UsageError(f"the text's vector has shape {shape}; give ({self.dim},)")
        parts = (self.model, self.processor, as_item(item), target)
        with self._lock:
            return explain(*parts, max_pixels=max_pixels, method=method)

    # -- what it is ------------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return self.model.device

    def to(self, device: str | torch.device) -> Self:
        """Move the model to a device, named as in `from_pretrained`; the number format stays.

        Raises:
            UsageError, DeviceError: there is no such device.
        """
        where = runtime.resolve_device(device)
        with self._lock:
            self.model.forget_layers()  # merged weights are made anew there
            self.model.to(where)
        return self

    @property
    def dim(self) -> int:
        """`D`, the length of an embedding."""
        return self.model.dim

    @property
    def config(self) -> dict[str, Any]:
        """What decides a vector, as JSON values: source, positions, pixel budget, pooling, ..."""
        return checkpoint.describe(self.model, self.processor)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over all weights and settings as they are loaded; a key for caches and records.

        The same after `save` and `from_pretrained`; another in another number format, whose vectors
        differ too. It does not cover `max_pixels` of a call. Computed once, at first use.
        """
        if self._fingerprint is None:
            origin = ("source", "training")  # no part of what the weights are
            config = {key: value for key, value in self.config.items() if key not in origin}
            config |= {"truncate": "end"} if self.processor.truncate == "end" else {}
            with self._lock:  # while the model computes, its weights may be those with the adapter
                self._fingerprint = fingerprint(config, self.model.state_dict())
        return self._fingerprint

    def save(self, folder: str | PathLike[str]) -> None:
        """Write a self-contained folder; loading it gives the same vectors, bit for bit.

        Raises:
            OutputError: the folder cannot be written, or holds something else.
        """
        with self._lock:
            checkpoint.save(self.model, self.processor, Path(folder))

    def push_to_hub(
        self,
        name: str,
        *,
        private: bool = True,
        token: str | None = None,
        commit_message: str | None = None,
        licence: str | None = None,
        datasets: Sequence[str] = (),
        records: Sequence[Mapping[str, Any]] = (),
    ) -> str:
        """Upload the model to a hub, where `from_pretrained(name)` finds it; safetensors, no code.

        Called again it makes a new commit. `private` counts for a new one, `token` is that of `hf
        auth login` unless given; `licence`, `datasets` (their names there) and `records` of
        benchmarks (their R@1) go on the card.

        Returns:
            `owner/name@commit`, which `from_pretrained` takes too.

        Raises:
            UsageError: `name` is no `owner/name`, or a record has no R@1.
            OutputError: the hub cannot be reached, or does not let this token write there.
        """
        facts = CardFacts(name=name, licence=licence, datasets=datasets, records=records)
        extra = sentence_transformers_files() | {"README.md": model_card(self.config, facts)}
        message = commit_message or "Upload a model of abc-embed"
        with tempfile.TemporaryDirectory(prefix="abc-embed-push-") as scratch:
            folder = Path(scratch) / "model"
            with self._lock:
                checkpoint.save(self.model, self.processor, folder, extra=extra)
            return hub.upload_folder(folder, name, private=private, token=token, message=message)


def _load_copy(
    folder: Path,
    devices: list[torch.device],
    loading: dict[str, Any],
    decode_limit: int,
    options: Options,
    number: int,
) -> Stream:
    """What embeds items in process `number`: the model in `folder` on its device."""
    embedder = Embedder.from_pretrained(folder, device=devices[number], **loading)
    embedder.processor.decode_limit = decode_limit
    return partial(embedder.stream, on_error="skip", **options)
