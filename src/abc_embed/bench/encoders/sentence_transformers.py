"""A model of sentence-transformers as a benchmark sees it: text or multimodal.

Code that comes with a model is not run (`trust_remote_code`); a folder that `interop.export` wrote
needs only this package. Traps minded: the library takes a text that is the name of an image file,
or an address that ends like one, for the image, without a word; and it refuses some mixtures of
kinds in one batch, so kinds go apart.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from abc_embed import hub, runtime
from abc_embed.bench.encoders.base import Vectors, strip_path
from abc_embed.bench.encoders.foreign import ForeignEncoder
from abc_embed.errors import CheckpointError, MissingExtraError
from abc_embed.inputs import Kind

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

NATIVE_MODULES = "abc_embed.interop."
FILES = ("*.json", "*.jinja", "*.txt", "*.model", "*.safetensors")
"""What is fetched of a named repository: no code, and no weights in Python's pickle format."""


class SentenceTransformerEncoder(ForeignEncoder):
    """Any `SentenceTransformer`, with the kinds that it says it takes."""

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

    def _place(self) -> tuple[str, str]:
        dtype = str(self.model.dtype or "float32").removeprefix("torch.")
        return dtype, self.model.device.type


def load_sentence_transformer(
    name: str, *, device: str = "auto", dtype: str = "auto", batch_size: int | None = None
) -> SentenceTransformerEncoder:
    """The model of a folder, or of `owner/name[@revision]` on the hub, which is fetched once.

    `dtype="auto"` keeps the number format of the files.

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
        why = (str(problem).strip() or type(problem).__name__).splitlines()[0]
        raise CheckpointError(
            f"sentence-transformers cannot load {name!r}: {why}; check the folder"
        ) from problem
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
