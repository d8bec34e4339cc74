"""`abc-embed data instruct`, as people type it; killed, it goes on where it was."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from cli_parts import Cli, leftovers
from vlm_parts import set_environment
from vlm_server import KEY, Fault, Request, VlmServer

from abc_embed.cli import STOPPED
from abc_embed.cli.data_instruct import EXAMPLES
from abc_embed.data.records import read_records
from abc_embed.scenes.dataset import write_dataset

CHOICE = ("--drop-largest", 0, "--choose", 2)


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    set_environment(monkeypatch)


@pytest.fixture
def scenes(here: Path) -> Path:
    write_dataset(here / "scenes", 8, 0, 56)
    return here / "scenes"


def place(request: Request) -> str:
    """A prompt of its own for every region, without a word that names a thing."""
    left = request.prompt.partition("It reaches from ")[2].partition(" of its height")[0]
    return f"Say what one would see at {left}!".replace("the picture's width", "it")


def test_own_questions(cli: Cli, scenes: Path) -> None:
    out = scenes / "instruct.jsonl"
    known = {p.name for p in scenes.iterdir()}
    done = cli("data", "instruct", scenes, "--own", *CHOICE, "--out", out)
    assert done.code == 0, done.err
    assert "instructions written" in done.out
    assert 4 <= len(list(read_records(out))) <= 8
    assert leftovers(scenes, known) == {
        *("instruct.jsonl", "instruct.rejects.jsonl", "instruct.report.json")
    }


def test_records_are_not_replaced_by_fewer_or_none(cli: Cli, scenes: Path) -> None:
    out = scenes / "instruct.jsonl"
    words = ("data", "instruct", scenes, "--own", "--out", out)
    assert cli(*words, *CHOICE).code == 0
    before = out.read_bytes()
    done = cli(*words, "--drop-largest", 9)
    assert done.code == 1 and "--overwrite" in done.error
    assert out.read_bytes() == before
    assert not (scenes / "instruct.partial.jsonl").exists()
    assert cli(*words, *CHOICE).code == 0  # as many as before: no question
    assert cli(*words, "--drop-largest", 9, "--overwrite").code == 1  # it wrote nothing
    assert not list(read_records(out))


def test_with_a_model(cli: Cli, scenes: Path) -> None:
    out = scenes / "instruct.jsonl"
    with VlmServer(place) as server:
        words = ["data", "instruct", scenes, "--vlm", "small", "--base-url", server.url, *CHOICE]
        words += ["--out", out, "--json", "--price-in", 1, "--price-out", 2]
        done = cli(*words)
        assert done.code == 0, done.err
        summary = json.loads(done.out)
        assert summary["out"] == str(out)
        assert summary["written"] == 2 * len(list(read_records(out)))
        assert summary["asking"]["cost"] > 0
        sent = len(server.requests)
        again = json.loads(cli(*words).out)
        assert len(server.requests) == sent
        assert (again["asking"]["sent"], again["asking"]["cached"]) == (0, sent)
    assert KEY not in done.out + done.err
    assert not [p for p in scenes.iterdir() if p.is_file() and KEY.encode() in p.read_bytes()]


def test_a_dry_run_needs_no_key_and_leaves_nothing(
    cli: Cli, scenes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    known = {p.name for p in scenes.iterdir()}
    words = ["data", "instruct", scenes, "--vlm", "small", *CHOICE, "--out", scenes / "x.jsonl"]
    done = cli(*words, "--dry-run")
    assert done.code == 0, done.err
    assert "16" in done.out
    assert "unknown; give --price-in" in done.out
    assert "One region of this picture" in done.err
    priced = cli(*words, "--dry-run", "--price-in", 100, "--price-out", 100, "--json")
    assert json.loads(priced.out)["cost"] > 0
    assert not leftovers(scenes, known)
    assert cli(*words).error == "there is no key; set OPENAI_API_KEY to it"


def test_the_cost_limit(cli: Cli, scenes: Path) -> None:
    out = scenes / "instruct.jsonl"
    with VlmServer(place) as server:
        words = ["data", "instruct", scenes, "--vlm", "small", "--base-url", server.url, *CHOICE]
        words += ["--out", out, "--price-in", 1000, "--price-out", 1000, "--concurrency", 1]
        done = cli(*words, "--max-cost", 3)
        assert done.code == 1
        assert "the cost limit of 3 was reached with" in done.error
        assert "instruct.partial.jsonl" in done.out
        assert not out.exists()
        done = cli(*words, "--max-cost", 300)
        assert done.code == 0, done.err
        assert len(server.requests) == len({(r.prompt, r.image) for r in server.requests})
    assert out.exists()


def test_killed_it_goes_on_and_asks_nothing_twice(cli: Cli, scenes: Path) -> None:
    """One request at a time: when the server has the eighth, seven were answered and kept."""
    out = scenes / "instruct.jsonl"
    known = {p.name for p in scenes.iterdir()}
    stuck = 8

    def when(request: Request, number: int) -> Fault | None:
        return Fault("slow", seconds=60) if number == stuck else None

    with VlmServer(place, when=when) as server:
        words = ["data", "instruct", str(scenes), "--vlm", "small", "--base-url", server.url]
        words += [*map(str, CHOICE), "--out", str(out), "--concurrency", "1"]
        command = [sys.executable, "-m", "abc_embed", *words]
        child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        try:
            while len(server.requests) < stuck:
                assert child.poll() is None, child.communicate()[1]
                time.sleep(0.02)
        finally:
            child.kill()
            child.communicate()
        assert child.returncode == -signal.SIGKILL
        assert not out.exists()
        done = cli(*words)
        assert done.code == 0, done.err
        counts = Counter((r.prompt, r.image) for r in server.requests)
    in_flight = server.requests[stuck - 1]
    assert counts.pop((in_flight.prompt, in_flight.image)) == 2
    assert set(counts.values()) == {1}
    assert len(list(read_records(out))) >= 4
    parts = {name for name in leftovers(scenes, known) if name.endswith(".part")}
    assert all(str(child.pid) in name for name in parts)  # of the killed process, and hidden


def test_ctrl_c(scenes: Path) -> None:
    with VlmServer(place, when=lambda request, number: Fault("slow", seconds=0.3)) as server:
        words = ["data", "instruct", str(scenes), "--vlm", "small", "--base-url", server.url]
        words += [*map(str, CHOICE), "--out", str(scenes / "x.jsonl"), "--concurrency", "1"]
        command = [sys.executable, "-m", "abc_embed", *words]
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        while len(server.requests) < 2:
            assert child.poll() is None, child.communicate()[1]
            time.sleep(0.02)
        os.kill(child.pid, signal.SIGINT)
        _, err = child.communicate(timeout=20)
    assert child.returncode == STOPPED
    assert err.decode().strip() == "Stopped."
    assert len(server.requests) <= 3
    assert not (scenes / "x.jsonl").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "say who writes"),
        (("--own", "--vlm", "x"), "say who writes"),
        (("--own", "--dry-run"), "asks nobody"),
        (("--vlm", "x", "--base-url", "nowhere"), "base URL"),
        (("--vlm", " ", "--dry-run"), "--vlm is empty"),
        (("--vlm", "x", "--max-cost", "1"), "needs prices"),
        (("--own", "--out", "scenes/x.txt"), "ends in .jsonl"),
        (("--own", "--out", "scenes/records.jsonl"), "the source itself"),
        (("--own", "--out", "photos/x.jsonl"), "is not above"),
    ],
)
def test_wrong_use(cli: Cli, scenes: Path, words: tuple[str, ...], message: str) -> None:
    base = ("data", "instruct", "scenes", "--out", "scenes/x.jsonl")
    known = {p.name for p in scenes.iterdir()}
    done = cli(*base, *words)
    assert done.code == 2
    assert message in done.error
    assert not leftovers(scenes, known)


def test_an_endpoint_that_is_not_there(cli: Cli, scenes: Path) -> None:
    with VlmServer() as gone:
        pass
    words = ["data", "instruct", scenes, "--vlm", "x", "--base-url", gone.url, *CHOICE]
    done = cli(*words, "--out", scenes / "x.jsonl", "--retries", 0)
    assert done.code == 1
    assert "connection failed" in done.error
    assert not (scenes / "x.jsonl").exists()


def test_a_run_that_writes_nothing_fails_and_says_why(cli: Cli, scenes: Path) -> None:
    out = scenes / "x.jsonl"
    with VlmServer(lambda request: "{}") as server:
        words = ["data", "instruct", scenes, "--vlm", "x", "--base-url", server.url, *CHOICE]
        done = cli(*words, "--out", out)
        assert done.code == 1
        assert "nothing is written: of 8 images" in done.error
        assert "not the form asked for: 16" in done.error
        assert not out.exists() and not (scenes / "x.partial.jsonl").exists()
        assert len((scenes / "x.rejects.jsonl").read_text().splitlines()) == 24
        out.write_text('{"instructions": [1]}\n')
        assert "stays as it was" in cli(*words, "--out", out).error
        assert out.read_text() == '{"instructions": [1]}\n'


def test_a_form_that_is_refused_ends_the_run_at_once(cli: Cli, scenes: Path) -> None:
    with VlmServer(when=lambda request, number: Fault("status", 400)) as server:
        words = ["data", "instruct", scenes, "--vlm", "x", "--base-url", server.url, *CHOICE]
        done = cli(*words, "--out", scenes / "x.jsonl", "--concurrency", 2)
        assert done.code == 1
        assert "HTTP 400: told to fail" in done.error and "--token-field" in done.error
        assert len(server.requests) <= 2
    assert not (scenes / "x.jsonl").exists()


def test_the_examples_work(cli: Cli, here: Path) -> None:
    write_dataset(here / "scenes", 6, 0, 56)
    lines = [line.split()[1:] for line in EXAMPLES.splitlines() if "abc-embed" in line]
    assert len(lines) == 2
    for words in lines:
        done = cli(*words)
        assert done.code == 0, done.err
