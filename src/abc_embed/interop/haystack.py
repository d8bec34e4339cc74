"""Haystack: components that embed a query (words, a picture, or both) and documents."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from abc_embed.errors import InputError, MissingExtraError
from abc_embed.inputs import Item
from abc_embed.interop.inputs import embed, load_model, many, to_image, to_text

try:
    from haystack import Document, component
except ImportError:
    raise MissingExtraError.of("haystack", "Haystack") from None


@component
class AbcTextEmbedder:
    """A query -> `embedding`: a text, a picture, or a picture with the text as its instruction.

    Args:
        model: as in `Embedder.from_pretrained`; loaded by `warm_up` or at first use.
        device: auto, cpu, cuda, cuda:N or mps.
    """

    def __init__(self, model: str = "bundled", device: str = "auto") -> None:
        self.model, self.device = model, device

    def warm_up(self) -> None:
        load_model(self.model, self.device)

    @component.output_types(embedding=list[float])
    def run(self, text: str | None = None, image: Any = None) -> dict[str, list[float]]:
        """Raises InputError: there is neither, or one that cannot be embedded."""
        item = Item(text=text) if image is None else to_image(image, text)
        return {"embedding": embed(load_model(self.model, self.device), [item])[0]}


@component
class AbcDocumentEmbedder:
    """Documents -> `documents` with vectors: of the text, or else of the picture (blob or file).

    Args:
        model, device: as in `AbcTextEmbedder`.
        file_path_meta_field: the field of `meta` that names a picture's file.
        root_path: the folder that such paths start from.
    """

    def __init__(
        self,
        model: str = "bundled",
        device: str = "auto",
        file_path_meta_field: str = "file_path",
        root_path: str = "",
    ) -> None:
        self.model, self.device = model, device
        self.file_path_meta_field, self.root_path = file_path_meta_field, root_path

    def warm_up(self) -> None:
        load_model(self.model, self.device)

    @component.output_types(documents=list[Document])
    def run(self, documents: list[Document]) -> dict[str, list[Document]]:
        """Raises InputError: no list of documents, or one that cannot be embedded."""
        rows = many(documents, "the documents")
        vectors = embed(load_model(self.model, self.device), [self._item(row) for row in rows])
        pairs = zip(rows, vectors, strict=True)
        return {"documents": [replace(row, embedding=vector) for row, vector in pairs]}

    def _item(self, document: Document) -> Item:
        if not isinstance(document, Document):
            raise InputError(f"a {type(document).__name__} is no Document of Haystack; give one")
        if document.content is not None and document.blob is not None:
            raise InputError("a document has a text and a picture; make two documents of it")
        if document.blob is not None:
            return to_image(document.blob.data)
        path = document.meta.get(self.file_path_meta_field)
        if document.content is None and path:  # a text may name the file that it comes from
            return to_image(Path(self.root_path, path))
        return to_text(document.content)
