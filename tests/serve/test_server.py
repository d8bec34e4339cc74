"""The server beyond vectors: ranking, evidence, keys, limits, bad requests, lost clients."""

import asyncio
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime
from typing import Any

import httpx
import numpy as np
import pytest
from serve_parts import data_url, png, running

from abc_embed import Embedder, Item, runtime
from abc_embed.errors import RequestError, UsageError
from abc_embed.serve import app, run
from abc_embed.serve.app import Server
from abc_embed.serve.queue import EmbeddingQueue
from abc_embed.serve.settings import ServerSettings, read_keys

DEEP = '{"input": ' + "[" * 100_000 + "]" * 100_000 + "}"
BOMB = png(size=(4000, 4000))


def post(url: str, path: str, body: Any, **options: Any) -> httpx.Response:
    return httpx.post(url + path, json=body, timeout=60, **options)


# -- what it says ----------------------------------------------------------------------------------


def test_ranking(url: str, embedder: Embedder) -> None:
    texts = ["a dog", "a cat", "a tree"]
    words = ["what is on the left?", "what is on the right?"]
    body = {"image": data_url(png(3)), "texts": texts, "instructions": words}
    data = post(url, "/v1/rank", body).json()["data"]
    vectors = embedder.embed(texts)
    for row, instruction in zip(data, words, strict=True):
        asked = embedder.embed(Item(image=png(3), instruction=instruction))
        scores = vectors @ asked
        assert row["instruction"] == instruction
        assert [hit["text"] for hit in row["ranking"]] == [texts[i] for i in (-scores).argsort()]
        assert row["ranking"][0]["score"] == pytest.approx(scores.max(), abs=1e-5)
    alone = post(url, "/v1/rank", {"image": data_url(png(3)), "texts": texts}).json()["data"]
    assert len(alone) == 1 and alone[0]["instruction"] is None


def test_evidence(url: str, embedder: Embedder) -> None:
    body = {"image": data_url(png(3)), "instruction": "what is it?", "text": "a dog", "png": True}
    answer = post(url, "/v1/explain", body).json()
    expected = embedder.explain(Item(image=png(3), instruction="what is it?"), "a dog")
    assert np.abs(np.asarray(answer["map"]) - expected.map).max() <= 1e-3
    assert answer["png"].startswith("data:image/png;base64,")


def test_health_models_metrics_and_schema(url: str) -> None:
    assert httpx.get(f"{url}/health").json()["ready"] is True
    post(url, "/v1/embeddings", {"input": "a dog"})
    metrics = httpx.get(f"{url}/metrics").text
    assert 'abc_embed_requests_total{path="/v1/embeddings",status="200"}' in metrics
    assert "abc_embed_queue_items 0.0" in metrics
    paths = httpx.get(f"{url}/openapi.json").json()["paths"]
    assert {"/v1/embeddings", "/v2/embed", "/v1/multimodalembeddings", "/v1/rank"} <= set(paths)


# -- what it refuses -------------------------------------------------------------------------------

