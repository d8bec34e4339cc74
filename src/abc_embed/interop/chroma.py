"""Chroma: an embedding function for texts and pictures, and a loader of picture files."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from abc_embed.errors import MissingExtraError, UsageError
from abc_embed.inputs import as_item, open_image
from abc_embed.interop.inputs import load_model, many, to_image

try:
    from chromadb.api.types import Embeddable, EmbeddingFunction
    from chromadb.utils.embedding_functions import register_embedding_function
except ImportError:
    raise MissingExtraError.of("chroma", "Chroma") from None


@register_embedding_function
class AbcEmbeddingFunction(EmbeddingFunction[Embeddable]):
    """For `create_collection(embedding_function=...)`; the collection keeps name and device.

    Strings are texts and arrays are pictures. For a picture with an instruction call it with an
    `Item` and hand the vectors over: `collection.query(query_embeddings=function([item]))`.

    Args:
        name: as in `Embedder.from_pretrained`; loaded when it is first needed.
        device: auto, cpu, cuda, cuda:N or mps.
    """

    def __init__(self, name: str = "bundled", device: str = "auto") -> None:
        self._config = {"name": name, "device": device}

    def __call__(self, input: Any) -> Any:
        """Texts, arrays `(H, W)` or `(H, W, 1 | 3 | 4)` and items -> one vector `(D,)` each.

        Raises:
            InputError: no list, or a value that cannot be embedded.
        """
        values = many(input, "the input")
        flat = [isinstance(value, np.ndarray) and value.ndim == 2 for value in values]
        items = [to_image(v) if grey else as_item(v) for v, grey in zip(values, flat, strict=True)]
        return list(load_model(**self._config).embed(items))

    @staticmethod
    def name() -> str:
        return "abc-embed"

    def default_space(self) -> Any:
        return "cosine"

    def get_config(self) -> dict[str, Any]:
        return dict(self._config)

    @staticmethod
    def build_from_config(config: dict[str, Any]) -> "AbcEmbeddingFunction":
        return AbcEmbeddingFunction(**config)

    def validate_config_update(self, old: dict[str, Any], new: dict[str, Any]) -> None:
        if new.get("name", old["name"]) != old["name"]:
            raise UsageError("the vectors of a collection come from one model; make a new one")


class ImageLoader:
    """For `data_loader=`: files of `uris` as upright RGB arrays `(H, W, 3)`; nothing is fetched.

    Chroma's own loader hands over pixels as they lie in the file, on their side or as numbers of
    a palette. A file that cannot be read is an `ImageError`.
    """

    def __call__(self, uris: Sequence[str | None]) -> list[NDArray[np.uint8] | None]:
        return [None if uri is None else np.asarray(open_image(uri)) for uri in uris]
