"""Instructions: what is asked, what is kept, what is told, and that training can read it."""

import json
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from vlm_server import Fault, Request, VlmServer

from abc_embed.data.records import Record, Region, read_records, write_records
from abc_embed.errors import DataError, EndpointError, OutputError
from abc_embed.train.config import DataConfig
from abc_embed.train.sampler import RecordSampler
from abc_embed.vlm.client import VlmClient
from abc_embed.vlm.instruct import (
    InstructSettings,
    Report,
    planned_requests,
    write_instructions,
)
from abc_embed.vlm.limits import Limits, ReplyCache
from abc_embed.vlm.region_files import read_regions
from abc_embed.vlm.regions import RegionSettings
from abc_embed.vlm.rejects import Rejects
from abc_embed.vlm.writers import (
    PROMPT_SHA256,
    PROMPT_VERSION,
    RETRY_TOKENS,
    VlmWriter,
)

THINGS = ("red hat", "brown dog", "tall tree", "blue car", "wet stone", "old man")
ALL = RegionSettings(drop_largest=0, choose=4)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five images with six regions each, in our records."""
    (tmp_path / "images").mkdir()
    records = []
    for number in range(5):
        Image.new("RGB", (120, 60), (number, 0, 0)).save(tmp_path / f"images/{number}.png")
        rows = tuple(
            Region(phrase=f"a {thing}", box=(20 * i, 0, 15, 20 + i))
            for i, thing in enumerate(THINGS)
        )
        records.append(
            Record(
                id=f"r{number}", image=f"images/{number}.png", width=120, height=60, regions=rows
            )
        )
    write_records(tmp_path / "records.jsonl", records)
    return tmp_path


def number_of(prompt: str) -> int:
    """Which of `THINGS` a request is about."""
    return next(i for i, thing in enumerate(THINGS) if f"caption\n\na {thing}\n" in prompt)


def good(request: Request) -> str:
    """As a perfect model would: different for each region, and no word of the answer."""
    return f"What stands at place number {number_of(request.prompt)}?"


def instruct(
    folder: Path,
    server: VlmServer,
    *,
    cache: ReplyCache | None = None,
    limits: Limits | None = None,
    name: str = "out.jsonl",
    tries: int = 2,
    overwrite: bool = False,
    **job: Any,
) -> Report:
    limits = limits or Limits(concurrency=3, timeout_s=5, retries=1)
    rejects = Rejects()
    with VlmClient(server.url, "small-vlm", cache=cache, limits=limits) as client:
        return write_instructions(
            read_regions(folder, folder, rejects),
            folder / name,
            VlmWriter(client, folder, tries=tries),
            InstructSettings(root=folder, **({"regions": ALL} | job)),
            rejects=rejects,
            overwrite=overwrite,
        )


def rejected(folder: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in (folder / "out.rejects.jsonl").read_text().splitlines()]


def test_what_a_good_model_writes_is_kept(folder: Path) -> None:
    with VlmServer(good) as server:
        report = instruct(folder, server)
    records = list(read_records(folder / "out.jsonl"))
    assert [r.id for r in records] == [f"r{i}" for i in range(5)]
    assert all(len(r.instructions) == len(r.regions) == 4 for r in records)
    for record in records:
        for number, ask in enumerate(record.instructions):
            assert ask.region == number
            assert ask.answer == record.regions[number].phrase
            assert ask.instruction.endswith(f"{THINGS.index(ask.answer[2:])}?")
        assert record.meta["instructed"] == {
            "writer": "small-vlm",
            "prompt": PROMPT_VERSION,
            "prompt_sha256": PROMPT_SHA256,
            "seed": 0,
        }
    assert rejected(folder) == []
    assert (report.written, report.images_written, report.complete) == (20, 5, True)
    assert report.asking["sent"] == 20
    told = json.loads((folder / "out.report.json").read_text())
    assert told["written"] == 20
    assert told["rejects_file"] == "out.rejects.jsonl"
    assert {p.name for p in folder.iterdir()} == {
        *("images", "records.jsonl", "out.jsonl", "out.rejects.jsonl", "out.report.json")
    }


def test_training_reads_it(folder: Path) -> None:
    with VlmServer(good) as server:
        instruct(folder, server)
    source = RecordSampler(folder / "out.jsonl", "instruct", DataConfig(records="out.jsonl"))
    assert len(source) == 5
    (group,) = source.groups(0, 1, seed=0)
    assert len(group.pairs) == 4


def test_what_is_asked(folder: Path) -> None:
    with VlmServer(good) as server:
        instruct(folder, server, limit=1)
    assert len(server.requests) == 4
    for request in server.requests:
        thing = THINGS[number_of(request.prompt)]
        assert request.image == (folder / "images/0.png").read_bytes()
        assert f"any form: {thing.replace(' ', ', ')}." in request.prompt
        assert "reasonable answer" in request.prompt
        others = [t for t in THINGS if f"* a {t}\n" in request.prompt]
        assert len(others) == 3
        assert thing not in others


def test_the_text_of_the_request_is_known_by_its_hash() -> None:
    """Another text makes other data: give it another version, then mend this line."""
    assert (PROMPT_VERSION, PROMPT_SHA256[:16]) == ("region-1", "699a6992229038b0")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty reply"),
        ("Where is the brown dog?", "answer given away"),
        ("Sorry, I cannot help with that.", "refused"),
        ("One?\nTwo?", "several lines"),
        ("Что это такое?", "another script"),
        ("why " * 80, "too short or too long"),
    ],
)
def test_what_cannot_be_used_is_told_and_stops_nothing(
    folder: Path, text: str, reason: str
) -> None:
    def answer(request: Request) -> str:
        return text if number_of(request.prompt) == 1 else good(request)

    with VlmServer(answer) as server:
        report = instruct(folder, server)
    rows = rejected(folder)
    assert 1 <= len(rows) == report.rejected[reason] < 6
    assert {row["reason"] for row in rows} == {reason}
    assert {row["phrase"] for row in rows} == {"a brown dog"}
    assert report.written == 20 - len(rows)
    assert report.tried_again == (0 if reason == "refused" else len(rows))
    if text:
        assert rows[0]["reply" if reason != "refused" else "detail"] == text.strip()


def test_a_second_try_says_what_was_wrong(folder: Path) -> None:
    def answer(request: Request) -> str:
        if "An earlier try" in request.prompt:
            assert "Is it a dog or a hat or a tree or a car or a stone or a man?" in request.prompt
            assert "answer given away: " in request.prompt
            return good(request)
        return "Is it a dog or a hat or a tree or a car or a stone or a man?"

    with VlmServer(answer) as server:
        report = instruct(folder, server, limit=2)
        assert (report.written, report.tried_again) == (8, 8)
        assert len(server.requests) == 16
        with pytest.raises(DataError, match=r"nothing is written: of 2 .*answer given away: 8"):
            instruct(folder, server, limit=2, tries=1)
    once = json.loads((folder / "out.report.json").read_text())
    assert (once["written"], once["rejected"]["answer given away"]) == (0, 8)
    assert once["rejected"]["too few usable prompts"] == 2
    assert len(list(read_records(folder / "out.jsonl"))) == 2  # those of the first run


def test_less_never_replaces_more(folder: Path) -> None:
    """Unless that is asked for; equal and more do, and the cost limit has its own file."""
    out = folder / "out.jsonl"
    with VlmServer(good) as server:
        instruct(folder, server)
        whole = out.read_bytes()
        with pytest.raises(OutputError, match=r"holds 20 .* for 5 .* than the 8 for 2 .*overwrite"):
            instruct(folder, server, limit=2)
        assert out.read_bytes() == whole
        assert len(list(read_records(folder / "out.partial.jsonl"))) == 2
        fewer = {"regions": RegionSettings(drop_largest=0, choose=3)}
        with pytest.raises(OutputError, match=r"than the 15 for 5"):
            instruct(folder, server, **fewer)
        instruct(folder, server)
        assert out.read_bytes() == whole
        instruct(folder, server, limit=2, overwrite=True)
        assert len(list(read_records(out))) == 2
        instruct(folder, server)
        assert out.read_bytes() == whole
    assert not (folder / "out.partial.jsonl").exists()


def test_a_thought_and_json_are_taken_off(folder: Path) -> None:
    def answer(request: Request) -> str:
        return f"<think>a dog?</think>\n{json.dumps({'instruction': good(request)})}"

    with VlmServer(answer) as server:
        report = instruct(folder, server)
        assert (report.written, report.tried_again) == (20, 0)
    for record in read_records(folder / "out.jsonl"):
        assert all("{" not in ask.instruction for ask in record.instructions)


def test_prompts_that_come_twice_in_an_image_are_no_questions(folder: Path) -> None:
    def answer(request: Request) -> str:
        number = number_of(request.prompt)
        return "What is this?" if number < 4 else good(request)

    with VlmServer(answer) as server:
        report = instruct(folder, server)
    counts = Counter(row["reason"] for row in rejected(folder))
    assert counts["repeated in its image"] >= 10
    assert report.written + counts["repeated in its image"] <= 20
    for record in read_records(folder / "out.jsonl"):
        texts = [ask.instruction for ask in record.instructions]
        assert len(set(texts)) == len(texts) >= 2


def test_refusals_and_replies_cut_off_by_the_endpoint(folder: Path) -> None:
    kinds = {0: "refuse", 1: "filter", 2: "cut_off"}

    def when(request: Request, number: int) -> Fault | None:
        kind = kinds.get(number_of(request.prompt))
        return Fault(kind) if kind else None

    with VlmServer(good, when=when) as server:
        report = instruct(folder, server)
    assert report.rejected["refused"] >= 2
    assert report.rejected["reply cut off"] >= 1


def test_a_region_that_gets_no_reply_is_asked_again_next_time(folder: Path) -> None:
    broken = threading.Event()

    def when(request: Request, number: int) -> Fault | None:
        bad = number_of(request.prompt) == 2 and not broken.is_set()
        return Fault("status", 500) if bad else None

    limits = Limits(concurrency=1, timeout_s=5, retries=0)
    with VlmServer(good, when=when) as server, ReplyCache() as cache:
        first = instruct(folder, server, cache=cache, limits=limits)
        failed = first.rejected["endpoint failed"]
        assert failed >= 1
        assert all("HTTP 500" in row["detail"] for row in rejected(folder))
        sent = len(server.requests)
        broken.set()
        second = instruct(folder, server, cache=cache, limits=limits)
        assert (second.written, second.rejected) == (20, {})
        assert len(server.requests) == sent + failed


def test_images_that_cannot_be_used(folder: Path) -> None:
    (folder / "images/1.png").write_bytes(b"no picture")
    (folder / "images/2.png").unlink()
    with VlmServer(good) as server:
        report = instruct(folder, server)
    assert report.images_written == 3
    assert report.rejected == {"image cannot be used": 5, "too few usable prompts": 1}
    assert not [r for r in server.requests if r.image == b"no picture"]


def test_an_endpoint_that_refuses_the_key_leaves_nothing(folder: Path) -> None:
    with VlmServer(good, key="another") as server, pytest.raises(EndpointError, match="check key"):
        instruct(folder, server)
    assert {p.name for p in folder.iterdir()} == {"images", "records.jsonl"}


def test_the_cost_limit_stops_and_a_higher_one_goes_on(folder: Path) -> None:
    def limits(most: float) -> Limits:
        return Limits(
            concurrency=3, timeout_s=5, retries=1, price_in=1000, price_out=1000, max_cost=most
        )

    with VlmServer(good) as server, ReplyCache() as cache:
        first = instruct(folder, server, cache=cache, limits=limits(4.0))
        assert not first.complete
        assert 0 < first.not_asked < 20
        assert first.asking["cost"] <= 4
        assert not (folder / "out.jsonl").exists()
        partial = list(read_records(folder / "out.partial.jsonl"))
        assert len(partial) == first.images_written < 5
        sent = len(server.requests)
        assert sent == 20 - first.not_asked
        second = instruct(folder, server, cache=cache, limits=limits(100))
        assert second.complete
        assert len(server.requests) == 20
        whole = list(read_records(folder / "out.jsonl"))
        assert whole[: len(partial)] == partial
        assert not (folder / "out.partial.jsonl").exists()


def test_equal_replies_make_equal_bytes_whatever_the_order(folder: Path) -> None:
    with VlmServer(good) as server:
        instruct(folder, server, name="one.jsonl")
        server.when = lambda request, number: Fault("slow", seconds=0.01 * (number % 3))
        limits = Limits(concurrency=8, timeout_s=5)
        instruct(folder, server, name="two.jsonl", limits=limits)
    assert (folder / "one.jsonl").read_bytes() == (folder / "two.jsonl").read_bytes()


def test_a_share_of_the_images_is_drawn_by_name(folder: Path) -> None:
    with VlmServer(good) as server:
        whole = instruct(folder, server, fraction=1.0)
        some = instruct(folder, server, fraction=0.5, name="some.jsonl")
    assert 0 < some.images_written < whole.images_written
    drawn = {r.id for r in read_records(folder / "some.jsonl")}
    assert drawn < {r.id for r in read_records(folder / "out.jsonl")}


def test_what_was_there_is_kept_where_it_is_ours(folder: Path) -> None:
    with VlmServer(good) as server:
        instruct(folder, server, trim=False)
    for record in read_records(folder / "out.jsonl"):
        assert len(record.regions) == 6
        assert all(record.regions[a.region or 0].phrase == a.answer for a in record.instructions)


def test_a_dry_run_counts_what_a_run_sends(folder: Path, tmp_path: Path) -> None:
    limits = Limits(price_in=1, price_out=2, requests_per_minute=10)
    path = tmp_path / "replies.sqlite"

    def guess() -> Any:
        rejects = Rejects()
        with (
            ReplyCache(path) as cache,
            VlmClient("http://example.com/v1", "small-vlm", cache=cache, limits=limits) as client,
        ):
            records = read_regions(folder, folder, rejects)
            asks = planned_requests(records, InstructSettings(root=folder, regions=ALL), rejects)
            return client.estimate(asks, 2, RETRY_TOKENS)

    before = guess()
    assert (before.images, before.requests, before.known, before.minutes) == (5, 20, 0, 2.0)
    assert before.most_requests == 40
    assert before.cost == pytest.approx(
        (before.input_tokens + 2 * before.output_tokens) / 1_000_000
    )
    assert before.most_cost > 2 * before.cost
    with VlmServer(good) as server, ReplyCache(path) as cache:
        report = instruct(folder, server, cache=cache)
        assert len(server.requests) == before.requests
        assert report.asking["input_tokens"] <= before.input_tokens
        assert before.example in server.prompts
    after = guess()
    assert (after.requests, after.known, after.input_tokens, after.cost) == (20, 20, 0, 0)
