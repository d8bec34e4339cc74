"""`abc-embed bench build-replica`: tier R from images and an endpoint, or from records."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result
from vlm_parts import set_environment
from vlm_server import KEY, VlmServer

from abc_embed.bench.ctrlbench.replica import KEYS
from abc_embed.bench.ctrlbench.schema import read_benchmark
from abc_embed.cli.bench_replica import register
from abc_embed.errors import AbcError, CostLimitError, UsageError
from abc_embed.scenes.dataset import write_dataset

Build = Callable[..., Result]
WORDS = ("apple", "bottle", "candle", "drum", "engine")


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    set_environment(monkeypatch)


@pytest.fixture
def build(here: Path) -> Build:
    """Runs the command; an error of ours is raised, as `abc_embed.cli.run` meets it."""
    app = typer.Typer()
    app.callback()(lambda: None)
    register(app)

    def run(*words: object) -> Result:
        done = CliRunner().invoke(app, ["build-replica", *map(str, words)])
        if isinstance(done.exception, AbcError):
            raise done.exception
        assert done.exit_code == 0, done.output
        return done

    return run


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
        told = json.loads(done.stdout)
        assert (told["images"], told["captions"], told["questions"]) == (3, 5, 15)
        assert told["gate"]["image"] == pytest.approx(0.2)
        benchmark = read_benchmark(here / "bench")
        assert benchmark.content_hash() == told["content_hash"]
        assert benchmark.card["model"] == "small"
        assert {p.license for p in benchmark.images} == {"CC0"}
        again = build(*words[:-1], "again", "--count", 2, "--json")
        assert json.loads(again.stdout)["images"] == 2
    assert not [p for p in here.rglob("*") if p.is_file() and KEY.encode() in p.read_bytes()]


def test_a_dry_run_asks_nothing(build: Build, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    words = ("photos", "--vlm", "small", "--base-url", "http://192.0.2.1/v1", "--out", "bench")
    done = build(*words, "--dry-run", "--price-in", 1, "--price-out", 1)
    assert "nothing was asked" in done.stdout
    assert {p.name for p in here.iterdir()} == {"photo.jpg", "photos"}


def test_stopped_by_the_cost_it_goes_on(build: Build, here: Path) -> None:
    with VlmServer(five) as server:
        words = ["photos", "--vlm", "small", "--base-url", server.url, "--out", "bench"]
        words += ["--price-in", "1", "--price-out", "1", "--concurrency", "1"]
        with pytest.raises(CostLimitError, match="--max-cost"):
            build(*words, "--max-cost", 0.002)
        sent = len(server.requests)
        assert 0 < sent < 3
        build(*words, "--max-cost", 1)
        assert len(server.requests) == 3
    assert len(read_benchmark(here / "bench").images) == 3


def test_from_records(build: Build, here: Path) -> None:
    write_dataset(here / "scenes", 4, 0, 56)
    done = build("scenes", "--out", "bench", "--leaks")
    assert "from the files alone" in done.stdout
    assert len(read_benchmark(here / "bench").images) == 4
    with pytest.raises(UsageError, match="nobody is asked"):
        build("scenes", "--out", "other", "--dry-run")
