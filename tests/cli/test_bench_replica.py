"""`abc-embed bench build-replica`: tier R from images and an endpoint, or from records."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_parts import Cli, Done
from vlm_parts import set_environment
from vlm_server import KEY, VlmServer

from abc_embed.bench.ctrlbench.replica import KEYS
from abc_embed.bench.ctrlbench.schema import read_benchmark
from abc_embed.scenes.dataset import write_dataset

Build = Callable[..., Done]
WORDS = ("apple", "bottle", "candle", "drum", "engine")


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    set_environment(monkeypatch)


@pytest.fixture
def build(cli: Cli) -> Build:
    """Runs the command."""
    return lambda *words: cli("bench", "build-replica", *words)


def five(_: object) -> str:
    pairs = zip(KEYS[::2], KEYS[1::2], WORDS, strict=True)
    return json.dumps(
        {
            key: text
            for desc, prompt, word in pairs
            for key, text in ((desc, f"a {word}"), (prompt, f"What stands at place {desc}?"))
        }
    )


def test_from_images(build: Build, here: Path) -> None:
    with VlmServer(five) as server:
        words = ("photos", "--vlm", "small", "--base-url", server.url, "--out", "bench")
        done = build(*words, "--license", "CC0", "--json")
        assert done.code == 0, done.err
        summary = json.loads(done.out)
        assert (summary["images"], summary["captions"], summary["questions"]) == (3, 5, 15)
        assert summary["gate"]["image"] == pytest.approx(0.2)
        benchmark = read_benchmark(here / "bench")
        assert benchmark.content_hash() == summary["content_hash"]
        assert benchmark.card["model"] == "small"
        assert {p.license for p in benchmark.images} == {"CC0"}
        again = build(*words[:-1], "again", "--count", 2, "--json")
        assert json.loads(again.out)["images"] == 2
    assert not [p for p in here.rglob("*") if p.is_file() and KEY.encode() in p.read_bytes()]


def test_a_dry_run_asks_nothing(build: Build, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    words = ("photos", "--vlm", "small", "--base-url", "http://192.0.2.1/v1", "--out", "bench")
    done = build(*words, "--dry-run", "--price-in", 1, "--price-out", 1)
    assert "nothing was asked" in done.out
    assert {p.name for p in here.iterdir()} == {"photo.jpg", "photos"}


def test_stopped_by_the_cost_it_goes_on(build: Build, here: Path) -> None:
    with VlmServer(five) as server:
        words = ["photos", "--vlm", "small", "--base-url", server.url, "--out", "bench"]
        words += ["--price-in", "1", "--price-out", "1", "--concurrency", "1"]
        done = build(*words, "--max-cost", 0.002)
        assert done.code == 1 and "(--max-cost)" in done.error
        sent = len(server.requests)
        assert 0 < sent < 3
        assert build(*words, "--max-cost", 1).code == 0
        assert len(server.requests) == 3
    assert len(read_benchmark(here / "bench").images) == 3


def test_from_records(build: Build, here: Path) -> None:
    write_dataset(here / "scenes", 4, 0, 56)
    done = build("scenes", "--out", "bench", "--leaks")
    assert "from the files alone" in done.out
    assert len(read_benchmark(here / "bench").images) == 4
    chosen = [
        {p.sha256 for p in read_benchmark(here / out).images}
        for out, words in (
            ("two", ()),
            ("again", ()),
            ("other", ("--seed", 2)),
            ("more", ("-n", 9)),
        )
        if build("scenes", "--out", out, "--leaks", "-n", 2, *words).code == 0
    ]
    assert [len(ids) for ids in chosen] == [2, 2, 2, 4]
    assert chosen[0] == chosen[1] != chosen[2]
    done = build("scenes", "--out", "none", "--dry-run")
    assert done.code == 2 and "nobody is asked" in done.error
