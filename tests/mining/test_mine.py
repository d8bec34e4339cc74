"""From records to records: resumed, atomic, true in its counts, and read by training as it is."""

import hashlib
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from abc_embed import Item
from abc_embed.bulk import Skipped
from abc_embed.data.records import Record, read_records, write_records
from abc_embed.errors import DataError, InputError
from abc_embed.index.cache import VectorCache
from abc_embed.inputs import open_image
from abc_embed.mining import vectors
from abc_embed.mining.mine import Mined, mine, write_mined
from abc_embed.mining.plan import Settings, plan, read_rows
from abc_embed.mining.sheet import draw_sheet
from abc_embed.train.config import DataConfig
from abc_embed.train.sources import RecordSource


class Hashing:
    """Stands for an embedder: positive unit vectors that follow from the content alone."""

    dim = 8

    def __init__(self, stop_after: int | None = None) -> None:
        self.embedded = 0
        self._stop_after = stop_after

    def embed(self, items: Sequence[Item], **_: Any) -> tuple[np.ndarray, list[Skipped]]:
        made, skipped = [], []
        for index, item in enumerate(items):
            if self.embedded == self._stop_after:
                raise KeyboardInterrupt
            try:
                made.append(self._one(item))
                self.embedded += 1
            except InputError as error:
                skipped.append(Skipped(index, item, error))
        return np.array(made, dtype=np.float32).reshape(-1, self.dim), skipped

    def _one(self, item: Item) -> np.ndarray:
        if item.text == "too long":
            raise InputError("the text is too long")
        data = item.text.encode() if item.text else open_image(item.image).tobytes()
        seed = int.from_bytes(hashlib.sha256(data).digest()[:4], "big")
        vector = np.random.default_rng(seed).random(self.dim)
        return (vector / np.linalg.norm(vector)).astype(np.float32)


def make(folder: Path, count: int = 20, **changes: dict[str, Any]) -> Path:
    """`count` records with images; `changes` by id."""
    (folder / "images").mkdir()
    records = []
    for i in range(count):
        name = f"images/{i}.png"
        Image.new("RGB", (8, 8), (10 * i, 0, 0)).save(folder / name)
        values: dict[str, Any] = {"caption": f"caption {i}", "negatives": ("old",)}
        values |= {"id": f"r{i}", "image": name, "width": 8, "height": 8}
        records.append(Record(**{**values, **changes.get(f"r{i}", {})}))
    write_records(folder / "records.jsonl", records)
    return folder


def run(
    folder: Path, cache: Path | None = None, stand_in: Hashing | None = None, **s: Any
) -> Mined:
    embedder: Any = stand_in or Hashing()
    found = None if cache is None else VectorCache(cache, "model", None)
    try:
        rows = read_rows(folder)
        return mine(rows, embedder, Settings(**s), found, scratch=folder)
    finally:
        if found is not None:
            found.close()


def test_training_reads_them_as_they_are(tmp_path: Path) -> None:
    folder = make(tmp_path)
    mined = run(folder, epsilon=1.0)
    out = folder / "mined.jsonl"
    write_mined(read_rows(folder), mined, out)
    before, after = list(read_records(folder)), list(read_records(out))
    assert [r.id for r in before] == [r.id for r in after]
    drawn = {r.caption: r.negatives for r in after}
    assert any(drawn.values())
    for old, new in zip(before, after, strict=True):
        assert new.caption not in new.negatives
        assert set(new.negatives) <= {r.caption for r in before}
        assert len(set(new.negatives)) == len(new.negatives) <= 7
        assert (new.image, new.width) == (old.image, old.width)
    for group in RecordSource(out, "pretrain", DataConfig(negatives=7)).groups(0, 20, seed=0):
        assert set(group.negatives) == set(drawn[group.asks[0][1]])


@pytest.mark.parametrize("stop_after", [0, 3, 7, 23, 38])
def test_a_killed_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_after: int
) -> None:
    monkeypatch.setattr(vectors, "AT_ONCE", 4)
    folder = make(tmp_path)
    expected = run(folder)
    cache = tmp_path / "cache"
    with pytest.raises(KeyboardInterrupt):
        run(folder, cache, Hashing(stop_after))
    second, third = Hashing(), Hashing()
    mined = run(folder, cache, second)
    assert second.embedded == 40 - stop_after // 4 * 4
    assert mined.negatives == expected.negatives
    assert mined.report.remembered == stop_after // 4 * 4
    assert run(folder, cache, third).negatives == expected.negatives
    assert third.embedded == 0
    assert {p.name for p in folder.iterdir()} == {"records.jsonl", "images", "cache"}


