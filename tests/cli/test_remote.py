"""`--server`: embed, compare and search answered by a running server, as they would be here."""

import base64
import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
from cli_parts import Cli
from serve_parts import running

from abc_embed import Embedder
from abc_embed.cli import remote
from abc_embed.serve.app import Server

NAMES = ["a dog", "a cat", "a tree"]
ASKED = ["--instruction", "what is on the left?", "--instruction", "what is on the right?"]


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server's log is not on the command's stderr, though it is in the same process."""
    monkeypatch.setattr(logging.getLogger("abc_embed.serve"), "propagate", False)


@pytest.fixture(scope="module")
def server(embedder: Embedder) -> Iterator[tuple[str, Server]]:
    with running(embedder) as served:
        yield served


@pytest.fixture
def url(server: tuple[str, Server], monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.delenv("ABC_EMBED_SERVER", raising=False)
    return server[0]


def same(one: Any, other: Any) -> None:
    """Equal, numbers to 1e-5; which model it was is another question."""
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one.keys() - {"model"}:
            same(one[key], other[key])
    elif isinstance(one, list):
        assert len(one) == len(other)
        for first, second in zip(one, other, strict=True):
            same(first, second)
    elif isinstance(one, float):
        assert one == pytest.approx(other, abs=1e-5)
    else:
        assert one == other


@pytest.mark.parametrize("asked", [[], ASKED])
def test_compare(cli: Cli, tiny: Path, here: Path, url: str, asked: list[str]) -> None:
    words = ("compare", "photo.jpg", *NAMES, *asked)
    own = cli(*words, "--json", "--model", tiny)
    done = cli(*words, "--json", "--server", url)
    assert done.err == "" and json.loads(done.out)["model"] == "golden"
    same(json.loads(done.out), json.loads(own.out))
    table = cli(*words, "--server", url, "--plot", "drawn.png")
    assert table.out == cli(*words, "--model", tiny).out
    assert (here / "drawn.png").exists()


@pytest.mark.parametrize("output", ["float32", "float16", "binary", "ubinary"])
@pytest.mark.parametrize("name", ["out.npy", "out.jsonl"])
def test_embed(cli: Cli, tiny: Path, here: Path, url: str, output: str, name: str) -> None:
    words = ("embed", "photos", "--text", "a dog", "--instruction", "what is it?", "-o")
    form = ("--output", output, "--dim", "16")
    assert cli(*words, f"own-{name}", *form, "--model", tiny).code == 0
    done = cli(*words, name, *form, "--server", url, "--json")
    assert done.code == 0 and json.loads(done.out)["model"] == "golden"
    if name.endswith(".npy"):
        own, served = np.load(f"own-{name}"), np.load(name)
        assert own.dtype == served.dtype and own.shape == served.shape == (4, len(own[0]))
        bits = output.endswith("binary")
        assert np.abs(own.astype(float) - served).max() <= (
            0 if bits else 1e-5 + 1e-3 * (output == "float16")
        )
        assert Path("own-out.ids.json").read_text() == Path("out.ids.json").read_text()
    elif output == "float32":
        texts = (Path(file).read_text().splitlines() for file in (name, f"own-{name}"))
        same(*([json.loads(line) for line in lines] for lines in texts))


def test_embed_in_several_requests(
    cli: Cli, tiny: Path, here: Path, embedder: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chunks, a request that is too large for the server, and bad items in their places."""
    lines = [{"text": f"photo number {n}"} for n in range(20)]
    lines[3] = {"image": "gone.jpg"}
    lines[12] = {"image": "photos/notes.txt"}
    given = "\n".join(map(json.dumps, lines)).encode()
    monkeypatch.setattr(remote, "CHUNK_ITEMS", 8)
    skip = ("embed", "-", "--on-error", "skip", "-o")
    own = cli(*skip, "own.npy", "--model", tiny, "--json", stdin=given)
    with running(embedder, queue=3) as (url, served):
        done = cli(*skip, "out.npy", "--server", url, "--json", stdin=given)
        assert "413" in {labels["status"] for labels in _statuses(served)}
        stopped = cli("embed", "-", "-o", "no.npy", "--server", url, stdin=given)
    assert np.abs(np.load("out.npy") - np.load("own.npy")).max() <= 1e-5
    mine, theirs = json.loads(own.out)["skipped"], json.loads(done.out)["skipped"]
    assert [one["id"] for one in mine] == [one["id"] for one in theirs] == ["line 4", "line 13"]
    assert "'photos/notes.txt' is not an image" in theirs[1]["reason"]
    assert stopped.code == 1 and "line 4: " in stopped.err and not Path("no.npy").exists()


