"""LanceDB: the function `abc-embed` of its registry, for columns of texts and of pictures."""

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from abc_embed.embedder import Embedder
from abc_embed.errors import MissingExtraError
from abc_embed.inputs import Item, as_item
from abc_embed.interop.inputs import load_model, many, to_image, to_text

try:
    from lancedb.embeddings import EmbeddingFunction, register
except ImportError:
    raise MissingExtraError.of("index", "LanceDB") from None


@register("abc-embed")  # type: ignore[no-untyped-call]
class AbcEmbeddingFunction(EmbeddingFunction):
    """Made by `get_registry().get("abc-embed").create(name=..., source=...)`.

    A table keeps these words and makes the function again when it is opened, so this module must
    be imported by then. A query is a text, a picture, or an `Item` with both.
    """

    name: str = "bundled"
    """As in `Embedder.from_pretrained`: a folder, or a published name."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps."""
    source: Literal["text", "image"] = "text"
    """What strings of the source column are; bytes are pictures in any case."""

    @property
    def model(self) -> Embedder:
        """The model itself, loaded when it is first needed."""
        return load_model(self.name, self.device)

    def ndims(self) -> int:
        """`D`, the width of the vector column."""
        return self.model.dim

    def compute_query_embeddings(  # type: ignore[override]
        self, query: Any, *args: Any, **kwargs: Any
    ) -> list[NDArray[np.float32]]:
        """One query -> a list of its one vector `(D,)`.

        Raises:
            InputError: it cannot be embedded.
        """
        return [self.model.embed(as_item(query))]

    def compute_source_embeddings(
        self, values: Any, *args: Any, **kwargs: Any
    ) -> list[NDArray[np.float32] | None]:
        """A column -> one vector `(D,)` a row, None where there is no value.

        Raises:
            InputError: a value cannot be embedded.
        """
        rows = many(self.sanitize_input(values), "the column")
        vectors = iter(self.model.embed([self._item(row) for row in rows if row is not None]))
        return [None if row is None else next(vectors) for row in rows]

    def _item(self, value: Any) -> Item:
        if self.source == "text" and not isinstance(value, bytes):
            return to_text(value)
        return to_image(value)

    # LanceDB repeats what failed, as calls over a network may; ours would fail the same way again.
    compute_query_embeddings_with_retry = compute_query_embeddings  # type: ignore[assignment]
    compute_source_embeddings_with_retry = compute_source_embeddings
