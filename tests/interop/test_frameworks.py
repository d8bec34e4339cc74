"""LangChain, LlamaIndex, LanceDB, Chroma and Haystack get the vectors of `Embedder`."""

import asyncio
import io
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import readme
import sources
from PIL import Image

from abc_embed import Embedder, Item
from abc_embed.errors import (
    EmptyTextError,
    ImageNotFoundError,
    InputError,
    NotAnImageError,
    RemoteImageError,
    TextError,
    UsageError,
)

# These libraries warn of their own and each other's coming changes, some while they are imported.
pytestmark = pytest.mark.filterwarnings("default")
QUESTION = "what is on the left?"
TEXTS = ["a dog", "a much longer text about a cat on a mat"]


@pytest.fixture(scope="module", autouse=True)
def no_telemetry() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HAYSTACK_TELEMETRY_ENABLED", "False")
        patch.setenv("ANONYMIZED_TELEMETRY", "False")
        yield


@pytest.fixture(scope="module")
def folder(embedder: Embedder, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The model of `embedder`, for those who load it by its name."""
    folder = tmp_path_factory.mktemp("models") / "golden"
    embedder.save(folder)
    return str(folder)


def close(ours: Any, expected: Any) -> bool:
    return np.shape(ours) == np.shape(expected) and np.allclose(ours, expected, atol=1e-5)


def test_langchain(embedder: Embedder, photos: list[Path]) -> None:
    from langchain_core.vectorstores import InMemoryVectorStore

    from abc_embed.interop.langchain import AbcEmbeddings

    embeddings = AbcEmbeddings(embedder)
    paths = [str(path) for path in photos]
    assert close(embeddings.embed_documents(TEXTS), embedder.embed(TEXTS))
    assert close(asyncio.run(embeddings.aembed_query("a dog")), embedder.embed("a dog"))
    alone = [Item(image=path) for path in paths]
    asked = [Item(image=path, instruction=QUESTION) for path in paths]
    assert close(embeddings.embed_image(paths), embedder.embed(alone))
    assert close(embeddings.embed_image(paths, QUESTION), embedder.embed(asked))
    assert close(embeddings.embed_image(asked), embedder.embed(asked))
    assert embeddings.embed_documents([]) == []

    store = InMemoryVectorStore.from_texts(TEXTS, embeddings)
    assert store.similarity_search(TEXTS[1], k=1)[0].page_content == TEXTS[1]


def test_langchain_refuses(embedder: Embedder, photos: list[Path]) -> None:
    from abc_embed.interop.langchain import AbcEmbeddings

    embeddings = AbcEmbeddings(embedder)
    with pytest.raises(InputError, match="must be a list"):
        embeddings.embed_documents("a dog")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="must be a list"):
        embeddings.embed_image(str(photos[0]))
    with pytest.raises(EmptyTextError):
        embeddings.embed_query("")
    with pytest.raises(TextError, match="type int"):
        embeddings.embed_documents([3])  # type: ignore[list-item]
    with pytest.raises(RemoteImageError):
        embeddings.embed_image(["https://example.org/a.png"])
    with pytest.raises(InputError, match="the item is a text"):
        embeddings.embed_image([Item("a dog")])
    with pytest.raises(InputError, match="two instructions"):
        embeddings.embed_image([Item(image=photos[0], instruction="a")], "b")


def test_llama_index(embedder: Embedder, photos: list[Path]) -> None:
    from llama_index.core import VectorStoreIndex
    from llama_index.core.schema import TextNode

    from abc_embed.interop.llama_index import AbcMultiModalEmbedding

    model = AbcMultiModalEmbedding(embedder)
    path, stream = str(photos[0]), io.BytesIO(photos[1].read_bytes())
    assert close(model.get_text_embedding_batch(TEXTS), embedder.embed(TEXTS))
    assert close(model.get_query_embedding("a dog"), embedder.embed("a dog"))
    alone = embedder.embed([Item(image=photo) for photo in photos])
    assert close(model.get_image_embedding_batch([path, stream]), alone)
    assert close(asyncio.run(model.aget_image_embedding(path)), alone[0])
    asking = AbcMultiModalEmbedding(embedder, instruction=QUESTION)
    asked = Item(image=path, instruction=QUESTION)
    assert close(asking.get_image_embedding(path), embedder.embed(asked))
    assert close(model.get_image_embedding(asked), embedder.embed(asked))  # type: ignore[arg-type]
    with pytest.raises(ImageNotFoundError):
        model.get_image_embedding("no such file.png")
    with pytest.raises(EmptyTextError):
        model.get_text_embedding(" ")

    index = VectorStoreIndex(nodes=[TextNode(text=text) for text in TEXTS], embed_model=model)
    hits = index.as_retriever(similarity_top_k=1).retrieve(TEXTS[1])
    assert hits[0].node.get_content() == TEXTS[1]


def test_lancedb(embedder: Embedder, folder: str, photos: list[Path], tmp_path: Path) -> None:
    import lancedb
    import pyarrow as pa
    from lancedb.embeddings import get_registry
    from lancedb.pydantic import LanceModel, Vector

    import abc_embed.interop.lancedb  # noqa: F401  (registers the function)

    function = get_registry().get("abc-embed").create(name=folder, device="cpu", source="image")
    assert function.ndims() == embedder.dim

    class Photo(LanceModel):
        file: str = function.SourceField()
        vector: Vector(function.ndims()) = function.VectorField()  # type: ignore[valid-type]

    table = lancedb.connect(tmp_path).create_table("photos", schema=Photo)
    table.add([{"file": str(path)} for path in photos])
    again = lancedb.connect(tmp_path).open_table("photos")
    alone = embedder.embed([Item(image=path) for path in photos])
    assert close(again.to_pandas()["vector"].tolist(), alone)
    for query in ("a dog", Image.open(photos[1]), Item(image=photos[0], instruction=QUESTION)):
        hits = again.search(query, vector_column_name="vector").metric("cosine").to_list()
        cosines = {hit["file"]: 1 - hit["_distance"] for hit in hits}
        ours = embedder.similarity(embedder.embed(query), alone)
        assert close([cosines[str(path)] for path in photos], ours)
    with pytest.raises(RuntimeError, match="there is no file"):  # LanceDB's own, around ours
        table.add([{"file": "no such file.png"}])
    assert table.count_rows() == 2
    with pytest.raises(InputError):
        again.search(3, vector_column_name="vector")

    texts = get_registry().get("abc-embed").create(name=folder, device="cpu")
    rows = texts.compute_source_embeddings_with_retry(pa.array([*TEXTS, None]))
    assert rows[2] is None
    assert close(rows[:2], embedder.embed(TEXTS))
    pictures = texts.compute_source_embeddings(pa.array([photos[0].read_bytes()]))
    assert close(pictures, alone[:1])


def test_chroma(embedder: Embedder, folder: str, photos: list[Path]) -> None:
    import chromadb
    from chromadb.config import Settings

    from abc_embed.interop.chroma import AbcEmbeddingFunction, ImageLoader

    function = AbcEmbeddingFunction(folder, device="cpu")
    arrays = [np.asarray(Image.open(path)) for path in photos]
    alone = embedder.embed([Item(image=path) for path in photos])
    asked = Item(image=photos[0], instruction=QUESTION)
    assert close(function([*TEXTS]), embedder.embed(TEXTS))
    assert close(function([*arrays]), alone)  # type: ignore[list-item]
    assert close(function([asked, "a dog"]), embedder.embed([asked, "a dog"]))
    with pytest.raises(InputError, match="must be a list"):
        function("a dog")
    with pytest.raises(InputError, match="type int"):
        function([3])

    client = chromadb.EphemeralClient(Settings(anonymized_telemetry=False))
    photo = client.create_collection(
        "photos", embedding_function=function, data_loader=ImageLoader()
    )
    photo.add(ids=["a", "b"], uris=[str(path) for path in photos])
    stored = photo.get(ids=["a", "b"], include=["embeddings"])
    assert close(stored["embeddings"], alone)
    found = photo.query(query_texts=["a dog"], n_results=2)
    nearest = int(np.argmax(embedder.similarity(embedder.embed("a dog"), alone)))
    assert found["ids"][0][0] == "ab"[nearest]
    assert np.isclose(1 - found["distances"][0][0], max(alone @ embedder.embed("a dog")), atol=1e-5)
    photo.query(query_embeddings=function([asked]), n_results=1)
    with pytest.raises(ImageNotFoundError):
        photo.add(ids=["c"], uris=["no such file.png"])

    kept = client.get_collection("photos")  # made again from what the collection keeps
    assert kept.query(query_texts=["a dog"], n_results=2)["ids"] == found["ids"]
    with pytest.raises(UsageError, match="one model"):
        function.validate_config_update(function.get_config(), {"name": "another"})


def test_the_loader_of_chroma_reads_pictures_upright_and_in_colours(tmp_path: Path) -> None:
    from abc_embed.interop.chroma import ImageLoader

    exif = Image.Exif()
    exif[0x0112] = 6  # on its side
    Image.new("RGB", (4, 8), "red").save(tmp_path / "side.png", exif=exif)
    Image.new("RGB", (4, 8), "red").quantize(4).save(tmp_path / "palette.png")
    side, palette, nothing = ImageLoader()(
        [str(tmp_path / "side.png"), str(tmp_path / "palette.png"), None]
    )
    assert nothing is None
    assert side is not None and side.shape == (4, 8, 3)
    assert palette is not None and tuple(palette[0, 0]) == (255, 0, 0)


def test_haystack(embedder: Embedder, folder: str, photos: list[Path]) -> None:
    from haystack import Document, Pipeline
    from haystack.components.retrievers.in_memory import InMemoryEmbeddingRetriever
    from haystack.dataclasses import ByteStream
    from haystack.document_stores.in_memory import InMemoryDocumentStore

    from abc_embed.interop.haystack import AbcDocumentEmbedder, AbcTextEmbedder

    documents = [
        Document(content="a dog", meta={"file_path": "notes.txt"}),
        Document(meta={"file_path": photos[0].name}),
        Document(blob=ByteStream(photos[1].read_bytes(), mime_type="image/png")),
    ]
    root = str(photos[0].parent)
    embed = AbcDocumentEmbedder(folder, "cpu", root_path=root)
    embed.warm_up()
    embedded = embed.run(documents=documents)["documents"]
    expected = embedder.embed(["a dog", *(Item(image=path) for path in photos)])
    assert close([document.embedding for document in embedded], expected)
    assert [document.embedding for document in documents] == [None] * 3
    for wrong in ("a dog", ["a dog"], [Document()], [Document(content="a", blob=ByteStream(b"b"))]):
        with pytest.raises(InputError):
            embed.run(documents=wrong)
    with pytest.raises(NotAnImageError):
        embed.run(documents=[Document(blob=ByteStream(b"no picture"))])

    store = InMemoryDocumentStore(embedding_similarity_function="cosine")
    store.write_documents(embedded)
    pipeline = Pipeline()
    pipeline.add_component("query", AbcTextEmbedder(folder, "cpu"))
    pipeline.add_component("retriever", InMemoryEmbeddingRetriever(store, top_k=3))
    pipeline.connect("query.embedding", "retriever.query_embedding")
    again = Pipeline.loads(pipeline.dumps(), allowed_modules=["abc_embed.interop.haystack"])
    again.get_component("retriever").document_store = store
    path = photos[0]
    for asked, item in (
        ({"text": "a dog"}, Item("a dog")),
        ({"image": path}, Item(image=path)),
        ({"text": QUESTION, "image": path}, Item(image=path, instruction=QUESTION)),
    ):
        hits = again.run({"query": asked})["retriever"]["documents"]
        cosines = {hit.id: hit.score for hit in hits}
        ours = embedder.similarity(embedder.embed(item), expected)
        assert close([cosines[document.id] for document in embedded], ours)
    with pytest.raises(InputError):
        AbcTextEmbedder(folder, "cpu").run()


EXAMPLES = [
    block
    for block in readme.blocks((sources.ROOT / "docs" / "interop.md").read_text(encoding="utf-8"))
    if block.language == "python" and block.body.startswith("# needs two pictures")
]
"""What the walk of the pages leaves to this file."""


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_the_examples_of_the_page_run(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bundled_folder: Path
) -> None:
    picture = next((sources.PACKAGE / "bundled" / "images").glob("*.png"))
    (tmp_path / "photos").mkdir()
    for name in ("a.png", "b.png"):
        shutil.copy(picture, tmp_path / "photos" / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ABC_EMBED_CACHE", os.fspath(tmp_path / "cache"))
    exec(compile(EXAMPLES[number].body, "interop.md", "exec"), {"__name__": "__main__"})