def test_bad_rows_are_named_and_stay_what_they_were(tmp_path: Path) -> None:
    bad = {"r1": {"caption": None}, "r3": {"caption": "too long"}}
    folder = make(tmp_path, **bad)
    (folder / "images/5.png").write_bytes(b"no picture")
    (folder / "images/7.png").unlink()
    mined = run(folder, epsilon=1.0)
    report = mined.report
    assert [name for name, _ in report.bad] == ["r3", "r5", "r7"]
    assert (report.rows, report.without_caption, report.mined) == (20, 1, 16)
    assert set(mined.own) == set(range(20)) - {1, 3, 5, 7}
    write_mined(read_rows(folder), mined, folder / "mined.jsonl")
    after = list(read_records(folder / "mined.jsonl"))
    assert all(after[i].negatives == ("old",) for i in (1, 3, 5, 7))
    assert not any("too long" in record.negatives for record in after)
    # The vectors moved up into the place of bad ones: scores are still those of the right pairs.
    stand_in = Hashing()
    for row, own in mined.own.items():
        image = stand_in._one(Item(image=folder / f"images/{row}.png"))
        assert own == pytest.approx(float(image @ stand_in._one(Item(text=f"caption {row}"))))


def test_equal_images_and_captions(tmp_path: Path) -> None:
    folder = make(tmp_path, 6, r4={"caption": "caption 0"})
    shutil.copy(folder / "images/0.png", folder / "images/3.png")
    mined = run(folder, epsilon=1.0, draw=100)
    texts = read_rows(folder).captions
    assert len(texts) == 5
    for row, others in ((0, {"caption 0", "caption 3"}), (3, {"caption 0", "caption 3"})):
        assert not others & {texts[caption] for caption, _ in mined.negatives[row]}
    assert mined.report.dropped["same image"] == 2
    assert mined.report.dropped["own caption"] == 6


def test_the_report_adds_up(tmp_path: Path) -> None:
    report = run(make(tmp_path), pool=5).report
    assert report.scored == 400 == sum(report.dropped.values()) + report.pooled
    assert report.dropped["beyond the pool"] > 0
    assert report.drawn <= report.pooled <= 100
    assert report.short_draws == 20  # five are fewer than seven
    planned = plan(read_rows(tmp_path), 8, Settings(pool=5))
    assert (planned.rows, planned.captions, planned.scores) == (20, 20, 400)
    assert planned.disk_bytes == 40 * 8 * 4


def test_one_row_has_no_negatives(tmp_path: Path) -> None:
    report = run(make(tmp_path, 1)).report
    assert (report.mined, report.empty, report.drawn, report.median_drawn) == (1, 1, 0, None)


@pytest.mark.parametrize("change", ["caption", "more", "fewer"])
def test_records_that_change_meanwhile(tmp_path: Path, change: str) -> None:
    folder = make(tmp_path)
    rows, mined = read_rows(folder), run(folder)
    records = list(read_records(folder))
    if change == "caption":
        records[4] = Record(id="r4", image="images/4.png", width=8, height=8, caption="another")
    else:
        records = [*records, Record(id="x", image="x.png", width=8, height=8)]
        records = records if change == "more" else records[:10]
    write_records(folder / "records.jsonl", records)
    with pytest.raises(DataError, match="was changed while it was mined"):
        write_mined(rows, mined, folder / "mined.jsonl")
    assert {p.name for p in folder.iterdir()} == {"records.jsonl", "images"}


def test_nothing_to_mine(tmp_path: Path) -> None:
    folder = make(tmp_path, 2, r0={"caption": None}, r1={"caption": "too long"})
    with pytest.raises(DataError, match=r"no row .* can be embedded \(the first: the text is too"):
        run(folder)


def test_the_page_of_examples(tmp_path: Path) -> None:
    folder = make(tmp_path)
    rows, mined = read_rows(folder), run(folder)
    assert draw_sheet(rows, mined, tmp_path / "page.png", 3) == 3
    with Image.open(tmp_path / "page.png") as page:
        colours = {colour for _, colour in page.convert("RGB").getcolors(10**6) or ()}
    assert {(0x1A, 0x7F, 0x37), (0xB4, 0x23, 0x18)} <= colours
    assert {(10 * i, 0, 0) for i in (0, 6, 13)} <= colours
    assert draw_sheet(rows, mined, tmp_path / "page.png", 100) == 20