BAD: list[tuple[str, Any, int, str]] = [
    ("/v1/embeddings", {}, 400, "input is missing"),
    ("/v1/embeddings", {"input": []}, 400, "input is empty"),
    ("/v1/embeddings", {"input": [1, 2, 3]}, 400, "token ids"),
    ("/v1/embeddings", {"input": [[1, 2]]}, 400, "token ids"),
    ("/v1/embeddings", {"input": [True]}, 400, "input[0] is true or false"),
    ("/v1/embeddings", {"input": [""]}, 400, "input[0]: the text is empty"),
    ("/v1/embeddings", {"input": "a", "colour": 1}, 400, "colour is not known"),
    ("/v1/embeddings", {"input": "a", "dimensions": 10_000}, 400, "give 1 to"),
    ("/v1/embeddings", {"input": "a", "dimensions": True}, 400, "whole number"),
    ("/v1/embeddings", {"input": "a", "model": "gpt"}, 404, "there is no model 'gpt'"),
    ("/v1/embeddings", {"input": "a", "encoding_format": "int3"}, 400, "must be one of"),
    ("/v1/embeddings", {"input": ["a"] * 3000}, 413, "the most is 2,048"),
    ("/v1/embeddings", {"input": [{"image": "http://x/y.png"}]}, 400, "input[0].image is an addr"),
    ("/v1/embeddings", {"input": [{"image": "/etc/passwd"}]}, 400, "input[0].image"),
    ("/v1/embeddings", {"input": [{"image": "data:image/png;base64,!"}]}, 400, "no base64"),
    ("/v1/embeddings", {"input": [{"image": data_url(b"GIF89a")}]}, 400, "input[0]"),
    ("/v1/embeddings", {"input": [{"text": 3}]}, 400, "input[0].text is a number"),
    ("/v1/embeddings", {"input": [{"instruction": "x"}]}, 400, "no image"),
    ("/v1/embeddings", {"messages": [{"role": "user", "content": 3}]}, 400, "content is a number"),
    ("/v1/embeddings", [1], 400, "the body is a list"),
    ("/v1/embeddings", {"input": "a" * 1_000_000}, 400, "tokens"),
    ("/v2/embed", {"texts": ["a"], "images": ["b"]}, 400, "exactly one of"),
    ("/v2/embed", {"texts": ["a"], "output_dimension": 9999}, 400, "output_dimension is 9999"),
    ("/v2/embed", {"texts": ["a"], "embedding_types": ["int8"]}, 400, "int8 needs the range"),
    ("/v1/multimodalembeddings", {"inputs": [{"content": []}]}, 400, "at least one element"),
    ("/v1/rank", {"texts": ["a"]}, 400, "give one of image and item"),
    ("/v1/explain", {"image": data_url(png())}, 400, "text is missing"),
]


@pytest.mark.parametrize(("path", "body", "status", "words"), BAD)
def test_a_bad_request_is_one_sentence(
    url: str, path: str, body: Any, status: int, words: str
) -> None:
    answer = post(url, path, body)
    assert answer.status_code == status
    said = answer.json()
    message = said.get("message") or said.get("detail") or said["error"]["message"]
    assert words in message
    assert "Traceback" not in answer.text and "/work" not in answer.text