def _statuses(server: Server) -> list[dict[str, str]]:
    return [
        sample.labels
        for family in server.registry.collect()
        for sample in family.samples
        if sample.name == "abc_embed_requests_total"
    ]


def test_search(
    cli: Cli, tiny: Path, here: Path, embedder: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli("index", "build", "photos.index", "photos", "--model", tiny).code == 0
    queries: list[tuple[str, ...]] = [
        ("a dog",),
        ("a dog", "a cat", "--all"),
        ('"a dog" + 0.1*"snow" - "a cat"', "-k", "2", "--where", "width > 10"),
        ("--image", "photo.jpg"),
        ("--image", "photo.jpg", "--instruction", "what is it?"),
        ("a dog", "--ask", "what is on the left?", "--budget", "1"),
    ]
    with running(embedder, indexes=(here / "photos.index",)) as (url, _):
        for query in queries:
            own = cli("search", "photos.index", *query, "--json")
            done = cli("search", "photos.index", *query, "--json", "--server", url)
            same(json.loads(done.out), json.loads(own.out))
            assert done.err == own.err
        # An index that does not lie here: its images have the names that the server gives them.
        monkeypatch.chdir(here.parent)
        away = json.loads(cli("search", "photos.index", "a dog", "--json", "--server", url).out)
        assert {hit["path"] for hit in away["hits"]} <= {"a.JPG", "b.png", "more/c.webp"}
        other = cli("search", "others", "a dog", "--server", url)
        assert other.code == 1 and "index must be one of: photos.index" in other.err


def test_what_is_sent_and_what_is_not(
    cli: Cli, here: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The environment names the server too; a path stays here, and a data: URL goes as it is."""
    sent: list[dict[str, Any]] = []
    ask = remote.RemoteModel.ask

    def listen(self: remote.RemoteModel, path: str, body: dict[str, Any]) -> dict[str, Any]:
        sent.append(body)
        return ask(self, path, body)

    monkeypatch.setattr(remote.RemoteModel, "ask", listen)
    monkeypatch.setenv("ABC_EMBED_SERVER", url)
    assert cli("embed", "photo.jpg", "--instruction", "what is it?").code == 0
    image = f"data:image/jpeg;base64,{sent[0]['input'][0]['image']}"
    assert cli("embed", image).code == 0
    assert sent[1]["input"][0]["image"] == image
    assert cli("compare", "photo.jpg", "a dog").code == 0
    assert "photo.jpg" not in json.dumps(sent)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("compare", "photo.jpg", "a dog", "--device", "cpu"), "--device"),
        (("compare", "photo.jpg", "a dog", "--max-pixels", "784"), "--max-pixels"),
        (("compare", "photo.jpg", "a", "--plot", "x.png", "--explain"), "--explain"),
        (("embed", "photo.jpg", "--processes", "2"), "--processes"),
        (("embed", "photo.jpg", "--batch-size", "2"), "--batch-size"),
        (("embed", "photo.jpg", "--compile"), "--compile"),
        (("search", "photos", "a dog", "--no-cache"), "--no-cache"),
        (("search", "photos", "a dog", "--plot", "x.png"), "--plot"),
    ],
)
def test_what_a_server_cannot_heed_is_named(
    cli: Cli, here: Path, url: str, words: tuple[str, ...], named: str
) -> None:
    done = cli(*words, "--server", url)
    assert done.code == 2 and done.err.startswith(f"Error: {named} is for a model in this process")


def test_the_servers_refusals(cli: Cli, here: Path, url: str) -> None:
    compare = ("compare", "photo.jpg", "a dog", "--server")
    for words, sentence in (
        ((*compare, "http://127.0.0.1:9"), "no server answers at http://127.0.0.1:9"),
        ((*compare, "ftp://x"), "--server is 'ftp://x'; give an address"),
        ((*compare, url, "--model", "runs/other"), "there is no model 'other' here"),
        (("compare", "gone.jpg", "a", "--server", url), "'gone.jpg' cannot be read"),
        (("compare", "photos/notes.txt", "a", "--server", url), "says: image: "),
        (("embed", "photo.jpg", "--dim", "9999", "--server", url), "dimensions is 9999"),
        (("embed", "photo.jpg", "--output", "int8", "--server", url), "int8 needs the range"),
    ):
        done = cli(*words)
        assert done.code in (1, 2) and sentence in done.err and done.err.count("\n") == 1
    assert cli(*compare, url, "--model", "golden").code == 0


def test_keys(cli: Cli, here: Path, embedder: Embedder) -> None:
    Path("key").write_text("# mine\nsecret\n")
    Path("wrong").write_text("other\n")
    with running(embedder, keys=("secret",)) as (url, _):
        words = ("compare", "photo.jpg", "a dog", "--server", url)
        assert "wants a key" in cli(*words).err
        refused = cli(*words, "--api-key-file", "wrong")
        assert refused.code == 1 and "refuses the key" in refused.err
        assert cli(*words, "--api-key-file", "key").code == 0


def test_a_busy_server_is_asked_again(cli: Cli, here: Path) -> None:
    vector = base64.b64encode(np.ones(4, "<f4").tobytes()).decode()
    answer = {"model": "busy", "data": [{"embedding": vector}]}
    answers = [(429, {"error": {"message": "all places are taken"}})] * 2 + [(200, answer)]

    class Busy(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            status, body = answers.pop(0)
            self.send_response(status)
            self.send_header("Retry-After", "0")
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

        def log_message(self, *_: object) -> None:
            """Nothing is logged."""

    with HTTPServer(("127.0.0.1", 0), Busy) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        done = cli("embed", "--text", "a dog", "--server", url)
        server.shutdown()
    assert done.code == 0 and json.loads(done.out)["vector"] == [1.0] * 4
    assert not answers


def test_a_full_server_and_a_large_image(
    cli: Cli, here: Path, embedder: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "PATIENCE_S", 2.5)
    with running(embedder, max_body=2000) as (url, _):
        Path("large.jpg").write_bytes(Path("photo.jpg").read_bytes() + bytes(3000))
        large = cli("embed", "large.jpg", "--server", url)
        assert large.code == 1 and "the body is larger than 2,000 bytes" in large.err
    with running(embedder, queue=1) as (url, served):
        with embedder._lock:
            held = served.queue.submit([remote_item()])
            full = cli("embed", "--text", "a dog", "--server", url)
            assert full.code == 1 and "1 of 1 places in the queue are taken" in full.err
        held[0].result()


def remote_item() -> Any:
    from abc_embed import Item

    return Item(text="a cat")


def test_neither_torch_nor_numpy_is_imported(here: Path, url: str) -> None:
    code = (
        "import sys; from abc_embed.cli import run; code = run(sys.argv[1:]);"
        "sys.exit(code or bool({'torch', 'transformers', 'numpy'} & set(sys.modules)))"
    )
    for words in (
        ("compare", "photo.jpg", "a dog"),
        ("embed", "photo.jpg", "--text", "a dog"),
        ("search", "nowhere", "a dog"),
    ):
        done = subprocess.run(
            [sys.executable, "-c", code, *words, "--server", url], capture_output=True, text=True
        )
        refused = words[0] == "search"
        assert done.returncode == 1 if refused else done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr
