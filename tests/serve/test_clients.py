"""The clients' own libraries against a running server: they parse the answers, bit for bit."""

import base64
import gc
import io
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from serve_parts import data_url, png

from abc_embed import Embedder, Item
from abc_embed.vectors import quantize, truncate

TEXTS = ["a dog", "a cat on a mat", "! and more"]
WORDS = "what is on the left?"
LONG = "a dog on a mat, " * 2000
"""More than the model reads."""


@pytest.fixture(scope="module")
def texts(embedder: Embedder) -> np.ndarray:
    return embedder.embed(TEXTS)


@pytest.fixture(scope="module")
def asked(embedder: Embedder) -> np.ndarray:
    return embedder.embed(Item(image=png(3), instruction=WORDS))


@pytest.fixture(scope="module")
def cut(embedder: Embedder) -> np.ndarray:
    """`(1, D)` of as much of the long text as the model reads."""
    pipeline = embedder.pipeline()
    return pipeline.compute([pipeline.prepare(LONG, "end")])


@pytest.fixture
def cohere_client(url: str) -> Iterator[Any]:
    """Its connection is closed here: the library leaves its own for the garbage collector."""
    import cohere

    with httpx.Client() as connection:
        yield cohere.ClientV2(api_key="none", base_url=url, httpx_client=connection)


def close(got: object, expected: np.ndarray) -> bool:
    return bool(np.abs(np.asarray(got, dtype=np.float32) - expected).max() <= 1e-5)


def test_openai(url: str, texts: np.ndarray, asked: np.ndarray) -> None:
    from openai import OpenAI

    with OpenAI(base_url=f"{url}/v1", api_key="none") as client:
        answer = client.embeddings.create(model="golden", input=TEXTS)
        assert close([row.embedding for row in answer.data], texts)
        assert answer.model == "golden" and answer.usage.total_tokens >= 3 * len(TEXTS)
        assert [row.index for row in answer.data] == [0, 1, 2]
        floats = client.embeddings.create(model="golden", input=TEXTS, encoding_format="float")
        assert close([row.embedding for row in floats.data], texts)
        short = client.embeddings.create(model="golden", input=TEXTS[0], dimensions=16)
        assert close(short.data[0].embedding, truncate(texts[0], 16))
        assert client.models.list().data[0].id == "golden"
        assert client.models.retrieve("golden").id == "golden"
        content = [
            {"type": "image_url", "image_url": {"url": data_url(png(3))}},
            {"type": "text", "text": WORDS},
        ]
        chat: Any = client.post(
            "/embeddings",
            body={"model": "golden", "messages": [{"role": "user", "content": content}]},
            cast_to=object,
        )
        assert close(chat["data"][0]["embedding"], asked)


def test_lists_of_parts(url: str, texts: np.ndarray, asked: np.ndarray) -> None:

    image = base64.b64encode(png(3)).decode()
    inputs = [
        {"text": TEXTS[0]},
        TEXTS[1],
        {"image": image, "instruction": WORDS},
        {"image": data_url(png(3)), "text": WORDS},
    ]
    answer = httpx.post(f"{url}/v1/embeddings", json={"input": inputs}).json()
    got = np.asarray([row["embedding"] for row in answer["data"]], dtype=np.float32)
    assert close(got[:2], texts[:2]) and close(got[2], asked) and close(got[3], asked)
    binary = {"input": TEXTS, "embedding_type": "ubinary"}
    rows = httpx.post(f"{url}/v1/embeddings", json=binary).json()["data"]
    assert [row["embedding"] for row in rows] == quantize(texts, "ubinary").tolist()
    images = {"input": [data_url(png(3))], "modality": "image"}
    assert httpx.post(f"{url}/v1/embeddings", json=images).status_code == 200


def test_cohere(cohere_client: Any, texts: np.ndarray, asked: np.ndarray) -> None:
    answer = cohere_client.embed(
        model="golden",
        input_type="search_document",
        texts=TEXTS,
        embedding_types=["float", "binary", "base64"],
    )
    assert close(answer.embeddings.float_, texts)
    assert answer.embeddings.binary == quantize(texts, "binary").tolist()
    assert answer.embeddings.base64 is not None
    first = np.frombuffer(base64.b64decode(answer.embeddings.base64[0]), dtype="<f4")
    assert close(first, texts[0])
    assert answer.meta is not None and answer.meta.billed_units is not None
    content = [
        {"type": "text", "text": WORDS},
        {"type": "image_url", "image_url": {"url": data_url(png(3))}},
    ]
    both = cohere_client.embed(
        model="golden",
        input_type="search_query",
        inputs=[{"content": content}],
        embedding_types=["float"],
    )
    assert close(both.embeddings.float_, asked[None])
    shown = cohere_client.embed(model="golden", input_type="image", images=[data_url(png(3))])
    [facts] = shown.images
    assert (facts.width, facts.height, facts.format, facts.bit_depth) == (56, 56, "png", 24)


def test_cohere_cuts_what_is_too_long_unless_told_not_to(
    cohere_client: Any, cut: np.ndarray
) -> None:
    import cohere

    words: dict[str, Any] = {"model": "golden", "input_type": "search_document", "texts": [LONG]}
    assert close(cohere_client.embed(**words, truncate="END").embeddings.float_, cut)
    assert close(cohere_client.embed(**words).embeddings.float_, cut)  # that service's default
    with pytest.raises(cohere.BadRequestError, match=r"texts\[0\].*shorten it"):
        cohere_client.embed(**words, truncate="NONE")
    with pytest.raises(cohere.BadRequestError, match="truncate is START"):
        cohere_client.embed(**words, truncate="START")
    with pytest.raises(cohere.BadRequestError, match="max_tokens"):
        cohere_client.embed(**words, max_tokens=5)


# The library leaves its connection for the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
def test_voyage(url: str, texts: np.ndarray, asked: np.ndarray, cut: np.ndarray) -> None:
    import voyageai

    client = voyageai.Client(api_key="none", base_url=f"{url}/v1")
    picture = Image.open(io.BytesIO(png(3)))
    answer = client.multimodal_embed(inputs=[[TEXTS[0]], [WORDS, picture]], model="golden")
    assert close(answer.embeddings[0], texts[0])
    assert close(answer.embeddings[1], asked)
    assert answer.text_tokens > 0 and answer.image_pixels > 0
    long = client.multimodal_embed(inputs=[[LONG]], model="golden")
    assert close(long.embeddings, cut)
    del client
    gc.collect()


def test_voyage_refuses_what_is_too_long_where_it_is_not_to_be_cut(url: str) -> None:

    inputs = [{"content": [{"type": "text", "text": LONG}]}]
    body = {"model": "golden", "inputs": inputs, "truncation": False}
    answer = httpx.post(f"{url}/v1/multimodalembeddings", json=body)
    assert answer.status_code == 400
    assert answer.json()["detail"].startswith("inputs[0]: the item has ")