@pytest.mark.parametrize("body", [b"{", b"\xff", b"", DEEP.encode(), b'{"input": NaN}'])
def test_bodies_that_are_no_json(url: str, body: bytes) -> None:
    answer = httpx.post(f"{url}/v1/embeddings", content=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["message"]


def test_one_bad_item_costs_only_itself_where_that_is_asked(url: str, embedder: Embedder) -> None:
    inputs = ["a dog", {"image": data_url(png()[:60])}, "a cat"]
    refused = post(url, "/v1/embeddings", {"input": inputs})
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "input[1]"
    rows = post(url, "/v1/embeddings", {"input": inputs, "on_error": "skip"}).json()["data"]
    assert rows[1]["embedding"] is None and rows[1]["error"]
    assert np.abs(np.asarray(rows[2]["embedding"]) - embedder.embed("a cat")).max() <= 1e-5


def test_items_that_cannot_be_read_cost_only_themselves_too(url: str, embedder: Embedder) -> None:
    inputs = ["", "a cat", {"image": "@@"}, {"image": "http://a.example/b.png"}, 3, {"txt": "a"}]
    rows = post(url, "/v1/embeddings", {"input": inputs, "on_error": "skip"}).json()["data"]
    assert [row["index"] for row in rows if row["embedding"] is None] == [0, 2, 3, 4, 5]
    assert all(f"input[{row['index']}]" in row["error"] for row in rows if row["index"] != 1)
    assert np.abs(np.asarray(rows[1]["embedding"]) - embedder.embed("a cat")).max() <= 1e-5
    talks = [[{"role": "user", "content": ""}], [{"role": "user", "content": "a cat"}]]
    rows = post(url, "/v1/embeddings", {"messages": talks, "on_error": "skip"}).json()["data"]
    assert [row["embedding"] is None for row in rows] == [True, False]
    answer = post(url, "/v1/embeddings", {"input": [""], "on_error": "skip"})
    assert answer.status_code == 200 and answer.json()["data"][0]["embedding"] is None
    assert post(url, "/v1/embeddings", {"input": inputs}).status_code == 400


def test_unknown_paths_and_methods(url: str) -> None:
    assert httpx.get(f"{url}/nothing").status_code == 404
    assert httpx.get(f"{url}/v1/embeddings").status_code == 405
    assert httpx.get(f"{url}/nothing").json()["error"]["message"] == "there is no such path"


def test_keys(embedder: Embedder, caplog: pytest.LogCaptureFixture) -> None:
    with running(embedder, keys=("first", "second")) as (url, _):
        refused = post(url, "/v1/embeddings", {"input": "a"})
        assert refused.status_code == 401 and refused.headers["www-authenticate"] == "Bearer"
        for key, status in (("second", 200), ("third", 401)):
            headers = {"Authorization": f"Bearer {key}"}
            answer = post(url, "/v1/embeddings", {"input": "a"}, headers=headers)
            assert answer.status_code == status
        assert httpx.get(f"{url}/health").status_code == 200
        assert httpx.get(f"{url}/metrics").status_code == 401
    assert "second" not in caplog.text


def test_large_and_slow_bodies(embedder: Embedder) -> None:
    with running(embedder, max_body=2000, body_timeout_s=0.3) as (url, _):
        assert post(url, "/v1/embeddings", {"input": "a" * 3000}).status_code == 413
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as slow:
            slow.sendall(
                b"POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{"
            )
            assert b" 408 " in slow.recv(4096)


def test_slow_heads_and_slow_readers(embedder: Embedder, monkeypatch: pytest.MonkeyPatch) -> None:
    """A head that never ends, the first or a later one, the rest of a refused body, no reading."""
    monkeypatch.setattr(run, "HEADER_TIMEOUT_S", 0.3)
    monkeypatch.setattr(run, "READ_TIMEOUT_S", 0.3)
    with running(embedder, protocol=run.BoundedProtocol, max_body=2000) as (url, _):
        host, port = url.removeprefix("http://").split(":")
        whole = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
        large = b"POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9000\r\n\r\n"
        for sent in (b"", b"GET / HT", whole + b"GET / HT", large):
            with socket.create_connection((host, int(port)), timeout=10) as slow:
                slow.sendall(sent)
                with suppress(ConnectionResetError):  # or it is closed while more is sent
                    while slow.recv(4096):  # to the end: the server closes it
                        with suppress(OSError):
                            slow.send(b"x")
        with socket.create_connection((host, int(port))) as deaf:
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            with suppress(OSError):
                for _ in range(20_000):
                    deaf.sendall(b"GET /static/app.js HTTP/1.1\r\nHost: localhost\r\n\r\n")
            with pytest.raises(OSError):
                for _ in range(1000):
                    deaf.sendall(whole)
                    time.sleep(0.01)


def test_a_head_of_any_length_is_cut_off(embedder: Embedder) -> None:
    with running(embedder, protocol=run.BoundedProtocol) as (url, _):
        host, port = url.removeprefix("http://").split(":")
        for begun in (b"GET /", b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-Long: "):
            with socket.create_connection((host, int(port)), timeout=10) as long:
                long.sendall(begun)
                with suppress(OSError):
                    for _ in range(1000):
                        long.sendall(b"x" * 2**16)
                    pytest.fail("64 MB of a head were taken")
        assert httpx.get(f"{url}/health").status_code == 200


def test_a_full_queue(embedder: Embedder) -> None:
    with running(embedder, queue=4) as (url, server):
        with ThreadPoolExecutor(1) as pool:
            with embedder._lock:  # the model is busy
                first = pool.submit(post, url, "/v1/embeddings", {"input": ["a", "b", "c"]})
                while len(server.queue) < 3:
                    time.sleep(0.01)
                full = post(url, "/v1/embeddings", {"input": ["a", "b"]})
                assert full.status_code == 429 and full.headers["retry-after"] == "1"
                assert post(url, "/v1/embeddings", {"input": ["a"] * 5}).status_code == 413
            assert first.result().status_code == 200
        assert len(server.queue) == 0


def test_what_cannot_be_answered_is_refused_before_it_is_computed(embedder: Embedder) -> None:
    """While the model is busy: a width, and a format that needs ranges which are not there."""
    with running(embedder) as (url, _), embedder._lock:
        width = post(url, "/v1/embeddings", {"input": "a", "dimensions": 10_000})
        assert width.status_code == 400 and width.json()["error"]["param"] == "dimensions"
        assert (
            post(url, "/v2/embed", {"texts": ["a"], "embedding_types": ["int8"]}).status_code == 400
        )


def test_a_client_that_hangs_up(embedder: Embedder) -> None:
    with running(embedder) as (url, server):
        embedder._lock.acquire()
        try:
            with pytest.raises(httpx.ReadTimeout):
                httpx.post(f"{url}/v1/embeddings", json={"input": ["a"] * 10}, timeout=0.3)
            deadline = time.monotonic() + 5
            # What is in the model's hands stays there; the rest is dropped.
            while len(server.queue) > 10 - 1 and time.monotonic() < deadline:
                time.sleep(0.01)
            assert len(server.queue) < 10
        finally:
            embedder._lock.release()
        assert post(url, "/v1/embeddings", {"input": "b"}).status_code == 200
        assert len(server.queue) == 0


def test_freed_memory_is_given_back_after_work(
    embedder: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    given_back = threading.Event()
    monkeypatch.setattr(app, "TRIM_S", 0.05)
    monkeypatch.setattr(runtime, "trim_memory", given_back.set)
    with running(embedder) as (url, _):
        assert not given_back.wait(0.3)  # nothing was asked
        httpx.get(f"{url}/health")
        assert given_back.wait(60)


# -- many at once ----------------------------------------------------------------------------------


def test_requests_share_batches_and_equal_the_embedder(embedder: Embedder) -> None:
    texts = [f"photo number {n}" for n in range(60)]
    expected = embedder.embed(texts)
    with running(embedder) as (url, _):

        async def ask() -> list[Any]:
            async with httpx.AsyncClient(timeout=60) as client:
                calls = [client.post(f"{url}/v1/embeddings", json={"input": t}) for t in texts]
                return [answer.json() for answer in await asyncio.gather(*calls)]

        # In a thread of its own: a browser of other tests may have its loop in this one.
        with ThreadPoolExecutor() as pool:
            answers = pool.submit(asyncio.run, ask()).result()
        got = np.asarray([a["data"][0]["embedding"] for a in answers], dtype=np.float32)
        assert np.abs(got - expected).max() <= 1e-5
        assert _metric(url, "abc_embed_batch_items_count") < len(texts)


@pytest.mark.parametrize("items_a_batch", [None, 3])
def test_the_token_budget_cuts_batches(
    embedder: Embedder, items_a_batch: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requests that meet in the queue: in one batch, or in as many as the budget says."""
    texts = [f"photo number {n}" for n in range(10, 34)]
    lengths = [embedder.pipeline().prepare(Item(text=text)).tokens for text in texts]
    assert len(set(lengths)) == 1
    budget = None if items_a_batch is None else items_a_batch * lengths[0]
    begun, go_on = threading.Event(), threading.Event()
    with running(embedder, token_budget=budget) as (url, server):
        compute = server.queue._run

        def held(*batch: Any) -> None:
            begun.set()
            go_on.wait(120)
            compute(*batch)

        monkeypatch.setattr(server.queue, "_run", held)
        with ThreadPoolExecutor(len(texts)) as pool:
            # The model has the first one, and the others meet meanwhile.
            answers = [pool.submit(post, url, "/v1/embeddings", {"input": texts[0]})]
            assert begun.wait(60)
            bodies = [{"input": text} for text in texts[1:]]
            answers += [pool.submit(post, url, "/v1/embeddings", body) for body in bodies]
            deadline = time.monotonic() + 60
            while len(server.queue._ready) < len(bodies) and time.monotonic() < deadline:
                time.sleep(0.01)
            go_on.set()
            assert {answer.result().status_code for answer in answers} == {200}
        batches = _metric(url, "abc_embed_batch_items_count")
        assert _metric(url, "abc_embed_batch_tokens_total") == sum(lengths)
        most = next(n for n in (4, 256) if n >= (items_a_batch or len(texts)))
        assert _metric(url, f'abc_embed_batch_items_bucket{{le="{most}.0"}}') == batches
    expected = 2 if items_a_batch is None else 1 + -(-(len(texts) - 1) // items_a_batch)
    assert batches == expected


def _metric(url: str, name: str) -> float:
    lines = httpx.get(f"{url}/metrics").text.splitlines()
    return next(float(line.split()[-1]) for line in lines if line.startswith(f"{name} "))


def test_answers_are_not_held_back() -> None:
    """Connections to the server's socket send at once (TCP_NODELAY).

    Without it the second answer of a connection waits 40 ms for an acknowledgement.
    """

    async def accepted() -> int:
        found: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        async def look(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            taken = writer.get_extra_info("socket")
            found.set_result(taken.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()

        bound = run.listen(ServerSettings(port=0))
        async with await asyncio.start_server(look, sock=bound):
            with socket.create_connection(bound.getsockname()):
                return await asyncio.wait_for(found, 10)

    with ThreadPoolExecutor(1) as pool:  # a browser of other tests may have its loop in this one
        assert pool.submit(asyncio.run, accepted()).result()


def test_closing_finishes_what_was_submitted(embedder: Embedder) -> None:
    queue = EmbeddingQueue(embedder)
    with queue:
        futures = queue.submit([Item(text=f"text {n}") for n in range(20)])
        closing = threading.Thread(target=queue.close)
        closing.start()
        vectors = [future.result(timeout=60).vector for future in futures]
        closing.join()
        with pytest.raises(RequestError, match="stopping") as refused:
            queue.submit([Item(text="late")])
    assert refused.value.status == 503
    assert (
        np.abs(np.stack(vectors) - embedder.embed([f"text {n}" for n in range(20)])).max() <= 1e-5
    )


# -- before it starts ------------------------------------------------------------------------------


def test_it_does_not_open_to_the_world_by_itself(tmp_path: Any) -> None:
    with pytest.raises(UsageError, match="lets other machines in"):
        ServerSettings(host="0.0.0.0")
    assert ServerSettings(host="0.0.0.0", keys=("k",)).keys == ("k",)
    assert ServerSettings(host="::1").host == "::1"
    keys = tmp_path / "keys"
    keys.write_text("# ours\none\n\n two \n")
    assert read_keys(keys) == ("one", "two")
    keys.write_text("# none\n")
    with pytest.raises(UsageError, match="holds no key"):
        read_keys(keys)
    with pytest.raises(UsageError, match="cannot be read"):
        read_keys(tmp_path / "gone")


def test_what_a_page_elsewhere_sends_is_refused(embedder: Embedder) -> None:
    """A name of its own that points here (DNS rebinding), or a form that posts across sites."""
    with running(embedder) as (url, _):
        rebound = httpx.get(f"{url}/v1/models", headers={"Host": "evil.example"})
        assert rebound.status_code == 403 and "own machine" in rebound.text
        assert httpx.get(f"{url}/v1/models", headers={"Host": "localhost:1"}).status_code == 200
        across = {"Sec-Fetch-Site": "cross-site"}
        assert post(url, "/v1/embeddings", {"input": "a"}, headers=across).status_code == 403
    with running(embedder, no_key=True) as (url, _):
        named = {"Host": "our.example"}
        assert httpx.get(f"{url}/v1/models", headers=named).status_code == 200


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (b'{"\\ud800": 1}', 400, "no Unicode"),
        (b'{"input": "\\udfff"}', 400, "no Unicode"),
        (b'{"input": [' + b"[]," * 1_100_000 + b"[]]}", 413, "more than 1,000,000 values"),
        (b'{"input": 1' + b"0" * 5000 + b"}", 400, "no JSON (Exceeds the limit (4300 digits) for"),
        (b'{"input": "a", "dimensions": 1e999}', 400, "whole number"),
        (b'{"input": "a", "model": "' + b"m" * 100_000 + b'"}', 404, "there is no model"),
        (b'{"' + b"f" * 100_000 + b'": 1, "input": "a"}', 400, "is not known here"),
    ],
    ids=["key", "text", "values", "digits", "infinite", "model", "name"],
)
def test_bodies_that_would_cost_much(url: str, body: bytes, status: int, words: str) -> None:
    answer = httpx.post(f"{url}/v1/embeddings", content=body, timeout=60)
    assert answer.status_code == status and words in answer.json()["error"]["message"]
    assert len(answer.content) < 4000


def test_bodies_in_memory_are_bounded(embedder: Embedder) -> None:
    with running(embedder, max_body=2000) as (url, server):
        server._body_bytes = 16 * 2000
        assert post(url, "/v1/embeddings", {"input": "a"}).status_code == 503
        server._body_bytes = 0
        assert post(url, "/v1/embeddings", {"input": "a"}).status_code == 200
        assert server._body_bytes == 0


def test_equal_pictures_of_two_requests_are_encoded_once(
    embedder: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[int] = []
    encode = embedder.model.backbone.encode_images

    def counted(pixels: Any, grid: Any) -> Any:
        encoded.append(len(grid))
        return encode(pixels, grid)

    monkeypatch.setattr(embedder.model.backbone, "encode_images", counted)
    with running(embedder) as (url, _):
        for words in ("what is on the left?", "what is on the right?"):
            body = {"input": [{"image": data_url(png(7)), "instruction": words}]}
            assert post(url, "/v1/embeddings", body).status_code == 200
    assert sum(encoded) == 1


def test_the_log_is_json_without_contents(
    served: tuple[str, Server], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", logger="abc_embed.serve"):
        post(served[0], "/v1/embeddings", {"input": "a secret text"})
    line = json.loads(caplog.records[-1].message)
    assert line["path"] == "/v1/embeddings" and line["status"] == 200 and line["seconds"] >= 0
    assert datetime.fromisoformat(line["time"]).tzinfo is not None
    assert "secret" not in caplog.text


# -- as a process ----------------------------------------------------------------------------------


def test_the_command_serves_and_ends_cleanly(tmp_path: Any) -> None:
    """Started as a user would; a request that runs is answered after SIGTERM."""
    code = "from abc_embed.cli import main; main()"
    words = ["serve", "--port", "0"]
    process = subprocess.Popen(
        [sys.executable, "-c", code, *words], stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    try:
        lines = iter(process.stderr.readline, "")
        url = next(line for line in lines if " at http" in line).split()[2]
        while True:
            try:
                httpx.get(f"{url}/health")
                break
            except httpx.ConnectError:
                time.sleep(0.05)
        page = httpx.get(f"{url}/")
        assert "Ask a photo" in page.text
        assert "default-src 'self'" in page.headers["content-security-policy"]
        assert httpx.get(f"{url}/static/app.js").headers["content-type"].startswith("text/javascr")
        assert httpx.get(f"{url}/static/%2e%2e%2fapp.py").status_code == 404
        names = httpx.get(f"{url}/examples").json()
        assert names[0] == "dog_and_cat.png" and len(names) == 3
        for name in names:
            assert httpx.get(f"{url}/examples/{name}").content[:4] == b"\x89PNG"
        assert httpx.get(f"{url}/examples/%2e%2e%2fapp.py").status_code == 404
        with ThreadPoolExecutor(1) as pool:
            body = {"input": [f"text {n}" for n in range(200)]}
            answer = pool.submit(post, url, "/v1/embeddings", body)
            time.sleep(0.3)
            process.send_signal(signal.SIGTERM)
            assert answer.result(timeout=60).status_code == 200
        assert process.wait(timeout=60) in (0, -signal.SIGTERM)
        rest = process.stderr.read()
        assert "Traceback" not in rest
    finally:
        process.kill()
        process.wait()
        process.stderr.close()
