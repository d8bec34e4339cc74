"""Tier R: five pairs from one request, or human captions; what is left out is told."""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from vlm_parts import set_environment
from vlm_server import Fault, Request, VlmServer

from abc_embed.bench.ctrlbench.replica import (
    KEYS,
    MAX_TOKENS,
    PROMPT_SHA256,
    PROMPT_VERSION,
    ImagePairs,
    build,
    pairs_from_model,
    pairs_from_records,
    parse_pairs,
    planned_requests,
    sample,
)
from abc_embed.bench.ctrlbench.schema import Benchmark, read_benchmark
from abc_embed.bench.ctrlbench.validate import validate
from abc_embed.data.records import Instruction, Record, read_records
from abc_embed.errors import CostLimitError, DataError, ImageNotFoundError, OutputError
from abc_embed.scenes.dataset import write_dataset
from abc_embed.vlm.client import Reply, VlmClient
from abc_embed.vlm.instruct import InstructSettings, write_instructions
from abc_embed.vlm.limits import Limits, ReplyCache
from abc_embed.vlm.region_files import read_regions
from abc_embed.vlm.regions import RegionSettings
from abc_embed.vlm.rejects import Rejects
from abc_embed.vlm.writers import OwnWriter

WORDS = ("apple", "bottle", "candle", "drum", "engine")


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    set_environment(monkeypatch)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    for number in range(4):
        picture = Image.fromarray(np.full((30, 40, 3), 50 * number, np.uint8))
        picture.save(folder / ("more" if number % 2 else "") / f"{number}.png")
    return folder


def five(number: int, **changed: str) -> dict[str, str]:
    """A reply as it should be, for picture `number`."""
    row = {}
    for i, word in enumerate(WORDS, start=1):
        row[f"desc_{i}"] = f"a {word} of picture{number}"
        row[f"prompt_{i}"] = f"What stands at place {i}?"
    return row | changed


def number_of(request: Request) -> int:
    assert request.image is not None
    return int(np.asarray(Image.open(io.BytesIO(request.image)))[0, 0, 0]) // 50


def good(request: Request) -> str:
    return json.dumps(five(number_of(request)))


def made(
    photos: Path, server: VlmServer, *, leaks: bool = False, **options: Any
) -> tuple[Benchmark, dict[str, int]]:
    options.setdefault("limits", Limits(concurrency=3, timeout_s=5, retries=0))
    out = photos.parent / "bench"
    with VlmClient(server.url, "small", max_tokens=MAX_TOKENS, **options) as client:
        pairs = pairs_from_model(sample(photos, None, 0), photos, client, license="CC0")
        return build(out, pairs, how="test", leaks=leaks, about={"seed": 0})


