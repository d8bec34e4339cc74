"""LangChain: `Embeddings` for texts, and `embed_image` as its multimodal models have it."""

from collections.abc import Sequence

from abc_embed.embedder import Embedder
from abc_embed.errors import MissingExtraError
from abc_embed.inputs import ImageInput, Item
from abc_embed.interop.inputs import embed, many, to_image, to_text

try:
    from langchain_core.embeddings import Embeddings
except ImportError:
    raise MissingExtraError.of("langchain", "LangChain") from None


class AbcEmbeddings(Embeddings):
    """A loaded model for vector stores and retrievers of LangChain.

    Texts are embedded alike as documents and as queries. The asynchronous methods are LangChain's
    own: they run these in a thread.

    Args:
        model: a loaded model.
        batch_size: as in `Embedder.embed`.
    """

    def __init__(self, model: Embedder, batch_size: int | None = None) -> None:
        self.model = model
        self.batch_size = batch_size

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """One vector a text, in order.

        Raises:
            InputError: no list, or a text that cannot be embedded.
        """
        items = [to_text(text) for text in many(texts, "the texts")]
        return embed(self.model, items, self.batch_size)

    def embed_query(self, text: str) -> list[float]:
        """The vector of one text.

        Raises:
            InputError: it cannot be embedded.
        """
        return embed(self.model, [to_text(text)])[0]

    def embed_image(
        self, uris: Sequence[ImageInput | Item], instruction: str | None = None
    ) -> list[list[float]]:
        """One vector a picture: paths, or pictures in any form that an `Item` takes.

        Args:
            uris: the pictures; none is fetched, so an address is refused.
            instruction: what to look for in each of them; an `Item` may bring its own.

        Raises:
            InputError: no list, or a picture that cannot be embedded.
        """
        items = [to_image(image, instruction) for image in many(uris, "the images")]
        return embed(self.model, items, self.batch_size)
