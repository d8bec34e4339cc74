"""Models of other libraries, sentence-transformers and open_clip: pictures opened as ours are.

Every model of a comparison then sees the same pixels (upright, RGB, as `inputs.open_image`, shrunk
to `max_pixels`), and a picture that cannot be read is the same plain error for all. Some models
refuse mixtures of kinds in one batch, so kinds go apart.

Shapes: `N` items, `D` width.
"""

import importlib
import json
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from abc_embed import hub, runtime
from abc_embed.bench.encoders.base import Encoder, Vectors, no_direction, shrink, strip_path
from abc_embed.errors import CheckpointError, MissingExtraError, UsageError
from abc_embed.inputs import Item, Kind, group_by_image, image_key, open_image
from abc_embed.progress import track
from abc_embed.vectors import l2_normalize
from abc_embed.weights import fingerprint

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

BATCH_SIZE = 32
"""Items of a batch, where nobody says it: these libraries have no budget of tokens."""
NATIVE_MODULES = "abc_embed.interop."
FILES = ("*.json", "*.jinja", "*.txt", "*.model", "*.safetensors")
"""What is fetched of a named repository: no code, and no weights in Python's pickle format."""
_PRECISION = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}


class ForeignEncoder(Encoder):
    """A torch model that another library loaded."""

    batches_per_call = 1
    """Batches given to `_embed_kind` at once: more where the library sorts and cuts them itself."""

    def __init__(
        self,
        model: Any,
        name: str,
        kinds: frozenset[Kind],
        *,
        dim: int | None,
        batch_size: int | None,
    ) -> None:
        """`dim` of a model that does not say it is found by embedding a word."""
        self.model = model
        self.name = name
        self.supported_kinds = kinds
        self.batch_size = batch_size or BATCH_SIZE
        self.dim = self._embed_kind(Kind.TEXT, ["a"], []).shape[1] if dim is None else dim

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the weights and over what decides a vector besides."""
        return fingerprint(self._config(), self.model.state_dict())

    def _details(self) -> dict[str, Any]:
        return {
            "dtype": str(self._parameter.dtype).removeprefix("torch."),
            "device": self._parameter.device.type,
            "prompt_hash": None,
            "config": self._config(),
        }

    @property
    def _parameter(self) -> torch.Tensor:
        """One that says in which number format and where the model is."""
        parameter: torch.Tensor = next(self.model.parameters(), torch.zeros(()))
        return parameter

    def _embed(self, items: list[Item]) -> Vectors:
        vectors = np.zeros((len(items), self.dim), dtype=np.float32)
        for row, vector in track(self._stream(items), len(items), self.progress):
            vectors[row] = vector
        return vectors

    def _stream(self, items: Sequence[Item]) -> Iterator[tuple[int, Vectors]]:
        """(row, vector `(D,)`), kind by kind and picture by picture."""
        for kind in Kind:
            rows = [row for row, item in enumerate(items) if item.kind is kind]
            order = group_by_image([image_key(items[row]) for row in rows])
            size = self.batch_size * self.batches_per_call
            for start in range(0, len(order), size):
                part = [rows[place] for place in order[start : start + size]]
                batch = [items[row] for row in part]
                words = [text for item in batch if (text := item.text or item.instruction)]
                vectors = self._embed_kind(kind, words, _open_pictures(batch, self.max_pixels))
                yield from zip(part, l2_normalize(vectors, no_direction(self.name)), strict=True)

    @abstractmethod
    def _embed_kind(self, kind: Kind, words: list[str], pictures: list[Image.Image]) -> Vectors:
        """`N` texts or instructions (none for images alone), `N` pictures (none for texts) ->
        `(N, D)`, of any length."""

    @abstractmethod
    def _config(self) -> dict[str, Any]:
        """What decides a vector besides the weights, as JSON values."""


def _open_pictures(items: Sequence[Item], max_pixels: int | None) -> list[Image.Image]:
    """Each different picture is opened once."""
    images = {image_key(item): item.image for item in items if item.image is not None}
    opened = {key: shrink(open_image(image), max_pixels) for key, image in images.items()}
    return [opened[image_key(item)] for item in items if item.image is not None]


def _cannot_load(library: str, name: str, problem: Exception, mend: str) -> CheckpointError:
    why = (str(problem).strip() or type(problem).__name__).splitlines()[0]
    return CheckpointError(f"{library} cannot load {name!r}: {why}; check the {mend}")


# -- sentence-transformers -------------------------------------------------------------------------


class SentenceTransformerEncoder(ForeignEncoder):
    """Any `SentenceTransformer`, with the kinds that it says it takes.

    The library takes a text that is the name of an image file, or an address that ends like one,
    for the image, without a word: see `_as_text`.
    """

    library = "sentence-transformers"
    batches_per_call = 4

    def __init__(
        self, model: "SentenceTransformer", name: str, *, batch_size: int | None = None
    ) -> None:
        supported = {
            Kind.TEXT: model.supports("text"),
            Kind.IMAGE: model.supports("image"),
            Kind.INSTRUCTED: model.supports(("image", "text")),
        }
        kinds = frozenset(kind for kind, has in supported.items() if has)
        dim = model.get_embedding_dimension()
        super().__init__(model, f"st:{strip_path(name)}", kinds, dim=dim, batch_size=batch_size)

    def _embed_kind(self, kind: Kind, words: list[str], pictures: list[Image.Image]) -> Vectors:
        if kind is Kind.INSTRUCTED:
            pairs = zip(pictures, words, strict=True)
            return self._encode([{"image": picture, "text": text} for picture, text in pairs])
        return self._encode([self._as_text(text) for text in words] if words else pictures)

    def _as_text(self, text: str) -> str | dict[str, str]:
        """A text in such a form that the library takes it for one."""
        from sentence_transformers.base.modality import infer_modality

        is_text = infer_modality(text, supported_modalities=self.model.modalities) == "text"
        return text if is_text else {"text": text}

    def _encode(self, inputs: Sequence[Any]) -> Vectors:
        vectors = self.model.encode(
            list(inputs),
            batch_size=self.batch_size,
            show_progress_bar=False,
            normalize_embeddings=True,
        )
        return np.asarray(vectors, dtype=np.float32)

    def _config(self) -> dict[str, Any]:
        prompts = self.model.default_prompt_name
        modules = [f"{type(part).__module__}.{type(part).__name__}" for part in self.model]
        transformer = self.model.transformers_model
        return {
            "modules": modules,
            "modalities": [
                "+".join(each) if isinstance(each, tuple) else str(each)
                for each in self.model.modalities
            ],
            "default_prompt": None if prompts is None else self.model.prompts.get(prompts),
            "max_seq_length": self.model.max_seq_length,
            "model_type": None if transformer is None else transformer.config.model_type,
        }


def load_sentence_transformer(
    name: str, *, device: str = "auto", dtype: str = "auto", batch_size: int | None = None
) -> SentenceTransformerEncoder:
    """The model of a folder, or of `owner/name[@revision]` on the hub, which is fetched once.

    `dtype="auto"` keeps the number format of the files. Code that comes with a model is not run;
    a folder that `interop.export` wrote needs only this package.

    Raises:
        AbcError: as `load_encoder`; `CheckpointError` also where it wants to run code of its own.
    """
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError:
        raise MissingExtraError.of("bench", "a model of sentence-transformers") from None
    where = runtime.resolve_device(device)
    folder, _ = hub.locate(name, FILES)
    chosen = {} if dtype == "auto" else {"dtype": runtime.resolve_dtype(dtype, where)}
    try:
        model = SentenceTransformer(
            str(folder),
            device=str(where),
            local_files_only=True,
            trust_remote_code=_only_native(folder),
            model_kwargs=chosen or None,
        )
    except (OSError, ValueError, ImportError, RuntimeError) as problem:
        raise _cannot_load("sentence-transformers", name, problem, "folder") from problem
    return SentenceTransformerEncoder(model, name, batch_size=batch_size)


def _only_native(folder: Path) -> bool:
    """Whether a folder asks for nothing but modules of this package, which are installed anyway.

    The library calls every class outside itself remote code, and wants a permission for it; this
    one is given for nothing else.
    """
    try:
        modules = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
        return all(str(module["type"]).startswith(NATIVE_MODULES) for module in modules)
    except (OSError, ValueError, TypeError, KeyError):
        return False


# -- open_clip -------------------------------------------------------------------------------------


class OpenClipEncoder(ForeignEncoder):
    """A model of open_clip with its own preparation of pictures and its own tokenizer.

    It sees every picture at its one size, cut or stretched as it was trained, and has one encoder
    for each kind: measure an image with an instruction as `late:open_clip:...`.
    """

    library = "open_clip"

    def __init__(
        self,
        model: Any,
        prepare: Any,
        tokenize: Any,
        name: str,
        *,
        batch_size: int | None = None,
    ) -> None:
        self._prepare = prepare
        self._tokenize = tokenize
        kinds = frozenset({Kind.TEXT, Kind.IMAGE})
        super().__init__(model.eval(), f"open_clip:{name}", kinds, dim=None, batch_size=batch_size)

    @torch.no_grad()
    def _embed_kind(self, kind: Kind, words: list[str], pictures: list[Image.Image]) -> Vectors:
        device, dtype = self._parameter.device, self._parameter.dtype
        if kind is Kind.TEXT:
            vectors = self.model.encode_text(self._tokenize(words).to(device))
        else:
            pixels = torch.stack([self._prepare(picture) for picture in pictures])
            vectors = self.model.encode_image(pixels.to(device, dtype))
        return np.asarray(vectors.float().cpu().numpy(), dtype=np.float32)

    def _config(self) -> dict[str, Any]:
        return {"preparation": str(self._prepare), "name": self.name}


def load_open_clip(
    name: str, *, device: str = "auto", dtype: str = "auto", batch_size: int | None = None
) -> OpenClipEncoder:
    """`MODEL/PRETRAINED` by the names of open_clip, where PRETRAINED may be a file.

    Names that the library knows are fetched by it. `dtype="auto"` is float32 on a CPU, bfloat16
    elsewhere.

    Raises:
        AbcError: as `load_encoder`.
    """
    try:
        open_clip = importlib.import_module("open_clip")
    except ImportError:
        raise MissingExtraError.of("open-clip", "a model of open_clip") from None
    model_name, slash, pretrained = name.partition("/")
    if not (model_name and slash and pretrained):
        raise UsageError(
            f"{name!r} is no name of an open_clip model; write open_clip:MODEL/PRETRAINED,"
            " as in open_clip:ViT-B-32/laion2b_s34b_b79k"
        )
    where = runtime.resolve_device(device)
    precision = _PRECISION[str(runtime.resolve_dtype(dtype, where)).removeprefix("torch.")]
    try:
        model, _, prepare = open_clip.create_model_and_transforms(
            model_name, pretrained=pretrained, device=str(where), precision=precision
        )
        tokenize = open_clip.get_tokenizer(model_name)
    except (OSError, ValueError, RuntimeError) as problem:
        raise _cannot_load("open_clip", name, problem, "name") from problem
    shown = f"{model_name}/{strip_path(pretrained)}"
    return OpenClipEncoder(model, prepare, tokenize, shown, batch_size=batch_size)