def rejects(photos: Path) -> list[dict[str, str]]:
    text = (photos.parent / "bench" / "rejects.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def test_the_published_recipe(photos: Path) -> None:
    with VlmServer(good) as server:
        benchmark, left_out = made(photos, server)
    assert left_out == {}
    assert len(server.requests) == len(benchmark.images) == 4
    form = server.requests[0].body["response_format"]["json_schema"]["schema"]
    assert form["required"] == list(KEYS)
    assert all(key in server.prompts[0] for key in KEYS)
    assert [p.source for p in benchmark.images] == ["0.png", "2.png", "more/1.png", "more/3.png"]
    assert {p.license for p in benchmark.images} == {"CC0"}
    texts = {caption.cap_id: caption.text for caption in benchmark.corpus}
    assert len(texts) == len(benchmark.queries) == 20
    for picture in benchmark.images:
        its = [q for q in benchmark.queries if q.image_id == picture.image_id]
        assert len(its) == 5
        for place, query in enumerate(its):
            assert query.tier == "R"
            assert query.instruction == f"What stands at place {place + 1}?"
            assert texts[query.positives[0]].startswith(f"a {WORDS[place]} of picture")
            assert len(query.same_image) == 5
        assert (benchmark.folder / picture.file).read_bytes() == (
            photos / picture.source
        ).read_bytes()
    again = read_benchmark(benchmark.folder)
    assert again.content_hash() == benchmark.content_hash()
    bounds = validate(again, "R")
    assert (bounds["image"], bounds["leaks"]) == (0.2, 0)


def test_the_text_of_the_request_is_known_by_its_hash() -> None:
    """Another text makes another benchmark: give it another version, then mend this line."""
    assert (PROMPT_VERSION, PROMPT_SHA256[:16]) == ("replica-1", "7eba27e303fb9908")


def test_the_same_description_of_two_pictures_is_one_caption(photos: Path) -> None:
    def answer(request: Request) -> str:
        number = number_of(request)
        return json.dumps(five(number, desc_1="A  Red door." if number else "a red door"))

    with VlmServer(answer) as server:
        benchmark, _ = made(photos, server)
    assert len(benchmark.corpus) == 17
    doors = [q.positives for q in benchmark.queries if q.instruction.endswith("place 1?")]
    assert len(doors) == 4
    assert len(set(doors)) == 1


def test_pairs_that_cannot_be_used_are_told(photos: Path) -> None:
    changed = [
        {"prompt_1": "Where is the apple?", "desc_2": " "},
        {"desc_1": "The drum of picture1!"},
        {"prompt_5": "Two\nlines?", "prompt_4": '"Prompt: Who is at place 9?"'},
        {f"prompt_{i}": "What?" for i in range(2, 6)},
    ]

    def answer(request: Request) -> str:
        number = number_of(request)
        return json.dumps(five(number, **changed[number]))

    with VlmServer(answer) as server:
        benchmark, left_out = made(photos, server)
    assert left_out == {
        "repeated in its image": 5,
        "answer given away": 1,
        "phrase says nothing": 1,
        "several lines": 1,
        "too few usable prompts": 1,
    }
    assert benchmark.card["left_out"] == left_out
    assert len(rejects(photos)) == sum(left_out.values())
    assert len(benchmark.images) == 3
    assert "Who is at place 9?" in [q.instruction for q in benchmark.queries]


def test_leaks_can_be_kept_as_published(photos: Path) -> None:
    with VlmServer(lambda r: json.dumps(five(number_of(r), prompt_1="Where is the apple?"))) as s:
        benchmark, left_out = made(photos, s, leaks=True)
    assert left_out == {}
    assert benchmark.card["leaks"] == "kept"
    assert validate(benchmark, "R")["leaks"] == 4


FORMS = ["no JSON", "[]", '{"desc_1": "a"}', json.dumps(five(1, desc_3="x") | {"prompt_2": 3}), ""]


@pytest.mark.parametrize("text", FORMS)
def test_a_reply_of_another_form_is_asked_for_once_more(photos: Path, text: str) -> None:
    def answer(request: Request) -> str:
        bad = number_of(request) == 1 or "earlier reply" not in request.prompt
        return text if bad else good(request)

    with VlmServer(answer) as server:
        benchmark, left_out = made(photos, server)
    assert left_out == {"not the form asked for": 1}
    assert (len(benchmark.images), len(server.requests)) == (3, 8)
    assert rejects(photos)[0]["where"] == "more/1.png"


def test_refusals_faults_and_broken_images(photos: Path) -> None:
    (photos / "0.png").write_bytes(b"no picture")
    kinds = {1: Fault("refuse"), 2: Fault("status", 413)}
    with VlmServer(good, when=lambda r, _: kinds.get(number_of(r))) as server:
        with pytest.raises(DataError, match=r"no image has 2 pairs.*refused"):
            kinds[3] = Fault("cut_off")
            server.answer = lambda r: "{"
            made(photos, server)
        del kinds[3]
        server.answer = good
        benchmark, left_out = made(photos, server)
    assert left_out == {"image cannot be used": 1, "refused": 1, "endpoint failed": 1}
    assert [p.source for p in benchmark.images] == ["more/3.png"]


def test_the_cost_limit_stops_and_a_higher_one_goes_on(photos: Path) -> None:
    def limits(most: float) -> Limits:
        return Limits(concurrency=1, timeout_s=5, price_in=1, price_out=1, max_cost=most)

    with VlmServer(good) as server, ReplyCache() as cache:
        with pytest.raises(CostLimitError):
            made(photos, server, cache=cache, limits=limits(0.002))
        sent = len(server.requests)
        assert 0 < sent < 4
        assert not (photos.parent / "bench" / "card.json").exists()
        benchmark, _ = made(photos, server, cache=cache, limits=limits(1))
        assert (len(server.requests), len(benchmark.images)) == (4, 4)


def test_a_finished_folder_is_not_written_over(photos: Path) -> None:
    with VlmServer(good) as server:
        made(photos, server)
        with pytest.raises(OutputError, match=r"holds card\.json"):
            made(photos, server)


def test_images_are_drawn_by_the_seed(photos: Path) -> None:
    assert len(sample(photos, 3, 0)) == 3
    assert sample(photos, 3, 0) == sample(photos, 3, 0) == sorted(sample(photos, 3, 0))
    assert len({tuple(sample(photos, 2, seed)) for seed in range(20)}) > 2
    assert len(sample(photos, 9, 0)) == 4
    (photos.parent / "empty").mkdir()
    with pytest.raises(DataError, match="has no images"):
        sample(photos.parent / "empty", 1, 0)
    with pytest.raises(ImageNotFoundError):
        sample(photos.parent / "none", 1, 0)


def test_a_dry_run_plans_what_is_sent(photos: Path) -> None:
    (photos / "0.png").write_bytes(b"no picture")
    requests = list(planned_requests(sample(photos, None, 0)))
    assert [request.size for request in requests] == [(40, 30)] * 3
    with VlmServer(good) as server:
        made(photos, server)
    assert server.prompts == [request.prompt for request in requests]


def test_human_captions_with_instructions(tmp_path: Path) -> None:
    """From regions to a benchmark without a network: records, own questions, tier R."""
    write_dataset(tmp_path / "scenes", 12, 0, 56)
    unread = Rejects()
    write_instructions(
        read_regions(tmp_path / "scenes", tmp_path / "scenes", unread),
        tmp_path / "scenes" / "instruct.jsonl",
        OwnWriter(),
        InstructSettings(
            root=tmp_path / "scenes", regions=RegionSettings(drop_largest=0, choose=2)
        ),
        rejects=unread,
    )
    records = list(read_records(tmp_path / "scenes" / "instruct.jsonl"))
    pairs = pairs_from_records(records, tmp_path / "scenes")
    benchmark, left_out = build(tmp_path / "bench", pairs, how="test", about={})
    assert left_out == {}
    assert len(benchmark.images) == len(records)
    assert len(benchmark.queries) == sum(len(r.instructions) for r in records)
    assert validate(benchmark, "R")["image"] <= 0.5
    kinds = {ask.kind for record in records for ask in record.instructions}
    assert {q.aspect for q in benchmark.queries} == kinds


def test_a_record_without_its_image(tmp_path: Path) -> None:
    def records() -> Iterator[Record]:
        asks = tuple(
            Instruction(instruction=f"What is number {i}?", answer=f"a {WORDS[i]}", kind="k")
            for i in range(2)
        )
        for name in ("here", "gone"):
            yield Record(
                id=name, image=f"{name}.png", width=9, height=9, instructions=asks, source="me"
            )

    Image.new("RGB", (9, 9)).save(tmp_path / "here.png")
    pairs = pairs_from_records(records(), tmp_path)
    benchmark, left_out = build(tmp_path / "bench", pairs, how="test", about={})
    assert left_out == {"image cannot be used": 1}
    assert [p.source for p in benchmark.images] == ["me"]


def test_parsing_ignores_what_is_more() -> None:
    text = "```json\n" + json.dumps(five(0) | {"note": "x"}) + "\n```"
    pairs = parse_pairs(Reply(text, "m"))
    assert pairs is not None
    assert pairs[4] == ("a engine of picture0", "What stands at place 5?", "thing")


def test_an_image_without_pairs_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="too few usable prompts: 1"):
        build(tmp_path / "bench", [ImagePairs("x", ".png", "s", "l")], how="test", about={})
