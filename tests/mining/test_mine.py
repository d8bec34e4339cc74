"""From a data set to negatives: resumed, true in its counts, and read by training as it is."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from mining_parts import (
    Hashing,
    load,
    load_and_die,
    load_nothing,
    make,
    run,
    sampled,
)
from PIL import Image

from abc_embed import Item
from abc_embed.data.records import Record, read_records, write_records
from abc_embed.errors import DataError, InputError, OutOfMemoryError, UsageError
from abc_embed.mining import plan, shards
from abc_embed.mining.corpus import read_corpus
from abc_embed.mining.mine import MiningRun
from abc_embed.mining.output import draw_sheet, write_mined, write_rejects
from abc_embed.mining.plan import plan_mining
from abc_embed.mining.report import draw_report
from abc_embed.mining.search import blocks_on
from abc_embed.mining.settings import Method, MiningSettings, Strategy
from abc_embed.mining.shards import EmbedderSetup
from abc_embed.train.config import DataConfig
from abc_embed.train.sampler import RecordSampler


def test_training_reads_the_records_as_they_are(tmp_path: Path) -> None:
    folder = make(tmp_path)
    out = folder / "mined.jsonl"
    write_mined(run(folder, epsilon=1.0), out)
    before, after = list(read_records(folder)), list(read_records(out))
    assert [r.id for r in before] == [r.id for r in after]
    negatives = {r.caption: r.negatives for r in after}
    assert any(negatives.values())
    for old, new in zip(before, after, strict=True):
        assert new.caption not in new.negatives
        assert set(new.negatives) <= {r.caption for r in before}
        assert len(set(new.negatives)) == len(new.negatives) <= 7
        assert (new.image, new.width) == (old.image, old.width)
    for group in RecordSampler(out, "pretrain", DataConfig(negatives=7)).groups(0, 20, seed=0):
        assert set(group.negatives) == set(negatives[group.pairs[0][1]])


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four items in a shard."""
    monkeypatch.setattr(shards, "SHARD", 4)


TIGHT = 90_000
"""Blocks of a few queries, and of fewer captions than there are."""


class Wide(Hashing):
    """Of whose vectors few fit into little memory."""

    dim = 64


