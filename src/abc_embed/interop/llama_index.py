"""LlamaIndex: a `MultiModalEmbedding` for texts, pictures, and pictures with an instruction."""

import asyncio
from typing import Any

from abc_embed.embedder import Embedder
from abc_embed.errors import MissingExtraError
from abc_embed.interop.inputs import embed, to_image, to_text

try:
    from llama_index.core.bridge.pydantic import PrivateAttr
    from llama_index.core.embeddings import MultiModalEmbedding
except ImportError:
    raise MissingExtraError.of("llama-index", "LlamaIndex") from None


class AbcMultiModalEmbedding(MultiModalEmbedding):
    """A loaded model as `embed_model` or `image_embed_model` of an index.

    A picture is what LlamaIndex hands over (a path or a stream of bytes), or an `Item`, which may
    bring its own instruction. Asynchronous calls run in a thread.

    Args:
        model: a loaded model.
        instruction: what to look for in every picture; None embeds pictures alone.
        options: fields of LlamaIndex' own, such as `embed_batch_size`.
    """

    instruction: str | None = None
    _model: Embedder = PrivateAttr()

    def __init__(self, model: Embedder, instruction: str | None = None, **options: Any) -> None:
        source = ", ".join(model.config["source"].values())
        options.setdefault("model_name", source or "abc-embed")
        super().__init__(instruction=instruction, **options)
        self._model = model

    @classmethod
    def class_name(cls) -> str:
        return "AbcMultiModalEmbedding"

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return embed(self._model, [to_text(text) for text in texts])

    def _get_image_embeddings(self, img_file_paths: list[Any]) -> list[list[float]]:
        return embed(self._model, [to_image(image, self.instruction) for image in img_file_paths])

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._get_text_embeddings([text])[0]

    def _get_query_embedding(self, query: str) -> list[float]:
        return self._get_text_embeddings([query])[0]

    def _get_image_embedding(self, img_file_path: Any) -> list[float]:
        return self._get_image_embeddings([img_file_path])[0]

    async def _aget_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return await asyncio.to_thread(self._get_text_embeddings, texts)

    async def _aget_text_embedding(self, text: str) -> list[float]:
        return await asyncio.to_thread(self._get_text_embedding, text)

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return await asyncio.to_thread(self._get_query_embedding, query)

    async def _aget_image_embeddings(self, img_file_paths: list[Any]) -> list[list[float]]:
        return await asyncio.to_thread(self._get_image_embeddings, img_file_paths)

    async def _aget_image_embedding(self, img_file_path: Any) -> list[float]:
        return await asyncio.to_thread(self._get_image_embedding, img_file_path)