@pytest.mark.parametrize("stop_after", [0, 3, 7, 23, 38])
def test_a_stopped_run_goes_on(tmp_path: Path, small_shards: None, stop_after: int) -> None:
    folder = make(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        run(folder, Hashing(stop_after))
    second, third = Hashing(), Hashing()
    mined = run(folder, second)
    assert second.embedded == 40 - stop_after // 4 * 4
    assert mined.report.remembered == stop_after // 4 * 4
    assert sampled(run(folder, third)) == sampled(mined)
    assert third.embedded == 0
    shutil.rmtree(folder / "work")
    assert sampled(run(folder)) == sampled(mined)


@pytest.mark.parametrize("stop_at", [1, 2, 3, 4, 6, 7])
def test_a_stopped_search_goes_on(tmp_path: Path, stop_at: int) -> None:
    """As a kill after any block of candidates."""
    folder = make(tmp_path, 200)
    expected = sampled(run(folder, Wide(), pool=5))
    shutil.rmtree(folder / "work/pools")
    tight = MiningSettings(pool=5, memory_bytes=TIGHT)
    blocks = blocks_on(torch.device("cpu"), 1, Wide.dim, tight)
    blocks_of_captions = -(-200 // blocks.candidates)
    assert blocks_of_captions > 1
    calls = 0

    def stop(stage: str, done: int, total: int) -> None:
        nonlocal calls
        calls += stage == "searching"
        if calls == stop_at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(folder, Wide(), pool=5, memory_bytes=TIGHT, on_progress=stop)
    # Another method and another memory: the pools are the same, so those of before are used.
    mined = run(folder, Wide(), pool=5, method=Method.PLAIN)
    done = (stop_at - 1) // blocks_of_captions * blocks.queries
    assert mined.report.searched_before == done < 200
    assert mined.report.mined == 200
    assert sampled(mined) == expected
    assert run(folder, Wide(), pool=5, sample_size=3, seed=1).report.searched_before == 200
    assert run(folder, Wide(), pool=5, epsilon=0.5).report.searched_before == 0


def test_another_draw_needs_no_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run(make(tmp_path)).report
    monkeypatch.setattr("abc_embed.mining.mine.search", lambda *_, **__: pytest.fail("searched"))
    again = run(tmp_path, seed=1, sample_size=2, strategy=Strategy.BINS).report
    assert 0 < again.drawn < first.drawn
    assert (again.recall, again.recall_rows) == (first.recall, 20)


def test_only_new_rows_are_embedded(tmp_path: Path, small_shards: None) -> None:
    folder = make(tmp_path)
    run(folder)
    records = list(read_records(folder))
    more = Record(id="x", image="images/0.png", width=8, height=8, caption="another")
    write_records(folder / "records.jsonl", [*records, more])
    model = Hashing()
    assert run(folder, model).report.mined == 21
    assert model.embedded == 2  # a caption and an image, each in a new last shard
    Image.new("RGB", (8, 8), (1, 2, 3)).save(folder / "images/5.png")
    run(folder, model)
    assert model.embedded == 2 + 4  # one shard of images


def test_several_processes(tmp_path: Path, small_shards: None) -> None:
    folder = make(tmp_path, r3={"caption": "too long"})
    expected = run(folder)
    shutil.rmtree(folder / "work")
    local = Hashing()
    mined = run(folder, local, processes=2)
    assert local.embedded == 0
    assert sampled(mined) == sampled(expected)
    assert mined.report.bad == expected.report.bad


@pytest.mark.parametrize(
    ("loading", "error", "says"),
    [
        (load_and_die, OutOfMemoryError, "exit code -9.*fewer --processes"),
        (load_nothing, InputError, "the model is gone"),
    ],
)
def test_a_process_that_fails(
    tmp_path: Path, small_shards: None, loading: object, error: type[Exception], says: str
) -> None:
    corpus = read_corpus(make(tmp_path))
    setup = EmbedderSetup(Hashing(), loading)  # type: ignore[arg-type]
    work, settings = tmp_path / "work", MiningSettings()
    with pytest.raises(error, match=says):
        MiningRun(corpus, setup, settings, work).mine(processes=2)
    with pytest.raises(UsageError, match="processes is 2"):
        MiningRun(corpus, EmbedderSetup(Hashing()), settings, work).mine(processes=2)
    run_here = MiningRun(corpus, EmbedderSetup(Hashing(), load), settings, work)
    assert run_here.mine().report.mined == 20


def test_bad_rows_are_counted_named_and_kept(tmp_path: Path) -> None:
    bad = {"r1": {"caption": None}, "r3": {"caption": "too long"}}
    folder = make(tmp_path, **bad)
    (folder / "images/5.png").write_bytes(b"no picture")
    (folder / "images/7.png").unlink()
    with (folder / "records.jsonl").open("a") as file:
        file.write('{"id": "r20"}\n')
        file.write((folder / "records.jsonl").read_text().splitlines()[0] + "\n")
    mined = run(folder, epsilon=1.0)
    report = mined.report
    assert [row for row, *_ in report.bad] == [3, 5, 7, 20, 21]
    assert (report.rows, report.without_caption, report.mined) == (22, 1, 16)
    assert set(sampled(mined)) == set(range(20)) - {1, 3, 5, 7}
    out = folder / "mined.jsonl"
    write_mined(mined, out)
    after = list(read_records(out))
    assert [r.id for r in after] == [f"r{i}" for i in range(20)]
    assert all(after[i].negatives == ("old",) for i in (1, 3, 5, 7))
    assert not any("too long" in record.negatives for record in after)
    rejects = write_rejects(mined, out)
    assert rejects == folder / "mined.rejects.jsonl"
    lines = [json.loads(line) for line in rejects.read_text().splitlines()]
    assert [line["row"] for line in lines] == [3, 5, 7, 20, 21]
    assert lines[3]["place"].endswith("records.jsonl:21")
    assert "comes twice" in lines[4]["why"]
    # Bad ones are out of the way of the others: scores are still those of the right pairs.
    stand_in = Hashing()
    for one in mined.negatives():
        image = stand_in.one(Item(image=folder / f"images/{one.row}.png"))
        expected = float(image @ stand_in.one(Item(text=f"caption {one.row}")))
        assert one.own == pytest.approx(expected)
    shutil.rmtree(folder / "work")
    (folder / "records.jsonl").unlink()
    shutil.rmtree(folder / "images")
    assert write_rejects(run(make(folder)), out) is None
    assert not rejects.exists()


def test_a_shard_of_bad_items_alone(tmp_path: Path, small_shards: None) -> None:
    bad = {f"r{row}": {"caption": f"{row} is too long"} for row in range(4, 8)}
    report = run(make(tmp_path, **bad)).report
    assert [row for row, *_ in report.bad] == [4, 5, 6, 7]
    assert report.mined == 16


def test_equal_images_and_captions(tmp_path: Path) -> None:
    folder = make(tmp_path, 6, r4={"caption": "caption 0"})
    shutil.copy(folder / "images/0.png", folder / "images/3.png")
    mined = run(folder, epsilon=1.0, sample_size=100)
    texts = mined.corpus.captions
    assert len(texts) == 5
    for row in (0, 3):
        found = {texts[caption] for caption in sampled(mined)[row]}
        assert not found & {"caption 0", "caption 3"}
    assert mined.report.dropped["same image"] == 2
    assert mined.report.dropped["own caption"] == 6


def test_no_caption_of_an_image_is_its_negative(tmp_path: Path) -> None:
    folder = make(
        tmp_path,
        6,
        r1={"captions": ("caption 1", "caption 4", "another"), "caption": "caption 1"},
        r2={"captions": ("caption 2", "caption 3"), "caption": "caption 2"},
    )
    mined = run(folder, epsilon=1.0, sample_size=100)
    texts = mined.corpus.captions
    assert texts == [f"caption {i}" for i in range(6)]  # of each row the first
    found = {row: {texts[c] for c in captions} for row, captions in sampled(mined).items()}
    assert not found[1] & {"caption 1", "caption 4"}
    assert not found[2] & {"caption 2", "caption 3"}
    assert mined.report.dropped["same image"] == 2


def test_the_report_adds_up(tmp_path: Path) -> None:
    report = run(make(tmp_path), pool=5).report
    assert report.scored == 400 == sum(report.dropped.values()) + report.pooled
    assert report.dropped["beyond the pool"] > 0
    assert report.drawn <= report.pooled <= 100
    assert report.short_draws == 20  # five are fewer than seven
    assert sum(report.own_scores.counts) == sum(report.own_ranks) == 20
    assert sum(report.pool_scores.counts) == report.pooled
    assert report.recall == 1.0 and report.recall_rows == 20
    values = report.as_json()
    assert json.loads(json.dumps(values)) == values
    draw_report(report, tmp_path / "report.png")
    with Image.open(tmp_path / "report.png") as page:
        colours = {colour for _, colour in page.getcolors(10**6) or ()}
    assert {(0x1A, 0x7F, 0x37), (0xB4, 0x23, 0x18), (0x2F, 0x6C, 0xA8)} <= colours


def test_the_rank_of_the_own_caption(tmp_path: Path) -> None:
    mined = run(make(tmp_path))
    model = Hashing()
    texts = np.stack([model.one(Item(text=f"caption {i}")) for i in range(20)])
    images = np.stack([model.one(Item(image=tmp_path / f"images/{i}.png")) for i in range(20)])
    scores = images @ texts.T
    ranks = 1 + (scores > scores.diagonal()[:, None]).sum(axis=1)
    expected = [((ranks >= a) & (ranks < b)).sum() for a, b in ((1, 2), (2, 3), (3, 6), (6, 11))]
    assert mined.report.own_ranks[:4].tolist() == expected


def test_one_row_has_no_negatives(tmp_path: Path) -> None:
    report = run(make(tmp_path, 1)).report
    assert (report.mined, report.empty, report.drawn) == (1, 1, 0)
    assert report.drawn_scores.median is None


def test_float16_takes_half_and_moves_scores_little(tmp_path: Path) -> None:
    folder = make(tmp_path)
    whole, half = run(folder, sample_size=100), run(folder, sample_size=100, store="float16")
    for one, other in zip(whole.negatives(), half.negatives(), strict=True):
        assert one.own == pytest.approx(other.own, abs=1e-3)
        assert one.own != other.own
    sizes = {path.parent.name[-7:]: path.stat().st_size for path in folder.rglob("*.npy")}
    assert sizes["float16"] - 128 == (sizes["float32"] - 128) / 2
    with pytest.raises(UsageError, match="the store is 'int8'"):
        MiningSettings(store="int8")


def test_vectors_that_were_damaged(tmp_path: Path) -> None:
    folder = make(tmp_path)
    run(folder)
    shutil.rmtree(folder / "work/pools")
    (path, *_) = (folder / "work").rglob("*.npy")
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(DataError, match=r"\.npy cannot be read \(.*\); delete the file"):
        run(folder)
    vectors = np.load(shutil.copy(next(p for p in folder.rglob("*.npy") if p != path), path))
    vectors[2, 1] = np.nan
    np.save(path, vectors)
    with pytest.raises(DataError, match="2 is not finite"):
        run(folder)


@pytest.mark.parametrize("change", ["caption", "fewer"])
def test_records_that_change_meanwhile(tmp_path: Path, change: str) -> None:
    folder = make(tmp_path)
    mined = run(folder)
    records = list(read_records(folder))
    if change == "caption":
        records[4] = Record(id="r4", image="images/4.png", width=8, height=8, caption="another")
    write_records(folder / "records.jsonl", records if change == "caption" else records[:10])
    with pytest.raises(DataError, match="was changed while it was mined"):
        write_mined(mined, folder / "mined.jsonl")
    assert not (folder / "mined.jsonl").exists()


def test_nothing_to_mine(tmp_path: Path) -> None:
    folder = make(tmp_path, 2, r0={"caption": None}, r1={"caption": "too long"})
    with pytest.raises(DataError, match=r"no row .* can be embedded \(the first: the text is too"):
        run(folder)
    write_records(folder / "records.jsonl", list(read_records(folder))[:1])
    with pytest.raises(DataError, match="has a caption"):
        run(folder)


def test_the_page_of_examples(tmp_path: Path) -> None:
    mined = run(make(tmp_path))
    assert draw_sheet(mined, tmp_path / "page.png", 3) == 3
    with Image.open(tmp_path / "page.png") as page:
        colours = {colour for _, colour in page.convert("RGB").getcolors(10**6) or ()}
    assert {(0x1A, 0x7F, 0x37), (0xB4, 0x23, 0x18)} <= colours
    assert {(10 * i, 0, i) for i in (0, 6, 13)} <= colours
    assert draw_sheet(mined, tmp_path / "page.png", 100) == 20


@pytest.mark.parametrize("memory", [10**9, 10**7])
def test_the_plan_counts_what_a_search_does(monkeypatch: pytest.MonkeyPatch, memory: int) -> None:
    """Captions are read once a pass; an image costs a little for each, more for what enters."""
    clock, read_s, exact_s, entry_s, pair_s = 0.0, 3e-4, 5e-2, 1e-5, 1e-6

    def image_s(captions: int, pool: int) -> float:
        return captions * pair_s + entry_s * pool * (1 + np.log(captions / pool))

    def search(
        images: np.ndarray, texts: np.ndarray, truth: object, settings: MiningSettings
    ) -> list[None]:
        nonlocal clock
        if settings.method is Method.PLAIN:  # the sample that recall is measured on
            clock += exact_s * len(texts)
        else:
            clock += read_s * len(texts) + len(images) * image_s(len(texts), settings.pool)
        return []

    monkeypatch.setattr(plan, "search", search)
    monkeypatch.setattr(plan.time, "perf_counter", lambda: clock)
    settings = MiningSettings(memory_bytes=memory, devices=("cpu",))
    found = plan_mining(50_000, 700_000, 10, settings)
    blocks = -(-700_000 // found.candidates_at_once)
    assert found.passes == (1 if blocks == 1 else -(-50_000 // found.queries_at_once))
    assert (blocks > 1) == (memory < 10**9)
    expected = 700_000 * (read_s * found.passes + exact_s) + 50_000 * image_s(700_000, 100)
    assert found.search_s == pytest.approx(expected, rel=0.01)


def test_the_plan_of_the_published_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("abc_embed.mining.plan.PROBED_BYTES", 8 << 20)
    settings = MiningSettings(store="float16", memory_bytes=4 * 10**9)
    found = plan_mining(2_250_000, 2_250_000, 3584, settings)
    assert found.vector_bytes == 2 * 2_250_000 * 3584 * 2
    assert found.scores == 2_250_000**2
    assert found.candidates_at_once * 3584 * 4 < 2 * 10**9
    assert found.passes == -(-2_250_000 // found.queries_at_once)
    assert found.search_s > 3600
    for method in (Method.PLAIN, Method.IVF):
        other = replace(settings, method=method)
        less = plan_mining(100_000, 100_000, 64, other)
        assert less.method == method.value and 0 < less.search_s < found.search_s
    small = plan_mining(20, 20, 8, MiningSettings(pool=5))
    assert (small.rows, small.scores, small.vector_bytes, small.passes) == (20, 400, 1280, 1)
    assert small.devices == ["cpu"]
